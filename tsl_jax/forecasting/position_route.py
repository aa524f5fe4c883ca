"""Forecasts by position through separate or joint temporal laws of a0, a1 and a2: the paper's route.

`temporal`: fit the hyperbolic law to every checkpoint of the past, fit temporal laws to its parameters over tokens
(checkpoints weighted by the precision of their fits), and put the extrapolated a0(N), a1(N), a2(N) back into

    L(i, N) = a0(N)/(1 + a1(N) i) + a2(N).

The break N_sep of a2(N) is taken to lie beyond the cut-off, so that its first piece, the hyperbola, goes on.
`temporal_joint`: all parameters of the surface at once (`joint_surface.py`), started from `temporal`. `paper`, the
paper's law to the letter under a cosine schedule: N_sep is given or searched within the past, and a2 goes on along the
cosine of the schedule, value and slope continuous. Where the past does not identify that piece, the hyperbola goes on
instead; the status says so, and the distance between the two widens the intervals.

All are anchored: the mean residual of each position over the last third of the past checkpoints is added to the
forecast, so that a position law that is not quite true does not shift it. Source: Xiong et al., arXiv 2404.17785
(forms reconstructed).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from jaxtyping import Float

from tsl_jax import laws
from tsl_jax.fitting import Fit, Status, fit
from tsl_jax.forecasting import joint_surface
from tsl_jax.forecasting.baselines import BELOW_ZERO, NEEDS_COSINE, padded, predict
from tsl_jax.forecasting.result import ForecastFlag, ForecastStatus, Reason
from tsl_jax.forecasting.rolling_origin import Copies, Points
from tsl_jax.laws import Law, Schedule

SEPARATE = {"a0": laws.LOG, "a1": laws.RECIPROCAL, "a2": laws.RECIPROCAL}
FEWEST = 4  # checkpoints: one more than a temporal law has parameters
FEWEST_BEYOND = 3  # of them beyond N_sep, for the cosine piece to be used
IMPLAUSIBLE = 10  # times the highest observed loss: such a prediction is discarded
BLOCK = 2**21  # losses of a surface that are in memory at once, 16 MB
LEAST_SINE = 0.1  # of the phase gamma4 N_sep + gamma5: the amplitude of the cosine piece divides by it


@dataclass(frozen=True)
class Paper:
    """The paper's law with its cosine piece; `tsl.forecast(past, method="paper")` is `method=Paper()`.

    Attributes:
        n_sep: tokens seen at which a2(N) turns from the hyperbola to the cosine; default searched within the past.

    Raises:
        ValueError: if n_sep is not a positive number.
    """

    n_sep: float | None = None
    name: ClassVar[str] = "paper"

    def __post_init__(self) -> None:
        if self.n_sep is not None and not 0 < self.n_sep < np.inf:
            raise ValueError(f"Paper: n_sep is a positive number of tokens seen, found {self.n_sep!r}")


def by_position(
    learned: xr.Dataset, copies: Copies, at: np.ndarray, plan: Schedule | None, method: str | Paper
) -> Points:
    """What the method says at tokens `at`, of each split and its copies, from the checkpoints learned from.

    The position law is fitted once: what is known at an earlier origin are fits of the same checkpoints. The surface is
    made for BLOCK losses at a time, some positions after the other.

    Args:
        method: "temporal", "temporal_joint" or `Paper`.
    """
    splits = copies.of(learned.loss.isel(position=0, drop=True)).split.values.tolist()

    def nothing(status: dict[str, ForecastStatus]) -> Points:
        coordinates = {"split": splits, "tokens": at}
        nan = xr.DataArray(np.full((len(splits), len(at)), np.nan), coordinates, ("split", "tokens"))
        surface = nan.expand_dims(position=learned.position.values, axis=2)
        return Points(nan, status, blocks=lambda: iter([(slice(None), surface, None)]))

    unable = _unable(learned, plan, method)
    if unable is not None:
        return nothing(dict.fromkeys(splits, ForecastStatus.of([unable])))
    position_fit = fit(laws.HYPERBOLIC, learned.loss, over="position")
    usable = copies.of(position_fit.usable.astype(float)) == 1
    status = {split: ForecastStatus.of([why]) for split, why in _too_few(usable).items()}
    able = [split for split in splits if split not in status]
    if not able:
        return nothing(status)
    usable = usable.sel(split=able)
    values, errors = (copies.of(of_fit).sel(split=able) for of_fit in (position_fit.params, position_fit.stderr))
    fits: dict[str, Any] = {"position": position_fit, **_temporal_fits(SEPARATE, values, errors, usable)}
    if method == "temporal_joint":
        fits["joint"] = joint_surface.refine(fits, learned.loss, usable, copies)
    unidentified: dict[str, str] = {}
    if isinstance(method, Paper) and plan is not None:
        forms = {"a2": laws.piecewise_cosine(plan, method.n_sep)}
        fits["a2_hyperbola"], fits["a2"] = fits["a2"], _temporal_fits(forms, values, errors, usable)["a2"]
        unidentified = _unidentified(fits["a2"], usable, plan)
    predicted = _Prediction(fits, learned.loss, copies, usable, at, tuple(unidentified))
    highest, reach, mean, discrepancy = predicted.summary()
    status |= {split: _status(fits, reach, highest, split, unidentified.get(split)) for split in able}
    plausible = reach.plausible(highest)

    def blocks() -> Iterator[tuple[slice, xr.DataArray, xr.DataArray | None]]:
        for part in predicted.parts():
            surface, sd = predicted.block(part)
            surface = surface.where(plausible).reindex(split=splits)
            yield part, surface, None if sd is None else sd.reindex(split=splits).fillna(0.0)

    mean = mean.where(plausible).reindex(split=splits)
    discrepancy = None if discrepancy is None else discrepancy.reindex(split=splits).fillna(0.0)
    return Points(mean, {split: status[split] for split in splits}, fits, discrepancy, blocks)


@dataclass(frozen=True)
class _Prediction:
    """The surface that fits predict, BLOCK losses at a time, some positions after the other.

    Attributes:
        fits: by name, of all splits and their copies. loss: (split, tokens, position) of the splits. usable: (split,
            tokens) of splits and copies that have a forecast. at: tokens. unidentified: splits without cosine piece.
    """

    fits: Mapping[str, Any]
    loss: xr.DataArray
    copies: Copies
    usable: xr.DataArray
    at: np.ndarray
    unidentified: tuple[str, ...]

    def parts(self) -> list[slice]:
        """Positions that are worked on together."""
        count = self.loss.sizes["position"]
        each = max(BLOCK // (self.usable.sizes["split"] * (self.loss.sizes["tokens"] + len(self.at))), 1)
        return [slice(first, min(first + each, count)) for first in range(0, count, each)]

    def block(self, positions: slice) -> tuple[xr.DataArray, xr.DataArray | None]:
        """The surface (split, at, position) there, and the sd of the model's discrepancy, or None."""
        loss = self.copies.of(self.loss.isel(position=positions)).sel(split=self.usable.split)
        if "a2_hyperbola" not in self.fits:
            return _anchored(self.fits, loss, self.usable, self.at), None
        hyperbola = {**self.fits, "a2": self.fits["a2_hyperbola"]}
        predicted, cosine = (_anchored(fits, loss, self.usable, self.at) for fits in (hyperbola, self.fits))
        instead = predicted.split.isin(list(self.unidentified))
        # where the cosine is not used: its distance from the hyperbola, at most the range of the past losses
        moved = (seen := loss.where(self.usable)).max("tokens") - seen.min("tokens")
        apart = (cosine - predicted).clip(-moved, moved)
        return predicted.where(instead, cosine), apart.where(np.isfinite(cosine), moved).where(instead, 0.0)

    def summary(self) -> tuple[float, Reach, xr.DataArray, xr.DataArray | None]:
        """The highest observed loss, how far predictions go, their mean over positions, and that of the discrepancy."""
        parts, highest, reaches, mean, discrepancy = self.parts(), -np.inf, [], 0.0, None
        for part in parts:
            predicted, sd = self.block(part)
            seen = self.copies.of(self.loss.isel(position=part)).sel(split=self.usable.split).where(self.usable)
            highest = max(highest, float(seen.max()))
            reaches.append(Reach.of(predicted))
            mean = mean + predicted.sum("position", skipna=False)
            if sd is not None:
                discrepancy = (0.0 if discrepancy is None else discrepancy) + sd.sum("position")
        count = self.loss.sizes["position"]
        assert isinstance(mean, xr.DataArray)
        return highest, Reach.over(reaches), mean / count, None if discrepancy is None else discrepancy / count


