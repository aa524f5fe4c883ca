"""Forecasts with intervals, by laws that know the learning rate: of the mean loss, or of a0, a1 and a2 each.

The past (and siblings) of each curve are continued by `curve.py`, in draws. By position the curves are a0, log a1 and
a2 of the hyperbolic law, fitted to every checkpoint; their draws are paired so that their ranks correlate as the three
moved together in the past, and put back into

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
from tsl_jax.forecasting.extrapolation import Continued, Run
from tsl_jax.forecasting.intervals import of_population, quantiles
from tsl_jax.forecasting.position_route import FEWEST, anchor
from tsl_jax.forecasting.result import Forecast
from tsl_jax.forecasting.stacking import stacked
from tsl_jax.laws import Law, Schedule

PARAMETERS = ("a0", "a1", "a2")


@dataclass(frozen=True)
class Continuation:
    """A way to forecast with intervals.

    Attributes:
        name: short name, as in tables. label: what to call it in a figure.
        law: of each curve. through: which curves are continued, and how they become the loss: a function of (law,
            past of one split, tokens, plan, siblings) that gives draws of the mean loss (draw, at), or of the surface
            (draw, at, position), and what was found by the name of each curve.
    """

    name: str
    label: str
    law: Law
    through: Callable[[Law, xr.Dataset, np.ndarray, Any, Sequence[xr.Dataset]], tuple[np.ndarray, Mapping]]
    by_position: bool = False


STACKED = (laws.AREA_ANNEALING, laws.MULTI_POWER, laws.AREA_POWER)


def proceed(
    method: Continuation, past: xr.Dataset, at: np.ndarray, plan: Schedule | None, siblings: Sequence[xr.Dataset]
) -> Forecast:
    """The forecast of every split at tokens `at`; arguments as in `forecast`."""
    order = np.argsort(at)
    made, status, fits = {}, {}, {}
    for split in past.split.values.tolist():
        one = past.sel(split=split)
        others = [other.sel(split=split) for other in siblings if split in other.split.values]
        try:
            made[split], fits[split] = method.through(method.law, one, at[order], plan, others)
            status[split] = _doubts(fits[split], made[split], _strangers(one, others) if method.by_position else "")
        except ValueError as error:  # too little is known of this split; the others go on
            made[split], status[split] = _nothing(one, len(at), method.by_position), str(error)
    draws = _labelled(made, past, at[order]).sel(tokens=at)
    return _forecast(method, past, draws, status, fits)


def of_mean(law: Law, past: xr.Dataset, at: np.ndarray, plan: Any, siblings: Sequence[xr.Dataset]):
    """Draws (draw, at) of the mean loss."""
    own, *others = mean_runs(past, plan, siblings)
    found = extrapolation.checked(law, priors.of_loss(law), own, at, others)
    return found.draws, {"mean": found}


def of_mean_stacked(_: Law, past: xr.Dataset, at: np.ndarray, plan: Any, siblings: Sequence[xr.Dataset]):
    """Draws (draw, at) of the mean loss, by all laws of STACKED."""
    own, *others = mean_runs(past, plan, siblings)
    found = stacked(STACKED, own, at, others)
    return found.draws, {"mean": found}


def mean_runs(past: xr.Dataset, plan: Any, siblings: Sequence[xr.Dataset]) -> list[Run]:
    """The curves of the mean loss of a run and its siblings, one split each."""
    told = with_plans(past, plan, siblings)
    return [as_run(one, mean_loss(one.expand_dims("split"))[0].values, own) for one, own in told]


def by_parameters(law: Law, past: xr.Dataset, at: np.ndarray, plan: Any, siblings: Sequence[xr.Dataset]):
    """Draws (draw, at, position) of the surface."""
    positions = past.sizes["position"]
    if positions < FEWEST:
        raise ValueError(f"a law over positions needs {FEWEST} of them, the surface has {positions}")
    alike = [one for one in siblings if np.array_equal(one.position, past.position)]
    curves = [_parameters(one, p) for one, p in with_plans(past, plan, alike)]
    if np.isfinite(curves[0]["a0"].y).sum() < FEWEST:
        raise ValueError(f"{np.isfinite(curves[0]['a0'].y).sum()} usable position fits, {FEWEST} are needed")
    found: dict[str, Continued] = {}
    for seed, name in enumerate(PARAMETERS):
        belief = priors.of_loss(law) if name == "a2" else priors.of_parameter(law, 1.0 if name == "a1" else None)
        own, *others = (one[name] for one in curves)
        found[name] = extrapolation.checked(law, belief, own, at, others, seed=2 * seed)
    a0, log_a1, a2 = _paired(found, curves[0])
    position = past.position.values
    surface = a0[..., None] / (1 + np.exp(log_a1)[..., None] * position) + a2[..., None]
    offset, scatter = anchor(past.loss, curves[0]["a0"].y, curves[0]["a1"].y, curves[0]["a2"].y)
    own_noise = scatter * np.random.default_rng(7).standard_normal((len(surface), 1, len(position)))
    return surface + offset + own_noise, found


def with_plans(past: xr.Dataset, plan: Any, siblings: Sequence[xr.Dataset]):
    """(surface, plan) of the run and its siblings, which bring plans of their own."""
    return [(past, plan), *((one, lr_history.carried(one)) for one in siblings)]


def as_run(past: xr.Dataset, y: np.ndarray, plan: Schedule | None, noise: np.ndarray | None = None) -> Run:
    return Run(past.tokens.values.astype(float), y, lr_history.of_run(past, plan), past.attrs.get("n_params"), noise)


def _parameters(past: xr.Dataset, plan: Schedule | None) -> dict[str, Run]:
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


def _paired(found: Mapping[str, Continued], curves: Mapping[str, Run]) -> list[np.ndarray]:
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


def _strangers(past: xr.Dataset, siblings: Sequence[xr.Dataset]) -> str:
    """What to say of siblings that a law by position cannot learn from."""
    count = sum(not np.array_equal(one.position, past.position) for one in siblings)
    return f"{count} of {len(siblings)} siblings have other positions and are left out" if count else ""


def _doubts(found: Mapping[str, Continued], draws: np.ndarray, strangers: str) -> str:
    said = [BELOW_ZERO] if (np.median(draws, axis=0) < 0).any() else []
    said += [strangers] if strangers else []
    said += [f"the sampler has not settled ({name})" for name, one in found.items() if not one.posterior.settled]
    return ", ".join(said) or "ok"


def _labelled(made: Mapping[str, np.ndarray], past: xr.Dataset, at: np.ndarray) -> xr.DataArray:
    values = np.stack(list(made.values()), axis=1)
    dims = ("draw", "split", "tokens", "position")[: values.ndim]
    coordinates = {"split": list(made), "tokens": at, "position": past.position.values}
    return xr.DataArray(values, {k: v for k, v in coordinates.items() if k in dims}, dims)


def _forecast(
    method: Continuation, past: xr.Dataset, draws: xr.DataArray, status: Mapping[str, str], fits: Mapping[str, Any]
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
        fits={f"{name}:{split}": one for split, found in fits.items() for name, one in found.items()},
        quantiles=known,
        surface_quantiles=surface,
        population_quantiles=of_population(past, mean),
        draws=mean,
        intervals={split: _basis_of(fits.get(split, {})) for split in status},
    )


def _basis_of(found: Mapping[str, Continued]) -> str:
    """What the width of the intervals rests on."""
    count = min((len(one.checked) for one in found.values()), default=0)
    unseen = ", the learning rate's fall not yet seen" if any(one.blind for one in found.values()) else ""
    return (f"checked on {count} siblings" if count else "model-based") + unseen


ANNEALING = Continuation("annealing", "annealing law of a0, a1, a2", laws.AREA_ANNEALING, by_parameters, True)
MEAN_ANNEALING = Continuation("mean_annealing", "annealing law of the mean", laws.AREA_ANNEALING, of_mean)
MEAN_MULTI_POWER = Continuation("mean_multi_power", "multi-power law of the mean", laws.MULTI_POWER, of_mean)
MEAN_AREA_POWER = Continuation(
    "mean_area_power", "power law in the learning rate's area, of the mean", laws.AREA_POWER, of_mean
)
MEAN_STACK = Continuation("mean_stack", "laws of the mean, stacked", laws.AREA_ANNEALING, of_mean_stacked)
ALL = (ANNEALING, MEAN_ANNEALING, MEAN_MULTI_POWER, MEAN_AREA_POWER, MEAN_STACK)
BY_NAME = {one.name: one for one in ALL}
MAIN = MEAN_ANNEALING.name  # the one that held best on the development data of `priors.py`
