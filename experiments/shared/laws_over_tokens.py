"""Laws over tokens as the experiments compare them: on the mean loss, and by position through a0(N), a1(N) and a2(N).

A law of the mean is fitted to the plain mean over positions; a law by position is the paper's route (`described` in
forecasting/position_route.py), whose mean over positions stands beside the others. Parameters are counted as free
numbers: those that the schedule fixes (gamma4, gamma5) or continuity (gamma3, gamma6) are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import tsl_jax as tsl
from experiments.shared import solver_comparison
from tsl_jax.forecasting import baselines, lr_history, position_route
from tsl_jax.forecasting.baselines import mean_loss
from tsl_jax.forecasting.forecast_run import after_warmup
from tsl_jax.laws import Law, Schedule

PARTS = ("a0", "a1", "a2")


@dataclass(frozen=True)
class MeanLaw:
    """A law of the mean loss over tokens: `law` gives it for a plan (None: it does not apply); name as in tables."""

    name: str
    law: Callable[[Schedule | None], Law | None]

    def parameters(self, plan: Schedule | None) -> int:
        law = self.law(plan)
        return 0 if law is None else len(law.raw_params)


ANNEALED = (
    MeanLaw("area_power", lambda plan: tsl.laws.AREA_POWER),
    MeanLaw("area_annealing", lambda plan: tsl.laws.AREA_ANNEALING),
)
OF_MEAN = (*(MeanLaw(baseline.name, baseline.law) for baseline in baselines.ALL if baseline.law is not None), *ANNEALED)
BY_POSITION = {"paper": position_route.Paper(), "temporal": "temporal", "temporal_joint": "temporal_joint"}


def by_kind_and_seed(surfaces: Mapping[str, xr.Dataset]) -> dict[str, dict[str, xr.Dataset]]:
    """Runs that differ by their seed alone, by the name before the @: {"small-cosine": {"0": surface, ...}, ...}."""
    kinds: dict[str, dict[str, xr.Dataset]] = {}
    for name, surface in surfaces.items():
        kind, _, seed = name.partition("@")
        kinds.setdefault(kind, {})[seed or "0"] = surface
    return kinds


def stacked(seeds: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """The losses of several seeds as the splits "id@0", "id@1", ... of one surface, past the warm-up.

    Raises:
        ValueError: if they do not share their tokens and their schedule.
    """
    first = next(iter(seeds.values()))
    parts = []
    for seed, run in seeds.items():
        if not np.array_equal(run.tokens, first.tokens) or run.attrs.get("schedule") != first.attrs.get("schedule"):
            raise ValueError(f"stacked: seed {seed} has other checkpoints or another schedule than the first")
        parts.append(run.loss.assign_coords(split=[f"{split}@{seed}" for split in run.split.values]))
    whole = xr.Dataset({"loss": xr.concat(parts, "split", coords="minimal", compat="override")}, attrs=first.attrs)
    return after_warmup(whole, lr_history.schedule_of(first))


def covariates(law: Law, surface: xr.Dataset, tokens: np.ndarray) -> Any:
    """What a law reads at these tokens of a whole run: the tokens, or the areas of its learning rate."""
    if law.covariates == ("tokens",):
        return np.asarray(tokens, float)
    rate = lr_history.of_run(surface, lr_history.schedule_of(surface))
    values = rate.covariates(np.asarray(tokens, float), float(surface.tokens[-1]))
    return {name: values[name] for name in law.covariates}


def mean_curve(mean_law: MeanLaw, surface: xr.Dataset, learned: xr.Dataset, every: int = 1) -> xr.DataArray | None:
    """The law fitted to the mean loss at every so many checkpoints of `learned`, read at all, (split, tokens).

    None where it does not apply. Checkpoints are left out by a weight of zero: programs are compiled for each length.
    """
    law = mean_law.law(lr_history.schedule_of(surface))
    if law is None:
        return None
    mean, x = mean_loss(learned), covariates(law, surface, learned.tokens.values)
    weights = (np.arange(mean.sizes["tokens"]) % every == 0).astype(float)
    values = tsl.fit(law, mean, over="tokens", x=x, weights=weights).predict(x).values
    return xr.DataArray(values, mean.coords, mean.dims)


def applies(method: Any, surface: xr.Dataset) -> bool:
    """Whether a law by position can be what it is: the paper's needs a cosine schedule."""
    plan = lr_history.schedule_of(surface)
    return not isinstance(method, position_route.Paper) or (plan is not None and plan.kind == "cosine")


def position_surface(method: Any, learned: xr.Dataset, tokens: np.ndarray, solver: str = "auto") -> xr.DataArray | None:
    """The law by position fitted to `learned`, read at tokens, (split, tokens, position).

    NaN for splits whose position fits say too little; None where the law does not apply.
    """
    if not applies(method, learned):
        return None
    own, plan = described_splits(learned), lr_history.schedule_of(learned)
    if not own.sizes["split"]:
        where = {"split": learned.split.values, "tokens": tokens, "position": learned.position.values}
        return xr.DataArray(np.nan, where, ("split", "tokens", "position"))
    fitted = position_route.surface_of(position_route.described(own, plan, method, solver), tokens, own.position)
    return fitted.reindex(split=learned.split)


def described_splits(learned: xr.Dataset) -> xr.Dataset:
    """The splits with enough usable position fits for temporal laws; the loss of others falls with no context."""
    count = tsl.fit(tsl.laws.HYPERBOLIC, learned.loss, over="position").usable.sum("tokens")
    return learned.isel(split=np.flatnonzero(count.values >= position_route.FEWEST))


def position_parameters(method: Any) -> int:
    """Free numbers of a law by position: N_sep is one."""
    return sum(len(law.raw_params) for law in position_route.SEPARATE.values()) + isinstance(
        method, position_route.Paper
    )


def lm_of_mean(mean_law: MeanLaw, surface: xr.Dataset, learned: xr.Dataset) -> dict[str, float]:
    """The lm columns of a law on the mean losses."""
    law = mean_law.law(lr_history.schedule_of(surface))
    if law is None:
        return dict.fromkeys(solver_comparison.COLUMNS, np.nan)
    return solver_comparison.beside(
        law, mean_loss(learned), over="tokens", x=covariates(law, surface, learned.tokens.values)
    )


def lm_by_position(method: Any, learned: xr.Dataset) -> pd.DataFrame:
    """The lm columns, and the median R2, of the laws of a0, a1 and a2; index the parameter, rows `together` last."""
    learned, plan = described_splits(learned), lr_history.schedule_of(learned)
    if not learned.sizes["split"]:
        return pd.DataFrame(np.nan, index=[*PARTS, "together"], columns=["r2", *solver_comparison.COLUMNS])
    fits = position_route.described(learned, plan, "temporal" if method == "temporal_joint" else method)
    usable = fits["position"].usable
    rows = {}
    for name in PARTS:
        values = fits["position"].params.sel(param=name, drop=True).where(usable.all("split"), drop=True)
        rows[name] = {
            "r2": float(fits[name].r2.median()),
            **solver_comparison.beside(fits[name].law, values, over="tokens"),
        }
    table = pd.DataFrame(rows).T
    together = {"r2": table.r2.median(), "lm_r2": table.lm_r2.median(), "lm_sse_excess": table.lm_sse_excess.max()}
    table.loc["together"] = {**together, "lm_curves": table.lm_curves.sum()}
    return table


def seeds_of(splits: Sequence[str], split: str) -> list[str]:
    """The splits "id@SEED" of a kind."""
    return [name for name in splits if name.partition("@")[0] == split]