def described(
    learned: xr.Dataset, plan: Schedule | None = None, method: str | Paper = "temporal", solver: str = "auto"
) -> dict[str, Any]:
    """The temporal laws of a0, a1 and a2 over checkpoints that are all given: a description, no forecast, no anchor.

    Args:
        learned: the checkpoints to describe, past the warm-up. plan: the schedule, which `Paper` reads.
        method: "temporal", "temporal_joint" or `Paper`. solver: of the temporal laws, as `tsl.fit` has it in `method`;
            the joint fit starts from them and has its own.

    Returns:
        The fits by name; "position" is that of each checkpoint. `surface_of` puts the others back.

    Raises:
        ValueError: for `Paper` without a cosine schedule, or a split with fewer than FEWEST usable position fits.
    """
    unable = _unable(learned, plan, method)
    if unable is not None:
        raise ValueError(f"temporal: {unable[1]}")
    position_fit = fit(laws.HYPERBOLIC, learned.loss, over="position")
    usable = position_fit.usable
    for split, (_, why) in _too_few(usable).items():
        raise ValueError(f"temporal: {split} has {why}")
    forms = dict(SEPARATE)
    if isinstance(method, Paper) and plan is not None:
        forms["a2"] = laws.piecewise_cosine(plan, method.n_sep)
    values, errors = position_fit.params, position_fit.stderr
    fits: dict[str, Any] = {"position": position_fit, **_temporal_fits(forms, values, errors, usable, solver)}
    if method == "temporal_joint":
        fits["joint"] = joint_surface.refine(fits, learned.loss, usable)
    return fits


