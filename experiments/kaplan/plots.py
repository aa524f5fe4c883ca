"""The figures of the study in the form of Kaplan et al., whose numbers stand in the captions; they fit nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.kaplan.fits import Fits, grid, overfitting
from experiments.kaplan.runs_table import curves_of_sizes
from tsl_jax.laws import Law
from tsl_jax.reporting.plots.axes import legend_above, log_axis
from tsl_jax.reporting.plots.style import DOUBLE, INK, SINGLE, colour, line, marker, sequential, sheet, styled
from tsl_jax.scaling.ladder import losses

LOSS = "test loss (nats/token)"
SIZE, COMPUTE, COMPUTE_MIN = "parameters without embeddings", "compute (PF-days)", "minimal compute $C_{min}$ (PF-days)"
HEIGHT = 0.72 * SINGLE


def scale_name(value: float) -> str:
    """888, 14.3k, 0.79M."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.0f}"


def loss_axis(panel: Any, values: Any) -> None:
    """A logarithmic axis of losses, which span a factor of two at most: ticks at tenths, fifths or halves of a nat."""
    log_axis(panel.yaxis, values, margin=1.03)
    low, high = panel.get_ylim()
    step = next((step for step in (0.1, 0.2, 0.5) if (high - low) / step <= 6), 1.0)
    panel.yaxis.set_major_locator(FixedLocator((np.arange(np.ceil(low / step), high / step) * step).tolist()))
    panel.yaxis.set_minor_locator(NullLocator())


def curve(law: Law, params: Any, **x: Any) -> np.ndarray:
    """A fitted law at points."""
    return losses(law, x, np.asarray(params, float)[None])[0]


@styled
def one_at_a_time(table: pd.DataFrame, fits: Fits) -> Any:
    """Loss by size, by data and by compute with the envelope, in the order of figure 1."""
    figure, ((by_compute, by_data, by_size),) = sheet(DOUBLE, HEIGHT, 1, 3)
    sizes = curves_of_sizes(table)
    _curves(by_compute, sizes, "pf_days")
    frontier = fits.compute.table
    own = by_compute.plot(frontier.pf_days, frontier.loss, color=INK, linewidth=1.6)[0]
    at = np.geomspace(*_range(frontier.pf_days), 50)
    law = by_compute.plot(
        at, curve(fits.compute.law, fits.compute.params, pf_days=at), color=colour(1), linestyle="--"
    )[0]
    _points_and_law(by_data, fits.data, "tokens")
    _points_and_law(by_size, fits.size, "n_params")
    log_axis(by_compute.xaxis, sizes[sizes.warm].pf_days, most=4)
    for panel, name, loss in (
        (by_compute, COMPUTE, sizes[sizes.warm].loss), (by_data, "data set (tokens)", fits.data.runs.loss),
        (by_size, SIZE, fits.size.runs.loss),
    ):  # fmt: skip
        loss_axis(panel, loss)
        panel.set_xlabel(name)
    by_compute.set_ylabel(LOSS)
    legend_above(figure, {"least loss": own, "power law": law})
    return figure


def _curves(panel: Any, sizes: pd.DataFrame, x: str) -> list[Any]:
    """Learning curves, light to dark by size."""
    each = [part[part.warm] for _, part in sizes.groupby("n_params")]
    colours = zip(each, sequential(len(each)), strict=True)
    return [panel.plot(part[x], part.loss, color=shade, linewidth=0.8)[0] for part, shade in colours]


def _points_and_law(panel: Any, ladder: Any, name: str) -> None:
    runs = ladder.runs
    panel.plot(runs[name], runs.loss, color=INK, marker="o", linestyle="none")
    at = np.geomspace(runs[name].min(), runs[name].max(), 50)
    panel.plot(at, curve(ladder.law, ladder.fit.params.values, **{name: at}), color=colour(1), linestyle="--")
    log_axis(panel.xaxis, runs[name], most=4)


