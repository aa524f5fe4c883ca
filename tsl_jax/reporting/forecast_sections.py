"""Sections of the page about what was forecast: the mean loss with its intervals, by whom, and how far off."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tsl_jax.forecasting.methods import METHODS
from tsl_jax.forecasting.result import Forecast
from tsl_jax.reporting import error_figures, forecast_figures
from tsl_jax.reporting.figures import drawn_in_words
from tsl_jax.reporting.markup import Html, figure, folded, paragraph, section, table, text
from tsl_jax.reporting.material import Material, smallest_errors
from tsl_jax.reporting.wording import compact, count, how_far, last_loss, nats, readable, signed, whole

MODEL_BASED = (
    "Forecast from the checkpoints before the shaded part, the learning rate ({rate}), and a prior "
    "from other runs. If the law holds, the loss on this validation set lies in the light interval with a probability "
    "of 90%, in the dark one with 50%. The intervals include the scatter of the checkpoints, the uncertainty of the "
    "law’s parameters given the past, and some error of the law itself. They do not include a change of plan or of "
    "data, a loss spike, or that other texts have another loss. While the learning rate has not decayed yet, the past "
    "says nothing about the effect of the decay: its effect is the prior’s, and the interval is as wide as runs differ."
)
ROLLING_ORIGIN = (
    "Forecast from the checkpoints before the shaded part. The 50 and 90% intervals are errors of the same method when "
    "it forecast later checkpoints of that part from earlier ones; they grow with the logarithm of tokens. They do not "
    "include a change of plan or of data, or that other texts have another loss."
)
COVERAGE = (
    "The share of the later checkpoints inside the intervals, by the share of the run seen; dashed: the nominal "
    "level. The errors at the checkpoints of one run are correlated, so that one run shows nearly all or nearly none "
    "inside: coverage takes many runs."
)
BY_SHARE = (
    "Absolute error of the forecast by the share of the run seen: the method with the intervals above, the paper’s "
    "temporal laws by position, and the two baselines with the smallest errors here, known only afterwards."
)
SCORES = (
    "The smallest error of each cut-off is bold. Names in bold are methods by position, with the law of this page. "
    "† a warning belongs to this number (see all scores). – no forecast."
)
OF_MEAN = (
    " mean_log and mean_cosine are the same temporal laws fitted to the mean loss alone: they show whether positions "
    "help, or only the form of the law."
)


def interval_sentences(material: Material) -> str:
    """For each split the 90% interval from the largest cut-off, where no score has judged that forecast."""
    sentences = []
    for split in material.splits:
        cutoff, forecast = latest(material, split) or (0.0, None)
        ends = forecast and interval_at_end(forecast.quantiles, split)
        if not forecast or not ends or (split, cutoff, forecast.method) in material.scores.index:
            continue
        low, middle, high = ends
        where = f" on {split}" if len(material.splits) > 1 else ""
        predicted = f"{nats(middle)} nats{where} (90% interval {nats(low)} to {nats(high)}"
        everywhere = interval_at_end(forecast.population_quantiles, split)
        also = f"; {nats(everywhere[0])} to {nats(everywhere[2])} on all such texts" if everywhere else ""
        opening = f"Forecast at {end_of(forecast, material)} by {forecast.method}"
        sentences.append(f"{opening}: {predicted} on these texts{also}).")
    return " ".join(sentences)


def latest(material: Material, split: str) -> tuple[float, Forecast] | None:
    """The largest cut-off with intervals, and the forecast they are of."""
    pairs = [(cut, forecast_figures.with_intervals(group, split)) for cut, group in material.forecasts.items()]
    return next(((cutoff, forecast) for cutoff, forecast in reversed(pairs) if forecast is not None), None)


def end_of(forecast: Forecast, material: Material) -> str:
    """The last tokens that were asked for, in words; only where a plan is known they may be its end."""
    at = float(forecast.mean.tokens.max())
    return "the end of the plan" if material.schedule and at == material.total else f"{count(at)} tokens"


def interval_at_end(quantiles: xr.DataArray | None, split: str) -> tuple[float, float, float] | None:
    """Lower end of the 90% interval, median and upper end, at the last tokens that were asked for."""
    if quantiles is None:
        return None
    last = quantiles.sel(split=split).sortby("tokens").isel(tokens=-1)
    low, middle, high = (float(last.sel(quantile=q)) for q in (0.05, 0.5, 0.95))
    return low, middle, high


def forecast(material: Material) -> str:
    """The mean loss, observed and forecast: one method with its intervals, then every method."""
    drawing, fan = forecast_figures.every_method(material), forecast_figures.fan(material)
    if drawing is None:
        return ""
    parts = []
    if fan is not None:
        methods = {last_forecast[1].method for split in material.splits if (last_forecast := latest(material, split))}
        model_based = all(name in METHODS and METHODS[name].family == "lr_aware" for name in methods)
        words = "" if material.mean is None else drawn_in_words(material.mean.sizes["tokens"])
        basis = MODEL_BASED.format(rate=_rate(material)) if model_based else ROLLING_ORIGIN
        parts.append(figure(fan, basis + words))
    coverage = error_figures.coverage(material)
    if coverage is not None:
        parts += ["<h3>Coverage of the intervals</h3>", figure(coverage, COVERAGE)]
    caption = (
        f"Each method saw only what lies before the shaded part, and of the learning rate: {_rate(material)}. "
        "Methods by position forecast the law’s parameters and average the loss over positions. All others extrapolate "
        "the mean loss itself. Names in the legend show and hide a method."
    )
    if material.mean is None:
        caption = "The mean loss that each method forecasts beyond its cut-off (shaded)."
    if material.unfinished is not None:
        caption += f" The run is {how_far(material.unfinished)}, where the observed losses end."
    if material.mean is not None:
        caption += drawn_in_words(material.mean.sizes["tokens"])
    without = _without_forecast(material)
    caption += f" No forecast could be made: {without}." if without else ""
    if fan is None or sum(map(len, material.forecasts.values())) > 1:  # a single forecast is drawn with its intervals
        parts += ["<h3>All methods</h3>" if parts else "", figure(drawing, caption)]
    judged = set(material.scores.reset_index("split").index)  # (cutoff, method): the tables of scores have their status
    rows = [
        (name, material.cutoff_names[cutoff], split, readable(status))
        for cutoff, group in material.forecasts.items()
        for name, forecast in group.items()
        for split, status in forecast.status.items()
        if not status.ok and (cutoff, name) not in judged
    ]
    parts.append(folded("Warnings", table(("method", "seen", "split", "status"), rows)) if rows else "")
    return section("forecast", "The forecast", *parts)


def _rate(material: Material) -> str:
    """What the forecasts knew of the learning rate to come, in words."""
    if material.schedule:
        return "the plan as known then, drawn below"
    *_, (cutoff, group) = material.forecasts.items()  # the last, which saw most
    notes = [forecast.notes[0] for forecast in group.values() if forecast.notes]
    said = f"{text(notes[0])} (from {material.cutoff_names[cutoff]})" if notes else "no plan was known"
    return f"{said}; below, the rates that were recorded, of which no forecast saw those beyond its cut-off"


def _without_forecast(material: Material) -> str:
    """Methods without any finite forecast; those that have none from the same cut-offs together."""
    cutoffs: dict[str, list[str]] = {}
    for cutoff, group in material.forecasts.items():
        for name, forecast in group.items():
            if not np.isfinite(forecast.mean.values).any():
                cutoffs.setdefault(name, []).append(material.cutoff_names[cutoff])
    methods: dict[str, list[str]] = {}
    for name, names in cutoffs.items():
        methods.setdefault(", ".join(names), []).append(f"{name}")
    return "; ".join(f"from {names} by {', '.join(which)}" for names, which in methods.items())


def errors(material: Material) -> str:
    """Errors of the final loss by cut-off."""
    drawing, share = error_figures.errors(material), material.unfinished
    if drawing is None:
        return ""
    caption = (
        f"Absolute error of each method’s forecast of the {last_loss(share)}; further left is better. One row a "
        f"method, one dot a cut-off, coloured by the share of the {whole(share)} seen."
    )
    if share is not None:
        caption += f" The run is {how_far(share)}: forecasts are judged by its last checkpoint so far."
    # cut-offs between the same two checkpoints see the same past, in runs with few checkpoints
    same: dict[float, list[str]] = {}
    for cutoff, group in material.forecasts.items():
        same.setdefault(max(forecast.cutoff for forecast in group.values()), []).append(material.cutoff_names[cutoff])
    for names in same.values():
        if len(names) > 1:
            caption += f" From {' and '.join(names)} the same checkpoints are seen: the forecasts are equal."
    splits = [str(split) for split in material.scores.index.unique("split")]
    tables = "".join(_error_table(material, split, f" on {split}" if len(splits) > 1 else "") for split in splits)
    full = "".join(_full_tables(material, split) for split in splits)
    of_mean = OF_MEAN if {"mean_log", "mean_cosine"} & set(material.scores.index.unique("method")) else ""
    note = paragraph(f"Error: forecast minus observed {last_loss(share)}, in nats. {SCORES}{of_mean}", "note")
    details = folded("All scores: forecast, error, R², MSE, status", full) + _methods_in_words(material)
    by_share = error_figures.by_share(material)
    first = "" if by_share is None else figure(by_share, BY_SHARE) + "<h3>All methods</h3>"
    return section("errors", "Errors by cut-off", first, figure(drawing, caption), tables, note, details)


def _methods_in_words(material: Material) -> str:
    """What each method is that has a score."""
    names = [str(name) for name in material.scores.index.unique("method")]
    rows = [(name, METHODS[name].description) for name in names if name in METHODS]
    return folded("What each method is", table((), rows, "", "facts")) if rows else ""


def _error_table(material: Material, split: str, where: str) -> str:
    """Signed errors, one row a method, one column a cut-off."""
    scores, share = material.scores.xs(split, level="split"), material.unfinished
    ranked, best = error_figures.ranked(scores), smallest_errors(material.scores, split).method
    flags = scores["flags"].unstack("cutoff")  # pandas has an attribute of that name
    rows = []
    for method, by_cutoff in ranked.iterrows():
        cells = []
        for cutoff, error in by_cutoff.items():
            dagger = "<sup>†</sup>" if np.isfinite(error) and flags.loc[method, cutoff] else ""
            cells.append(_strong(Html(text(signed(error)) + dagger), best.get(cutoff) == method))
        name = text(str(method))
        rows.append((Html(f"<b>{name}</b>" if error_figures.is_by_position(str(method)) else name), *cells))
    caption = f"Error of the {last_loss(share)}{where}, nats, by share of the {whole(share)} seen"
    return table(("method", *(material.cutoff_names[cutoff] for cutoff in ranked)), rows, caption, "scores")


def _full_tables(material: Material, split: str) -> str:
    """Every column of the scores, one table a cut-off, best first."""
    tables = []
    scores = material.scores.xs(split, level="split")
    for cutoff in sorted(scores.index.unique("cutoff")):
        rows = scores.xs(cutoff, level="cutoff")
        rows = rows.loc[rows.error.abs().sort_values(kind="stable", na_position="last").index]
        best = smallest_errors(material.scores, split).method.get(cutoff)
        cells = [
            (_strong(str(method), method == best), nats(row.final), _strong(signed(row.error), method == best),
             compact(row.r2, 3), compact(row.mse, 3), readable(row.status))
            for method, row in rows.iterrows()
        ]  # fmt: skip
        observed = nats(float(rows.observed.iloc[0]))
        caption = f"seen {material.cutoff_names[cutoff]}, {last_loss(material.unfinished)} {observed}"
        head = ("method", "forecast", "error", "R²", "MSE", "status")
        tables.append(table(head, cells, f"{split}: {caption}" if split else caption, "scores full"))
    return "".join(tables)


def _strong(value: Html | str, best: bool) -> Html:
    return Html(f"<strong>{text(value)}</strong>" if best else text(value))
