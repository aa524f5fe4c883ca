"""Several laws on the same curves: how well each fits, and how well it predicts points that it was not given.

Information criteria reward a small SSE and charge for parameters; they take the points for independent. The held-out
error takes nothing for granted: blocks of points are left out in turn, and the law of the others predicts them. On
correlated noise the second is the one to trust. `align_params` joins the parameters of several fits of one law, refused
where they do not mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.diagnostics.noise import log_bins
from tsl_jax.fitting.fit_law import fit
from tsl_jax.fitting.problem import as_law
from tsl_jax.fitting.result import Fit
from tsl_jax.laws import BY_NAME, Law

BLOCKS = 12
FEW = 5  # curves below which no sign test can say anything
SURE = 0.01  # p of a sign test below which one law is said to predict better than another


@dataclass(frozen=True)
class LawComparison:
    """Laws fitted to the same curves.

    Attributes:
        fits: name of a law -> its fit.
        held_out: (law, ...) root mean squared error of prediction at held-out points, a value a curve; NaN where a
            block leaves too few points.
        weight: (law, ...) Akaike weights exp(-AIC/2) of each curve, which sum to one over its usable laws.
    """

    fits: Mapping[str, Fit]
    held_out: xr.DataArray
    weight: xr.DataArray

    @property
    def best(self) -> str:
        """The law with the least median held-out error; where that is unknown, the one with the largest weight."""
        table = self.to_dataframe()
        unknown = bool(table["held_out"].isna().to_numpy().all())
        return str(table["weight"].idxmax() if unknown else table.index[0])

    def per_curve(self) -> pd.DataFrame:
        """A row a curve and law, the laws of one curve together: the numbers that `summarise` takes the medians of.

        Columns: curve, counted from 0; law; parameters, how many; usable; sse; relative_error, the root mean squared
        residual over the mean size of the data; aic and bic, NaN where not usable; weight; held_out.
        """
        laws = list(self.fits)
        shape = (len(laws), -1)
        of_law = {
            "usable": [fit.usable.values for fit in self.fits.values()],
            "sse": [fit.sse.values for fit in self.fits.values()],
            "relative_error": [_relative_error(fit) for fit in self.fits.values()],
            "aic": _of_usable(self.fits, "aic").values,
            "bic": _of_usable(self.fits, "bic").values,
            "weight": self.weight.transpose("law", ...).values,
            "held_out": self.held_out.transpose("law", ...).values,
        }
        columns = {name: np.asarray(values).reshape(shape).T.ravel() for name, values in of_law.items()}
        curves = len(columns["sse"]) // len(laws)
        parameters = [len(fit.law.raw_params) for fit in self.fits.values()]
        keys = {
            "curve": np.repeat(np.arange(curves), len(laws)),
            "law": np.tile(laws, curves),
            "parameters": np.tile(parameters, curves),
        }
        return pd.DataFrame(keys | columns)

    def to_dataframe(self) -> pd.DataFrame:
        """A row a law, by name, the best first: `summarise` of the curves."""
        return summarise(self.per_curve())

    def report(self) -> str:
        """The table as text, and what it says."""
        first = next(iter(self.fits.values()))
        curves = f"{first.status.size} curve{'s' * (first.status.size > 1)}"
        table = in_words(self.to_dataframe())
        close = "" if len(self.fits) < 2 else f"\n{verdict(self.per_curve())}"
        return f"{curves} over {first.range_in_words()}; aic and bic less the least\n{table}{close}"

    def __repr__(self) -> str:
        return self.report()

    def _repr_html_(self) -> str:
        lines = self.report().splitlines()
        ends = escape(lines[0]), escape(lines[-1]) if len(self.fits) > 1 else ""
        return f"<p>{ends[0]}</p>{self.to_dataframe().to_html(float_format='{:.4g}'.format)}<p>{ends[1]}</p>"

    def plot(self, curve: int | None = None) -> Any:
        """A matplotlib figure: the laws through one curve, their residuals, and their held-out errors over all curves.

        Args:
            curve: which, counted from 0 as in `per_curve`; default the one of median R2.

        Raises:
            ValueError: for a curve that is not there.
        """
        # drawn by the layer above, which this one must not know when it is imported
        return import_module("tsl_jax.reporting.plots").law_comparison(self, curve)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a law, by name, the best first, from rows as `LawComparison.per_curve` has them. Numbers are medians.

    Columns: parameters, how many; usable, the share of curves; sse; relative_error; aic and bic less those of the law
    with the least on each curve; weight, the mean Akaike weight; held_out; wins, the share of curves that it predicts
    best.
    """
    by_curve = rows.groupby("curve", sort=False)
    errors = rows["held_out"].fillna(np.inf)
    least = errors.groupby(rows["curve"], sort=False).transform("min")
    rows = rows.assign(
        aic=rows["aic"] - by_curve["aic"].transform("min"),
        bic=rows["bic"] - by_curve["bic"].transform("min"),
        usable=rows["usable"].astype(float),
        wins=((errors == least) & np.isfinite(errors)).astype(float),
    )
    of_law = rows.groupby("law", sort=False)
    names = ("parameters", "usable", "sse", "relative_error", "aic", "bic", "weight", "held_out", "wins")
    mean = ("usable", "weight", "wins")
    table = pd.DataFrame({name: of_law[name].mean() if name in mean else of_law[name].median() for name in names})
    table["parameters"] = table["parameters"].astype(int)
    return table.sort_values(["held_out", "aic"], na_position="last")


