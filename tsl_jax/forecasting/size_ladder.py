"""The loss of every position at a size and a time that no run has reached, from a ladder of runs of several sizes.

One law of size, time and schedule for each position i, with N parameters without embeddings, S the area under the
learning rate over its peak (tokens at full rate) and a annealing, the sum of the decreases of the rate that have taken
effect (`lr_history`, rate of effect c):

    log L(i; N, S, a) = k_i - alpha_i log N - beta_i log S - gamma_i log N log S - delta_i a

so that a larger model learns faster (gamma > 0), as runs of 10^3 to 10^5 parameters do, and Kaplan's L(N, S) = (N_c/N)^
alpha_N + (S_c/S)^alpha_S does not let them. It is linear in its coefficients: one product fits all positions. Columns
that the ladder cannot tell are left out: delta where no rate decays, beta and gamma where each run has one checkpoint.

Intervals are of two parts: whole runs are drawn with replacement, and the law's own error beyond the ladder, which
grows with the log of the factor in size. It is what leaving out the largest sizes in turn shows, added in squares to a
prior of 2 % of the loss for each factor e: one size may be hit by luck. A power law in N has no floor: far beyond
the ladder (ten times and more) it is below the truth, and `beyond` says how far that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from tsl_jax.forecasting import lr_history
from tsl_jax.laws import Schedule

CHECKPOINTS = 32  # of a run, even in log tokens: rows of one run err together
WARMUPS = 2  # checkpoints before so many warm-ups are left out
RATES = np.geomspace(1.0, 300.0, 12)  # of effect of a decrease, c
RESAMPLES = 200
LEVEL = 0.9
PRIOR = 0.02  # error of log L for a factor e in size beyond the ladder: Gemstones at 2 B from 600 M err by 1.7 %
FEWEST = 3  # sizes that a law of size takes
COLUMNS = ("constant", "size", "time", "size_time", "annealing")


@dataclass(frozen=True)
class SizeLadder:
    """The law fitted to a ladder; see the module.

    Attributes:
        rows: a row a checkpoint: run, n_params, tokens, area, loss. position: (position,). columns: those in use.
        coef: (draw, column, position), the fit of all runs first, then resamples. rate: c. reference: tokens that
            areas are measured in. centre: means of log N and log S. error: (position,), the law's own error of log L at
            a size e times beyond the ladder, and error_mean, of the mean over positions.
    """

    rows: pd.DataFrame
    position: np.ndarray
    columns: tuple[str, ...]
    coef: Float[np.ndarray, "draw column position"]
    rate: float
    reference: float
    centre: tuple[float, float]
    error: Float[np.ndarray, " position"]
    error_mean: float

    def predict(
        self, n_params: float, tokens: Sequence[float], schedule: Schedule | None = None, level: float = LEVEL
    ) -> xr.Dataset:
        """Loss of every position at `tokens` of a run of `n_params`, and the mean over positions.

        Args:
            schedule: of the learning rate; default a constant one.

        Returns:
            loss, low, high (tokens, position); mean, mean_low, mean_high (tokens,). Attribute `beyond`: the factor by
            which size or area leave the ladder, 1 within it.

        Raises:
            ValueError: for numbers that are not positive, or a rate that decays where no run of the ladder's does.
        """
        from scipy.stats import norm  # late: a second to import

        at = np.asarray(tokens, float)
        if not (np.isfinite(n_params) and n_params > 0 and at.ndim == 1 and len(at) and (at > 0).all()):
            raise ValueError(f"size ladder: expected positive numbers, found n_params {n_params} and tokens {tokens}")
        rate = _rate_of(schedule, float(at.max()))
        area, annealing = _clock(rate, at, self.rate, self.reference)
        if "annealing" not in self.columns and annealing.max(initial=0) > 0:
            raise ValueError(
                "size ladder: the rate of this schedule decays, and none of the ladder's does: give runs whose rate "
                "does, or a constant schedule"
            )
        design = _design(np.full(len(at), float(n_params)), area, annealing, self.centre, self.columns)
        draws = np.exp(np.einsum("tc,dcp->dtp", design, self.coef))
        sizes = self.rows.n_params
        factor = max(float(np.log(n_params / sizes.max())), float(np.log(sizes.min() / n_params)), 0.0)
        beyond = max(np.exp(factor), area.max() / self.rows.area.max())

        def ends(draws: np.ndarray, error: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
            spread = error * factor * float(norm.ppf((1 + level) / 2))
            low, high = np.quantile(draws[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
            point = draws[0]
            # the two parts are independent: their half-widths add in squares, in logarithms
            widths = [np.hypot(np.log(point / low), spread), np.hypot(np.log(high / point), spread)]
            return point * np.exp(-widths[0]), point * np.exp(widths[1])

        low, high = ends(draws, self.error)
        mean_low, mean_high = ends(draws.mean(axis=2), self.error_mean)
        both, one = ("tokens", "position"), ("tokens",)
        return xr.Dataset(
            {
                "loss": (both, draws[0]), "low": (both, low), "high": (both, high),
                "mean": (one, draws[0].mean(axis=1)), "mean_low": (one, mean_low), "mean_high": (one, mean_high),
            },
            {"tokens": at, "position": self.position},
            {"n_params": float(n_params), "beyond": float(beyond), "level": level},
        )  # fmt: skip


def fit_size_ladder(
    surfaces: Iterable[xr.Dataset], split: str = "", resamples: int = RESAMPLES, seed: int = 0
) -> SizeLadder:
    """Fit the law to the surfaces of runs of several sizes on the same text.

    Args:
        surfaces: with the attribute n_params, and the learning rate where it is not constant. split: default the first.

    Raises:
        ValueError: for fewer than three sizes, surfaces without n_params, or positions that differ.
    """
    tables, losses, runs = [], [], list(surfaces)
    for k, surface in enumerate(runs):
        size = surface.attrs.get("n_params")
        if not isinstance(size, int | float) or not size > 0:
            raise ValueError(f"size ladder: surface {k + 1} does not say how many parameters its model has (n_params)")
        if not np.array_equal(surface.position, runs[0].position):
            raise ValueError(f"size ladder: the positions of surface {k + 1} are not those of the first")
        splits = [str(name) for name in surface.split.values]
        if split and split not in splits:
            raise ValueError(f"size ladder: surface {k + 1} has the splits {', '.join(splits)}, found {split!r}")
        rate = lr_history.of_run(surface, lr_history.schedule_of(surface))
        loss = surface.loss.sel(split=split or splits[0]).transpose("tokens", "position")
        seen = loss.tokens.values.astype(float)
        keep = _thinned(seen, WARMUPS * rate.warmup)
        losses.append(loss.values[keep])
        tables.append(pd.DataFrame({"run": k, "n_params": float(size), "tokens": seen[keep]}).assign(rate=rate))
    rows = pd.concat(tables, ignore_index=True)
    log_loss = np.log(np.concatenate(losses))
    sizes = np.sort(rows.n_params.unique())
    if len(sizes) < FEWEST:
        raise ValueError(f"size ladder: {FEWEST} sizes or more tell a law of size, found {len(sizes)}")
    reference = float(rows.tokens.max())
    by_run = [(part.rate.iloc[0], part.index.to_numpy()) for _, part in rows.groupby("run")]

    def clocks(c: float) -> tuple[np.ndarray, np.ndarray]:
        area, annealing = np.empty(len(rows)), np.empty(len(rows))
        for rate, index in by_run:
            area[index], annealing[index] = _clock(rate, rows.tokens.to_numpy()[index], c, reference)
        return area, annealing

    area, annealing = clocks(RATES[0])
    decays = float(np.ptp(annealing)) > 1e-3
    columns = tuple(name for name in COLUMNS if name != "annealing" or decays)
    centre = (float(np.log(rows.n_params).mean()), float(np.log(area).mean()))
    size, best, kept = rows.n_params.to_numpy(), RATES[0], np.inf
    for c in RATES if decays else RATES[:1]:
        tried = _design(size, *clocks(c), centre, columns)
        sse = float(np.sum((log_loss - tried @ _solved(tried, log_loss)) ** 2))
        best, kept = (c, sse) if sse < kept else (best, kept)
    area, annealing = clocks(best)
    design = _design(size, area, annealing, centre, columns)
    coef = [_solved(design, log_loss)]
    rng, groups = np.random.default_rng(seed), [index for _, index in by_run]
    while len(coef) <= resamples:
        drawn = np.concatenate([groups[k] for k in rng.integers(len(groups), size=len(groups))])
        if len(np.unique(size[drawn])) >= FEWEST:
            coef.append(_solved(design[drawn], log_loss[drawn]))
    # each size beyond the third as the smaller ones say it: errors per log of the factor between it and the next
    errors, of_mean = [], []
    for k in range(FEWEST, len(sizes)):
        smaller, target = size < sizes[k], size == sizes[k]
        predicted, seen = design[target] @ _solved(design[smaller], log_loss[smaller]), log_loss[target]
        factor = np.log(sizes[k] / sizes[k - 1])
        errors.append(np.mean((predicted - seen) ** 2, axis=0) / factor**2)
        means = np.log(np.exp(predicted).mean(axis=1) / np.exp(seen).mean(axis=1))
        of_mean.append(np.mean(means**2) / factor**2)
    error = np.sqrt(PRIOR**2 + (np.mean(errors, axis=0) if errors else np.zeros(log_loss.shape[1])))
    error_mean = float(np.sqrt(PRIOR**2 + (np.mean(of_mean) if of_mean else 0.0)))
    rows = rows.drop(columns="rate").assign(area=area, loss=np.exp(log_loss).mean(axis=1))
    position = runs[0].position.values
    return SizeLadder(rows, position, columns, np.stack(coef), float(best), reference, centre, error, error_mean)


def _solved(design: np.ndarray, log_loss: np.ndarray) -> np.ndarray:
    """Least squares (column, position); of the smallest norm where columns are collinear."""
    return np.linalg.lstsq(design, log_loss, rcond=None)[0]


def _design(
    n_params: np.ndarray, area: np.ndarray, annealing: np.ndarray, centre: tuple[float, float], columns: Sequence[str]
) -> Float[np.ndarray, "row column"]:
    size, time = np.log(n_params) - centre[0], np.log(area) - centre[1]
    every = {"constant": np.ones(len(size)), "size": size, "time": time, "size_time": size * time}
    every["annealing"] = annealing
    return np.stack([every[name] for name in columns], axis=1)


def _clock(
    rate: lr_history.LearningRate, tokens: np.ndarray, c: float, reference: float
) -> tuple[np.ndarray, np.ndarray]:
    """S in units of `reference`, and sum_k d_k (1 - 1/(1 + c (S - S_k) eta_k^-1/2)) over the decreases before S."""
    x = rate.covariates(tokens, reference)
    since = np.maximum(x["area"][:, None] - x["at_area"][None], 0) * x["to_rate"][None] ** -0.5
    return x["area"], (1 - 1 / (1 + c * since)) @ x["decrease"]


def _rate_of(schedule: Schedule | None, end: float) -> lr_history.LearningRate:
    if schedule is None:
        return lr_history.LearningRate(np.array([0.0, end]), np.ones(2))
    return lr_history.LearningRate(*schedule.knots())


def _thinned(tokens: np.ndarray, after: float) -> np.ndarray:
    """Indices of CHECKPOINTS at most, beyond the warm-up, even in log tokens; the last stays."""
    late = np.flatnonzero(tokens > max(after, 0))
    late = late if len(late) else np.arange(len(tokens))[-1:]
    wanted = np.geomspace(tokens[late[0]], tokens[late[-1]], CHECKPOINTS)
    return np.unique(late[np.abs(np.log(tokens[late])[None] - np.log(wanted)[:, None]).argmin(axis=1)])
