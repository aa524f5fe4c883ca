"""Any fitted law, drawn and tabled: curve, parameters with standard errors, and the status in words."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tsl_jax.fitting import Fit, Status
from tsl_jax.reporting.figures import Figure, hover, lines, log_axis, panels, round_ticks
from tsl_jax.reporting.inputs import Material
from tsl_jax.reporting.markup import Html, figure, paragraph, section, table, text
from tsl_jax.reporting.words import compact, mathematics

MOST_ROWS = 60  # of a table of parameters; more belong into a file


def other_fits(material: Material) -> str:
    """Fits over anything but position, such as Kaplan's over model size: curve and parameters."""
    parts = [_other(name, fit) for name, fit in material.others.items()]
    return section("other-fits", "Other fits" if len(parts) > 1 else "Fitted law", *parts) if parts else ""


def _other(name: str, fit: Fit) -> str:
    formula = f'<span class="formula">{mathematics(fit.law.formula)}</span>'
    title = f"<h3>{text(name)}: {formula}</h3>"
    drawing = _curve(name, fit)
    over = ", ".join(fit.over)
    told = Html(f"The fitted law over {text(over)}, within the range of the data. Source: {text(fit.law.source)}.")
    return title + (figure(drawing, told) if drawing else paragraph(told)) + parameter_table(fit, "Parameters")


def _curve(name: str, fit: Fit) -> Figure | None:
    """The fitted curves, for laws of one covariate that is positive."""
    x = None if isinstance(fit.x, dict) else np.asarray(fit.x, float)
    if x is None or len(fit.over) != 1 or not len(x) or x.min() <= 0 or x.min() == x.max():
        return None
    fine = np.geomspace(x.min(), x.max(), 100)
    curves = fit.predict(fine).values.reshape(-1, len(fine))[:12]
    colours = [f"seq:{place:.3f}" for place in np.linspace(0, 1, len(curves))] if len(curves) > 1 else ["--blue"]
    data = [lines(fine, y, c, key=c, **hover("%{x:.4s}: %{y:.4g}")) for y, c in zip(curves, colours, strict=True)]
    axis = log_axis(
        text(fit.over[0].replace("_", " ")) + " (log scale)", x.min(), x.max(), round_ticks(x.min(), x.max())
    )
    layout = panels(["fitted value"], [260], axis, [{}])
    slug = "fit-" + "".join(c if c.isalnum() else "-" for c in name)
    return Figure(slug, f"The fitted law {name}", {}, {(): {"data": data, "layout": layout, "legend": []}})


def parameter_table(fit: Fit, caption: object) -> str:
    """Parameters with standard errors, R2 and status: one column a curve if there are few, else one row."""
    names = [Html(mathematics(str(name))) for name in fit.params.param.values]
    outer = fit.status.dims
    params, errors = (a.transpose(*outer, "param").values.reshape(-1, len(names)) for a in (fit.params, fit.stderr))
    labels = pd.MultiIndex.from_product([fit.status[dim].values for dim in outer]) if outer else [("value",)]
    r2, status = fit.r2.values.ravel(), fit.status.values.ravel()
    curves = []
    for k, curve in zip(range(MOST_ROWS), labels, strict=False):
        cells = (_with_error(value, error) for value, error in zip(params[k], errors[k], strict=True))
        ended = Status(int(status[k])).short.replace("_", " ")
        curves.append((", ".join(map(str, curve)), *cells, compact(r2[k]), ended))
    head = (", ".join(map(str, outer)), *names, "R²", "status")
    if len(curves) <= 3:
        head, *curves = zip(head, *curves, strict=True)
    more = fit.status.size - len(labels[:MOST_ROWS])
    note = paragraph(f"{more} more curves are not shown.", "note") if more > 0 else ""
    return table(head, curves, caption, "parameters") + note


def _with_error(value: float, error: float) -> str:
    return f"{compact(value)} ± {compact(error, 2)}" if np.isfinite(error) else compact(value)