def in_words(table: pd.DataFrame) -> str:
    """The table of `summarise` as text."""
    numbers = {"usable": "{:.2f}", "sse": "{:.4g}", "relative_error": "{:.2e}", "aic": "{:.1f}", "bic": "{:.1f}"}
    numbers |= {"weight": "{:.2f}", "held_out": "{:.4g}", "wins": "{:.2f}"}
    return table.to_string(formatters={name: form.format for name, form in numbers.items()})


def verdict(rows: pd.DataFrame) -> str:
    """Which law predicts best, by how much, and how sure that is: a sign test over the curves.

    The test takes the curves for independent, which checkpoints of one run are not.
    """
    from scipy.stats import binom  # late: a second to import

    errors = summarise(rows)["held_out"].dropna()
    if len(errors) < 2:
        return "held-out errors are known of fewer than two laws"
    best, second = (str(name) for name in errors.index[:2])
    pairs = rows.pivot(index="curve", columns="law", values="held_out")[[best, second]].dropna()
    of_best, of_second = (np.asarray(pairs[name]) for name in (best, second))
    better, worse = int(np.sum(of_best < of_second)), int(np.sum(of_best > of_second))
    more = errors[second] / errors[best] - 1
    sentence = f"{best} has the smallest median held-out error; that of {second} is {more:.1%} larger"
    if better + worse < FEW:
        return f"{sentence}; too few curves to say how sure that is"
    # two-sided, under equal chances: P(at most the fewer of the two), twice
    p = min(1.0, 2 * float(binom.cdf(min(better, worse), better + worse, 0.5)))
    sure = better > worse and p < SURE
    advice = (
        f"take {best}" if sure else "the curves do not tell these two apart: take the one whose parameters you need"
    )
    share = f"{best} errs less on {better:,} of {better + worse:,} curves (sign test p = {p:.2g})"
    return f"{sentence}; {share}; {advice}"


def compare_laws(
    y: Any,
    laws: Sequence[Law | Callable[..., Any] | str] | None = None,
    over: str | tuple[str, ...] | None = None,
    x: Any = None,
    weights: Any = None,
    blocks: int = BLOCKS,
) -> LawComparison:
    """Fit several laws to the same curves and compare them by AIC, BIC and held-out error.

    Args:
        y, over, x, weights: as in `tsl.fit`. laws: laws, their names, or functions f(x, a, b, ...); default all named
            laws that read the dimension in `over`.
        blocks: how many blocks of points are left out in turn: even in log x, the first and the last stay in, for they
            would be extrapolated; of several covariates every blocks-th point.

    Raises:
        ValueError: for requests that `tsl.fit` refuses, names that two laws share, or fewer than three blocks.
    """
    if blocks < 3:
        raise ValueError(f"compare_laws: blocks must be 3 or more, found {blocks}")
    chosen = _laws(laws, over, x)
    fits = {name: fit(law, y, over=over, x=x, weights=weights) for name, law in chosen.items()}
    held_out = [_held_out(each, blocks) for each in fits.values()]
    aic = _of_usable(fits, "aic")
    apart = aic.min("law") - aic
    likelihood = apart.copy(data=np.exp(apart.values / 2))  # NaN where a law is not usable
    weight = (likelihood / likelihood.sum("law")).fillna(0.0)
    return LawComparison(fits, xr.concat(held_out, aic.law, coords="minimal"), weight)


