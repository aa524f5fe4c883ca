"""`tsl select RUN ... | TABLE ...`: which candidate is best, how sure that is, what to stop, what to try next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from tsl_jax.selection import Choice


@dataclass(frozen=True)
class SelectCommand:
    """Choose a data mixture, or any candidate among runs: the chance of each to be the best, what to stop, what to try.

    tsl select mixtures.csv losses.csv --loss pile_cc_val_loss | tsl select runs/sweep --available code=3e9 web=2e11
    tsl select small.csv --candidates large.csv --params 1e9 --tokens 2e10 | tsl select runs.csv --cutoff .3
    """

    sources: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN_OR_TABLE ...")]]
    """Tables (CSV, TSV, Parquet, JSON lines) with a row a run or a row a checkpoint, joined where one has the mixtures
    and another the losses; folders of runs, files of surfaces, or the folder of a sweep."""
    loss: str = ""
    """The column of the loss to go by, or a part of its name; of runs a split (default the first)."""
    target: tuple[str, ...] = ()
    """NAME=WEIGHT of several losses, whose weighted mean is gone by: a validation mixture."""
    mixture: tuple[str, ...] = ()
    """Columns of the mixture, or their common prefix; default those with a prefix such as train_ or mixture., or that
    sum to one in every row."""
    columns: tuple[str, ...] = ()
    """NAME=COLUMN, where a table has another name for n_params, tokens, planned, run, candidate or seed."""
    params: float | None = None
    """Parameters of the target; default the largest size."""
    tokens: float | None = None
    """Training tokens of the target; default those of the runs of that size."""
    candidates: tuple[Path, ...] = ()
    """Tables of mixtures to rank in place of those of the runs, by what the runs say. Losses in them are not used but
    scored."""
    available: tuple[str, ...] = ()
    """DOMAIN=TOKENS that there are, or a table with the columns domain and tokens: how often each would be read."""
    cutoff: float | None = None
    """Hide what runs of the target's size saw beyond this share of their plan, and score the choice by their ends."""
    sd: float | None = None
    """Standard deviation of the end of one run over seeds, nats, known from elsewhere; default estimated."""
    split: str = ""
    """Of runs; the same as --loss."""
    peak_flops: float = 989e12
    """FLOP/s of a device, for hours; default an H100 in bfloat16."""
    utilisation: float = 0.4
    """Share of the peak that is reached."""
    rows: int = 15
    """Candidates that are shown; --out has all."""
    out: Path | None = None
    """A .json file for the whole result, or a .csv file for the table of candidates."""


def run_select(command: SelectCommand) -> None:
    """Read, choose, print, and write what was asked for."""
    from tsl_jax.atomic_write import write_atomically
    from tsl_jax.commands import options
    from tsl_jax.commands.compare import runs_in
    from tsl_jax.reporting.selection_tables import show_choice
    from tsl_jax.selection import choose, read_candidates
    from tsl_jax.selection.candidates_table import is_table

    _check(command)
    sources = [run for path in command.sources for run in ([path] if is_table(path) else runs_in(path, "select"))]
    reading: dict[str, Any] = {
        "loss": command.loss or command.split,
        "target": _numbers(command.target, "--target"),
        "mixture": command.mixture,
        "columns": dict(_pair(entry, "--columns") for entry in command.columns),
    }
    runs = read_candidates(sources, **reading)
    untried = read_candidates(command.candidates, **reading, needs_loss=False) if command.candidates else None
    choice = choose(
        runs,
        untried,
        n_params=command.params,
        tokens=command.tokens,
        cutoff=command.cutoff,
        available=_available(command.available),
        sd=command.sd,
        flops_per_hour=command.peak_flops * command.utilisation * 3600,
    )
    show_choice(choice, runs, rows=command.rows)
    if command.out is None:
        return
    if command.out.suffix == ".csv":
        write_atomically(command.out, choice.table.to_csv(index=False, float_format="%.8g"))
    else:
        options.write_json(command.out, _as_json(choice) | {"made_by": options.stamp(command)})
    print(f"{'table' if command.out.suffix == '.csv' else 'result'}: {command.out}")


