"""The best size at each budget, read off the runs themselves: isoFLOP parabolas and the least loss by compute.

Runs of equal compute C and different sizes lie on a curve with a minimum. Near it, with u = log N,

    L = c0 + c1 (u - u_opt)^2,

and over budgets N_opt = k C^a, D_opt = C/(6 N_opt) (Hoffmann et al., arXiv 2203.15556, approach 2). The least losses
over C are the frontier that L(C_min) of Kaplan et al. describes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

FEWEST = 3  # sizes on a parabola, and budgets on the frontier
NEAR = 0.05  # log10 of compute: runs so near are of one budget
RESAMPLES = 500


@dataclass(frozen=True)
class Frontier:
    """N_opt = k C^a.

    Attributes:
        minima: a row a budget: flops, n_params, tokens, loss at the minimum, runs, and whether it lies `inside` the
            sizes that were tried. exponent, scale: a and k. draws: (resample, 2) of both, over resampled budgets.
    """

    minima: pd.DataFrame
    exponent: float
    scale: float
    draws: Float[np.ndarray, "resample 2"]

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Low and high of the exponent a."""
        tail = (1 - level) / 2
        low, high = np.quantile(self.draws[:, 0], [tail, 1 - tail])
        return float(low), float(high)

    def n_params(self, flops: float) -> float:
        """N_opt at a budget."""
        return self.scale * flops**self.exponent


def isoflop_minima(runs: pd.DataFrame) -> pd.DataFrame:
    """The minimum of each budget's parabola; `inside` is false where it lies beyond the sizes that were tried.

    Args:
        runs: n_params, flops, loss; budgets are groups of runs within NEAR of each other in log10 of compute.

    Raises:
        ValueError: where no budget has FEWEST sizes.
    """
    missing = [name for name in ("n_params", "flops", "loss") if name not in runs]
    if missing:
        raise ValueError(f"isoflop: the runs lack {', '.join(missing)}; they have {', '.join(map(str, runs.columns))}")
    runs = runs.sort_values("flops")
    budget = (np.diff(np.log10(runs.flops), prepend=-np.inf) > NEAR).cumsum()
    rows = []
    for _, part in runs.groupby(budget):
        if part.n_params.nunique() < FEWEST:
            continue
        u = np.log(part.n_params.to_numpy(float))
        c2, c1, c0 = np.polyfit(u - u.mean(), part.loss.to_numpy(float), 2)
        best = -c1 / (2 * c2) if c2 > 0 else np.nan
        flops, inside = float(np.exp(np.log(part.flops).mean())), bool(u.min() <= u.mean() + best <= u.max())
        n_params = float(np.exp(u.mean() + best))
        loss = c0 - c1**2 / (4 * c2) if c2 > 0 else np.nan
        rows.append({"flops": flops, "n_params": n_params, "tokens": flops / (6 * n_params), "loss": loss,
                     "runs": len(part), "inside": inside})  # fmt: skip
    if not rows:
        raise ValueError(f"isoflop: no budget has runs of {FEWEST} sizes; runs of one budget share `flops`")
    return pd.DataFrame(rows)


def fit_frontier(runs: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> Frontier:
    """Fit N_opt = k C^a to the minima that lie inside.

    Raises:
        ValueError: as `isoflop_minima`, and for fewer than FEWEST minima.
    """
    minima = isoflop_minima(runs)
    inside = minima[minima.inside]
    if len(inside) < FEWEST:
        raise ValueError(f"isoflop: {FEWEST} budgets must have their minimum among their sizes, found {len(inside)}")
    x, y = np.log(inside.flops.to_numpy()), np.log(inside.n_params.to_numpy())
    draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    draws = draws[[len(np.unique(row)) > 1 for row in draws]]
    exponent, scale = np.polyfit(x, y, 1)
    each = np.array([np.polyfit(x[row], y[row], 1) for row in draws])
    return Frontier(minima, float(exponent), float(np.exp(scale)), np.stack([each[:, 0], np.exp(each[:, 1])], axis=1))
