"""A law over size, data, steps or compute, fitted to a ladder of runs.

Huber's loss on logarithms, *summed* over runs (Hoffmann et al. average it, and their optimiser stopped early: Besiroglu
et al., arXiv 2404.10102), many starts, and what a user must know before he trusts an extrapolation: intervals by
resampling whole groups of runs, the error at the largest runs when they were held out, and the distance of a target
from the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from tsl_jax.fitting import Fit, fit
from tsl_jax.fitting.result import evaluate
from tsl_jax.laws import KAPLAN_ND, Law
from tsl_jax.scaling.accounting import tokens_needed

DELTA = 1e-3  # where Huber's loss on log L turns linear: Hoffmann et al., section D.2
RESAMPLES = 200
LEVEL = 0.9
HELD_OUT = 1  # of the largest sizes
TOLERANCE = 0.02  # share of the loss that too little data may cost: the spread of Kaplan's seeds


@dataclass(frozen=True)
class Ladder:
    """A law fitted to runs.

    Attributes:
        law: the law. runs: the table it was fitted to. fit: by all runs.
        params: (resample, param), of each resample of groups, see `fit_ladder`; rows of NaN where one had no interior
            optimum.
        grouped_by: the column whose values are resampled. held_out: the largest runs as predicted from the others, with
            columns observed, predicted, error (relative); empty where too few are left.
    """

    law: Law
    runs: pd.DataFrame
    fit: Fit
    params: Float[np.ndarray, "resample param"]
    grouped_by: str
    held_out: pd.DataFrame

    def interval(self, level: float = LEVEL) -> pd.DataFrame:
        """A row a parameter: value, low and high over the resamples, and the paper's value where it has one."""
        tail, known = (1 - level) / 2, self.params[np.isfinite(self.params).all(1)]
        low = high = np.full(len(self.law.params), np.nan)
        if len(known):
            low, high = np.quantile(known, [tail, 1 - tail], axis=0)
        columns = {"value": self.fit.params.values, "low": low, "high": high}
        paper = [self.law.published.get(name, np.nan) for name in self.law.params]
        return pd.DataFrame(columns | {"paper": paper}, index=pd.Index(self.law.params, name="parameter"))

    def predict(self, x: Mapping[str, Any], level: float = LEVEL) -> pd.DataFrame:
        """The loss at new runs with its interval, and how far they lie beyond the data.

        Args:
            x: covariate -> values. Columns of the answer: those, loss, low, high, and `beyond`, by which factor a
                covariate leaves the range of the data, at most: 1 within it.
        """
        points = {name: np.atleast_1d(np.asarray(x[name], float)) for name in self.law.covariates}
        whole = losses(self.law, points, self.fit.params.values[None])[0]
        low = high = np.full(len(whole), np.nan)
        known = self.params[np.isfinite(self.params).all(1)]
        if len(known):
            tail = (1 - level) / 2
            low, high = np.quantile(losses(self.law, points, known), [tail, 1 - tail], axis=0)
        beyond = np.ones(len(whole))
        for name, values in points.items():
            seen = self.runs[name]
            beyond = np.maximum(beyond, np.maximum(values / seen.max(), seen.min() / values))
        return pd.DataFrame({**points, "loss": whole, "low": low, "high": high, "beyond": beyond})

    def data_needed(self, n_params: Any, tolerance: float = TOLERANCE, level: float = LEVEL) -> pd.DataFrame:
        """The tokens at which L(N, D) is within a share `tolerance` of L(N, inf), with their interval.

        D = K N^(alpha_N/alpha_D); with the paper's constants 5e3 N^.74 for 2 %.

        Returns:
            A row a size: n_params, tokens, low, high; then in `attrs` exponent, exponent_low, exponent_high.

        Raises:
            ValueError: for a law other than KAPLAN_ND, or a tolerance that is not positive.
        """
        if self.law.name != KAPLAN_ND.name:
            raise ValueError(f"scale: the data needed follow from {KAPLAN_ND.name}, found {self.law.name}")
        sizes = np.atleast_1d(np.asarray(n_params, float))
        rows = [self.fit.params.values, *self.params[np.isfinite(self.params).all(1)]]
        constants = [dict(zip(self.law.params, map(float, row), strict=True)) for row in rows]
        needed = np.array([tokens_needed(sizes, tolerance, each) for each in constants])
        exponents = np.array([each["alpha_N"] / each["alpha_D"] for each in constants])
        tail = (1 - level) / 2
        low, high = (np.quantile(needed[1:], q, axis=0) if len(rows) > 1 else np.nan for q in (tail, 1 - tail))
        table = pd.DataFrame({"n_params": sizes, "tokens": needed[0], "low": low, "high": high})
        ends = np.quantile(exponents[1:], [tail, 1 - tail]) if len(rows) > 1 else (np.nan, np.nan)
        table.attrs = {"exponent": exponents[0], "exponent_low": float(ends[0]), "exponent_high": float(ends[1])}
        return table

    def report(self) -> str:
        """Parameters with intervals, the paper's beside them, the status, and the error at the runs held out."""
        table = self.interval()
        table = table.dropna(axis=1, how="all")
        agreeing = int(self.fit.n_agreeing_starts)  # -1 of a search over the whole range
        starts = f"; {agreeing} of {self.law.starts} starts agree" if agreeing > 0 else ""
        lines = [
            f"{self.law.name}: {self.law.formula}, {len(self.runs)} runs of {self.runs.n_params.nunique()} sizes",
            f"{self.fit.message().item()}{starts}",
            table.to_string(float_format="{:.4g}".format, na_rep="-"),
        ]
        if len(self.params):
            lines.append(f"intervals: {LEVEL:.0%}, {len(self.params)} resamples of groups of one {self.grouped_by}")
        failed = int(np.isnan(self.params).any(1).sum())
        if failed:
            lines.append(f"{failed} of {len(self.params)} resamples do not tell the parameters apart")
        if self.law.name == KAPLAN_ND.name and bool(self.fit.usable):
            needed = self.data_needed(self.runs.n_params.max())
            size, tokens, low, high = needed.iloc[0]
            lines.append(
                f"too little data costs {TOLERANCE:.0%} of the loss at {tokens:.3g} tokens [{low:.3g}, {high:.3g}] for "
                f"{size:.3g} parameters; the tokens grow as N^{needed.attrs['exponent']:.2f} "
                f"[{needed.attrs['exponent_low']:.2f}, {needed.attrs['exponent_high']:.2f}]"
            )
        if len(self.held_out):
            worst = self.held_out.error.abs()
            sizes = ", ".join(f"{size:.3g}" for size in sorted(self.held_out.n_params.unique()))
            lines.append(
                f"held out (n_params {sizes}), predicted from the smaller runs: mean relative error "
                f"{worst.mean():.2%}, largest {worst.max():.2%}"
            )
        else:
            lines.append("nothing held out: too few sizes to leave out the largest")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.report()