def _check(command: SelectCommand) -> None:
    """Refuse what cannot work before anything is read.

    Raises:
        ValueError: naming the option.
    """
    from tsl_jax.commands import options

    if not command.sources:
        raise ValueError("select: give runs or tables; see tsl select --help")
    if command.target and command.loss:
        raise ValueError("select: --loss is one loss and --target several with weights; give one of the two")
    for name in ("params", "tokens", "sd", "peak_flops", "utilisation"):
        value = getattr(command, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"select: --{name.replace('_', '-')} must be a positive number, found {value:g}")
    if command.out is not None and command.out.suffix not in (".json", ".csv"):
        raise ValueError(f"select: --out is a .json or .csv file, found {command.out}")
    if command.out is not None and command.out.resolve() in {path.resolve() for path in command.sources}:
        raise ValueError(f"select: --out {command.out} is one of the tables that are read; give another")
    if command.out is not None and command.out.suffix == ".json":
        options.check_json_output(command, command.out, *command.sources, *command.candidates)
    elif command.out is not None:
        options.check_folder(command.out.parent, "select")


def _pair(entry: str, option: str) -> tuple[str, str]:
    name, equals, value = entry.rpartition("=") if option != "--columns" else entry.partition("=")
    if not (name and equals and value):
        raise ValueError(f"select: {option} takes NAME=VALUE, found {entry!r}")
    return name, value


def _numbers(entries: tuple[str, ...], option: str) -> dict[str, float]:
    """NAME=NUMBER entries, the number perhaps as 30B; a name may have = in it."""
    from tsl_jax.importers.log_rows import number_of

    values: dict[str, float] = {}
    for entry in entries:
        name, text = _pair(entry, option)
        if name in values:
            raise ValueError(f"select: {option} has {name} twice: {values[name]:g} and {text}; give one")
        number = number_of(text)
        if number is None:
            raise ValueError(f"select: {option} takes NAME=NUMBER, found {entry!r}")
        values[name] = number
        if not 0 < values[name] < float("inf"):
            raise ValueError(f"select: {option} takes positive numbers, found {entry!r}")
    return values


def _available(entries: tuple[str, ...]) -> dict[str, float]:
    """Domain -> tokens, of DOMAIN=TOKENS entries or of one table with these columns."""
    if len(entries) != 1 or "=" in entries[0]:
        return _numbers(entries, "--available")
    import pandas as pd

    path = Path(entries[0])
    try:
        table = pd.read_csv(path)
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"select: {path} is no table of domains and tokens: {str(error).splitlines()[0]}") from None
    if not {"domain", "tokens"} <= set(table):
        raise ValueError(f"select: {path} needs the columns domain and tokens, found {', '.join(map(str, table))}")
    rows = zip(table["domain"], table["tokens"], strict=True)
    return _numbers(tuple(f"{domain}={tokens}" for domain, tokens in rows), "--available")


def _as_json(choice: Choice) -> dict[str, Any]:
    """The whole choice as JSON values; null where there is no number."""
    import json

    def rows(table: Any) -> Any:
        return json.loads(table.to_json(orient="records", double_precision=10))

    shares = choice.shares
    mixtures = {} if shares is None else {str(name): row for name, row in zip(shares.index, rows(shares), strict=True)}
    validated, scores = choice.cross_validation, choice.scores
    return {
        "chosen": choice.chosen,
        "tied": list(choice.tied),
        "target": {name: value if value == value else None for name, value in choice.target.items()},
        "method": choice.method,
        "candidates": [row | {"mixture": mixtures.get(row["candidate"])} for row in rows(choice.table)],
        "next": rows(choice.following),
        "saved_by_stopping": dict(choice.saved),
        "cross_validation": rows(validated.reset_index()) if len(validated) else [],
        "scores": rows(scores.rename_axis("way").reset_index()) if len(scores) else [],
        "notes": list(choice.notes),
    }
