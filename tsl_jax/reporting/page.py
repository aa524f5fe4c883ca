"""`report`: one self-contained HTML file of a run, its fits and its forecasts; plots by plotly.js, embedded.

The page needs no network, and its content-security policy forbids it any. It is written whole or not at all. At its top
stand the result in words and the key figures; the sections follow (`run_sections`, `forecast_sections`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
import xarray as xr

from tsl_jax.atomic_write import write_atomically
from tsl_jax.reporting import forecast_sections, run_figures, run_sections
from tsl_jax.reporting.error_figures import is_by_position
from tsl_jax.reporting.markup import paragraph, text
from tsl_jax.reporting.material import Material, smallest_errors, sort, splits_with_errors
from tsl_jax.reporting.wording import count, how_far, label, last_loss, nats, phrase, signed, whole


def report(
    path: str | Path,
    *results: object,
    title: str | None = None,
    facts: Mapping[str, Any] | None = None,
    r2: xr.Dataset | None = None,
) -> Path:
    """Write a page about a run that a person likes to read.

    Args:
        path: the HTML file to write; its folder is made if absent.
        results: in any order: a loss surface, fits (over position, or of any other law), forecasts, a backtest.
        title: heading of the page; default from the run's name.
        facts: what else to say about the run, name -> value; the surface's own facts are shown anyway.
        r2: R2 of the position law, variables `plain`, `additive`, `ceiling` over (split, tokens), any of them.

    Returns:
        The path.

    Raises:
        ValueError: for no result, one of a type that cannot be shown, two surfaces or backtests, or two different
            forecasts by one method from the same cut-off.
        OSError: if the file cannot be written; a page that was there before is untouched.
    """
    material = sort(results)
    run = material.attrs.get("run")
    page = render(material, title or (f"Loss dynamics of {run}" if run else "Loss dynamics"), facts, r2)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def render(material: Material, title: str, facts: Mapping[str, Any] | None, r2: xr.Dataset | None) -> str:
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
        head=_head(material, title, r2),
        body="".join(body),
        plotly=plotly,
        script=script,
    )


def _head(material: Material, title: str, r2: xr.Dataset | None) -> str:
    """Title, the result in words, and key figures."""
    lead, *rest = headline(material) or [""]
    sentences = [*rest, forecast_sections.interval_sentences(material)]
    words = (paragraph(lead, "lead") if lead else "") + "".join(paragraph(words) for words in sentences if words)
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
            yield f"{last_loss(material.unfinished)}{where}", nats(float(mean.sel(split=split)[-1])), "nats/token"
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
        best = smallest_errors(material.scores, split)
        unit = "nats" if material.scores.index.unique("method").size == 1 else "nats, smallest"
        yield f"error from {material.cutoff_names[best.index[-1]]}", signed(best.error.iloc[-1]), unit


# ------------------------------------------------------------------------------------------------- the result in words


def headline(material: Material) -> list[str]:
    """The result in words, one string a paragraph, the first a single sentence; empty where nothing is judged."""
    scores, share = material.scores, material.unfinished
    first = "" if share is None else f"{how_far(share).capitalize()}. "
    best = {split: smallest_errors(scores, split) for split in splits_with_errors(scores)}
    if not best:
        return [first.strip()] if first else []
    largest = max(float(table.index[-1]) for table in best.values())
    rows = {split: table.loc[largest] for split, table in best.items() if largest in table.index}
    results = [_best_method(scores, split, row, share) for split, row in rows.items()]
    lead = f"{first}From the first {material.cutoff_names[largest]} of the {whole(share)}, {results[0][0]}"
    rest = [results[0][1], *(f"{sentence[:1].upper()}{sentence[1:]} {more}" for sentence, more in results[1:])]
    split, earlier = next(iter(best.items()))
    parts = [
        f"{material.cutoff_names[cutoff]}: {label(method)} ({signed(error)})"
        for cutoff, method, error in zip(earlier.index.tolist(), earlier.method, earlier.error, strict=True)
        if cutoff < largest
    ]
    where = f" on {split}" if split else ""
    less = f"Smallest errors{where} from less of the run: {'; '.join(parts)}." if parts else ""
    return [lead, *filter(str.strip, [" ".join(filter(None, rest)), less])]


def _best_method(scores: pd.DataFrame, split: str, row: pd.Series, share: float | None) -> tuple[str, str]:
    """Which method had the smallest error, and the best of the others: by position, or of the mean loss alone."""
    end, article = last_loss(share), "a" if share is None else "the"
    where = f" on {split}" if split else ""
    errors = scores.xs((split, row.name), level=("split", "cutoff")).error.dropna()
    if len(errors) == 1:
        claim = f"{phrase(row.method)} forecast {article} {end}{where} of {nats(row.final)} nats; {nats(row.observed)}"
        return f"{claim} was observed, an error of {signed(row.error)}.", ""
    best = (
        f"{phrase(row.method)} came closest to the {end}{where}: {nats(row.final)} nats forecast, {nats(row.observed)} "
        f"observed, an error of {signed(row.error)}."
    )
    by_position = is_by_position(row.method)
    errors = errors[[is_by_position(str(method)) != by_position for method in errors.index]]
    if not len(errors):
        return best, ""
    family = "methods that use the mean loss alone" if by_position else "methods by position"
    return best, f"The smallest error of the {family} was {signed(errors[errors.abs().idxmin()])}."
