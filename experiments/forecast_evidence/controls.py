"""Forecasts by position without a position law: what the law over positions must beat to be worth its name.

`each_position` continues the loss of every position alone; `components` the scores of the first three principal
components of the past surface (of its losses as they are, so that the first is the level and the others the shape).
Both use the temporal law, the priors and the sampler of `annealing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax import laws
from tsl_jax.forecasting import ForecastMethod, extrapolation, priors
from tsl_jax.forecasting.lr_aware import as_run, with_plans
from tsl_jax.laws import Law

RANK = 3
FIRST = 0.05  # share of the tokens seen from which components are taken: the first steps have shapes of their own


def each_position(law: Law, past: xr.Dataset, at: np.ndarray, plan: Any, siblings: Sequence[xr.Dataset]):
    """Draws (draw, at, position); those of neighbours go together, as all use the same random numbers."""
    runs, parts = with_plans(past, plan, _alike(past, siblings)), {}
    for place, position in enumerate(past.position.values):
        own, *others = (as_run(surface, surface.loss.isel(position=place).values, plan) for surface, plan in runs)
        parts[f"position {position}"] = extrapolation.calibrated(law, priors.of_loss(law), own, at, others)
    return np.stack([part.draws for part in parts.values()], axis=-1), parts


def components(law: Law, past: xr.Dataset, at: np.ndarray, plan: Any, siblings: Sequence[xr.Dataset]):
    """Draws (draw, at, position) of sum_k s_k(N) v_k(i), and what the last third of the past was off."""
    seen = past.tokens.values
    loss = past.loss.transpose("tokens", "position").values
    kept = np.isfinite(loss).all(axis=1) & (seen >= FIRST * seen[-1])
    _, _, direction = np.linalg.svd(loss[kept], full_matrices=False)
    direction = direction[:RANK] * np.sign(direction[:RANK].sum(axis=1, keepdims=True))
    runs = with_plans(past, plan, _alike(past, siblings))
    scores = [surface.loss.transpose("tokens", "position").values @ direction.T for surface, _ in runs]
    level, parts = abs(float(scores[0][kept][-1, 0])), {}
    for k in range(len(direction)):
        own, *others = (as_run(surface, score[:, k], plan) for (surface, plan), score in zip(runs, scores, strict=True))
        prior = priors.of_loss(law) if k == 0 else priors.of_parameter(law, level)
        parts[f"component {k + 1}"] = extrapolation.calibrated(law, prior, own, at, others, seed=2 * k)
    draws = np.stack([part.draws for part in parts.values()], axis=-1) @ direction
    recent = np.flatnonzero(kept)[-max(kept.sum() // 3, 1) :]
    return draws + (loss[recent] - scores[0][recent] @ direction).mean(axis=0), parts


def _alike(past: xr.Dataset, siblings: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    return [sibling for sibling in siblings if np.array_equal(sibling.position, past.position)]


EACH_POSITION = ForecastMethod("each_position", laws.AREA_ANNEALING, each_position, True)
COMPONENTS = ForecastMethod("components", laws.AREA_ANNEALING, components, True)
ALL = (EACH_POSITION, COMPONENTS)
