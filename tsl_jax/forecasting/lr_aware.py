"""Forecasts with intervals, by laws that know the learning rate: of the mean loss, or of a0, a1 and a2 each.

The past of each curve, and that of reference runs, is extrapolated by `extrapolation.py`, in draws. By position the
curves are a0, log a1 and a2 of the hyperbolic law, fitted to every checkpoint; their draws are paired so that their
ranks correlate as the three moved together in the past, and put back into

    L(i, N) = a0(N)/(1 + a1(N) i) + a2(N),

plus the residual of each position in the last third of the past. The intervals are about the loss on this validation
set: the noise of its texts is common to all checkpoints and cancels. That of the loss on all such texts adds the error
by documents of the last checkpoint seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from tsl_jax import laws
from tsl_jax.fitting import fit
from tsl_jax.forecasting import extrapolation, lr_history, priors
from tsl_jax.forecasting.baselines import BELOW_ZERO, mean_loss
from tsl_jax.forecasting.extrapolation import Extrapolation, RunCurve
from tsl_jax.forecasting.joint_surface import interpolation
from tsl_jax.forecasting.position_route import FEWEST, anchor
from tsl_jax.forecasting.result import (
    QUANTILES,
    Forecast,
    ForecastFlag,
    ForecastStatus,
    population_quantiles,
    quantiles,
)
from tsl_jax.laws import Law, Schedule

PARAMETERS = ("a0", "a1", "a2")
BLOCK = 2**22  # losses of draws that are in memory at once, 32 MB


@dataclass(frozen=True)
class ForecastMethod:
    """A way to forecast with intervals.

    Attributes:
        name: short name, as in tables.
        law: of each curve. through: which curves are extrapolated, and how they become the loss: a function of (law,
            past of one split, tokens, plan, reference_runs) that gives draws of the mean loss (draw, at), or of the
            surface (draw, at, position) as an array or `SurfaceDraws`, and the `Extrapolation` of each curve by name.
        by_position: whether the draws are of the surface.
    """

    name: str
    law: Law
    through: Callable[
        [Law, xr.Dataset, np.ndarray, Any, Sequence[xr.Dataset]],
        tuple[np.ndarray | SurfaceDraws, Mapping[str, Extrapolation]],
    ]
    by_position: bool = False


@dataclass(frozen=True)
class SurfaceDraws:
    """Draws of a0/(1 + a1 i) + a2 + residual, which would fill the memory if all of them were made at once.

    Attributes:
        a0, log_a1, a2: (draw, at). position: (position,). residual: (draw, position), common to all tokens.
    """

    a0: Float[np.ndarray, "draw at"]
    log_a1: Float[np.ndarray, "draw at"]
    a2: Float[np.ndarray, "draw at"]
    position: Float[np.ndarray, " position"]
    residual: Float[np.ndarray, "draw position"]

    def at(self, tokens: slice) -> Float[np.ndarray, "draw at position"]:
        """The draws at some of the tokens."""
        a0, log_a1, a2 = (values[:, tokens, None] for values in (self.a0, self.log_a1, self.a2))
        surface = a0 / (1 + np.exp(log_a1) * self.position) + a2
        surface += self.residual[:, None]
        return surface

    def mean(self) -> Float[np.ndarray, "draw at"]:
        """The mean over positions, from the few that say all others where a1 is within the bounds of the law."""
        count, a1 = len(self.position), np.exp(self.log_a1)
        places, weights = interpolation(self.position)
        share = weights.mean(axis=0)
        if a1.max() > float(laws.HYPERBOLIC.bounds(self.position)[0, 1]):
            places, share = np.arange(count), np.full(count, 1 / count)
        falling = np.zeros_like(self.a0)  # mean of 1/(1 + a1 i)
        for i, part in zip(self.position[places], share, strict=True):
            falling += part / (1 + a1 * i)
        return self.a0 * falling + self.a2 + self.residual.mean(axis=1, keepdims=True)

    @property
    def least(self) -> Float[np.ndarray, " at"]:
        """A bound that no draw is below, (at,): the law is monotone in position, least at the first or the last."""
        ends = [self.a0 / (1 + np.exp(self.log_a1) * i) + self.a2 for i in self.position[[0, -1]]]
        return (np.minimum(*ends) + self.residual.min(axis=1, keepdims=True)).min(axis=0)


def forecast_splits(
    method: ForecastMethod,
    past: xr.Dataset,
    at: np.ndarray,
    plan: Schedule | None,
    reference_runs: Sequence[xr.Dataset],
    by_position: bool = True,
) -> Forecast:
    """The forecast of every split at tokens `at`; arguments as in `forecast`."""
    increasing, position = np.sort(at), past.position.values
    by_position = by_position and method.by_position
    mean_of, surface_of, status, intervals = {}, {}, {}, {}
    fits: dict[str, dict[str, Extrapolation]] = {}
    for split in past.split.values.tolist():
        own = past.sel(split=split)
        others = [run.sel(split=split) for run in reference_runs if split in run.split.values]
        try:
            draws, curves = method.through(method.law, own, increasing, plan, others)
        except ValueError as error:  # too little is known of this split; the others go on
            mean_of[split] = np.full((extrapolation.DRAWS, len(at)), np.nan)
            surface_of[split] = np.full((len(at), len(position), len(QUANTILES)), np.nan) if by_position else None
            status[split] = ForecastStatus(ForecastFlag.NO_FORECAST, (str(error),))
            intervals[split] = "none: no forecast"
            continue
        mean_of[split], surface_of[split], below = _summarised(draws, by_position)
        intervals[split] = _width_rests_on(curves)
        for name, curve in curves.items():
            fits.setdefault(name, {})[split] = curve
        reasons = [BELOW_ZERO] if below else []
        n_ignored = sum(not np.array_equal(run.position, own.position) for run in others) if method.by_position else 0
        if n_ignored:
            detail = f"{n_ignored} of {len(others)} reference runs have other positions and are left out"
            reasons.append((ForecastFlag.REFERENCE_RUNS_IGNORED, detail))
        failed = [name for name, curve in curves.items() if not curve.posterior.converged]
        reasons += [(ForecastFlag.SAMPLER_NOT_CONVERGED, f"the sampler did not converge ({name})") for name in failed]
        status[split] = ForecastStatus.of(reasons)
    labels = {"split": list(mean_of), "tokens": increasing}
    stacked = np.stack(list(mean_of.values()), axis=1)
    mean = xr.DataArray(stacked, labels, ("draw", "split", "tokens")).sel(tokens=at)
    mean_quantiles, surface_quantiles = quantiles(mean), None
    if by_position:
        labels = {**labels, "position": position, "quantile": np.array(QUANTILES)}
        surface_quantiles = xr.DataArray(np.stack(list(surface_of.values())), labels, tuple(labels)).sel(tokens=at)
    return Forecast(
        method=method.name,
        cutoff=float(past.tokens[-1]),
        mean=mean_quantiles.sel(quantile=0.5, drop=True),
        surface=None if surface_quantiles is None else surface_quantiles.sel(quantile=0.5, drop=True),
        status=status,
        fits=fits,
        quantiles=mean_quantiles,
        surface_quantiles=surface_quantiles,
        population_quantiles=population_quantiles(past, mean),
        draws=mean,
        intervals=intervals,
    )


def _summarised(draws: np.ndarray | SurfaceDraws, by_position: bool) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Draws of the mean (draw, at), QUANTILES of the surface (at, position, quantile), whether some median is negative.

    Draws of a surface are made and summarised for BLOCK losses at a time, and of a larger one only what is wanted.
    """
    if not isinstance(draws, SurfaceDraws) and draws.ndim == 2:
        return draws, None, bool((np.median(draws, axis=0) < 0).any())
    draw_count, tokens = draws.a0.shape if isinstance(draws, SurfaceDraws) else draws.shape[:2]
    positions = len(draws.position) if isinstance(draws, SurfaceDraws) else draws.shape[2]
    # where no draw is below zero, no median is: most need not be looked for
    low = draws.least <= 0 if isinstance(draws, SurfaceDraws) else np.ones(tokens, bool)
    mean, of_surface, below = np.empty((draw_count, tokens)), [], False
    each = max(BLOCK // (draw_count * positions), 1)
    few = isinstance(draws, SurfaceDraws) and not by_position and draw_count * tokens * positions > BLOCK
    if few:
        mean = draws.mean()
    for first in range(0, tokens, each):
        part = slice(first, first + each)
        if few and not low[part].any():
            continue
        block = draws.at(part) if isinstance(draws, SurfaceDraws) else draws[:, part]  # (draw, at, position)
        if not few:
            mean[:, part] = block.mean(axis=2)
        if by_position:
            of_surface.append(np.moveaxis(np.quantile(block, QUANTILES, axis=0), 0, -1))
            below |= bool((of_surface[-1][..., QUANTILES.index(0.5)] < 0).any())
        elif low[part].any():
            below |= bool((np.median(block, axis=0) < 0).any())
    return mean, np.concatenate(of_surface) if by_position else None, below


def _width_rests_on(curves: Mapping[str, Extrapolation]) -> str:
    """What the width of the intervals rests on, in words."""
    backtests = min((len(curve.backtest_z) for curve in curves.values()), default=0)
    unseen = any(curve.decay_unseen for curve in curves.values())
    basis = f"calibrated on {backtests} reference runs" if backtests else "model-based"
    return basis + (", the learning rate's fall not yet seen" if unseen else "")


def of_mean(law: Law, past: xr.Dataset, at: np.ndarray, plan: Any, reference_runs: Sequence[xr.Dataset]):
    """Draws (draw, at) of the mean loss."""
    own, *others = mean_runs(past, plan, reference_runs)
    mean = extrapolation.calibrated(law, priors.of_loss(law), own, at, others)
    return mean.draws, {"mean": mean}


def mean_runs(past: xr.Dataset, plan: Any, reference_runs: Sequence[xr.Dataset]) -> list[RunCurve]:
    """The curves of the mean loss of a run and its reference runs, one split each."""
    runs = with_plans(past, plan, reference_runs)
    means = [(run, mean_loss(run.expand_dims("split"))[0].values, its_plan) for run, its_plan in runs]
    return [replace(as_run(*each), is_loss=True) for each in means]


def by_parameters(law: Law, past: xr.Dataset, at: np.ndarray, plan: Any, reference_runs: Sequence[xr.Dataset]):
    """Draws (draw, at, position) of the surface."""
    positions = past.sizes["position"]
    if positions < FEWEST:
        raise ValueError(f"a law over positions needs {FEWEST} of them, the surface has {positions}")
    alike = [run for run in reference_runs if np.array_equal(run.position, past.position)]
    own, *others = (_parameter_curves(run, its_plan) for run, its_plan in with_plans(past, plan, alike))
    usable = np.isfinite(own["a0"].y).sum()
    if usable < FEWEST:
        raise ValueError(f"{usable} usable position fits, {FEWEST} are needed")
    curves: dict[str, Extrapolation] = {}
    for k, name in enumerate(PARAMETERS):
        # a2 is the level, which falls as a loss does; a0 and log a1 may rise or fall (log a1 in units of its own)
        prior = priors.of_loss(law) if name == "a2" else priors.of_parameter(law, 1.0 if name == "a1" else None)
        curves[name] = extrapolation.calibrated(law, prior, own[name], at, [run[name] for run in others], seed=2 * k)
    a0, log_a1, a2 = _paired(curves, own)
    position = past.position.values
    offset, scatter = anchor(past.loss, own["a0"].y, own["a1"].y, own["a2"].y)
    random = scatter * np.random.default_rng(7).standard_normal((len(a0), len(position)))
    return SurfaceDraws(a0, log_a1, a2, position, offset + random), curves


def with_plans(past: xr.Dataset, plan: Any, reference_runs: Sequence[xr.Dataset]):
    """(surface, plan) of the run and its reference runs, which bring plans of their own."""
    return [(past, plan), *((run, lr_history.schedule_of(run)) for run in reference_runs)]


def as_run(past: xr.Dataset, y: np.ndarray, plan: Schedule | None, noise: np.ndarray | None = None) -> RunCurve:
    """A curve y (token,) of a run, with its learning rate and size."""
    tokens, n_params = past.tokens.values.astype(float), past.attrs.get("n_params")
    return RunCurve(tokens, y, lr_history.of_run(past, plan), n_params, noise, _batch_tokens(past))


def _batch_tokens(past: xr.Dataset) -> float | None:
    """Tokens of a step of the optimiser, as the surface states them or as its steps do; None: neither."""
    if past.attrs.get("batch_tokens"):
        return float(past.attrs["batch_tokens"])
    if "step" not in past.coords or not past.sizes["tokens"] or not past.step.values[-1] > 0:
        return None
    return float(past.tokens[-1]) / float(past.step[-1])


def _parameter_curves(past: xr.Dataset, plan: Schedule | None) -> dict[str, RunCurve]:
    """The curves of a0, log a1 and a2; NaN at checkpoints whose position fit is not usable.

    A checkpoint whose parameter has the standard error e scatters more than usual, by the factor of its variance

        m = (1 + (e / median e)^2) / 2.
    """
    position_fit = fit(laws.HYPERBOLIC, past.loss, over="position")
    good = position_fit.usable.values & (position_fit.params.sel(param="a1").values > 0)
    values = {name: np.where(good, position_fit.params.sel(param=name).values, np.nan) for name in PARAMETERS}
    error = {name: position_fit.stderr.sel(param=name).values for name in PARAMETERS}
    error["a1"], values["a1"] = error["a1"] / values["a1"], np.log(values["a1"])  # the error of a logarithm

    def noise(error: np.ndarray) -> np.ndarray:
        known = good & np.isfinite(error)
        typical = np.median(error[known]) if good.any() else 1.0
        return np.where(known, (1 + (error / max(typical, 1e-12)) ** 2) / 2, 1.0)

    return {name: as_run(past, values[name], plan, noise(error[name])) for name in PARAMETERS}


def _paired(curves: Mapping[str, Extrapolation], past: Mapping[str, RunCurve]) -> list[np.ndarray]:
    """The draws (draw, at) of the three, in an order in which their ranks correlate as their changes did in the past.

    Iman & Conover: draw normal vectors with the correlation C, replace each column by its ranks, and put the sorted
    draws of each parameter in the order of these ranks. The margins stay, the rank correlation becomes that of C.
    Source: A distribution-free approach to inducing rank correlation (1982).
    """
    kept = np.isfinite(past["a0"].y)
    changes = np.diff(np.stack([past[name].y[kept] for name in PARAMETERS]), axis=1)
    with np.errstate(all="ignore"):
        correlation = np.nan_to_num(np.corrcoef(changes)) if changes.shape[1] > 2 else np.eye(3)
    # shrunk towards independence, so that the Cholesky factor exists where two parameters moved as one
    shrunk = 0.95 * correlation + 0.05 * np.eye(3)
    np.fill_diagonal(shrunk, 1.0)
    normal = np.random.default_rng(5).standard_normal((extrapolation.DRAWS, 3)) @ np.linalg.cholesky(shrunk).T
    ranks = normal.argsort(0).argsort(0)  # of each column: argsort of argsort
    draws = [curves[name].draws for name in PARAMETERS]
    return [paths[paths[:, -1].argsort()][ranks[:, k]] for k, paths in enumerate(draws)]  # sorted by where they end


ANNEALING = ForecastMethod("annealing", laws.AREA_ANNEALING, by_parameters, True)
MEAN_ANNEALING = ForecastMethod("mean_annealing", laws.SATURATING_ANNEALING, of_mean)
MEAN_MULTI_POWER = ForecastMethod("mean_multi_power", laws.MULTI_POWER, of_mean)
MEAN_AREA_POWER = ForecastMethod("mean_area_power", laws.AREA_POWER, of_mean)
