"""`tsl forecast RUN`: where will the loss of this run end?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class Command:
    """Forecast the loss at the end of the plan (or at --at) from the checkpoints so far, by every method."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, finished or not, or the .npz file of a surface."""
    cutoff: float = 1.0
    """Share of the planned tokens after which checkpoints are not looked at."""
    at: tuple[int, ...] = ()
    """Tokens seen at which to forecast, beyond the last checkpoint; without it the end of the plan."""
    out: Path | None = None
    """A .json file for the result; without it RUN/forecast.json, for RUN.npz too."""


def run(command: Command) -> None:
    """Forecast by position and from the mean, print the table, write the result."""
    from tsl_jax.commands import options
    from tsl_jax.commands.progress import bars
    from tsl_jax.forecasting import baselines, forecast
    from tsl_jax.forecasting.forecast import METHODS
    from tsl_jax.reporting import tables
    from tsl_jax.surface import load_surface

    out = options.home(command.run) / "forecast.json" if command.out is None else command.out
    if not 0 < command.cutoff <= 1:
        raise ValueError(f"forecast: --cutoff is a share of the run between 0 and 1, found {command.cutoff}")
    if out.suffix != ".json":
        raise ValueError(f"forecast: --out is a .json file, found {out}")
    past, at = _asked(load_surface(command.run), command)
    if not at:
        return tables.show_finished(past)
    methods, made = (*METHODS, *baselines.ALL), []
    with bars() as progress:
        for done, method in enumerate(methods):
            progress("forecast", done, len(methods))
            made.append(forecast(past, at, method=method))
        progress("forecast", len(methods), len(methods))
    tables.show_forecasts(made, past)
    _write(out, {"forecasts": tables.forecasts(made), "made_by": options.stamp(command)})
    print(f"forecast: {out}")


def _asked(surface: Any, command: Command) -> tuple[Any, list[float]]:
    """The past, and the tokens to forecast, increasing; none where the run has reached the end of its plan.

    Raises:
        ValueError: for tokens that lie in the past, or none where no plan is known.
    """
    from tsl_jax.forecasting.forecast import read_schedule

    plan = read_schedule(surface)
    total = float(plan.total_tokens if plan is not None else surface.tokens[-1])
    past = surface.sel(tokens=surface.tokens <= command.cutoff * total)
    last = int(past.tokens[-1]) if past.sizes["tokens"] else 0
    early = [at for at in command.at if at <= last]
    if early:
        mend = "name later tokens, or let less be seen with --cutoff"
        raise ValueError(f"forecast: --at {early[0]:,} is not beyond the last checkpoint, at {last:,} tokens; {mend}")
    if plan is None and not command.at and last >= total:
        raise ValueError("forecast: the surface carries no plan whose end could be meant; name tokens with --at")
    return past, sorted(set(command.at)) or [total] * (last < total)


def _write(out: Path, result: dict[str, Any]) -> None:
    import json

    from tsl_jax.durable import write_durably

    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1).encode()
    write_durably(out, lambda file: file.write(text))