def fit_ladder(
    law: Law,
    runs: pd.DataFrame,
    loss: str = "log_huber",
    delta: float | None = DELTA,
    group: str = "",
    resamples: int = RESAMPLES,
    held_out: int = HELD_OUT,
    seed: int = 0,
) -> Ladder:
    """Fit a law to runs.

    Few groups scatter less when they are resampled than estimates do: with G of them, the distance of each resample
    from the estimate, in logarithms where both are positive, is stretched by sqrt(G/(G - 1)) t(G - 1)/z, the ratio of
    the 95 % points of Student's t and the normal distribution (1.34 for 6 groups, 1.1 for 16).

    Args:
        runs: with a column for each covariate of the law, and `loss`. loss, delta: as in `tsl.fit`.
        group: the column whose values are resampled; default "run" where runs repeat, else "n_params" where each size
            has several runs, else every row for itself.
        resamples: of groups, for the intervals. held_out: how many of the largest sizes are left out together for
            the score; zero for none.

    Raises:
        ValueError: for missing columns, fewer runs than parameters, counts below zero, or what `tsl.fit` refuses.
    """
    missing = [name for name in (*law.covariates, "loss") if name not in runs]
    if missing:
        there = ", ".join(map(str, runs.columns))
        raise ValueError(f"scale: {law.name} reads {', '.join(missing)}, which the runs lack; they have {there}")
    if resamples < 0 or held_out < 0:
        raise ValueError(f"scale: resamples and held_out are 0 or more, found {resamples} and {held_out}")
    if group not in ("", "row") and group not in runs:
        raise ValueError(f"scale: there is no column {group!r} to group by; the runs have {', '.join(map(str, runs))}")
    runs = runs.dropna(subset=[*law.covariates, "loss"]).reset_index(drop=True)
    if len(runs) < len(law.params):
        raise ValueError(f"scale: {law.name} has {len(law.params)} parameters, found {len(runs)} runs; give more")
    options = {"loss": loss, "delta": delta if loss.endswith("huber") else None}

    def fitted(counts: np.ndarray) -> Fit:
        """Of counts (curve, run), how often each run counts."""
        return fit(
            law,
            np.tile(runs.loss.to_numpy(float), (len(counts), 1)),
            x=covariates(law, runs),
            weights=counts,
            **options,
        )

    whole = fit(law, runs.loss.to_numpy(float), x=covariates(law, runs), **options)
    group = group or _groups(runs)
    params = np.full((resamples, len(law.params)), np.nan)
    if resamples:
        units = np.arange(len(runs)) if group == "row" else runs[group].to_numpy()
        each = fitted(_resampled(units, resamples, seed))
        params = np.where(each.usable.values[:, None], each.params.values, np.nan)
        params = _stretched(params, whole.params.values, len(np.unique(units)))
    sizes = np.sort(runs.n_params.unique())
    scores = pd.DataFrame()
    if held_out and len(sizes) > held_out + 1:
        inside = (runs.n_params < sizes[-held_out]).to_numpy()
        if inside.sum() > len(law.params):
            part = fitted(inside[None].astype(float))
            predicted = part.predict().values[0][~inside]
            columns = ["n_params", *[name for name in law.covariates if name != "n_params"], "loss"]
            scores = runs.loc[~inside, columns].rename(columns={"loss": "observed"})
            scores["predicted"] = predicted
            scores["error"] = scores.predicted / scores.observed - 1
    return Ladder(law, runs, whole, params, group, scores)


