"""The sections of a report about what was forecast: how sure, by whom, and how far off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tsl_jax.reporting import fan_figures, forecast_figures
from tsl_jax.reporting.inputs import ForecastLike, Material, quantiles_of
from tsl_jax.reporting.markup import Html, figure, folded, paragraph, section, table, text
from tsl_jax.reporting.standing import how_far, last_loss, percent
from tsl_jax.reporting.tables import readable
from tsl_jax.reporting.words import BY_POSITION, CONTINUED, compact, count, label, nats, signed, whole, winners

FAN = (
    "Forecast from the checkpoints before the shaded part, the plan of the learning rate as known then (below), and "
    "what is usual for such runs. If the law holds, the loss on this validation set ends inside the light band with "
    "a chance of 90%, and inside the dark one of 50%. The bands count the scatter of the checkpoints, what the past "
    "leaves open about the law’s parameters, and some error of the law itself. They do not count a change of plan or "
    "of data, a spike, or that other texts have another loss. While the learning rate has not fallen yet, a run says "
    "nothing about what its fall will bring, and the band is as wide as runs differ."
)
FAN_OF_ORIGINS = (
    "Forecast from the checkpoints before the shaded part. The 50 and 90% bands say how far off the same method was "
    "when it forecast later checkpoints of that part from earlier ones; they grow with the logarithm of tokens. "
    "They do not count a change of plan or of data, or that other texts have another loss."
)
CALIBRATION = (
    "The share of the later checkpoints that lay inside the bands, by how much of the run had been seen; dashed is "
    "what the bands promise. The checkpoints of one run err together, so that one run shows nearly all or nearly "
    "none: only many runs tell whether the bands are honest."
)
BY_SHARE = (
    "How far off the forecast was, by how much of the run had been seen: the law with the bands, the paper’s temporal "
    "laws by position, and the two others that came closest over these cut-offs, which nobody knew beforehand."
)


def given(material: Material) -> list[str]:
    """For each split what the 90% band from the largest cut-off gave, and what came, as far as it has."""
    return [_given(material, split, *found) for split in material.splits if (found := latest(material, split))]


def latest(material: Material, split: str) -> tuple[str, ForecastLike] | None:
    """The largest cut-off with bands, and the forecast they are of."""
    found = [(at, one) for at, group in material.futures.items() if (one := fan_figures.fanned(group, split))]
    return found[-1] if found else None


def band_at_end(one: ForecastLike, split: str, name: str = "quantiles") -> tuple[float, float, float] | None:
    """The 90% band at the last tokens that were asked for, and the median between."""
    known = quantiles_of(one, name)
    if known is None:
        return None
    last = known.sel(split=split).sortby("tokens").isel(tokens=-1)
    low, middle, high = (float(last.sel(quantile=q)) for q in (0.05, 0.5, 0.95))
    return low, middle, high


def _given(material: Material, split: str, cutoff: str, one: ForecastLike) -> str:
    ends, everywhere = band_at_end(one, split), band_at_end(one, split, "population_quantiles")
    assert ends is not None
    low, middle, high = ends
    at, where = float(one.mean.tokens.max()), f" on {split}" if len(material.splits) > 1 else ""
    band = f"{nats(middle)} nats{where}, 90%: {nats(low)} to {nats(high)}"
    came = None if material.mean is None else material.mean.sel(split=split).dropna("tokens")
    if came is not None and at in came.tokens:
        last = float(came.sel(tokens=at))
        verdict = "inside" if low <= last <= high else "outside"
        return f"From {cutoff} the {label(one.method)} expected {band}; {nats(last)} came, {verdict}."
    end = "at the end of the plan" if at == material.total else f"at {count(at)} tokens"
    also = f" ({nats(everywhere[0])} to {nats(everywhere[2])} on all such texts)" if everywhere else ""
    return f"Expected {end} by the {label(one.method)}: {band} on these texts{also}."


def forecast(material: Material) -> str:
    """The mean loss, observed and forecast: the main method with its bands, then every method."""
    drawing = forecast_figures.mean_loss(material)
    if drawing is None:
        return ""
    told = (
        "Each method saw only what lies before the shaded part, and the plan of the learning rate as known then "
        "(below). Those by position forecast the law’s parameters and average the loss over positions. All others "
        "extrapolate the mean loss itself. A forecast that leaves the frame is far off. Names in the legend show and "
        "hide."
    )
    if material.mean is None:
        told = "The mean loss that each method expects beyond its cut-off (shaded)."
    if material.unfinished is not None:
        told += f" The run is {how_far(material.unfinished)}, where the observed losses end."
    silent = _silent(material)
    more = f" No forecast could be made: {silent}." if silent else ""
    bands = _bands(material)
    between = "<h3>Every method</h3>" if bands else ""
    return section("forecast", "The forecast", bands, between, figure(drawing, told + more), _statuses(material))


def _bands(material: Material) -> str:
    """The fan chart, and whether its bands were right."""
    fan, calibration = fan_figures.fan(material), fan_figures.calibration(material)
    named = {found[1].method for split in material.splits if (found := latest(material, split))}
    parts = [] if fan is None else [figure(fan, FAN if named <= set(CONTINUED) else FAN_OF_ORIGINS)]
    if calibration is not None:
        parts += ["<h3>Were the bands right?</h3>", figure(calibration, CALIBRATION)]
    return "".join(parts)


def _silent(material: Material) -> str:
    """Methods without any finite forecast; those that are silent from the same cut-offs together."""
    silent: dict[str, list[str]] = {}
    for cutoff, group in material.futures.items():
        for name, one in group.items():
            if not np.isfinite(one.mean.values).any():
                silent.setdefault(f"“{label(name)}”", []).append(cutoff)
    alike: dict[str, list[str]] = {}
    for name, cutoffs in silent.items():
        alike.setdefault(", ".join(cutoffs), []).append(name)
    return "; ".join(f"from {cutoffs} by {', '.join(names)}" for cutoffs, names in alike.items())


def _statuses(material: Material) -> str:
    """What is doubtful about forecasts that no score table tells of."""
    if len(material.scores):
        return ""
    rows = [
        (label(name), cutoff, split, readable(why))
        for cutoff, group in material.futures.items()
        for name, one in group.items()
        for split, why in one.status.items()
        if not why.ok
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
    curves = fan_figures.by_share(material)
    shrinking = "" if curves is None else figure(curves, BY_SHARE) + "<h3>Every method</h3>"
    return section("errors", "Errors by cut-off", shrinking, figure(drawing, told), tables, note, details)


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


def _cell(row: Any, best: bool) -> Html:
    doubt = "†" if row["flags"] and np.isfinite(row.error) else ""
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
             compact(row.r2, 3), compact(row.mse, 3), readable(row.status))
            for method, row in rows.iterrows()
        ]  # fmt: skip
        observed = nats(float(rows.observed.iloc[0]))
        caption = f"{split}: seen {percent(float(cutoff))}, {last_loss(share)} {observed}".removeprefix(": ")
        tables.append(table(("method", "forecast", "error", "R²", "MSE", "status"), cells, caption, "scores full"))
    return "".join(tables)


def _bold(value: str, best: bool) -> Html:
    return Html(f"<strong>{text(value)}</strong>" if best else text(value))