def surface_of(parts: Mapping[str, Any], tokens: np.ndarray, position: xr.DataArray) -> xr.DataArray:
    """L(i, N) = a0(N)/(1 + a1(N) i) + a2(N) from the temporal fits, (split, tokens, position).

    The joint fit is read where it is there. a1(N) is kept from falling below zero, where the hyperbola has a pole.
    """
    if "joint" in parts:
        return parts["joint"].predict(tokens, position)
    a0, a1, a2 = (predict(parts[name], tokens) for name in ("a0", "a1", "a2"))
    return (a0 / (1 + a1.clip(min=0) * position) + a2).transpose("split", "tokens", "position")


# --------------------------------------------------------------------------------------------------- what can be fitted


def _unable(learned: xr.Dataset, plan: Schedule | None, method: str | Paper) -> Reason | None:
    """Why no split can be forecast; None where one may."""
    positions, checkpoints = learned.sizes["position"], learned.sizes["tokens"]
    if positions < FEWEST:  # such as a mean over positions
        return ForecastFlag.NO_FORECAST, f"a law over positions needs {FEWEST} of them, the surface has {positions}"
    if isinstance(method, Paper) and (plan is None or plan.kind != "cosine"):
        return NEEDS_COSINE
    if checkpoints < FEWEST:
        return ForecastFlag.NO_FORECAST, f"{checkpoints} checkpoints past the warm-up, {FEWEST} are needed"
    return None


