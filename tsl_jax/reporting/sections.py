"""The sections of a report: each takes what it needs of the material, and is an empty string where that is missing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.fitting import Fit, Status
from tsl_jax.reporting import forecast_figures, run_figures
from tsl_jax.reporting.fitted import parameter_table
from tsl_jax.reporting.inputs import Material, PositionFit
from tsl_jax.reporting.markup import Html, figure, folded, paragraph, section, table, text
from tsl_jax.reporting.standing import how_far, last_loss, percent
from tsl_jax.reporting.tables import readable
from tsl_jax.reporting.words import (
    BY_POSITION,
    compact,
    count,
    headline,
    label,
    mathematics,
    nats,
    signed,
    whole,
    winners,
)


def head(material: Material, title: str, r2: xr.Dataset | None) -> str:
    """Title, the result in words, and key figures."""
    told = headline(material.scores, material.unfinished)
    lead = paragraph(told[0], "lead") if told else ""
    rest = "".join(paragraph(one) for one in told[1:])
    run = material.attrs.get("run")
    kicker = paragraph(f"tsl_jax report · {run}" if run else "tsl_jax report", "kicker")
    return f"<header>{kicker}<h1>{text(title)}</h1>{lead}{rest}{_tiles(material, r2)}</header>\n"


def _tiles(material: Material, r2: xr.Dataset | None) -> str:
    tiles = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)} <small>{text(unit)}</small></dd></div>"
        for name, value, unit in _key_figures(material, r2)
    )
    return f'<dl class="tiles">{tiles}</dl>' if tiles else ""


def _key_figures(material: Material, r2: xr.Dataset | None) -> Iterator[tuple[str, str, str]]:
    """Name, value, unit."""
    mean, splits = material.mean, material.splits
    if mean is not None and mean.sizes["tokens"]:
        for split in splits[:2]:
            where = f", {split}" if len(splits) > 1 else ""
            yield f"{last_loss(material.unfinished)}{where}", nats(float(mean.sel(split=split)[-1])), "nats/token"
        share = material.unfinished
        unit = f"{mean.sizes['tokens']} checkpoints" if share is None else how_far(share)
        yield "tokens seen", count(float(mean.tokens[-1])), unit
    if isinstance(material.attrs.get("n_params"), int | float):
        yield "parameters", count(material.attrs["n_params"]), "non-embedding"
    medians = run_figures.medians(r2, material, splits[0]) if splits else {}
    if math.isfinite(medians.get("plain", math.nan)):
        yield "R² by position", f"{medians['plain']:.3f}", "median, later half"
    known = [split for split in material.scores.index.unique("split") if len(winners(material.scores, split))]
    if known:
        best = winners(material.scores, known[0])
        alone = material.scores.index.unique("method").size == 1
        yield (
            f"{'error' if alone else 'best'} from {percent(float(best.index[-1]))}",
            signed(best.error.iloc[-1]),
            "nats off",
        )


def by_position(material: Material) -> str:
    """L(i) against position."""
    drawing = run_figures.by_position(material)
    if drawing is None:
        return ""
    told = [
        "How well the model predicts a token that has <i>i</i> tokens of context. Each colour is one "
        + ("curve, by its number." if _numbered(material) else "checkpoint, named by the tokens it had seen.")
        + " Where a curve falls to the right, context helps."
    ]
    if material.surface is not None:
        told.append("Points are measured losses, means over the evaluation windows.")
    told += [_fitted(name, fit) for name, fit in material.by_position.items()]
    return section("by-position", "Loss by position", figure(drawing, Html(" ".join(told))))


def _numbered(material: Material) -> bool:
    """Whether the curves are not checkpoints of a run, as far as is known."""
    return any(fit.tokens is None for fit in material.by_position.values())


def _fitted(name: str, fit: PositionFit) -> str:
    law = f'<span class="formula">{mathematics(fit.fit.law.formula)}</span>'
    good, weak = (int((fit.fit.status == s).sum()) for s in (Status.CONVERGED, Status.WEAKLY_IDENTIFIED))
    only = f", {weak} more with weakly identified parameters" if weak else ""
    return f"Lines, {text(name)}: the fitted law {law}; {good} of {fit.fit.status.size} fits converged{only}."


def parameters(material: Material) -> str:
    """a0, a1 and a2 over tokens."""
    drawing = run_figures.parameters(material)
    if drawing is None:
        return ""
    told = (
        f"The position law fitted to each {'curve' if _numbered(material) else 'checkpoint'}: its parameters, with "
        "standard errors."
    )
    marks = run_figures.marks(drawing)
    told += " Red marks are fits that say nothing about the parameters; a forecast leaves them out." * (
        "bound" in marks
    )
    told += " Triangles stand for values beyond the frame." * ("beyond" in marks)
    shown, tables = material.shown, ""
    laws = {} if shown is None else {name: fit for name, fit in shown.fits.items() if _is_temporal(fit)}
    if shown is not None and laws:
        told += (
            f" The lines are the temporal laws fitted to the first {material.shown_from} of the "
            f"{whole(material.unfinished)} (solid) and carried on (dashed) through the part held out (shaded): where "
            "points leave the dashed line, the forecast goes wrong."
        )
        inner = "".join(parameter_table(fit, Html(f"{mathematics(name)}(N)")) for name, fit in laws.items())
        tables = folded("Parameters of the temporal laws", inner)
    title = "The law’s parameters" + ("" if _numbered(material) else " during training")
    return section("parameters", title, figure(drawing, told), tables)


def _is_temporal(fit: object) -> bool:
    return isinstance(fit, Fit) and fit.over == ("tokens",)


def forecast(material: Material) -> str:
    """The mean loss, observed and forecast."""
    drawing = forecast_figures.mean_loss(material)
    if drawing is None:
        return ""
    told = (
        "Each method saw only what lies before the shaded part, and the plan of the learning rate (below). Those by "
        "position forecast the law’s parameters and average the loss over positions. All others extrapolate the mean "
        "loss itself. A forecast that leaves the frame is far off. Names in the legend show and hide."
    )
    if material.mean is None:
        told = "The mean loss that each method expects beyond its cut-off (shaded)."
    if material.unfinished is not None:
        told += f" The run is {how_far(material.unfinished)}, where the observed losses end."
    silent = _silent(material)
    more = f" No forecast could be made: {silent}." if silent else ""
    return section("forecast", "The forecast", figure(drawing, told + more), _statuses(material))


def _silent(material: Material) -> str:
    """Methods without any finite forecast, by cut-off."""
    parts = []
    for cutoff, group in material.futures.items():
        names = [label(name) for name, one in group.items() if not np.isfinite(one.mean.values).any()]
        parts += [f"from {cutoff} by {', '.join(names)}"] if names else []
    return "; ".join(parts)


def _statuses(material: Material) -> str:
    """What is doubtful about forecasts that no score table tells of."""
    if len(material.scores):
        return ""
    rows = [
        (label(name), cutoff, split, readable(why))
        for cutoff, group in material.futures.items()
        for name, one in group.items()
        for split, why in one.status.items()
        if why != "ok"
    ]
    return folded("Doubts", table(("method", "seen", "split", "status"), rows)) if rows else ""


def errors(material: Material) -> str:
    """Errors of the final loss by cut-off."""
    drawing, share = forecast_figures.errors(material), material.unfinished
    if drawing is None:
        return ""
    told = (
        f"How far each method’s forecast of the {last_loss(share)} was off; further left is better. One row a method, "
        f"one dot a cut-off, coloured by how much of the {whole(share)} had been seen."
    )
    if share is not None:
        told += f" The run is {how_far(share)}: all is judged by its last checkpoint so far."
    told += _same(material)
    splits = [str(split) for split in material.scores.index.unique("split")]
    tables = "".join(_signed_table(material.scores, split, len(splits) > 1, share) for split in splits)
    full = "".join(_full_tables(material.scores, split, share) for split in splits)
    note = paragraph(
        f"Forecast minus observed {last_loss(share)}, in nats; the smallest error of each cut-off is bold. "
        "“By position” is the law of this page; “… on mean” puts the same temporal forms on the mean loss alone, which "
        "tells whether positions help or only flexibility. † a fit behind this number carries a doubt (all scores say "
        "which). – no forecast.",
        "note",
    )
    details = folded("All scores: forecast, error, R², MSE, status", full)
    return section("errors", "Errors by cut-off", figure(drawing, told), tables, note, details)


def _same(material: Material) -> str:
    """Which cut-offs see the same checkpoints, so that their forecasts are equal."""
    seen: dict[float, list[str]] = {}
    for label_, group in material.futures.items():
        seen.setdefault(max(one.cutoff for one in group.values()), []).append(label_)
    alike = [" and ".join(labels) for labels in seen.values() if len(labels) > 1]
    return "".join(f" From {labels} the same checkpoints are seen: the forecasts are equal." for labels in alike)


def _signed_table(scores: pd.DataFrame, split: str, named: bool, share: float | None) -> str:
    one = scores.xs(split, level="split")
    ranked = forecast_figures.ranked(one)
    best = winners(scores, split).method.to_dict()
    rows = []
    for method, errors in ranked.iterrows():
        name = Html(f"<b>{text(label(str(method)))}</b>") if method in BY_POSITION else label(str(method))
        rows.append((name, *(_cell(one.loc[(cutoff, method)], best.get(cutoff) == method) for cutoff in errors.index)))
    where = f" on {split}" if named else ""
    caption = f"Error of the {last_loss(share)}{where}, nats, by share of the {whole(share)} seen"
    return table(("method", *(percent(float(cutoff)) for cutoff in ranked.columns)), rows, caption, "scores")


def _cell(row: pd.Series, best: bool) -> Html:
    doubt = "†" if row.status != "ok" and np.isfinite(row.error) else ""
    number = text(signed(row.error)) + (f"<sup>{doubt}</sup>" if doubt else "")
    return Html(f"<strong>{number}</strong>" if best else number)


def _full_tables(scores: pd.DataFrame, split: str, share: float | None) -> str:
    """Every column of the scores, one table a cut-off, best first."""
    tables = []
    one = scores.xs(split, level="split")
    for cutoff in sorted(one.index.unique("cutoff")):
        rows = one.xs(cutoff, level="cutoff")
        rows = rows.loc[rows.error.abs().sort_values(kind="stable", na_position="last").index]
        best = winners(scores, split).method.get(cutoff)
        cells = [
            (_bold(label(str(method)), method == best), nats(row.final), _bold(signed(row.error), method == best),
             compact(row.r2), compact(row.mse), readable(row.status))
            for method, row in rows.iterrows()
        ]  # fmt: skip
        observed = nats(float(rows.observed.iloc[0]))
        caption = f"{split}: seen {percent(float(cutoff))}, {last_loss(share)} {observed}".removeprefix(": ")
        tables.append(table(("method", "forecast", "error", "R²", "MSE", "status"), cells, caption, "scores full"))
    return "".join(tables)


def _bold(value: str, best: bool) -> Html:
    return Html(f"<strong>{text(value)}</strong>" if best else text(value))


def quality(material: Material, r2: xr.Dataset | None) -> str:
    """How well the position law fits."""
    drawing = run_figures.quality(r2, material)
    if drawing is None:
        return ""
    told = "The share of the variation over positions that the law accounts for, checkpoint by checkpoint."
    if r2 is not None and "ceiling" in r2:
        told += " The ceiling is what a true law would reach on average, as the measured losses are noisy."
    if r2 is not None and "additive" in r2:
        told += " The additive estimate takes out how hard the text at each position happened to be."
    for split in drawing.choices["split"]:
        parts = [f"{value:.3f} ({name})" for name, value in run_figures.medians(r2, material, split).items()]
        told += f" Median of the later half{f', {split}' if split else ''}: {', '.join(parts)}."
    return section("quality", "How well the law fits", figure(drawing, told))
