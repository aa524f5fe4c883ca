"""Sections of the page about the run itself: loss by position, the laws fitted to it, how well they fit, the facts.

Each takes what it needs of the material, and is an empty string where that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.fitting import Fit, Status
from tsl_jax.reporting import run_figures
from tsl_jax.reporting.figures import Figure, drawn_in_words, hover, lines, log_axis, panels, round_ticks
from tsl_jax.reporting.markup import Html, figure, folded, paragraph, section, table, text
from tsl_jax.reporting.material import Material
from tsl_jax.reporting.wording import compact, described, mathematics, nats, readable, whole

MOST_ROWS = 60  # of a table of parameters; more belong into a file
MOST_CURVES = 12  # drawn of a fit over anything but position
LONG = 110  # characters that fit two lines of a phone; longer values are folded
FACTS = {
    "run": "run",
    "n_params": "parameters (without embeddings)",
    "n_params_embedding": "parameters of embeddings",
    "model": "model",
    "schedule": "learning-rate schedule",
    "changes": "changes in mid-run",
    "batch_tokens": "tokens a step",
    "windows": "evaluation windows",
    "document_boundary": "document boundaries",
    "corpus": "corpus",
    "seed": "seed",
    "versions": "versions",
    "git_commit": "git commit",
    "config_hash": "hash of the configuration",
    "units": "units of loss",
    "loss_is": "loss",
    "warmup_tokens": "tokens of the warm-up",
    "source": "source",
}
HIDDEN = ("header",)  # the surface file's own copy of all the rest


def by_position(material: Material) -> str:
    """L(i) against position."""
    drawing = run_figures.by_position(material)
    if drawing is None:
        return ""
    colours = "curve, by its number." if _numbered(material) else "checkpoint, named by its tokens seen."
    caption = [
        f"The loss at position <i>i</i>, a token with <i>i</i> tokens of context. Each colour is one {colours} Where a "
        "curve decreases, context helps."
    ]
    if material.surface is not None:
        caption.append("Points are measured losses, means over the evaluation windows.")
    for name, fit in material.by_position.items():
        good, weak = (int((fit.fit.status == s).sum()) for s in (Status.CONVERGED, Status.WEAKLY_IDENTIFIED))
        also = f", {weak} more with weakly identified parameters" if weak else ""
        law, size = _formula(fit.fit), fit.fit.status.size
        caption.append(f"Lines, {text(name)}: the fitted law {law}; {good} of {size} fits converged{also}.")
    return section("by-position", "Loss by position", figure(drawing, Html(" ".join(caption))))


def _numbered(material: Material) -> bool:
    """Whether the curves are not checkpoints of a run, as far as is known."""
    return any(fit.tokens is None for fit in material.by_position.values())


def _formula(fit: Fit) -> str:
    return f'<span class="formula">{mathematics(fit.law.formula)}</span>'


def parameters(material: Material) -> str:
    """The position law's parameters over tokens."""
    drawing = run_figures.parameters(material)
    if drawing is None:
        return ""
    curve = "curve" if _numbered(material) else "checkpoint"
    caption = f"Parameters of the position law fitted to each {curve}, with standard errors."
    most = max(len(fit.at) for fit in material.by_position.values())
    caption += drawn_in_words(most, run_figures.MOST_CURVES, curve)
    marks = run_figures.marks(drawing)
    if "unusable" in marks:
        caption += " Red marks are fits that do not identify the parameters; forecasts leave them out."
    if "beyond" in marks:
        caption += " Triangles stand for values beyond the axis."
    tables, (cutoff, forecast) = "", material.shown or (0.0, None)
    if forecast is not None and "ahead" in marks:
        share = f"the first {material.cutoff_names[cutoff]} of the {whole(material.unfinished)}"
        past = "all checkpoints so far" if cutoff == material.now else share
        caption += (
            f" Dashed: the forecast of {described(forecast.method)} from {past}; where points leave it through the "
            "shaded part, the forecast is wrong."
        )
        laws = {name: fit for name, fit in forecast.fits.items() if isinstance(fit, Fit) and fit.over == ("tokens",)}
        inner = "".join(_parameter_table(fit, Html(f"{mathematics(name)}(N)")) for name, fit in laws.items())
        tables = folded("Parameters of the temporal laws", inner) if laws else ""
    title = "The law’s parameters" + ("" if _numbered(material) else " during training")
    return section("parameters", title, figure(drawing, caption), tables)


def quality(material: Material, r2: xr.Dataset | None) -> str:
    """How well the position law fits."""
    drawing = run_figures.quality(r2, material)
    if drawing is None:
        return ""
    caption = "The share of the variance over positions that the law explains (R²), by checkpoint."
    if r2 is not None and "expected" in r2:
        caption += (
            " Dashed: the R² expected of a true law under the noise of the losses, as the texts show it; 90% of true "
            "laws lie in the band. All checkpoints are measured on the same texts, so that they lie on the same side."
        )
    if r2 is not None and "additive" in r2:
        caption += " The additive estimate removes the effect of which text stands at each position."
    if material.surface is not None:
        caption += drawn_in_words(material.surface.sizes["tokens"])
    for split in drawing.choices["split"]:
        parts = [f"{nats(value)} ({name})" for name, value in run_figures.medians(r2, material, split).items()]
        caption += f" Median of the later half{f', {split}' if split else ''}: {', '.join(parts)}."
    return section("quality", "How well the law fits", figure(drawing, caption))


