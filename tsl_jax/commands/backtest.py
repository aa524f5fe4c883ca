"""`tsl backtest RUN ...`: what would have been forecast of finished runs, and did the intervals hold?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class BacktestCommand:
    """Forecast finished runs from several cut-offs, by every method, and judge the forecasts by what came."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN_OR_FILE ...")]]
    """Folders of finished runs, or .npz files of surfaces. Many tell whether intervals hold, one does not."""
    cutoffs: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    """Shares of the planned tokens to forecast from."""
    methods: tuple[str, ...] = ()
    """Methods and baselines by name, as in the table of `tsl forecast`; without it all of them."""
    out: Path = Path("backtest.json")
    """A .json file for the result."""


def run_backtest(command: BacktestCommand) -> None:
    """Backtest every run, write scores and coverage after each of them, and print both at the end."""
    import pandas as pd

    from tsl_jax.commands import options
    from tsl_jax.commands.progress import bars
    from tsl_jax.forecasting import backtest, coverage
    from tsl_jax.forecasting.backtesting import pasts
    from tsl_jax.reporting import terminal_tables
    from tsl_jax.surface import load_surface

    options.check_json_output(command, command.out, *command.runs)
    methods, surfaces = _methods(command), [load_surface(path) for path in command.runs]
    for path, surface in zip(command.runs, surfaces, strict=True):
        try:
            pasts(surface, command.cutoffs)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    tested = []
    with bars() as progress:
        for surface in surfaces:
            tested.append(backtest(surface, command.cutoffs, methods=methods, progress=progress, by_position=False))
            names = [str(path) for path in command.runs[: len(tested)]]
            scores = pd.concat([result.scores for result in tested], keys=names, names=["run"])
            covered = coverage(surfaces[: len(tested)], tested)
            tables = {"scores": _records(scores), "coverage": _records(covered)}
            options.write_json(command.out, {**tables, "made_by": options.stamp(command)})
    terminal_tables.show_backtests(scores, covered)
    print(f"backtest: {command.out}")


def _records(table: Any) -> list[dict[str, Any]]:
    """JSON values, null where there is no number."""
    return json.loads(table.reset_index().to_json(orient="records"))


def _methods(command: BacktestCommand) -> tuple[str, ...]:
    """The methods asked for; raises ValueError for options that cannot be met, before any work."""
    from tsl_jax.commands import options
    from tsl_jax.forecasting import METHODS

    if command.out.suffix != ".json":
        raise ValueError(f"backtest: --out is a .json file, found {command.out}")
    if not command.runs or len({path.resolve() for path in command.runs}) < len(command.runs):
        raise ValueError("backtest: name a run or more, each once: coverage counts them as independent")
    wrong = [cutoff for cutoff in command.cutoffs if not 0 < cutoff < 1]
    if wrong or not command.cutoffs:
        raise ValueError(f"backtest: --cutoffs are shares of the run between 0 and 1, found {wrong or 'none'}")
    return options.forecast_methods(command.methods, tuple(METHODS), "backtest")
