"""`report`: one self-contained HTML file of a run, its fits and its forecasts; plots by plotly.js, embedded.

The page needs no network, and its content-security policy forbids it any. It is written whole or not at all. At its top
stand the result in words and the key figures; the sections follow (`run_sections`, `forecast_sections`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.atomic_write import write_atomically
from tsl_jax.forecasting.methods import MAIN, METHODS
from tsl_jax.reporting import forecast_sections, run_figures, run_sections
from tsl_jax.reporting.error_figures import is_by_position
from tsl_jax.reporting.markup import paragraph, text
from tsl_jax.reporting.material import Material, sort, splits_with_errors
from tsl_jax.reporting.wording import count, described, how_far, last_loss, nats, signed, spelled_out, whole


def report(
    path: str | Path,
    *results: object,
    title: str | None = None,
    facts: Mapping[str, Any] | None = None,
    r2: xr.Dataset | None = None,
    notes: Sequence[str] = (),
    refresh: int = 0,
) -> Path:
    """Write a page about a run that a person likes to read.

    Args:
        path: the HTML file to write; its folder is made if absent.
        results: in any order: a loss surface, fits (over position, or of any other law), forecasts, a backtest.
        title: heading of the page; default from the run's name.
        facts: what else to say about the run, name -> value; the surface's own facts are shown anyway.
        r2: R2 of the position law, variables `plain`, `additive`, `expected`, `expected_low`, `expected_high`,
            each over (split, tokens), any of them.
        notes: sentences at its top. refresh: seconds after which a browser reads the page again, 0 for never.

    Returns:
        The path.

    Raises:
        ValueError: for no result, one of a type that cannot be shown, two surfaces or backtests, or two different
            forecasts by one method from the same cut-off.
        OSError: if the file cannot be written; a page that was there before is untouched.
    """
    material = sort(results)
    run = material.attrs.get("run")
    title = title or (f"Loss dynamics of {run}" if run else "Loss dynamics")
    page = render(material, title, facts, r2, notes, refresh)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def render(
    material: Material,
    title: str,
    facts: Mapping[str, Any] | None,
    r2: xr.Dataset | None,
    notes: Sequence[str] = (),
    refresh: int = 0,
) -> str:
    """The page as text."""
    body = [
        run_sections.by_position(material),
        run_sections.parameters(material),
        forecast_sections.forecast(material),
        forecast_sections.errors(material),
        run_sections.quality(material, r2),
        run_sections.other_fits(material),
        run_sections.facts(facts, material.attrs),
    ]
    plotly = ""
    if any("<figure" in part for part in body):
        from plotly.offline import get_plotlyjs  # late: half of the time to write a page

        plotly = get_plotlyjs()
    assets = files("tsl_jax.reporting").joinpath("assets")
    page, style, script = (assets.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    return Template(page).substitute(
        title=escape(title),
        style=style,
        refresh=f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else "",
        head=_head(material, title, r2, notes),
        body="".join(body),
        plotly=plotly,
        script=script,
    )


def _head(material: Material, title: str, r2: xr.Dataset | None, notes: Sequence[str]) -> str:
    """Title, the result in words, and key figures."""
    lead, *rest = headline(material) or [""]
    sentences = [*rest, forecast_sections.interval_sentences(material)]
    words = (paragraph(lead, "lead") if lead else "") + "".join(paragraph(words) for words in sentences if words)
    words += "".join(paragraph(text(note), "note") for note in notes)
    run = material.attrs.get("run")
    above = paragraph(f"tsl_jax report · {run}" if run else "tsl_jax report", "kicker")
    tiles = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)} <small>{text(unit)}</small></dd></div>"
        for name, value, unit in _key_figures(material, r2)
    )
    tiles = f'<dl class="tiles">{tiles}</dl>' if tiles else ""
    return f"<header>{above}<h1>{text(title)}</h1>{words}{tiles}</header>\n"


def _key_figures(material: Material, r2: xr.Dataset | None) -> Iterator[tuple[str, str, str]]:
    """Name, value, unit."""
    mean, splits = material.mean, material.splits
    if mean is not None and mean.sizes["tokens"]:
        for split in splits[:2]:
            where = f", {split}" if len(splits) > 1 else ""
            last = "last loss so far" if material.now is not None else last_loss(material.unfinished)
            yield f"{last}{where}", nats(float(mean.sel(split=split)[-1])), "nats/token"
            cutoff, forecast = forecast_sections.latest(material, split) or (0.0, None)
            if forecast is not None and cutoff == material.now:
                ends = forecast_sections.interval_at_end(forecast.quantiles, split)
                if ends is not None:
                    interval = f"90%: {nats(ends[0])} to {nats(ends[2])}"
                    yield f"forecast at {forecast_sections.end_of(forecast, material)}{where}", nats(ends[1]), interval
        share = material.unfinished
        unit = f"{mean.sizes['tokens']:,} checkpoints" if share is None else how_far(share)
        yield "tokens seen", count(float(mean.tokens[-1])), unit
    if isinstance(material.attrs.get("n_params"), int | float):
        yield "parameters", count(material.attrs["n_params"]), "non-embedding"
    medians = run_figures.medians(r2, material, splits[0]) if splits else {}
    if math.isfinite(medians.get("plain", math.nan)):
        yield "R² by position", f"{medians['plain']:.3f}", "median, later half"
    for split in splits_with_errors(material.scores)[:1]:
        errors = material.scores.xs(split, level="split").error.dropna()
        cutoff = errors.index.get_level_values("cutoff").max()
        of_all = errors.xs(cutoff, level="cutoff")
        method = chosen_beforehand(of_all.index)
        yield f"error from {material.cutoff_names[cutoff]}", signed(of_all[method]), f"nats, {method}"


# ------------------------------------------------------------------------------------------------- the result in words


def headline(material: Material) -> list[str]:
    """The result in words, one string a paragraph, the first a single sentence; empty where nothing is judged.

    Of one method, chosen before any result was there: the main one, else the first of the registry, else the first.
    Which of all was best on this run is known only afterwards, and is said apart.
    """
    share = material.unfinished
    first = "" if share is None else f"{how_far(share).capitalize()}. "
    splits = splits_with_errors(material.scores)
    if not splits:
        return [first.strip()] if first else []
    errors = material.scores.dropna(subset=["error"])
    at = {split: errors.xs(split, level="split").reset_index("cutoff") for split in splits}  # by method
    largest = max(rows.cutoff.max() for rows in at.values())
    now = {split: rows.query("cutoff == @largest") for split, rows in at.items() if (rows.cutoff == largest).any()}
    method = chosen_beforehand(next(iter(now.values())).index)
    seen = f"the first {material.cutoff_names[largest]} of the {whole(share)}"
    opening = f"{first}From {seen}, {described(method)} forecast"
    claims = [_claim(material, split, largest, rows.loc[method]) for split, rows in now.items() if method in rows.index]
    lead, *more = [f"{opening} {claims[0]}", *(f"{claim[:1].upper()}{claim[1:]}" for claim in claims[1:])]
    split, rows = next(iter(at.items()))
    earlier = rows.query("index == @method and cutoff < @largest").sort_values("cutoff")
    parts = [f"{material.cutoff_names[row.cutoff]}: {signed(row.error)}" for _, row in earlier.iterrows()]
    more += [f"Its errors{_on(split)} from less of the run: {', '.join(parts)}."] if parts else []
    compared = [_afterwards(split, rows, method) for split, rows in now.items() if len(rows) > 1]
    return [lead, *filter(None, [" ".join(more), " ".join(compared)])]


def chosen_beforehand(methods: Iterable[Any]) -> str:
    """Whose result is stated first: the main method, else the first of the registry, else the first."""
    names = [str(name) for name in methods]
    return next((name for name in (MAIN, *METHODS) if name in names), names[0])


def _claim(material: Material, split: str, cutoff: float, row: pd.Series) -> str:
    """What was forecast, with its interval where there is one, what was observed, and the error."""
    share, method = material.unfinished, str(row.name)
    forecast = material.forecasts.get(cutoff, {}).get(method)
    ends = forecast_sections.interval_at_end(forecast.quantiles if forecast else None, split)
    article, where = "a" if share is None else "the", f" on {spelled_out(split)}" if split else ""
    predicted = f"{article} {last_loss(share)} of {nats(row.final)} nats{where}"
    if ends is None or not np.isfinite(ends).all():
        return f"{predicted}; {nats(row.observed)} was observed, an error of {signed(row.error)}."
    low, _, high = ends
    verdict = "inside" if low <= row.observed <= high else "outside"
    interval = f"90% interval {nats(low)} to {nats(high)}"
    return f"{predicted} ({interval}); {nats(row.observed)} was observed, {verdict}, an error of {signed(row.error)}."


def _afterwards(split: str, rows: pd.DataFrame, method: str) -> str:
    """The smallest error among all methods, and the smallest of the other kind: by position, or of the mean alone."""
    errors = rows.error.loc[rows.error.abs().sort_values(kind="stable").index]
    best = str(errors.index[0])
    where = f"Of {len(errors)} methods{_on(split)}"
    if best == method:
        said = f"{where} it had the smallest error"
    else:
        said = f"{where} {best} had the smallest error, {signed(errors.iloc[0])}, which is known only afterwards"
    by_position = is_by_position(best)
    others = errors[[is_by_position(str(name)) != by_position for name in errors.index]]
    family = "methods that use the mean loss alone" if by_position else "methods by position"
    return said + (f"; the smallest of the {family} was {signed(others.iloc[0])}." if len(others) else ".")


def _on(split: str) -> str:
    return f" on {split}" if split else ""
