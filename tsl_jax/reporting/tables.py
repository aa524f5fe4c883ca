"""summary.json with its stable keys, and the short table in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr


def summary(
    surface: xr.Dataset, r2: xr.Dataset, backtest: Any, facts: Mapping[str, Any], stamp: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything a script may want of a run, as JSON values; null where there is no number.

    Args:
        surface: the run. r2: plain, additive and ceiling over (split, tokens), as far as known.
        backtest: scores by (split, cutoff, method), or None.
        facts: what the training wing recorded; stamp: which command and options made this.
    """
    splits = {str(split): _split(surface, r2, backtest, split) for split in surface.split.values}
    return {
        "splits": splits,
        "tokens_per_second": facts.get("tokens_per_second"),
        "seconds": {stage: round(float(value), 3) for stage, value in facts.get("seconds", {}).items()},
        "corpus": facts.get("corpus", surface.attrs.get("corpus")),
        "versions": surface.attrs.get("versions"),
        "config_hash": facts.get("config_hash", surface.attrs.get("config_hash")),
        "made_by": dict(stamp),
    }


def _split(surface: xr.Dataset, r2: xr.Dataset, backtest: Any, split: str) -> dict[str, Any]:
    mean = surface.loss.sel(split=split).mean("position")
    known = {"r2": "plain", "r2_additive": "additive", "r2_ceiling": "ceiling"}
    return {
        "tokens": [int(t) for t in surface.tokens.values],
        **{key: _numbers(r2[name].sel(split=split)) if name in r2 else None for key, name in known.items()},
        "loss": _numbers(mean),
        "final_loss": _number(mean[-1]),
        "forecast": _forecasts(backtest, split),
    }


def _forecasts(backtest: Any, split: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    rows = [] if backtest is None else backtest.scores.loc[split].iterrows()
    for (cutoff, method), row in rows:
        numbers = {name: _number(row[name]) for name in ("final", "mse", "r2")}
        result.setdefault(f"{cutoff:g}", {})[method] = {**numbers, "status": row.status}
    return result


def _numbers(values: xr.DataArray) -> list[float | None]:
    return [_number(value) for value in values.transpose("tokens").values]


def _number(value: Any) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def show(summary: Mapping[str, Any]) -> None:
    """Print the error of each forecast of the final loss, by split, method and cut-off."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for split, found in summary["splits"].items():
        r2 = sorted(v for v in found["r2"][len(found["r2"]) // 2 :] if v is not None)
        middle = f"{r2[len(r2) // 2]:.3f}" if r2 else "unknown"
        title = f"{split}: final loss {found['final_loss']:.3f} nats, R2 over positions {middle} (second half, median)"
        table = Table(title=title, title_justify="left")
        table.add_column("forecast of the final loss: error, nats")
        for cutoff in found["forecast"]:
            table.add_column(f"from {float(cutoff):.0%}", justify="right")
        for method in next(iter(found["forecast"].values()), {}):
            ends = [by_method[method]["final"] for by_method in found["forecast"].values()]
            table.add_row(method, *("-" if end is None else f"{end - found['final_loss']:+.3f}" for end in ends))
        console.print(table)


def forecasts(made: Sequence[Any]) -> list[dict[str, Any]]:
    """Forecasts as JSON values: method, split, tokens, mean loss, status, cut-off."""
    return [
        {
            "method": one.method,
            "split": str(split),
            "cutoff": float(one.cutoff),
            "tokens": [float(t) for t in one.mean.tokens.values],
            "loss": _numbers(one.mean.sel(split=split)),
            "status": one.status[str(split)],
        }
        for split in (made[0].mean.split.values if made else ())
        for one in made
    ]


def show_forecasts(made: Sequence[Any], past: xr.Dataset) -> None:
    """Print each method's mean loss at the last token count asked for, beside the last one seen."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for split in past.split.values:
        seen = float(past.loss.sel(split=split).mean("position")[-1])
        at = float(made[0].mean.tokens[-1])
        title = f"{split}: {seen:.3f} nats at {made[0].cutoff:.4g} tokens; forecast at {at:.4g} tokens"
        table = Table("method", "mean loss, nats", "status", title=title, title_justify="left")
        for one in made:
            value = _number(one.mean.sel(split=split)[-1])
            table.add_row(one.method, "-" if value is None else f"{value:.3f}", one.status[str(split)])
        console.print(table)