def _of_usable(fits: Mapping[str, Fit], name: str) -> xr.DataArray:
    """An attribute of all fits (law, ...), NaN where a fit is not usable."""
    along = pd.Index(list(fits), name="law")
    values: list[xr.DataArray] = [getattr(fit, name).where(fit.usable) for fit in fits.values()]
    return xr.concat(values, along, coords="minimal")


def _relative_error(fit: Fit) -> np.ndarray:
    """Root mean squared residual over the mean size of the data (...), both weighted; NaN where nothing was fitted."""
    weights = xr.ones_like(fit.y) if fit.weights is None else fit.weights
    point = str(fit.y.dims[-1])
    size = (weights * np.abs(fit.y.where(weights > 0, 0.0))).sum(point)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.sqrt(fit.sse * weights.sum(point)) / size)


def _laws(laws: Sequence[Any] | None, over: Any, x: Any) -> dict[str, Law]:
    """The laws by name."""
    if laws is None:
        found = [law for law in BY_NAME.values() if isinstance(over, str) and law.covariates == (over,)]
        if not found:
            wanted = "name the laws, laws=[...], or fit over a dimension that named laws read: position or tokens"
            raise ValueError(f"compare_laws: {wanted}; found over={over!r}")
        return {law.name: law for law in found}
    if isinstance(laws, str) or not len(laws):
        raise ValueError(f"compare_laws: laws must be a list of laws, names or functions, found {laws!r}")
    named: dict[str, Law] = {}
    for law in laws:
        if isinstance(law, str) and law not in BY_NAME:
            raise ValueError(f"compare_laws: {law!r} is unknown; expected one of {', '.join(BY_NAME)}")
        law = BY_NAME[law] if isinstance(law, str) else as_law(law, x)
        if law.name in named:
            fix = "rename one with dataclasses.replace(law, name=...)"
            raise ValueError(f"compare_laws: two laws are called {law.name!r}; {fix}")
        named[law.name] = law
    return named


def _held_out(whole: Fit, blocks: int) -> xr.DataArray:
    """Root mean squared error of prediction (...) at the points of blocks that were left out in turn.

    The first and the last point of a curve stay in, wherever its neighbours begin and end: nothing is extrapolated.
    """
    points = whole.y.shape[-1]
    y = whole.y.values.reshape(-1, points)
    shared = np.ones((1, points)) if whole.weights is None else whole.weights.values.reshape(-1, points).astype(float)
    weights = np.broadcast_to(shared, y.shape)
    ends = _ends(whole.x, shared)
    square, count = np.zeros(len(y)), np.zeros(len(y))
    short = np.zeros(len(y), bool)
    for block in _blocks(whole.x, points, blocks):
        left_out = block & ~ends
        kept = np.where(left_out, 0.0, shared)
        # Weights a curve, also where all are the same: tables for each set of shared ones would take seconds.
        of_rest = whole.refit(y=y, weights=np.broadcast_to(kept, y.shape))
        short |= (kept > 0).sum(axis=1) <= len(whole.law.raw_params)
        used = left_out & (weights > 0)
        square += np.where(used, (y - of_rest.predict().values) ** 2, 0.0).sum(axis=1)
        count += used.sum(axis=1)
    with np.errstate(invalid="ignore"):
        error = np.sqrt(square / np.where(count > 0, count, np.nan))
    return whole.status.copy(data=np.where(short, np.nan, error).reshape(whole.status.shape))


