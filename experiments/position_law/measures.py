"""Measures of the law over positions: of every checkpoint, of the last one, between ranges, and between two runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from tsl_jax import laws
from tsl_jax.diagnostics import (
    bootstrap,
    cox_test,
    effective_context,
    effective_context_resampled,
    expected_r2,
    extrapolated,
    gls_fit,
    held_out,
    reference_chi2,
    stationary_covariance,
)
from tsl_jax.diagnostics.model_comparison import CoxTest
from tsl_jax.fitting import Fit, fit
from tsl_jax.surface import position_covariance

LAWS = (laws.HYPERBOLIC, laws.POSITION_POWER, laws.POSITION_EXPONENTIAL, laws.POSITION_LOG)
ALTERNATIVES = LAWS[1:]
DRAWS = 200  # of a reference
LEVEL = 0.05


def clusters_of(surface: xr.Dataset, split: str) -> int:
    """Clusters of documents that hold anything."""
    return int((surface.cluster_count.sel(split=split).isel(tokens=0).sum("position") > 0).sum())


class Tested:
    """p-values of chi2, from one simulated reference for all runs that share their text, range and clusters."""

    def __init__(self) -> None:
        self.drawn: dict[Any, np.ndarray] = {}

    def p(self, chi2: float, key: tuple[Any, ...], curve: np.ndarray, x: np.ndarray, sigma: np.ndarray) -> float:
        """Probability of so large a chi2 under a true law; key: text, range, split, clusters (last)."""
        if key not in self.drawn:
            self.drawn[key] = reference_chi2(
                laws.HYPERBOLIC, curve, x, sigma, key[-1], draws=DRAWS, seed=len(self.drawn)
            )
        simulated = self.drawn[key]
        return float((1 + (simulated >= chi2).sum()) / (1 + len(simulated)))


def hyperbolas(surface: xr.Dataset) -> Fit:
    """The law at every checkpoint, of the plain mean."""
    return fit(laws.HYPERBOLIC, surface.loss, over="position")


def by_checkpoint(name: str, surface: xr.Dataset, hyperbola: Fit, text: str, tested: Tested) -> pd.DataFrame:
    """One row a split and checkpoint: R2, that expected of a true law, chi2 of every law, p of the hyperbola, i90."""
    sigma = position_covariance(surface)
    expected = expected_r2(hyperbola, surface.loss, sigma)
    additive = fit(laws.HYPERBOLIC, surface.loss_additive, over="position")
    rows = []
    x = surface.position.values.astype(float)
    for split in map(str, surface.split.values):
        clusters = clusters_of(surface, split)
        smooth = stationary_covariance(sigma.sel(split=split).values)
        used = _context(hyperbola, split, smooth, clusters)
        key = (text, len(x), split, clusters)
        order = range(surface.sizes["tokens"] - 1, -1, -1)  # the last first: its noise makes the reference
        for k in order:
            y = surface.loss.sel(split=split).isel(tokens=k).values
            each = {law.name: gls_fit(law, y, x, smooth[k]) for law in LAWS}
            best = each["hyperbolic"]
            at = {"split": split, "tokens": surface.tokens.values[k]}
            rows.append(
                {
                    "run": name,
                    **at,
                    "share": float(surface.tokens[k] / surface.tokens[-1]),
                    "r2": float(hyperbola.r2.sel(at)),
                    "r2_additive": float(additive.r2.sel(at)),
                    "r2_expected": float(expected["mean"].sel(at)),
                    "status": int(hyperbola.status.sel(at)),
                    "p": tested.p(best.chi2, key, best.curve, x, smooth[k]),
                    "degrees": best.degrees,
                    **{f"chi2_{law}": law_fit.chi2 for law, law_fit in each.items()},
                    **{
                        f"p_{law.name}": tested.p(each[law.name].chi2, key, best.curve, x, smooth[k])
                        for law in ALTERNATIVES
                    },
                    **{param: float(hyperbola.params.sel({**at, "param": param})) for param in laws.HYPERBOLIC.params},
                    **{end: float(used[end].isel(tokens=k)) for end in ("i90", "low", "high")},
                }
            )
    return pd.DataFrame(rows).sort_values(["split", "tokens"], ignore_index=True)


def _context(hyperbola: Fit, split: str, smooth: np.ndarray, clusters: int) -> xr.Dataset:
    """i90 of a split over tokens, its error from the smoothed noise, t of clusters - 1 degrees."""
    both = hyperbola.status.dims
    sigma = np.broadcast_to(smooth, (hyperbola.status.sizes["split"], *smooth.shape))
    labelled = xr.DataArray(sigma, dims=("split", "tokens", "position", "position_")).transpose(*both, ...)
    return effective_context(hyperbola, labelled, clusters=clusters).sel(split=split)


def comparisons(surface: xr.Dataset, split: str) -> Iterator[dict[str, Any]]:
    """The hyperbola against each alternative at the last checkpoint: likelihood, held-out blocks, the second half.

    By the plain mean, then without likelihood by the additive estimate.
    """
    x = surface.position.values.astype(float)
    last = surface.isel(tokens=-1).sel(split=split)
    sigma = stationary_covariance(position_covariance(surface.isel(tokens=[-1])).sel(split=split).values[0])
    for estimate, y in (("plain", last.loss.values), ("additive", last.loss_additive.values)):
        if not np.isfinite(y).all():  # the offsets of its windows connect no positions
            continue
        missed = {law.name: (_inside(law, y, x), _beyond(law, y, x)) for law in LAWS}
        for law in ALTERNATIVES:
            row = {"estimate": estimate, "alternative": law.name}
            if estimate == "plain":  # the covariance is that of the plain mean
                row |= _ratio(cox_test(laws.HYPERBOLIC, law, y, x, sigma))
            yield row | _held_out(missed["hyperbolic"], missed[law.name])


def _ratio(test: CoxTest) -> dict[str, float]:
    names = ("log_likelihood_ratio", "apart", "z_if_hyperbolic", "z_if_alternative")
    return dict(zip(names, test, strict=True))


def _held_out(ours: tuple[float, Any], theirs: tuple[float, Any]) -> dict[str, float]:
    (first, ours), (inside, beyond) = ours, theirs
    return {
        "held_out": first,
        "held_out_alternative": inside,
        "second_half": ours[0],
        "second_half_alternative": beyond[0],
        "second_half_bias": ours[1],
        "second_half_bias_alternative": beyond[1],
    }


def _inside(law: laws.Law, y: np.ndarray, x: np.ndarray) -> float:
    """Root mean square of what blocks that were held out miss, every block with one weight."""
    return float(np.sqrt(np.nanmean(held_out(law, y, x)[0] ** 2, axis=1).mean()))


def _beyond(law: laws.Law, y: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """Root mean square and mean of what the first half of positions misses of the second."""
    error = extrapolated(law, y, x)[0]
    return float(np.sqrt(np.nanmean(error**2))), float(np.nanmean(error))


def resampled_i90(surface: xr.Dataset, split: str, resamples: int = 500) -> tuple[float, float]:
    """90 % interval of i90 at the last checkpoint by resampled clusters."""
    last = surface.isel(tokens=-1).sel(split=split)
    sums, counts = (last[name].isel(cluster=slice(clusters_of(surface, split))).values for name in PARTS)
    resampled = bootstrap(laws.HYPERBOLIC, sums, counts, last.position.values.astype(float), resamples=resamples)
    low, high = effective_context_resampled(resampled)
    return float(low), float(high)


PARTS = ("cluster_sum", "cluster_count")


def by_range(surface: xr.Dataset, ends: tuple[int, ...]) -> dict[int, Fit]:
    """The law of the last checkpoint over 1..n for several n."""
    last = surface.loss.isel(tokens=-1)
    return {n: fit(laws.HYPERBOLIC, last.isel(position=slice(n)), over="position") for n in ends}


def paired(one: xr.Dataset, other: xr.Dataset, split: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Loss of one minus other at the last checkpoint (position,), what each cluster adds to it, and their number.

    Raises:
        ValueError: for runs that were not scored on the same windows in the same clusters.
    """
    clusters = min(clusters_of(one, split), clusters_of(other, split))
    sums, counts = zip(*(_merged(surface, split, clusters) for surface in (one, other)), strict=True)
    if one.attrs["windows"] != other.attrs["windows"] or not np.array_equal(*counts):
        raise ValueError("position_law: a paired difference needs the same windows and clusters in both runs")
    difference, total = sums[0] - sums[1], counts[0].sum(axis=0)
    mean = difference.sum(axis=0) / total
    return mean, (difference - mean * counts[0]) / total, clusters