# ----------------------------------------------------------------------------------------------------------- other fits


def other_fits(material: Material) -> str:
    """Fits over anything but position, such as Kaplan's over model size: curve and parameters."""
    parts = []
    for name, fit in material.others.items():
        drawing = _fitted_curves(name, fit)
        over = text(", ".join(fit.over))
        caption = Html(f"The fitted law over {over}, within the range of the data. Source: {text(fit.law.source)}.")
        parts.append(f"<h3>{text(name)}: {_formula(fit)}</h3>")
        parts += [figure(drawing, caption) if drawing else paragraph(caption), _parameter_table(fit, "Parameters")]
    title = "Other fits" if len(material.others) > 1 else "Fitted law"
    return section("other-fits", title, *parts) if parts else ""


def _fitted_curves(name: str, fit: Fit) -> Figure | None:
    """The fitted curves, for laws of one covariate that is positive."""
    x = None if isinstance(fit.x, Mapping) else np.asarray(fit.x, float)
    if x is None or len(fit.over) != 1 or not len(x) or x.min() <= 0 or x.min() == x.max():
        return None
    fine = np.geomspace(x.min(), x.max(), 100)
    curves = fit.predict(fine).values.reshape(-1, len(fine))[:MOST_CURVES]
    colours = [f"seq:{place:.3f}" for place in np.linspace(0, 1, len(curves))] if len(curves) > 1 else ["--blue"]
    data = [lines(fine, y, c, key=c, **hover("%{x:.4s}: %{y:.4g}")) for y, c in zip(curves, colours, strict=True)]
    title = text(fit.over[0].replace("_", " ")) + " (log scale)"
    axis = log_axis(title, x.min(), x.max(), round_ticks(x.min(), x.max()))
    layout = panels(["fitted value"], [260], axis, [{}])
    slug = "fit-" + "".join(c if c.isalnum() else "-" for c in name)
    return Figure(slug, f"The fitted law {name}", {}, {(): {"data": data, "layout": layout, "legend": []}})


def _parameter_table(fit: Fit, caption: object) -> str:
    """Parameters with standard errors, R2 and status: one column a curve if there are few, else one row."""
    names = [Html(mathematics(str(name))) for name in fit.params.param.values]
    outer = fit.status.dims
    params, errors = (a.transpose(*outer, "param").values.reshape(-1, len(names)) for a in (fit.params, fit.stderr))
    # a curve is named by its coordinates in all dimensions but the parameters'
    labels = pd.MultiIndex.from_product([fit.status[dim].values for dim in outer]) if outer else [("value",)]
    r2, status = fit.r2.values.ravel(), fit.status.values.ravel()
    curves = []
    for k, curve in zip(range(MOST_ROWS), labels, strict=False):
        cells = [
            f"{compact(value)} ± {compact(error, 2)}" if np.isfinite(error) else compact(value)
            for value, error in zip(params[k], errors[k], strict=True)
        ]
        ended = readable(Status(int(status[k])).short)
        curves.append((", ".join(map(str, curve)), *cells, compact(r2[k]), ended))
    head = (", ".join(map(str, outer)), *names, "R²", "status")
    if len(curves) <= 3:  # few curves: parameters as rows fit a phone
        head, *curves = zip(head, *curves, strict=True)
    more = fit.status.size - len(labels[:MOST_ROWS])
    note = paragraph(f"{more} more curves are not shown.", "note") if more > 0 else ""
    return table(head, curves, caption, "parameters") + note


# ---------------------------------------------------------------------------------------------------------------- facts


def facts(given: Mapping[str, Any] | None, attrs: Mapping[str, Any]) -> str:
    """What was trained, on what, by which plan, how measured: the caller's facts, then the surface's."""
    ordered = [key for key in FACTS if key in attrs] + [key for key in attrs if key not in FACTS]
    of_surface = [(FACTS.get(key, str(key)), attrs[key]) for key in ordered if key not in HIDDEN]
    rows = [(name, _value(value)) for name, value in [*(given or {}).items(), *of_surface] if value is not None]
    return section("facts", "The run’s facts", table((), rows, "", "facts")) if rows else ""


def _value(value: Any) -> Html:
    """Markup of any value: mappings as tables or short lists, long text folded."""
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:
        value = value.item()  # a numpy scalar
    if isinstance(value, list | tuple) and value and all(isinstance(part, Mapping) for part in value):
        value = {f"{number} of {len(value)}": part for number, part in enumerate(value, 1)}
    if isinstance(value, int | float) and not isinstance(value, bool):
        large = isinstance(value, int) and abs(value) >= 10_000
        return Html(f"{value:,}" if large else f"{value:g}" if value == value else "–")
    if isinstance(value, Mapping):
        names = [str(key).replace("_", " ") for key in value]
        short = ", ".join(f"{name} {part}" for name, part in zip(names, value.values(), strict=True))
        if len(short) > LONG or any(isinstance(part, Mapping) for part in value.values()):
            rows = [(name, _value(part)) for name, part in zip(names, value.values(), strict=True)]
            preview = ", ".join(names)
            summary = preview if len(preview) <= LONG // 2 else preview[: LONG // 2].rsplit(",", 1)[0] + " …"
            return Html(folded(summary, table((), rows, "", "facts")))
        value = short
    string = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if len(string) <= LONG:
        return Html(text(string))
    return Html(folded(string[: LONG // 2].rstrip() + " …", f"<p>{text(string)}</p>"))
