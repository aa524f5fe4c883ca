"""From the beginning of a run to the rest of it: the predicted loss surface and mean loss, at tokens not yet seen.

Three ways by position. `temporal`: fit the hyperbolic law to every checkpoint of the past, fit temporal laws to its
parameters over tokens (checkpoints weighted by the precision of their fits), and put the extrapolated a0(N), a1(N),
a2(N) back into

    L(i, N) = a0(N)/(1 + a1(N) i) + a2(N).

The break N_sep of a2(N) is taken to lie beyond the cut-off, so that its first piece, the hyperbola, goes on.
`temporal_cosine` searches N_sep within the past instead and continues along the cosine of the schedule, the literal
reading under a cosine schedule; from early cut-offs its amplitude is the slope at N_sep over a small number, and it
can fall far below zero. `temporal_joint`: all parameters of the surface at once (`joint.py`), started from
`temporal`. All are anchored: the mean residual of each position over the last third of the past checkpoints is
carried forward, so that a position law that is not quite true does not shift the forecast. Source: Xiong et al.,
arXiv 2404.17785 (forms reconstructed).

A forecast sees only `past` and the learning-rate plan as known at the cut-off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax import laws
from tsl_jax.fitting import Fit, Status, fit
from tsl_jax.forecasting import joint
from tsl_jax.forecasting.baselines import BELOW_ZERO, NEEDS_COSINE, Baseline, mean_loss
from tsl_jax.laws import Law, Schedule
from tsl_jax.surface import check

METHODS = ("temporal", "temporal_joint", "temporal_cosine")
# A position fit in one of these states says something about a0, a1 and a2; at a bound it does not.
USABLE = (Status.CONVERGED, Status.WEAKLY_IDENTIFIED)
FEWEST = 4  # checkpoints: one more than a temporal law has parameters; positions: than the position law has


@dataclass(frozen=True)
class Forecast:
    """What is expected of the rest of a run.

    Attributes:
        method: how it was made. cutoff: tokens of the last checkpoint that was seen.
        mean: DataArray (split, tokens), nats: the mean loss over positions; NaN where the method found no forecast.
        surface: DataArray (split, tokens, position), or None for methods that know the mean alone.
        status: split -> "ok", or a sentence that says what is wrong or doubtful.
        fits: the fits it rests on, by name; the temporal ones hold the splits that have a forecast.
    """

    method: str
    cutoff: float
    mean: xr.DataArray
    surface: xr.DataArray | None
    status: Mapping[str, str]
    fits: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        ends = ", ".join(f"{split} {float(self.mean.sel(split=split)[-1]):.3f}" for split in self.mean.split.values)
        last = float(self.mean.tokens[-1])
        doubts = [f"{split}: {text}" for split, text in self.status.items() if text != "ok"]
        head = f"{self.method} from {self.cutoff:.4g} tokens · mean loss at {last:.4g} tokens: {ends} nats"
        return " · ".join([head, *doubts])


def forecast(past: xr.Dataset, at: Any = None, schedule: Any = None, method: str | Baseline = "temporal") -> Forecast:
    """Forecast the loss at tokens `at` from the surface of the past.

    Args:
        past: a surface cut at the present, such as `surface.sel(tokens=slice(None, 20e9))`.
        at: tokens seen at which to forecast, in any order; default the end of the plan. Of tokens that `past` has seen
            the result is what the fitted laws say there, no forecast.
        schedule: the learning-rate plan as known at the cut-off (`Schedule` or mapping); default the plan that the
            surface carries; without one, laws that need it are replaced by those that do not.
        method: "temporal", "temporal_joint", "temporal_cosine", or one of `tsl.baselines`.

    Raises:
        ValueError: for an unknown method, a surface without checkpoints, tokens that are not positive, or none where
            no plan is known. Too few usable checkpoints do not raise: the forecast of that split is NaN and its status
            says why.
    """
    past = check(past)
    plan = read_schedule(past, schedule)
    if past.sizes["tokens"] == 0:
        raise ValueError("forecast: past holds no checkpoint; check the cut-off against surface.tokens")
    at = _tokens(at, plan)
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"forecast: method must be one of {METHODS} or a value of tsl.baselines, found {method!r}")
    learned = after_warmup(past, plan)
    if isinstance(method, Baseline):
        mean, status, fits = method.predict(mean_loss(learned), at, plan)
        return Forecast(method.name, float(past.tokens[-1]), mean, None, status, fits)
    return _by_position(learned, at, plan, method, float(past.tokens[-1]))


def _tokens(at: Any, plan: Schedule | None) -> np.ndarray:
    """The tokens asked for, (token,)."""
    if at is None and plan is None:
        raise ValueError("forecast: the surface carries no plan whose end could be meant; name tokens, as in at=20e9")
    try:
        found = np.atleast_1d(np.asarray(plan.total_tokens if plan is not None and at is None else at, float))
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.ndim != 1 or found.size == 0 or not np.all((found > 0) & np.isfinite(found)):
        raise ValueError(f"forecast: at= must be tokens seen, positive, found {at!r}")
    return found


def read_schedule(past: xr.Dataset, schedule: Any = None) -> Schedule | None:
    """The plan given, else the one that the surface carries, as known at its last checkpoint, else None."""
    plan = past.attrs.get("schedule") if schedule is None else schedule
    plan = plan if plan is None or isinstance(plan, Schedule) else Schedule.from_plan(plan)
    return plan if plan is None or schedule is not None else plan.known_at(float(past.tokens.values.max(initial=0)))


def after_warmup(past: xr.Dataset, plan: Schedule | None) -> xr.Dataset:
    """The checkpoints that every law and baseline learns from: past the warm-up, as far as it is known."""
    return past.sel(tokens=past.tokens > 0 if plan is None else past.tokens >= max(plan.warmup_tokens, 1))


def _temporal_laws(method: str, plan: Schedule | None) -> dict[str, Law] | None:
    """The temporal law of each parameter, or None where the method needs a cosine schedule and there is none."""
    parts = {"a0": laws.LOG, "a1": laws.RECIPROCAL, "a2": laws.RECIPROCAL}
    if method != "temporal_cosine":
        return parts
    return None if plan is None or plan.kind != "cosine" else {**parts, "a2": laws.piecewise_cosine(plan)}


def _by_position(learned: xr.Dataset, at: np.ndarray, plan: Schedule | None, method: str, cutoff: float) -> Forecast:
    splits = learned.split.values.tolist()
    forms = _temporal_laws(method, plan)
    if learned.sizes["position"] < FEWEST:  # such as a mean over positions
        found = f"a law over positions needs {FEWEST} of them, the surface has {learned.sizes['position']}"
        return _nothing(method, cutoff, learned, at, dict.fromkeys(splits, found))
    if forms is None:
        return _nothing(method, cutoff, learned, at, dict.fromkeys(splits, NEEDS_COSINE))
    if learned.sizes["tokens"] < FEWEST:
        found = f"{learned.sizes['tokens']} checkpoints past the warm-up, {FEWEST} are needed"
        return _nothing(method, cutoff, learned, at, dict.fromkeys(splits, found))
    by_position = fit(laws.HYPERBOLIC, learned.loss, over="position")
    usable = by_position.status.isin([int(s) for s in USABLE])
    few = _too_few(usable)
    able = [split for split in splits if split not in few]
    if not able:
        return _nothing(method, cutoff, learned, at, few)
    loss, usable = learned.loss.sel(split=able), usable.sel(split=able)
    fits: dict[str, Any] = {"position": by_position, **_temporal_fits(forms, by_position, usable)}
    predicted = _continued(fits, loss, usable, at, method)
    highest = float(loss.where(usable).max())
    doubts = {split: _doubts(fits, predicted.sel(split=split), highest, split) for split in able}
    predicted = predicted.reindex(split=splits)
    mean = predicted.mean("position", skipna=False)
    return Forecast(method, cutoff, mean, predicted, {split: {**few, **doubts}[split] for split in splits}, fits)


def _too_few(usable: xr.DataArray) -> dict[str, str]:
    """The splits without enough usable position fits, with what to say of them."""
    count = usable.sum("tokens")
    found = {split: int(count.sel(split=split)) for split in usable.split.values.tolist()}
    return {split: f"{n} usable position fits, {FEWEST} are needed" for split, n in found.items() if n < FEWEST}


def _temporal_fits(forms: Mapping[str, Law], by_position: Fit, usable: xr.DataArray) -> dict[str, Fit]:
    """The temporal law of a0, a1, a2 over the usable checkpoints of the splits that `usable` has."""

    def one(name: str, law: Law) -> Fit:
        chosen = {"split": usable.split, "param": name}
        values, errors = (a.sel(chosen).drop_vars("param") for a in (by_position.params, by_position.stderr))
        return fit(law, values.where(usable, 0.0), over="tokens", weights=_precision(errors, usable))

    return {name: one(name, law) for name, law in forms.items()}


def _continued(
    fits: dict[str, Any], loss: xr.DataArray, usable: xr.DataArray, at: np.ndarray, method: str
) -> xr.DataArray:
    """The anchored surface at the tokens `at`; the joint fit, where asked for, is added to the fits."""
    times = np.concatenate([loss.tokens.values, at])
    if method == "temporal_joint":
        fits["joint"] = joint.refine(fits, loss, usable)
        curve = fits["joint"].predict(times, loss.position)
    else:
        curve = surface_of(fits, times, loss.position)
    seen, ahead = (curve.isel(tokens=part) for part in (slice(len(times) - len(at)), slice(-len(at), None)))
    return _anchored(seen, ahead, loss, usable)


def _precision(stderr: xr.DataArray, usable: xr.DataArray) -> xr.DataArray:
    """Weights of the checkpoints: 1/(stderr^2 + typical^2), zero where the position fit says nothing.

    Early position fits can be worse by orders of magnitude than late ones. The typical error (the median) is added,
    as checkpoints also scatter about a temporal law for reasons that no position fit knows.
    """
    known = stderr.where(usable)
    typical = known.median("tokens").clip(min=1e-12)
    return (typical**2 / (known**2 + typical**2)).where(usable, 0.0)


def surface_of(parts: Mapping[str, Fit], tokens: np.ndarray, position: xr.DataArray) -> xr.DataArray:
    """L(i, N) = a0(N)/(1 + a1(N) i) + a2(N) from the temporal fits, (split, tokens, position).

    a1(N) is kept from falling below zero, where the hyperbola has a pole.
    """
    a0, a1, a2 = (parts[name].predict(tokens) for name in ("a0", "a1", "a2"))
    return (a0 / (1 + a1.clip(min=0) * position) + a2).transpose("split", "tokens", "position")


def _anchored(seen: xr.DataArray, ahead: xr.DataArray, loss: xr.DataArray, usable: xr.DataArray) -> xr.DataArray:
    """The forecast plus the mean residual of each position over the last third of the usable past checkpoints."""
    rank = usable.isel(tokens=slice(None, None, -1)).cumsum("tokens").isel(tokens=slice(None, None, -1))
    recent = usable & (rank <= (usable.sum("tokens") // 3).clip(min=1))
    residual = (loss.transpose("split", "tokens", "position") - seen).where(recent)
    return ahead + residual.mean("tokens", skipna=True)


def _doubts(fits: Mapping[str, Any], predicted: xr.DataArray, highest: float, split: str) -> str:
    """ "ok", or which temporal law is not well determined, and how."""
    found = [] if bool(np.isfinite(predicted).all()) else ["is not finite"]
    found += [BELOW_ZERO] if bool((predicted < 0).any()) else []
    found += ["rises far above every loss seen"] if bool((predicted > 2 * highest).any()) else []
    for name in ("a0", "a1", "a2"):
        status = Status(int(fits[name].status.sel(split=split)))
        if status != Status.CONVERGED:
            found.append(f"{name} {status.short}")
    if "joint" in fits and not bool(fits["joint"].settled.sel(split=split)):
        found.append("joint fit not settled")
    return ", ".join(found) or "ok"


def _nothing(method: str, cutoff: float, learned: xr.Dataset, at: np.ndarray, why: dict[str, str]) -> Forecast:
    splits = learned.split.values
    shape = (len(splits), len(at), learned.sizes["position"])
    coordinates = {"split": splits, "tokens": at, "position": learned.position.values}
    nan = xr.DataArray(np.full(shape, np.nan), coordinates, ("split", "tokens", "position"))
    return Forecast(method, cutoff, nan.mean("position", skipna=False), nan, why)