def _ends(x: Any, weights: np.ndarray) -> np.ndarray:
    """The first and the last point of positive weight (curve, point); none, where x is of several covariates."""
    ends = np.zeros(weights.shape, bool)
    if isinstance(x, Mapping):
        return ends
    order = np.argsort(x, kind="stable")
    seen = weights[:, order] > 0
    rows = np.arange(len(weights))
    ends[rows, order[seen.argmax(axis=1)]] = True
    ends[rows, order[seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)]] = True
    return ends


def _blocks(x: Any, points: int, blocks: int) -> list[np.ndarray]:
    """Which points (point,) are left out, one array a block."""
    if isinstance(x, Mapping):
        return [np.arange(points) % blocks == k for k in range(min(blocks, points))]
    order = np.argsort(x, kind="stable")
    ordered = np.asarray(x, float)[order]
    increasing = bool(np.all(np.diff(ordered) > 0)) and ordered[0] > 0
    parts = (
        log_bins(ordered, blocks) > 0
        if increasing
        else np.arange(points) * blocks // points == np.arange(blocks)[:, None]
    )
    found: list[np.ndarray] = []
    for part in parts[1:-1]:
        block = np.zeros(points, bool)
        block[order[part]] = True
        if block.any():
            found.append(block)
    return found


def align_params(fits: Mapping[str, Fit], dim: str = "fit") -> xr.Dataset:
    """Parameters of several fits of one law over one range, joined along a new dimension.

    a0, a1, a2 of the hyperbolic law describe positions 1..n. Where the law is not exactly true they move with n: fits
    of a power law's curve over 1..128 and over 1..1024 differ in a1 by a factor of two. The same holds for any law that
    is a description rather than the truth, so no difference between fits over different ranges says anything of the
    runs, and they are refused.

    Args:
        fits: name -> fit. dim: name of the new dimension, whose coordinate are the names.

    Returns:
        Dataset with params, stderr (dim, ..., param), r2 and converged (dim, ...), where a fit lacks a checkpoint of
        another NaN and False; attribute `range`, in words.

    Raises:
        ValueError: for fits of different laws, dimensions or ranges, naming two that differ; for none at all, or a
            `dim` that the fits have already.
    """
    if not fits:
        raise ValueError("align_params: expected one fit or more, found none")
    (first, model), *others = fits.items()
    if dim in model.params.dims:
        raise ValueError(f"align_params: the fits have a dimension {dim} already, {model.params.dims}; rename it")
    for name, other in others:
        if other.law.name != model.law.name:
            laws = f"{first} is a fit of {model.law.name}, {name} of {other.law.name}"
            raise ValueError(f"align_params: {laws}; compare one law")
        if other.law != model.law:  # of the same name: its function, bounds or constants are others
            raise ValueError(f"align_params: {first} and {name} are fits of two laws called {other.law.name}")
        if other.over != model.over or set(other.params.dims) != set(model.params.dims):
            dims = f"{model.over} with {model.params.dims}, {name} over {other.over} with {other.params.dims}"
            raise ValueError(f"align_params: {first} was fitted over {dims}; compare one axis")
        ends, expected = other.range, model.range  # laws of one name have the same covariates
        if not all(np.allclose(ends[key], expected[key], rtol=1e-9) for key in expected):
            ranges = f"{model.range_in_words()}, {name} over {other.range_in_words()}"
            fix = "their parameters are not comparable; fit both over the same range"
            raise ValueError(f"align_params: {first} was fitted over {ranges}: {fix}")
    names: Any = pd.Index(list(fits), name=dim)  # the coordinate of the new dimension

    def joined(attribute: str, fill: object) -> xr.DataArray:
        # An outer join: fits may lack checkpoints of each other.
        arrays: list[xr.DataArray] = [getattr(each, attribute) for each in fits.values()]
        return xr.concat(arrays, names, join="outer", fill_value=fill, coords="minimal", compat="override")

    columns = {name: joined(name, np.nan) for name in ("params", "stderr", "r2")}
    return xr.Dataset({**columns, "converged": joined("converged", False)}, attrs={"range": model.range_in_words()})