def losses(law: Law, x: Mapping[str, Any], params: np.ndarray) -> Float[np.ndarray, "row point"]:
    """The law in float64 at x, covariate -> (point,), for rows of published parameters (row, param)."""
    to_raw = law.raw_from_params or dict
    rows = [to_raw(dict(zip(law.params, map(float, row), strict=True))) for row in params]
    raw = np.array([[float(row[name]) for name in law.raw_params] for row in rows])
    points = {name: np.asarray(x[name], float) for name in law.covariates}
    return evaluate(law, raw, points if len(points) > 1 else next(iter(points.values())))


def covariates(law: Law, runs: pd.DataFrame) -> Any:
    """What the law reads: one array, or a mapping of several."""
    columns = {name: runs[name].to_numpy(float) for name in law.covariates}
    return columns if len(columns) > 1 else next(iter(columns.values()))


def _stretched(params: np.ndarray, estimate: np.ndarray, groups: int) -> np.ndarray:
    """Resamples (resample, param) at the distance that few groups ask for; see `fit_ladder`."""
    from scipy.stats import norm, t  # late: a second to import

    if groups < 2:
        return params
    factor = np.sqrt(groups / (groups - 1)) * t.ppf(0.95, groups - 1) / norm.ppf(0.95)
    with np.errstate(invalid="ignore", divide="ignore"):
        in_logs = (estimate > 0) & np.all((params > 0) | np.isnan(params), axis=0)
        logs = estimate * np.abs(params / estimate) ** factor
    return np.where(in_logs, logs, estimate + factor * (params - estimate))


def _groups(runs: pd.DataFrame) -> str:
    """Rows of one run err together, and so do runs of one size."""
    if "run" in runs and runs.run.duplicated().any():
        return "run"
    return "n_params" if runs.n_params.nunique() > 3 and runs.n_params.duplicated().any() else "row"


def _resampled(groups: np.ndarray, resamples: int, seed: int) -> Float[np.ndarray, "resample run"]:
    """How often each row counts when its groups are drawn with replacement."""
    codes, names = pd.factorize(groups)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return drawn[:, codes].astype(float)
