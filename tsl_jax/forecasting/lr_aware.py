"""Forecasts with intervals, by laws that know the learning rate: of the mean loss, or of a0, a1 and a2 each.

The past of each curve, and that of reference runs, is extrapolated by `extrapolation.py`, in draws. By position the
curves are a0, log a1 and a2 of the hyperbolic law, fitted to every checkpoint; their draws are paired so that their
ranks correlate as the three moved together in the past, and put back into

    L(i, N) = a0(N)/(1 + a1(N) i) + a2(N),

plus what each position was off in the last third of the past. The intervals are about the loss on this validation set:
the noise of its texts is common to all checkpoints and cancels. That of the loss on all such texts adds the error by
documents of the last checkpoint seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax import laws
from tsl_jax.fitting import fit
from tsl_jax.forecasting import extrapolation, lr_history, priors
from tsl_jax.forecasting.baselines import BELOW_ZERO, mean_loss
from tsl_jax.forecasting.extrapolation import Extrapolation, RunCurve
from tsl_jax.forecasting.position_route import FEWEST, anchor
from tsl_jax.forecasting.result import Forecast, ForecastFlag, ForecastStatus, population_quantiles, quantiles
from tsl_jax.forecasting.stacking import stacked
from tsl_jax.laws import Law, Schedule

PARAMETERS = ("a0", "a1", "a2")


@dataclass(frozen=True)
class ForecastMethod:
    """A way to forecast with intervals.

    Attributes:
        name: short name, as in tables.
        law: of each curve. through: which curves are continued, and how they become the loss: a function of (law,
            past of one split, tokens, plan, reference_runs) that gives draws of the mean loss (draw, at), or of the
            surface (draw, at, position), and the `Extrapolation` of each curve by name.
    """

    name: str
    law: Law
    through: Callable[[Law, xr.Dataset, np.ndarray, Any, Sequence[xr.Dataset]], tuple[np.ndarray, Mapping]]
    by_position: bool = False


STACKED = (laws.AREA_ANNEALING, laws.MULTI_POWER, laws.AREA_POWER)


def forecast_splits(
    method: ForecastMethod,
    past: xr.Dataset,
    at: np.ndarray,
    plan: Schedule | None,
    reference_runs: Sequence[xr.Dataset],
) -> Forecast:
    """The forecast of every split at tokens `at`; arguments as in `forecast`."""
    order = np.argsort(at)
    made, status, fits = {}, {}, {}
    for split in past.split.values.tolist():
        one = past.sel(split=split)
        others = [other.sel(split=split) for other in reference_runs if split in other.split.values]
        try:
            made[split], fits[split] = method.through(method.law, one, at[order], plan, others)
            status[split] = _status(fits[split], made[split], _strangers(one, others) if method.by_position else "")
        except ValueError as error:  # too little is known of this split; the others go on
            made[split] = _nothing(one, len(at), method.by_position)
            status[split] = ForecastStatus(ForecastFlag.NO_FORECAST, (str(error),))
    draws = _labelled(made, past, at[order]).sel(tokens=at)
    return _forecast(method, past, draws, status, fits)


def of_mean(law: Law, past: xr.Dataset, at: np.ndarray, plan: Any, reference_runs: Sequence[xr.Dataset]):
    """Draws (draw, at) of the mean loss."""
    own, *others = mean_runs(past, plan, reference_runs)
    found = extrapolation.calibrated(law, priors.of_loss(law), own, at, others)
    return found.draws, {"mean": found}


def of_mean_stacked(_: Law, past: xr.Dataset, at: np.ndarray, plan: Any, reference_runs: Sequence[xr.Dataset]):
    """Draws (draw, at) of the mean loss, by all laws of STACKED."""
    own, *others = mean_runs(past, plan, reference_runs)
    found = stacked(STACKED, own, at, others)
    return found.draws, {"mean": found}


def mean_runs(past: xr.Dataset, plan: Any, reference_runs: Sequence[xr.Dataset]) -> list[RunCurve]:
    """The curves of the mean loss of a run and its reference_runs, one split each."""
    told = with_plans(past, plan, reference_runs)
    return [as_run(one, mean_loss(one.expand_dims("split"))[0].values, own) for one, own in told]


def by_parameters(law: Law, past: xr.Dataset, at: np.ndarray, plan: Any, reference_runs: Sequence[xr.Dataset]):
    """Draws (draw, at, position) of the surface."""
    positions = past.sizes["position"]
    if positions < FEWEST:
        raise ValueError(f"a law over positions needs {FEWEST} of them, the surface has {positions}")
    alike = [one for one in reference_runs if np.array_equal(one.position, past.position)]
    curves = [_parameters(one, p) for one, p in with_plans(past, plan, alike)]
    if np.isfinite(curves[0]["a0"].y).sum() < FEWEST:
        raise ValueError(f"{np.isfinite(curves[0]['a0'].y).sum()} usable position fits, {FEWEST} are needed")
    found: dict[str, Extrapolation] = {}
    for seed, name in enumerate(PARAMETERS):
        belief = priors.of_loss(law) if name == "a2" else priors.of_parameter(law, 1.0 if name == "a1" else None)
        own, *others = (one[name] for one in curves)
        found[name] = extrapolation.calibrated(law, belief, own, at, others, seed=2 * seed)
    a0, log_a1, a2 = _paired(found, curves[0])
    position = past.position.values
    surface = a0[..., None] / (1 + np.exp(log_a1)[..., None] * position) + a2[..., None]
    offset, scatter = anchor(past.loss, curves[0]["a0"].y, curves[0]["a1"].y, curves[0]["a2"].y)
    own_noise = scatter * np.random.default_rng(7).standard_normal((len(surface), 1, len(position)))
    return surface + offset + own_noise, found


def with_plans(past: xr.Dataset, plan: Any, reference_runs: Sequence[xr.Dataset]):
    """(surface, plan) of the run and its reference_runs, which bring plans of their own."""
    return [(past, plan), *((one, lr_history.schedule_of(one)) for one in reference_runs)]


def as_run(past: xr.Dataset, y: np.ndarray, plan: Schedule | None, noise: np.ndarray | None = None) -> RunCurve:
    return RunCurve(
        past.tokens.values.astype(float), y, lr_history.of_run(past, plan), past.attrs.get("n_params"), noise
    )


def _parameters(past: xr.Dataset, plan: Schedule | None) -> dict[str, RunCurve]:
    """The curves of a0, log a1 and a2; NaN at checkpoints whose position fit says nothing."""
    found = fit(laws.HYPERBOLIC, past.loss, over="position")
    good = found.usable.values & (found.params.sel(param="a1").values > 0)
    values = {name: np.where(good, found.params.sel(param=name).values, np.nan) for name in PARAMETERS}
    error = {name: found.stderr.sel(param=name).values for name in PARAMETERS}
    error["a1"], values["a1"] = error["a1"] / values["a1"], np.log(values["a1"])
    return {name: as_run(past, values[name], plan, _noise(error[name], good)) for name in PARAMETERS}


def _noise(error: np.ndarray, good: np.ndarray) -> np.ndarray:
    """How much more than usual each checkpoint scatters: 1 + (its error / the typical one)^2, over two."""
    typical = np.median(error[good & np.isfinite(error)]) if good.any() else 1.0
    return np.where(good & np.isfinite(error), (1 + (error / max(typical, 1e-12)) ** 2) / 2, 1.0)


def _paired(found: Mapping[str, Extrapolation], curves: Mapping[str, RunCurve]) -> list[np.ndarray]:
    """The draws of the three, in an order in which their ranks correlate as their changes did in the past.

    Source: Iman & Conover, A distribution-free approach to inducing rank correlation (1982).
    """
    kept = np.isfinite(curves["a0"].y)
    moves = np.diff(np.stack([curves[name].y[kept] for name in PARAMETERS]), axis=1)
    with np.errstate(all="ignore"):
        together = np.nan_to_num(np.corrcoef(moves)) if moves.shape[1] > 2 else np.eye(3)
    shrunk = 0.95 * together + 0.05 * np.eye(3)
    np.fill_diagonal(shrunk, 1.0)
    normal = np.random.default_rng(5).standard_normal((extrapolation.DRAWS, 3)) @ np.linalg.cholesky(shrunk).T
    ranks = normal.argsort(0).argsort(0)
    draws = [found[name].draws for name in PARAMETERS]
    return [one[one[:, -1].argsort()][ranks[:, k]] for k, one in enumerate(draws)]


def _nothing(past: xr.Dataset, at: int, by_position: bool) -> np.ndarray:
    return np.full(
        (extrapolation.DRAWS, at, past.sizes["position"]) if by_position else (extrapolation.DRAWS, at), np.nan
    )


def _strangers(past: xr.Dataset, reference_runs: Sequence[xr.Dataset]) -> str:
    """What to say of reference runs that a law by position cannot learn from."""
    count = sum(not np.array_equal(one.position, past.position) for one in reference_runs)
    return f"{count} of {len(reference_runs)} reference runs have other positions and are left out" if count else ""


def _status(found: Mapping[str, Extrapolation], draws: np.ndarray, strangers: str) -> ForecastStatus:
    reasons = [BELOW_ZERO] if (np.median(draws, axis=0) < 0).any() else []
    reasons += [(ForecastFlag.REFERENCE_RUNS_IGNORED, strangers)] if strangers else []
    return ForecastStatus.of(
        reasons
        + [
            (ForecastFlag.SAMPLER_NOT_CONVERGED, f"the sampler did not converge ({name})")
            for name, one in found.items()
            if not one.posterior.settled
        ]
    )


def _labelled(made: Mapping[str, np.ndarray], past: xr.Dataset, at: np.ndarray) -> xr.DataArray:
    values = np.stack(list(made.values()), axis=1)
    dims = ("draw", "split", "tokens", "position")[: values.ndim]
    coordinates = {"split": list(made), "tokens": at, "position": past.position.values}
    return xr.DataArray(values, {k: v for k, v in coordinates.items() if k in dims}, dims)


def _forecast(
    method: ForecastMethod,
    past: xr.Dataset,
    draws: xr.DataArray,
    status: Mapping[str, ForecastStatus],
    fits: Mapping[str, Any],
) -> Forecast:
    by_position = "position" in draws.dims
    mean = draws.mean("position", skipna=False) if by_position else draws
    known = quantiles(mean)
    surface = quantiles(draws) if by_position else None
    return Forecast(
        method=method.name,
        cutoff=float(past.tokens[-1]),
        mean=known.sel(quantile=0.5, drop=True),
        surface=None if surface is None else surface.sel(quantile=0.5, drop=True),
        status=status,
        fits={name: {split: fits[split][name] for split in fits} for name in next(iter(fits.values()), ())},
        quantiles=known,
        surface_quantiles=surface,
        population_quantiles=population_quantiles(past, mean),
        draws=mean,
        intervals={split: _basis_of(fits.get(split, {})) for split in status},
    )


def _basis_of(found: Mapping[str, Extrapolation]) -> str:
    """What the width of the intervals rests on."""
    count = min((len(one.backtest_z) for one in found.values()), default=0)
    unseen = ", the learning rate's fall not yet seen" if any(one.decay_unseen for one in found.values()) else ""
    return (f"calibrated on {count} reference runs" if count else "model-based") + unseen


ANNEALING = ForecastMethod("annealing", laws.AREA_ANNEALING, by_parameters, True)
MEAN_ANNEALING = ForecastMethod("mean_annealing", laws.AREA_ANNEALING, of_mean)
MEAN_MULTI_POWER = ForecastMethod("mean_multi_power", laws.MULTI_POWER, of_mean)
MEAN_AREA_POWER = ForecastMethod("mean_area_power", laws.AREA_POWER, of_mean)
MEAN_STACK = ForecastMethod("mean_stack", laws.AREA_ANNEALING, of_mean_stacked)