@styled
def size_and_data(table: pd.DataFrame, fits: Fits) -> Any:
    """The family L(N, D), and the excess of the loss over the variable on which it collapses."""
    figure, ((family, collapse),) = sheet(DOUBLE, HEIGHT, 1, 2)
    cells, params, entries = grid(table), fits.size_data.fit.params.values, {}
    for k, (size, part) in enumerate(cells.groupby("n_params")):
        part = part.sort_values("tokens")
        points = family.plot(part.tokens, part.loss, color=colour(k), marker=marker(k), linestyle="none")[0]
        at = np.geomspace(cells.tokens.min(), cells.tokens.max(), 60)
        family.plot(at, curve(fits.size_data.law, params, n_params=np.full(60, size), tokens=at), **line(k))
        entries[scale_name(float(str(size)))] = points
    c = fits.size_data.fit.params.to_series()
    over = overfitting(table)
    for k, size in enumerate(sorted(cells.n_params.unique())):
        part = over[over.n_params == size]
        x = (part.n_params / c.N_c) ** (c.alpha_N / c.alpha_D) * c.D_c / part.tokens
        collapse.plot(x, 100 * part.above, color=colour(k), marker=marker(k), linestyle="none")
    x = (over.n_params / c.N_c) ** (c.alpha_N / c.alpha_D) * c.D_c / over.tokens
    at = np.geomspace(x.min(), x.max(), 60)
    collapse.plot(at, 100 * ((1 + at) ** c.alpha_D - 1), color=INK, linewidth=1)
    log_axis(family.xaxis, cells.tokens)
    loss_axis(family, cells.loss)
    log_axis(collapse.xaxis, at)
    family.set(xlabel="data set (tokens)", ylabel="loss at early stop (nats/token)")
    collapse.set(xlabel=r"$(N/N_c)^{\alpha_N/\alpha_D}\,D_c/D$", ylabel="excess loss (%)")
    legend_above(figure, entries, SIZE)
    return figure


@styled
def hyperbolas(fits: Fits) -> Any:
    """Steps against tokens at fixed losses."""
    figure, ((panel,),) = sheet(SINGLE, 0.8 * SINGLE)
    points, trades = fits.trade.points, fits.trade.trades
    groups = list(points.groupby("loss"))
    for k, ((loss, part), shade) in enumerate(zip(groups, sequential(len(groups)), strict=True)):
        panel.plot(part.steps, part.tokens, color=shade, marker="o", linestyle="none")
        trade = trades[np.isclose(trades.loss, float(str(loss)))]
        if len(trade):
            s_min, e_min = float(trade.s_min.iloc[0]), float(trade.e_min.iloc[0])
            steps = np.geomspace(max(part.steps.min() * 0.9, 1.02 * s_min), part.steps.max() * 1.1, 80)
            panel.plot(steps, e_min * steps / (steps - s_min), color=shade, linewidth=0.9)
        if k in (0, len(groups) - 1):  # the others lie between
            x, y = part.loc[part.steps.idxmax(), ["steps", "tokens"]]
            text = f"{float(str(loss)):.2f} nats"
            panel.annotate(text, (x, y), xytext=(4, -2), textcoords="offset points", fontsize=7, color=shade)
    log_axis(panel.xaxis, points.steps, margin=1.5)
    log_axis(panel.yaxis, points.tokens, margin=1.3)
    panel.set(xlabel="steps $S$", ylabel="tokens $E = BS$")
    return figure