def _too_few(usable: xr.DataArray) -> dict[str, Reason]:
    """The splits without enough usable position fits, of usable (split, tokens), each with its reason."""
    counts = {split: int(usable.sel(split=split).sum()) for split in usable.split.values.tolist()}
    message = "{} usable position fits, {} are needed"
    return {s: (ForecastFlag.NO_FORECAST, message.format(n, FEWEST)) for s, n in counts.items() if n < FEWEST}


def _temporal_fits(
    forms: Mapping[str, Law], values: xr.DataArray, errors: xr.DataArray, usable: xr.DataArray, solver: str = "auto"
) -> dict[str, Fit]:
    """The temporal law of a0, a1, a2 over the usable checkpoints, from `values` and their standard `errors`.

    Checkpoints have the weights typical^2/(stderr^2 + typical^2), zero where the position fit is not usable. Early
    position fits can be worse by orders of magnitude than late ones; the typical error (the median) is added, as
    checkpoints also scatter about a temporal law for reasons that no position fit knows.
    """
    fits = {}
    for name, law in forms.items():
        y, stderr = (a.sel(param=name, drop=True).where(usable) for a in (values, errors))
        typical = stderr.median("tokens").clip(min=1e-12)  # (split,); above 0, as weights divide by it
        weights = (typical**2 / (stderr**2 + typical**2)).where(usable, 0.0)  # 1/2 at the typical error
        points = padded(y.sizes["tokens"])
        fits[name] = fit(law, y.fillna(0.0), over="tokens", weights=weights, method=solver, points=points)
    return fits


def _unidentified(cosine: Fit, usable: xr.DataArray, plan: Schedule) -> dict[str, str]:
    """The splits whose past does not identify the cosine piece, each with its reason.

    Its amplitude is gamma3 = -s/(gamma4 sin phi), s the slope of the hyperbola and phi the phase at N_sep.
    """
    reasons = {}
    for split in usable.split.values.tolist():
        n_sep = float(cosine.params.sel(split=split, param="n_sep"))
        later = usable.tokens > n_sep * (1 + 1e-6)  # a search that ends at the last checkpoint is rounded
        beyond = int((usable.sel(split=split) & later).sum())  # checkpoints that can show the cosine piece
        phase = np.pi * np.clip((n_sep - plan.warmup_tokens) / (plan.total_tokens - plan.warmup_tokens), 0, 1)
        why = ""
        if not np.isfinite(n_sep):
            why = "too few checkpoints to find N_sep"
        elif np.sin(phase) < LEAST_SINE:  # the amplitude divides by it
            end = "start" if phase < 1 else "end"  # in [0, pi] the sine is small near 0 and near pi
            why = f"N_sep = {n_sep:.3g} is so near the {end} of the cosine that its amplitude is nearly divided by zero"
        elif beyond < FEWEST_BEYOND:
            why = f"{beyond} usable checkpoints beyond N_sep = {n_sep:.3g}, {FEWEST_BEYOND} are needed"
        if why:
            reasons[split] = f"the cosine piece is not identified: {why}; the hyperbola goes on instead"
    return reasons


# ------------------------------------------------------------------------------------------------------------ anchoring


