"""The sections of a report: each takes what it needs of the material, and is an empty string where that is missing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import xarray as xr

from tsl_jax.fitting import Fit, Status
from tsl_jax.reporting import run_figures
from tsl_jax.reporting.fitted import parameter_table
from tsl_jax.reporting.forecast_sections import band_at_end, given, latest
from tsl_jax.reporting.inputs import NOW, Material, PositionFit
from tsl_jax.reporting.markup import Html, figure, folded, paragraph, section, text
from tsl_jax.reporting.standing import how_far, last_loss, percent
from tsl_jax.reporting.words import (
    count,
    headline,
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
    rest = "".join(paragraph(one) for one in [*told[1:], " ".join(given(material))] if one)
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
            yield from _expected(material, split, where)
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


def _expected(material: Material, split: str, where: str) -> Iterator[tuple[str, str, str]]:
    """Where an unfinished run is expected to end."""
    found = latest(material, split)
    if found is None or found[0] != NOW:
        return
    ends = band_at_end(found[1], split)
    if ends is not None:
        yield f"expected at the end{where}", nats(ends[1]), f"90%: {nats(ends[0])} to {nats(ends[2])}"


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
        parts = [f"{nats(value)} ({name})" for name, value in run_figures.medians(r2, material, split).items()]
        told += f" Median of the later half{f', {split}' if split else ''}: {', '.join(parts)}."
    return section("quality", "How well the law fits", figure(drawing, told))