@styled
def critical_batch(fits: Fits, noise: pd.DataFrame) -> Any:
    """B_crit by loss: of the hyperbolas with errors, its law, and the gradient noise scale of runs."""
    figure, ((panel,),) = sheet(SINGLE, 0.8 * SINGLE)
    trades = fits.trade.trades[fits.trade.trades.usable]
    entries = {}
    for k, (size, part) in enumerate(noise.groupby("n_params")):
        mean = np.exp(np.log(part[["loss", "noise_scale"]]).groupby(part.tokens).mean())  # over seeds
        entries[f"noise scale, {scale_name(float(str(size)))}"] = panel.plot(
            mean.loss, mean.noise_scale, color=colour(k + 1), marker=marker(k + 1), linewidth=0.7, markersize=2
        )[0]
    bars = trades.b_crit * (np.exp(trades.log_b_crit_se) - 1), trades.b_crit * (1 - np.exp(-trades.log_b_crit_se))
    entries["from batch sizes"] = panel.errorbar(
        trades.loss, trades.b_crit, [bars[1], bars[0]], color=INK, marker="o", linestyle="none", elinewidth=0.7
    )
    at = np.geomspace(*_range(trades.loss, noise.loss), 50)
    law = fits.critical["B_star"] / at ** (1 / fits.critical["alpha_B"])
    entries["power law of the noise scale"] = panel.plot(at, law, color=colour(0), linestyle="--")[0]
    log_axis(panel.xaxis, at, margin=1.03, most=8)
    log_axis(panel.yaxis, np.concatenate([trades.b_crit, noise.noise_scale, law]), margin=1.3)
    panel.invert_xaxis()
    panel.set(xlabel="training loss (nats/token)", ylabel="critical batch (tokens)")
    legend_above(figure, entries)
    return figure


def _range(*values: Any) -> tuple[float, float]:
    together = np.concatenate([np.ravel(np.asarray(part, float)) for part in values])
    return float(np.nanmin(together)), float(np.nanmax(together))


@styled
def size_and_steps(fits: Fits) -> Any:
    """Learning curves over S_min with the one law of them all."""
    figure, ((panel,),) = sheet(SINGLE, 0.85 * SINGLE)
    warm, params = fits.minimal[fits.minimal.warm], fits.size_steps.fit.params.values
    groups, entries = list(warm.groupby("n_params")), {}
    for (size, part), shade in zip(groups, sequential(len(groups)), strict=True):
        entries[scale_name(float(str(size)))] = panel.plot(
            part.steps_min, part.loss, color=shade, marker="o", markersize=2, linestyle="none"
        )[0]
        at = np.geomspace(part.steps_min.min(), part.steps_min.max(), 50)
        law = curve(fits.size_steps.law, params, n_params=np.full(50, float(str(size))), steps_min=at)
        panel.plot(at, law, color=shade, linewidth=0.9)
    log_axis(panel.xaxis, warm.steps_min)
    loss_axis(panel, warm.loss)
    panel.set(xlabel="$S_{min}$ (steps)", ylabel=LOSS)
    legend_above(figure, entries, SIZE)
    return figure


@styled
def allocation(fits: Fits) -> Any:
    """The best size, batch and steps over the budget, with power laws fitted, by our constants, and by the paper's."""
    figure, (panels,) = sheet(DOUBLE, HEIGHT, 1, 3)
    names = {"n_params": "best size $N$", "batch_tokens": "batch $B$ (tokens)", "steps": "steps $S$"}
    rows, entries = fits.allocation.set_index("quantity"), {}
    x = fits.optima.pf_days_min.to_numpy()
    for panel, (quantity, label) in zip(panels, names.items(), strict=True):
        y = fits.optima[quantity].to_numpy()
        panel.set(xlabel=COMPUTE_MIN, ylabel=label)
        if not len(x):
            continue
        entries["best of the runs"] = panel.plot(x, y, color=INK, marker="o", linestyle="none")[0]
        kinds = {"fitted": "fitted", "from_constants": "by our constants", "paper_fitted": "the paper's, fitted"}
        for k, (column, name) in enumerate(kinds.items()):
            middle = np.exp(np.log(x).mean()), np.exp(np.log(y).mean())
            entries[name] = panel.plot(x, middle[1] * (x / middle[0]) ** rows.loc[quantity, column], **line(k))[0]
        log_axis(panel.xaxis, x, margin=1.2, most=4)
        log_axis(panel.yaxis, y, margin=1.6, most=4)
    legend_above(figure, entries)
    return figure
