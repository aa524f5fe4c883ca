"""`tsl forecast RUN`: where will the loss of this run end?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Command:
    """Forecast the loss at the end of the plan (or at --at) from the checkpoints so far, by every method."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, finished or not."""
    cutoff: float = 1.0
    """Share of the planned tokens after which checkpoints are not looked at."""
    at: tuple[int, ...] = ()
    """Tokens seen at which to forecast; default the end of the plan."""
    out: Path = Path("")
    """A .json file for the result; default RUN/forecast.json."""


def run(command: Command) -> None:
    """Forecast by position and from the mean, print the table, write the result."""
    import json

    from tsl_jax.commands import options
    from tsl_jax.forecasting import baselines, forecast
    from tsl_jax.forecasting.forecast import METHODS, read_schedule
    from tsl_jax.reporting import tables
    from tsl_jax.surface import load_surface, write_durably

    if not 0 < command.cutoff <= 1:
        raise ValueError(f"forecast: --cutoff is a share of the run between 0 and 1, found {command.cutoff}")
    surface = load_surface(command.run)
    plan = read_schedule(surface)
    total = plan.total_tokens if plan is not None else float(surface.tokens[-1])
    past = surface.sel(tokens=surface.tokens <= command.cutoff * total)
    made = [forecast(past, command.at or (total,), method=method) for method in (*METHODS, *baselines.ALL)]
    tables.show_forecasts(made, past)
    out = command.run / "forecast.json" if command.out == Path("") else command.out
    text = json.dumps({"forecasts": tables.forecasts(made), "made_by": options.stamp(command)}, indent=1).encode()
    write_durably(out, lambda file: file.write(text))
    print(f"forecast: {out}")
