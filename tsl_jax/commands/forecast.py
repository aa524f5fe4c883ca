"""`tsl forecast RUN`: where will the loss of this run end, and where under another plan?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    import xarray as xr

    from tsl_jax.laws import Schedule


LATEST = 10**18  # tokens
STOPS = 20  # token counts on the way of a forecast that is registered


@dataclass(frozen=True)
class ForecastCommand:
    """Forecast the loss at the end of the plan (or at --at) from the checkpoints so far."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, finished or not, or the .npz file of a surface."""
    cutoff: float = 1.0
    """Share of the planned tokens after which checkpoints are not looked at."""
    at: tuple[int, ...] = ()
    """Tokens seen at which to forecast, beyond the last checkpoint; without it the end of the plan."""
    until_loss: float = 0.0
    """A loss in nats: when it will be reached, in tokens and steps with intervals, or the chance that it is not by the
    end of the plan (or by --at). Nothing else is done."""
    siblings: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN_OR_FILE ...")] = ()
    """Other runs to learn from: of another size, seed or schedule, on the same kind of text. They are used whole."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Methods to forecast by, or all, which takes a minute; without it the one that held best in development."""
    schedule: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML or JSON: the learning-rate plan from the last checkpoint on, instead of the run's own."""
    plans: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE ...")] = ()
    """Two such plans or more: where the run would end under each, and how far from the first. Nothing else is done."""
    register: Path | None = None
    """A .json file for a dated and hashed forecast by the main method, which tsl check and tsl score judge later."""
    out: Path | None = None
    """A .json file for the result; without it RUN/forecast.json, for RUN.npz too."""


def run_forecast(command: ForecastCommand) -> None:
    """Forecast by the methods, or compare plans; print the table, write the result."""
    from tsl_jax import processes
    from tsl_jax.commands import options
    from tsl_jax.forecasting import MAIN, compare_plans
    from tsl_jax.importers import read_plans
    from tsl_jax.reporting import json_values, terminal_tables
    from tsl_jax.surface import load_surface

    methods, out = options.forecast_methods(command.methods, (MAIN,), "forecast"), _out(command)
    schedule = None if command.schedule is None else read_plans(command.schedule)
    plans = {str(file): read_plans(file) for file in command.plans}
    surface = load_surface(command.run)
    siblings = [_sibling(path, command.run, surface) for path in command.siblings]
    past = _past(surface, command)
    if surface.attrs.get("changes") and isinstance(surface.attrs["changes"], list | tuple):
        changes = processes.printable(", ".join(map(str, surface.attrs["changes"])))
        print(
            f"this run changes on its way ({changes}): a forecast knows the learning rate of changes before its "
            "cut-off, and nothing of those of batch, mixture or data"
        )
    if command.until_loss:
        result = _until(past, command, schedule, siblings)
    elif plans:
        comparison = compare_plans(past, plans, reference_runs=siblings)
        terminal_tables.show_plans(comparison)
        result = {"plans": json_values.plans(comparison)}
    else:
        at = _at(surface, past, schedule, command)
        if not at:
            return terminal_tables.show_finished(past)
        if command.register is not None:
            _register(past, at, schedule, siblings, command)
        where = "at the end" if not command.at else f"at {at[-1]:,.0f} tokens"
        result = _forecast(past, at, schedule, siblings, where, methods)
    options.write_json(out, {**result, "made_by": options.stamp(command)})
    print(f"forecast: {out}")


def _out(command: ForecastCommand) -> Path:
    """The file of the result; raises ValueError for options that cannot be met, before any work."""
    from tsl_jax.commands import options

    out = options.output_folder(command.run) / "forecast.json" if command.out is None else command.out
    if not 0 < command.cutoff <= 1:
        raise ValueError(f"forecast: --cutoff is a share of the run between 0 and 1, found {command.cutoff}")
    if out.suffix != ".json":
        raise ValueError(f"forecast: --out is a .json file, found {out}")
    if len(set(command.plans)) == 1:
        raise ValueError("forecast: --plans compares two plans or more; give --schedule for a single one")
    if command.until_loss < 0 or not command.until_loss < float("inf"):
        raise ValueError(f"forecast: --until-loss is a positive loss in nats, found {command.until_loss}")
    if command.until_loss and (command.plans or len(command.at) > 1):
        raise ValueError(
            "forecast: --until-loss looks up to one end under one plan; leave out --plans, or all but one --at"
        )
    if command.plans and (command.schedule or command.at):
        other = "--schedule" if command.schedule else "--at"
        raise ValueError(f"forecast: --plans looks at the end of each of its plans; leave out {other}")
    if command.register is not None and (command.register.suffix != ".json" or command.register == out):
        raise ValueError(f"forecast: --register is a .json file of its own, found {command.register}")
    options.check_json_output(command, out, command.run, command.schedule, *command.plans, *command.siblings)
    return out


def _sibling(path: Path, run: Path, surface: xr.Dataset) -> xr.Dataset:
    """The surface of another run, which must have a readable schedule and a split in common with this run."""
    from tsl_jax.forecasting.forecast_run import read_schedule
    from tsl_jax.surface import load_surface

    if path.resolve() == run.resolve():
        raise ValueError(f"forecast: --siblings names {path}, which is the run itself; its end would be known")
    try:
        sibling = load_surface(path)
        read_schedule(sibling)  # raises where the stored schedule cannot be read
    except (OSError, ValueError) as error:
        raise ValueError(f"forecast: --siblings {path} cannot be used: {error}") from None
    splits, needed = (sorted(map(str, data.split.values)) for data in (sibling, surface))
    if not set(splits) & set(needed):
        found = f"has the splits {', '.join(splits)}, and none of the run's: {', '.join(needed)}"
        raise ValueError(f"forecast: --siblings {path} {found}")
    return sibling


