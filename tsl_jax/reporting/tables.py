"""summary.json with its stable keys, and the short table in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from tsl_jax.reporting.inputs import quantiles_of
from tsl_jax.reporting.standing import how_far, last_loss, late_median, percent, plan, unfinished


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
        "positions": [
            int(surface.position[0]),
            int(surface.position[-1]),
        ],  # that R2 and the law's parameters belong to
        **{key: numbers(r2[name].sel(split=split)) if name in r2 else None for key, name in known.items()},
        "loss": numbers(mean),
        "final_loss": number(mean[-1]),
        "forecast": _forecasts(backtest, split),
    }


def _forecasts(backtest: Any, split: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if backtest is None:
        return result
    for (cutoff, method), row in backtest.scores.loc[split].iterrows():
        known = {name: number(row[name]) for name in ("final", "mse", "r2", "covered_50", "covered_90") if name in row}
        ends = _ends(backtest.forecasts.get((cutoff, method)), split)
        result.setdefault(f"{cutoff:g}", {})[method] = {
            **known,
            "intervals": ends,
            "status": row.status,
            "flags": int(row["flags"]),
        }
    return result


def _ends(one: Any, split: str) -> dict[str, float | None] | None:
    """Quantiles of the last loss, by name; None for a method that knows none."""
    known = quantiles_of(one)
    if known is None:
        return None
    last = known.sel(split=split).isel(tokens=-1)
    return {f"{q:g}": number(last.sel(quantile=q)) for q in last["quantile"].values}


def numbers(values: xr.DataArray) -> list[float | None]:
    """JSON values over tokens."""
    return [number(value) for value in values.transpose("tokens").values]


def number(value: Any) -> float | None:
    """A JSON value; None where it is not finite."""
    value = float(value)
    return value if math.isfinite(value) else None


def show(summary: Mapping[str, Any], surface: xr.Dataset) -> None:
    """Print the error of each forecast of the last loss, by split, method and cut-off, and what is doubtful about them.

    Args:
        summary: of `surface`.
    """
    from rich.console import Console

    console, share = Console(), unfinished(surface)
    for split, found in summary["splits"].items():
        end = last_loss(share)
        middle = late_median(found["r2"])
        r2 = "unknown" if math.isnan(middle) else f"{middle:.3f}"
        state = "" if share is None else f"{how_far(share)}; "
        title = f"{split}: {state}{end} {_nats(found['final_loss'])} nats, R2 over positions {r2} (median, later half)"
        if found["forecast"]:
            columns = _columns(surface, list(found["forecast"]))
            console.print(_errors(found, columns, title, f"forecast of the {end}: error, nats"))
            title = "\n".join(_doubts({name: found["forecast"][cutoff] for name, cutoff in columns.items()}))
        if title:
            console.print(title, markup=False, highlight=False)


def _columns(surface: xr.Dataset, cutoffs: Sequence[str]) -> dict[str, str]:
    """Cut-offs as people read them -> one of them; those that see the same checkpoints share a column."""
    known = plan(surface.attrs)
    total = float(surface.tokens[-1]) if known is None else known.total_tokens
    seen: dict[int, list[str]] = {}
    for cutoff in cutoffs:
        seen.setdefault(int((surface.tokens <= float(cutoff) * total).sum()), []).append(cutoff)
    return {" = ".join(percent(float(one)) for one in same): same[0] for same in seen.values()}


def _errors(found: Mapping[str, Any], columns: Mapping[str, str], title: str, what: str) -> Any:
    """The table: a row a method, a column a cut-off; a dagger where a doubt is told below."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(what)
    for name in columns:
        table.add_column(f"from {name}", justify="right")
    for method in next(iter(found["forecast"].values())):
        made = [found["forecast"][cutoff][method] for cutoff in columns.values()]
        table.add_row(method, *(_error(one, found["final_loss"]) for one in made))
    return table


def _error(one: Mapping[str, Any], observed: float | None) -> str:
    if one["final"] is None or observed is None:
        return "-"
    return f"{one['final'] - observed:+.3f}{'†' if one['flags'] else ''}"


def _doubts(forecast: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line a status that is not "ok": which methods have it, from which cut-offs where not from all."""
    having: dict[tuple[str, str], dict[str, list[str]]] = {}
    for cutoff, methods in forecast.items():
        for method, one in methods.items():
            mark = "-" if one["final"] is None else "†"
            if one["flags"]:
                having.setdefault((mark, readable(one["status"])), {}).setdefault(method, []).append(cutoff)
    return [
        f"{mark} {status}: "
        + ", ".join(name + ("" if len(at) == len(forecast) else f" ({', '.join(at)})") for name, at in methods.items())
        for (mark, status), methods in sorted(having.items())
    ]


def readable(status: Any) -> str:
    """A status as people read it."""
    return str(status).replace("_", " ")


def _nats(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
