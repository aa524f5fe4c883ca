"""Several laws on the same curves: how well each fits, and how well it predicts points that it was not given.

Information criteria reward a small SSE and charge for parameters; they take the points for independent. The held-out
error takes nothing for granted: blocks of points are left out in turn, and the law of the others predicts them. On
correlated noise the second is the one to trust.
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
        error = self.held_out.median([dim for dim in self.held_out.dims if dim != "law"])
        if bool(error.isnull().all()):
            return str(self.to_dataframe()["weight"].idxmax())
        return str(error.law.values[int(np.argmin(error.fillna(np.inf).values))])

    def to_dataframe(self) -> pd.DataFrame:
        """A row a law, by name, the best first. Numbers of curves are medians.

        Columns: parameters, how many; usable, the share of curves; sse; aic and bic less those of the law with the
        least on each curve; weight, the mean Akaike weight; held_out; wins, the share of curves that it predicts best.
        """
        outer = [dim for dim in self.held_out.dims if dim != "law"]
        names = list(self.fits)
        aic, bic = (_of_usable(self.fits, name) for name in ("aic", "bic"))
        errors = self.held_out.fillna(np.inf)
        wins = (errors == errors.min("law")) & np.isfinite(errors)
        columns = {
            "parameters": [len(f.law.raw_params) for f in self.fits.values()],
            "usable": [float(f.usable.mean()) for f in self.fits.values()],
            "sse": [float(f.sse.median()) for f in self.fits.values()],
            "aic": (aic - aic.min("law")).median(outer).values,
            "bic": (bic - bic.min("law")).median(outer).values,
            "weight": self.weight.mean(outer).values,
            "held_out": self.held_out.median(outer).values,
            "wins": wins.mean(outer).values,
        }
        table = pd.DataFrame(columns, index=pd.Index(names, name="law"))
        return table.sort_values(["held_out", "aic"], na_position="last")

    def report(self) -> str:
        """The table as text, and what it says."""
        first = next(iter(self.fits.values()))
        curves = f"{first.status.size} curve{'s' * (first.status.size > 1)}"
        numbers = {"usable": "{:.2f}", "sse": "{:.4g}", "aic": "{:.1f}", "bic": "{:.1f}", "weight": "{:.2f}"}
        numbers |= {"held_out": "{:.4g}", "wins": "{:.2f}"}
        table = self.to_dataframe().to_string(formatters={name: form.format for name, form in numbers.items()})
        close = "" if len(self.fits) < 2 else f"\n{self._verdict()}"
        return f"{curves} over {first.range_in_words()}; aic and bic less the least\n{table}{close}"

    def _verdict(self) -> str:
        """Which law predicts best, and by how much."""
        errors = self.to_dataframe()["held_out"].dropna()
        if len(errors) < 2:
            return "held-out errors are known of fewer than two laws"
        best, second = errors.index[:2]
        return f"{best} predicts best; {second} errs by {errors[second] / errors[best] - 1:.1%} more"

    def __repr__(self) -> str:
        return self.report()

    def _repr_html_(self) -> str:
        lines = self.report().splitlines()
        ends = escape(lines[0]), escape(lines[-1]) if len(self.fits) > 1 else ""
        return f"<p>{ends[0]}</p>{self.to_dataframe().to_html(float_format='{:.4g}'.format)}<p>{ends[1]}</p>"

    def plot(self) -> Any:
        """A matplotlib figure: the laws through one curve, their residuals, and their held-out errors."""
        # drawn by the layer above, which this one must not know when it is imported
        return import_module("tsl_jax.reporting.plots").law_comparison(self)


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
    """Root mean squared error of prediction (...) at the points of blocks that were left out in turn."""
    points = whole.y.shape[-1]
    y = whole.y.values.reshape(-1, points)
    weights = np.ones_like(y) if whole.weights is None else np.broadcast_to(_rows(whole.weights, points), y.shape)
    square, count = np.zeros(len(y)), np.zeros(len(y))
    short = np.zeros(len(y), bool)
    for block in _blocks(whole.x, points, blocks):
        kept = np.where(block, 0.0, weights)
        of_rest = whole.refit(y=y, weights=kept)
        short |= (kept > 0).sum(axis=1) <= len(whole.law.raw_params)
        used = block & (weights > 0)
        square += np.where(used, (y - of_rest.predict().values) ** 2, 0.0).sum(axis=1)
        count += used.sum(axis=1)
    with np.errstate(invalid="ignore"):
        error = np.sqrt(square / np.where(count > 0, count, np.nan))
    return whole.status.copy(data=np.where(short, np.nan, error).reshape(whole.status.shape))


def _rows(weights: xr.DataArray, points: int) -> np.ndarray:
    return np.asarray(weights.values, float).reshape(-1, points)


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