def _past(surface: xr.Dataset, command: ForecastCommand) -> xr.Dataset:
    """The checkpoints up to the cut-off, a share of the planned tokens (of the last checkpoint's without a plan)."""
    from tsl_jax.forecasting.forecast_run import read_schedule

    plan = read_schedule(surface)
    total = float(plan.total_tokens if plan is not None else surface.tokens[-1])
    return surface.sel(tokens=surface.tokens <= command.cutoff * total)


def _at(surface: xr.Dataset, past: xr.Dataset, schedule: Schedule | None, command: ForecastCommand) -> list[float]:
    """The tokens to forecast, increasing; none where the run has reached the end of its plan.

    Raises:
        ValueError: for tokens that lie in the past, or none where no plan is known.
    """
    from tsl_jax.forecasting.assumed_rate import assumed_rate
    from tsl_jax.forecasting.forecast_run import read_schedule

    plan = read_schedule(past, schedule)  # as known at the cut-off: a later change of plan is not
    total = float(plan.total_tokens if plan is not None else surface.tokens[-1])
    last = int(past.tokens[-1]) if past.sizes["tokens"] else 0
    if command.at and max(command.at) > LATEST:
        raise ValueError(f"forecast: --at is a number of tokens up to {LATEST:.0e}, found {max(command.at):.3g}")
    early = [at for at in command.at if at <= last]
    if early:
        how = "name later tokens, or let less be seen with --cutoff"
        raise ValueError(f"forecast: --at {early[0]:,} is not beyond the last checkpoint, at {last:,} tokens; {how}")
    if plan is None and not command.at and last >= total:
        recognised = assumed_rate(past, None, 0.0)
        if recognised.end is None or recognised.end <= last:
            raise ValueError(
                f"forecast: the surface carries no plan whose end could be meant ({recognised.sentence}); name tokens "
                "with --at, or the plan with --schedule"
            )
        return [float(recognised.end)]
    return sorted(set(command.at)) or [total] * (last < total)


def _register(
    past: xr.Dataset,
    at: list[float],
    schedule: Schedule | None,
    siblings: Sequence[xr.Dataset],
    command: ForecastCommand,
) -> None:
    """Write the main method's forecast on the way to the last tokens asked for."""
    import numpy as np

    from tsl_jax.commands import options
    from tsl_jax.forecasting import forecast, registered

    assert command.register is not None
    last = float(past.tokens[-1])
    on_the_way = np.unique([*np.linspace(last, at[-1], STOPS + 1)[1:].round(), *at])
    made = forecast(past, on_the_way, schedule, reference_runs=siblings, by_position=False)
    options.write_json(command.register, registered.register(past, made, str(command.run)))
    print(f"registered: {command.register}")


def _until(
    past: xr.Dataset, command: ForecastCommand, schedule: Schedule | None, siblings: Sequence[xr.Dataset]
) -> dict[str, Any]:
    """Print when the loss is reached; the numbers as JSON values."""
    from tsl_jax.forecasting import crossing
    from tsl_jax.forecasting.recorded_pace import recorded_pace
    from tsl_jax.reporting.json_values import number

    loss = command.until_loss
    table = crossing(past, loss, command.at[0] if command.at else None, schedule, reference_runs=siblings)
    pace = recorded_pace(past)
    for note in table.attrs["notes"]:
        print(note)
    for row in table.reset_index().to_dict("records"):
        split, end = row["split"], f"{row['until']:,.0f} tokens"
        if row["never"] == 0 and row["low"] == row["high"]:
            print(f"{split}: {loss:g} nats was reached at {row['tokens']:,.0f} tokens")
            continue
        if not row["never"] <= 1:
            print(f"{split}: no forecast")
            continue
        if row["low"] == float("inf"):
            print(f"{split}: {loss:g} nats is not reached by {end}, with a chance of {row['never']:.0%}")
            continue
        ends = [f"{row[name]:,.0f}" if row[name] < float("inf") else f"later than {end}" for name in ("low", "high")]
        steps = f", step {row['steps']:,.0f}" if 0 < row["steps"] < float("inf") else ""
        middle = f"{row['tokens']:,.0f} tokens{steps}" if row["tokens"] < float("inf") else f"later than {end}"
        print(f"{split}: {loss:g} nats at {middle} (90 %: {ends[0]} to {ends[1]})")
        if pace is not None:
            when = [pace.in_words(row[name]) for name in ("tokens", "low", "high")]
            print(f"  {when[0]} ({when[1]} to {when[2]}), at the recorded {pace}")
        if row["never"] > 0:
            print(f"  not by {end}, with a chance of {row['never']:.0%}")
    rows = [
        {name: number(value) if name != "split" else value for name, value in row.items()}
        for row in table.reset_index().to_dict("records")
    ]
    return {"until_loss": loss, "crossing": rows, "assumes": list(table.attrs["notes"])}


def _forecast(
    past: xr.Dataset,
    at: list[float],
    schedule: Schedule | None,
    siblings: Sequence[xr.Dataset],
    where: str,
    methods: Sequence[str],
) -> dict[str, Any]:
    """Forecast by the methods and print the table; the forecasts as JSON values."""
    from tsl_jax.commands.progress import bars
    from tsl_jax.forecasting import forecast
    from tsl_jax.reporting import json_values, terminal_tables

    forecasts = []
    with bars() as progress:
        for done, method in enumerate(methods):
            progress("forecast", done, len(methods))
            forecasts.append(forecast(past, at, schedule, method, siblings, by_position=False))
        progress("forecast", len(methods), len(methods))
    terminal_tables.show_forecasts(forecasts, past, where)
    return {"forecasts": json_values.forecasts(forecasts)}