def _merged(surface: xr.Dataset, split: str, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts (cluster, position) of the last checkpoint, neighbouring clusters together."""
    own_clusters = clusters_of(surface, split)
    last = surface.isel(tokens=-1, cluster=slice(own_clusters)).sel(split=split)
    first = np.arange(clusters) * own_clusters // clusters
    sums, counts = (np.add.reduceat(last[name].values, first, axis=0) for name in PARTS)
    return sums, counts


def contrast(mean: np.ndarray, each: np.ndarray, weights: np.ndarray, clusters: int) -> tuple[float, float, float]:
    """A weighted sum over positions of a paired difference, with its 90 % t interval from clusters."""
    value = float(mean @ weights)
    error = float(np.sqrt(clusters / (clusters - 1) * ((each @ weights) ** 2).sum()))
    width = float(stats.t.ppf(0.95, clusters - 1)) * error
    return value, value - width, value + width


def early_and_late(n: int, early: int) -> dict[str, np.ndarray]:
    """Weights over positions: the mean of the first few, of the second half, and late minus early."""
    position = np.arange(1, n + 1)
    first, second = (position <= early) / early, (position > n // 2) / (n - n // 2)
    return {"early": first, "late": second, "late minus early": second - first}


def seeds_apart(runs: Mapping[str, xr.Dataset], split: str, weights: np.ndarray) -> float:
    """Standard deviation between seeds of a weighted sum of the last loss: the same text, so text cancels."""
    return float(np.std([s.loss.isel(tokens=-1).sel(split=split).values @ weights for s in runs.values()], ddof=1))
