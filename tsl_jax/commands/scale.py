"""`tsl scale`: scaling laws of many runs, from a table of them to the next run and the use of a budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    import pandas as pd

    from tsl_jax.scaling import Ladder

Action = Literal["fit", "predict", "allocate", "design", "simulate"]
GRID = 12  # candidates of a design, each way


@dataclass(frozen=True)
class ScaleCommand:
    """Scaling laws: fit one to a table of runs, predict a run, allocate compute, choose the next runs, simulate a run.

    tsl scale fit runs.csv | tsl scale predict runs.csv --at n_params=7e10 tokens=1.4e12
    tsl scale allocate --flops 1e21 | tsl scale design runs.csv --at n_params=7e9 tokens=1.4e11 --flops 1e20
    tsl scale simulate --at n_params=1e9 tokens=2e10 batch_tokens=5e5
    """

    action: tyro.conf.Positional[Action]
    """fit: parameters with intervals, the largest runs held out. predict: the loss at --at. allocate: the best size,
    data and batch for --flops. design: the runs to train next for --flops, to know the loss at --at best. simulate: the
    loss curve of the run --at."""
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Tables (CSV, Parquet, JSONL) with a row a run: n_params, tokens, loss and what else the law reads; or folders of
    runs. allocate and simulate take the papers' constants without any."""
    law: Literal["chinchilla", "kaplan_n", "kaplan_d", "kaplan_c", "kaplan_c_min", "kaplan_nd", "kaplan_ns", ""] = ""
    """Default chinchilla; for simulate without runs kaplan_ns; allocate without runs compares the papers'."""
    columns: tuple[str, ...] = ()
    """NAME=COLUMN, where a table has another name for it: tokens='tokens seen'."""
    critical: tuple[str, ...] = ()
    """B_star=NUMBER alpha_B=NUMBER of the critical batch, for laws of the least steps or compute (kaplan_ns,
    kaplan_c_min) and their allocation; default the paper's, which belong to its text."""
    split: str = ""
    """Of run folders; default the first."""
    checkpoints: bool = False
    """Of run folders, every checkpoint in place of the last: for runs at a constant rate, where each is an end."""
    by_position: bool = False
    """predict, from run folders of three sizes or more: the loss of every position, with its parts of the context, by
    one law of size, time and schedule (here a constant rate), in place of --law."""
    at: tuple[str, ...] = ()
    """NAME=NUMBER of the run that is asked for: n_params=7e9 tokens=1.4e11 batch_tokens=2e6."""
    flops: float = 0.0
    """allocate: of the whole run, and of inference where there is some. design: of the runs to train."""
    inference_tokens: float = 0.0
    """allocate: tokens that the trained model will read; a smaller model is then trained for longer."""
    loss: Literal["log_huber", "log", "huber", "squares"] = "log_huber"
    """What is minimised over runs, summed."""
    delta: float = 1e-3
    """Where Huber's loss turns linear."""
    resamples: int = 100
    """Of groups of runs, for the intervals."""
    group: str = ""
    """Column whose values are resampled; default run, else n_params."""
    held_out: int = 1
    """How many of the largest sizes are left out for the score."""
    seed: int = 0
    peak_flops: float = 989e12
    """FLOP/s of a device, for hours; default an H100 in bfloat16."""
    utilisation: float = 0.4
    """Share of the peak that is reached."""
    out: Path | None = None
    """CSV of the table that is printed."""


def run_scale(command: ScaleCommand) -> None:
    """Run one action and print its table."""
    actions = {"fit": _fit, "predict": _predict, "allocate": _allocate, "design": _design, "simulate": _simulate}
    table = actions[command.action](command)
    if command.out is not None:
        from tsl_jax.atomic_write import write_atomically

        write_atomically(command.out, table.to_csv(float_format="%.8g"))
        print(f"table: {command.out}")


def _fit(command: ScaleCommand) -> pd.DataFrame:
    ladder = _ladder(command)
    print(ladder.report())
    return ladder.interval()