def _anchored(fits: Mapping[str, Any], loss: xr.DataArray, usable: xr.DataArray, at: np.ndarray) -> xr.DataArray:
    """The fitted surface at the tokens `at`, plus what each position was off lately:

    L(i, N) + mean over the last third of the usable checkpoints n of (observed(i, n) - L(i, n)).
    """
    tokens, place = np.unique(np.concatenate([loss.tokens.values, at]), return_inverse=True)  # sorted, each once
    surface = surface_of(fits, tokens, loss.position)
    seen, ahead = (surface.isel(tokens=part) for part in (place[: -len(at)], place[-len(at) :]))
    # rank 1 for the last usable checkpoint of each split, 2 for the one before
    rank = usable.isel(tokens=slice(None, None, -1)).cumsum("tokens").isel(tokens=slice(None, None, -1))
    recent = usable & (rank <= (usable.sum("tokens") // 3).clip(min=1))  # the last third, one at least
    residual = (loss.transpose("split", "tokens", "position") - seen).where(recent)
    return ahead + residual.mean("tokens", skipna=True)  # offset (split, position), nats


def anchor(
    loss: xr.DataArray,
    a0: Float[np.ndarray, " checkpoint"],
    log_a1: Float[np.ndarray, " checkpoint"],
    a2: Float[np.ndarray, " checkpoint"],
) -> tuple[Float[np.ndarray, " position"], Float[np.ndarray, " position"]]:
    """Mean and sd (position,) of the residuals of the position law in the last third of the checkpoints with a fit.

    Args:
        loss: (tokens, position). a0, log_a1, a2: (tokens,), NaN where there is no fit.
    """
    known = np.flatnonzero(np.isfinite(a0))
    recent = known[-max(len(known) // 3, 1) :]  # as in `_anchored`
    curves = a0[recent, None] / (1 + np.exp(log_a1[recent, None]) * loss.position.values) + a2[recent, None]
    rest = loss.values[recent] - curves  # (recent checkpoint, position), nats
    return rest.mean(0), rest.std(0)


@dataclass(frozen=True)
class Reach:
    """How far predictions go: least and greatest, and whether all are finite, each (split,)."""

    low: xr.DataArray
    high: xr.DataArray
    finite: xr.DataArray

    @classmethod
    def of(cls, predicted: xr.DataArray) -> Reach:
        dims = ("tokens", "position")
        return cls(predicted.min(dims), predicted.max(dims), xr.apply_ufunc(np.isfinite, predicted).all(dims))

    @classmethod
    def over(cls, parts: Sequence[Reach]) -> Reach:
        """Of all parts together."""
        low = xr.concat([part.low for part in parts], "part").min("part")
        high = xr.concat([part.high for part in parts], "part").max("part")
        return cls(low, high, xr.concat([part.finite for part in parts], "part").all("part"))

    def plausible(self, highest: float) -> xr.DataArray:
        """Whether no prediction exceeds IMPLAUSIBLE times the highest observed loss; else a1 came close to a pole."""
        return (-self.low <= IMPLAUSIBLE * highest) & (self.high <= IMPLAUSIBLE * highest)


def _status(
    fits: Mapping[str, Any], reach: Reach, highest: float, split: str, unidentified: str | None
) -> ForecastStatus:
    """The status of a split's forecast: implausible predictions, and temporal laws whose fit did not converge."""
    flag = ForecastFlag
    reasons: list[Reason] = [(flag.COSINE_NOT_IDENTIFIED, unidentified)] if unidentified else []
    if not bool(reach.finite.sel(split=split)):
        reasons.append((flag.DISCARDED, "is not finite"))
    if bool(reach.low.sel(split=split) < 0):
        reasons.append(BELOW_ZERO)
    if bool(reach.high.sel(split=split).notnull()) and not bool(reach.plausible(highest).sel(split=split)):
        reasons.append((flag.DISCARDED, f"prediction exceeds {IMPLAUSIBLE}x the highest observed loss; discarded"))
    if bool(reach.high.sel(split=split) > 2 * highest):
        reasons.append((flag.ABOVE_OBSERVED, "prediction exceeds twice the highest observed loss"))
    for name in ("a0", "a1", "a2"):
        used = fits["a2_hyperbola"] if unidentified and name == "a2" else fits[name]
        status = Status(int(used.status.sel(split=split)))
        if status != Status.CONVERGED:
            reasons.append((flag.FIT_NOT_CONVERGED, f"{name} {status.short}"))
    if "joint" in fits and not bool(fits["joint"].converged.sel(split=split)):
        reasons.append((flag.JOINT_NOT_CONVERGED, "the joint fit did not converge"))
    return ForecastStatus.of(reasons)