def _predict(command: ScaleCommand) -> pd.DataFrame:
    if command.by_position:
        return _predict_by_position(command)
    ladder = _ladder(command)
    table = ladder.predict(_numbers(command.at, ladder.law.covariates))
    print(ladder.report(), "", table.to_string(index=False, float_format="{:.5g}".format), sep="\n")
    beyond = float(table.beyond.max())
    print("within the range of the runs" if beyond <= 1 else f"extrapolated {beyond:.3g} times beyond the largest run")
    return table


def _predict_by_position(command: ScaleCommand) -> pd.DataFrame:
    """The loss of every position of a run of another size."""
    import pandas as pd

    from tsl_jax import load_surface
    from tsl_jax.forecasting import fit_size_ladder

    if not command.runs:
        raise ValueError("scale: --by-position reads folders of runs or surface files, three sizes or more")
    run = _numbers(command.at, ("n_params", "tokens"))
    surfaces = [load_surface(path) for path in command.runs]
    ladder = fit_size_ladder(surfaces, command.split, command.resamples, command.seed)
    predicted = ladder.predict(run["n_params"], [run["tokens"]]).isel(tokens=0)
    sizes = ladder.rows.n_params
    print(f"{len(surfaces)} runs of {sizes.nunique()} sizes, {sizes.min():.3g} to {sizes.max():.3g} parameters")
    mean, low, high = (float(predicted[name]) for name in ("mean", "mean_low", "mean_high"))
    print(f"mean loss {mean:.4f} [{low:.4f}, {high:.4f}] at {run['tokens']:.3g} tokens, a constant rate assumed")
    count = predicted.sizes["position"]
    for k, name in enumerate(("head", "middle", "tail")):
        part = predicted.loss.isel(position=slice(k * count // 3, (k + 1) * count // 3))
        print(f"  {name}: {float(part.mean()):.4f}")
    beyond = predicted.attrs["beyond"]
    print("within the range of the runs" if beyond <= 1 else f"extrapolated {beyond:.3g} times beyond the largest run")
    columns = {name: predicted[name].values for name in ("loss", "low", "high")}
    return pd.DataFrame(columns, index=pd.Index(predicted.position.values, name="position"))


def _allocate(command: ScaleCommand) -> pd.DataFrame:
    import pandas as pd

    from tsl_jax import laws
    from tsl_jax.scaling import allocate
    from tsl_jax.scaling.accounting import gpu_hours

    if not command.flops > 0:
        raise ValueError("scale: allocate needs the budget, --flops 1e21")
    hours = float(gpu_hours(command.flops, command.peak_flops, command.utilisation))
    later: dict[str, Any] = {"inference_tokens": command.inference_tokens, "critical": _critical(command)}
    if command.runs:
        ladder = _ladder(command)
        print(ladder.report(), "", sep="\n")
        constants = {str(name): float(value) for name, value in ladder.fit.params.to_series().items()}
        made = [allocate(command.flops, ladder.law, constants, ladder.params, **later)]
    else:
        law = laws.BY_NAME[command.law or "chinchilla"]
        made = [allocate(command.flops, law, **later)]
        if not command.law and not command.inference_tokens:
            made.append(allocate(command.flops, laws.KAPLAN_NS, critical=_critical(command)))
        print(
            "by the papers' constants, of their text, tokenizer and schedules; fit your own runs for yours",
            "",
            sep="\n",
        )
    for allocation in made:
        print(allocation, "", sep="\n")
    print(f"{hours:,.0f} hours of a device of {command.peak_flops:.3g} FLOP/s at {command.utilisation:.0%} of it")
    return pd.concat({allocation.law: allocation.table for allocation in made}, names=["law", "quantity"])


def _design(command: ScaleCommand) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    from tsl_jax.scaling import next_runs

    ladder = _ladder(command)
    if set(ladder.law.covariates) != {"n_params", "tokens"}:
        raise ValueError(f"scale: design takes a law over n_params and tokens, found {ladder.law.name}")
    if not command.flops > 0:
        raise ValueError("scale: design needs the budget of the new runs, --flops 1e20")
    target = _numbers(command.at, ladder.law.covariates)
    # from the smallest run of the ladder to what the budget allows, at 2.5 to 320 tokens a parameter
    smallest, largest = float(ladder.runs.n_params.min()), float(np.sqrt(command.flops / 15))
    if largest < smallest:
        least = 15 * smallest**2
        raise ValueError(
            f"scale: the smallest size, {smallest:.3g}, takes {least:.3g} FLOPs, found {command.flops:.3g}"
        )
    sizes = np.geomspace(smallest, largest, GRID)
    grid = pd.DataFrame(
        [(n, n * ratio) for n in sizes for ratio in np.geomspace(2.5, 320, 8)], columns=["n_params", "tokens"]
    )
    table = next_runs(ladder, target, grid.assign(flops=6 * grid.n_params * grid.tokens), command.flops)
    print(ladder.report(), "", table.to_string(index=False, float_format="{:.4g}".format), sep="\n")
    now, then = table.attrs["sd_now"], table.sd.iloc[-1]
    print(f"sd of log loss at the target: {now:.3g} now, {then:.3g} with these {len(table)} runs (if the law is right)")
    return table


def _simulate(command: ScaleCommand) -> pd.DataFrame:
    from tsl_jax import laws
    from tsl_jax.scaling import simulate

    run = _numbers(command.at, ("n_params", "tokens", "batch_tokens"))
    law, params = laws.BY_NAME[command.law or "kaplan_ns"], None
    if command.runs:
        ladder = _ladder(command)
        law = ladder.law
        params = {str(name): float(value) for name, value in ladder.fit.params.to_series().items()}
    table = simulate(run["n_params"], run["tokens"], run["batch_tokens"], law, params, _critical(command))
    print(table.iloc[:: max(len(table) // 16, 1)].to_string(index=False, float_format="{:.4g}".format))
    end = table.iloc[-1]
    print(f"the end: {end.loss:.4f} nats after {end.steps:,.0f} steps, {end.flops:.3g} FLOPs")
    if not command.runs:
        print("by the paper's constants, of its text and tokenizer: the form carries over, the level does not")
    return table


def _ladder(command: ScaleCommand) -> Ladder:
    """The law fitted to the runs of the command."""
    from tsl_jax import laws
    from tsl_jax.scaling import fit_ladder, read_runs, with_minimal

    if not command.runs:
        raise ValueError(f"scale: {command.action} needs runs, a table or folders; see tsl scale --help")
    named = {name: column for name, _, column in (entry.partition("=") for entry in command.columns)}
    if not all(named.values()):
        raise ValueError(f"scale: --columns are NAME=COLUMN, found {' '.join(command.columns)}")
    runs = read_runs(command.runs, named, command.split, command.checkpoints)
    if "n_params_is" in runs:
        counted = int(runs.dropna(subset="n_params_is").run.nunique())
        which = "1 run counts" if counted == 1 else f"{counted} runs count"
        print(f"warning: n_params of {which} embeddings, which spoils the trend; import the log with --n-params N")
    law = laws.BY_NAME[command.law or "chinchilla"]
    if {"steps_min", "pf_days_min"} & set(law.covariates) - set(runs):
        critical = _critical(command)
        runs = with_minimal(runs, critical)
        print(
            ""
            if critical
            else "least steps and compute by the paper's critical batch; --critical gives that of your text"
        )
    options = {"group": command.group, "resamples": command.resamples, "held_out": command.held_out}
    return fit_ladder(law, runs, command.loss, command.delta, seed=command.seed, **options)


def _critical(command: ScaleCommand) -> dict[str, float] | None:
    """The constants of the critical batch, where they are given."""
    return _numbers(command.critical, ("B_star", "alpha_B"), "--critical") if command.critical else None


def _numbers(entries: tuple[str, ...], names: tuple[str, ...], option: str = "--at") -> dict[str, float]:
    """NAME=NUMBER entries, all of `names` and no other.

    Raises:
        ValueError: for missing or unknown names, and what is no positive number.
    """
    values: dict[str, float] = {}
    for entry in entries:
        name, _, text = entry.partition("=")
        try:
            values[name] = float(text)
        except ValueError:
            raise ValueError(f"scale: {option} takes NAME=NUMBER, found {entry!r}") from None
        if not 0 < values[name] < float("inf"):
            raise ValueError(f"scale: {option} takes positive numbers, found {entry!r}")
    if set(values) != set(names):
        wanted = " ".join(f"{name}=NUMBER" for name in names)
        raise ValueError(f"scale: {option} needs {wanted}, found {' '.join(entries) or 'nothing'}")
    return values
