"""What a fit gives back: labelled parameters with errors, and for every curve a status with a sentence.

Nothing in a batch raises: a bad curve gets a status and leaves its neighbours untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.fitting.intervals import INTERVALS
from tsl_jax.fitting.status import USABLE, Design, Status, design_message, judge_design
from tsl_jax.laws import Covariates, Law

OFF = 0.05  # in the logarithm of a covariate: farther from where it was, nothing is known of the curve


@dataclass(frozen=True)
class Fit:
    """A law fitted to every curve of an array.

    Attributes:
        law: the law. params, stderr: DataArrays (..., param) in published order, with standard errors.
        covariance: DataArray (..., param, param_).
        status: DataArray (...) of int8 `Status` values. sse, r2: DataArrays (...), weighted.
        raw_params: DataArray (..., raw_param): shapes and coefficients as the solver has them, which `predict` reads.
        log_shape_stderr: DataArray (..., shape), standard errors of the logarithms of the shapes.
        n_agreeing_starts: DataArray (...) of int8: starts that ended at the best SSE; -1 for global searches.
        active: DataArray (..., coef) of int8: -1 or 1 where a coefficient is at its lower or upper limit, else 0.
        over: the dimensions that were fitted; x: where, as the law's covariates; range: from where to where.
        x_name: what x is, where it is one covariate.
        weights: DataArray (point,), or (..., point) where curves have their own; None where all of them are equal.
        y: DataArray (..., point), what was fitted, as it was given.
        refit: fits other bare data (..., point) of equal weights as these were; `refit.keywords` are the options.
    """

    law: Law
    params: xr.DataArray
    stderr: xr.DataArray
    covariance: xr.DataArray
    status: xr.DataArray
    sse: xr.DataArray
    r2: xr.DataArray
    raw_params: xr.DataArray
    log_shape_stderr: xr.DataArray
    n_agreeing_starts: xr.DataArray
    active: xr.DataArray
    over: tuple[str, ...]
    x: Any
    x_name: str
    weights: xr.DataArray | None
    y: xr.DataArray
    refit: partial[Fit]

    @property
    def range(self) -> dict[str, tuple[float, float]]:
        """Covariate -> least and largest value that was fitted; parameters are not comparable across ranges."""
        by_name = self.x if isinstance(self.x, Mapping) else {self.x_name: self.x}
        return {name: (float(np.min(values)), float(np.max(values))) for name, values in by_name.items()}

    def range_in_words(self) -> str:
        """Such as "position 1..128"."""
        return ", ".join(f"{name} {low:g}..{high:g}" for name, (low, high) in self.range.items())

    @property
    def converged(self) -> xr.DataArray:
        """True where the optimum is interior and the shape identified."""
        return self.status == Status.CONVERGED

    @property
    def usable(self) -> xr.DataArray:
        """True where the curve is known: converged, or weakly identified (whose parameters are not)."""
        return self.status.isin([int(status) for status in USABLE])

    def message(self) -> xr.DataArray:
        """The status of each curve in words; of covariates that do not vary, by their names."""
        values = self.status.values.ravel()
        sentences = [
            design_message(self.law, design) if design and design[0] == value else Status(value).message()
            for value, (design, _) in zip(values, self._designs(), strict=True)
        ]
        return self.status.copy(data=np.array(sentences, str).reshape(self.status.shape))

    def predict(self, x: Any = None) -> xr.DataArray:
        """The fitted curves at x, default the fitted points; new dimension(s): those fitted over.

        NaN where nothing is known of a curve: at other values of a covariate that did not vary.

        Args:
            x: (point,) values, a DataArray, or a mapping of covariates for laws with several.
        """
        points = as_covariates(self.x if x is None else x)
        values = np.asarray(self.raw_params.values, float).reshape(-1, len(self.law.raw_params))
        curves = np.array(evaluate(self.law, values, points))
        if x is not None:
            for k, (design, seen) in enumerate(self._designs()[: len(curves)]):
                if design is None:
                    continue
                status, names = design
                for name in names:
                    # Off the value that a covariate had, or off the line of the first covariate and this one.
                    slope, level, first = 0.0, np.log(self.x[name][seen]).mean(), names[0]
                    if status == Status.COVARIATES_COLLINEAR:
                        slope, level = np.polyfit(np.log(self.x[first][seen]), np.log(self.x[name][seen]), 1)
                    off = np.abs(np.log(points[name]) - level - slope * np.log(points[first])) > OFF
                    curves[k] = np.where(off, np.nan, curves[k])
        outer = self.raw_params.dims[:-1]
        name = self.over[0] if len(self.over) == 1 else "point"
        coordinates = {key: c for key, c in self.raw_params.coords.items() if set(c.dims) <= set(outer)}
        if not isinstance(points, Mapping):
            coordinates[self.x_name if len(self.over) == 1 else name] = (name, points)
        shape = (*self.raw_params.shape[:-1], curves.shape[-1])
        return xr.DataArray(curves.reshape(shape), coordinates, (*outer, name))

    @property
    def residuals(self) -> xr.DataArray:
        """Data less curve (..., point), not weighted; also at points of weight zero."""
        return self.y - self.predict()

    @property
    def n_points(self) -> xr.DataArray:
        """Points of positive weight of each curve."""
        points = self.y.sizes[self.y.dims[-1]]
        count = np.asarray(points) if self.weights is None else (self.weights > 0).sum(self.y.dims[-1:]).values
        return self.status.copy(data=np.broadcast_to(count, self.status.shape).astype(int))

    @property
    def n_free(self) -> xr.DataArray:
        """Parameters of each curve that the data decided: all but coefficients at a limit."""
        return len(self.law.raw_params) - (self.active != 0).sum("coef")

    @property
    def aic(self) -> xr.DataArray:
        """Akaike's criterion n log(SSE/n) + 2 p of each curve, for normal noise of unknown size, as lmfit has it.

        With `absolute_sigma` SSE + 2 p; NaN for losses other than squares. Only differences between laws on
        the same points mean anything: 2 and less is a draw, 10 and more decides. It takes the points for independent,
        which neighbouring positions of one loss curve are not.
        """
        return self._deviance() + 2 * self.n_free

    @property
    def bic(self) -> xr.DataArray:
        """Bayes' criterion n log(SSE/n) + p log n of each curve; as `aic`, dearer by parameter."""
        return self._deviance() + self.n_free * np.log(self.n_points)

    def _deviance(self) -> xr.DataArray:
        if self.refit.keywords["loss"] != "squares":
            return xr.full_like(self.sse, np.nan)
        if self.refit.keywords["absolute_sigma"]:
            return self.sse
        with np.errstate(divide="ignore"):  # an exact fit has minus infinity
            return self.n_points * np.log(self.sse / self.n_points)

    def to_dataframe(self) -> pd.DataFrame:
        """A row a curve: its labels, parameters with standard errors, status in a word, SSE, R2, AIC and BIC."""
        columns = {}
        for name in self.law.params:
            columns |= {name: self.params.sel(param=name), f"{name}_stderr": self.stderr.sel(param=name)}
        word = self.status.copy(data=np.vectorize(lambda value: Status(value).short, otypes=[str])(self.status))
        columns |= {"status": word, "usable": self.usable, "sse": self.sse, "r2": self.r2}
        columns |= {"aic": self.aic, "bic": self.bic}
        flat = {name: column.drop_vars("param", errors="ignore").values.ravel() for name, column in columns.items()}
        if not self.status.ndim:
            return pd.DataFrame(flat)
        index = self.status.to_series().index
        return pd.DataFrame(flat, index=index).reset_index()

    def interval(self, level: float = 0.9, method: str = "wald", resamples: int = 1000, seed: int = 0) -> xr.DataArray:
        """Intervals of the parameters (..., param, bound), `bound` being "low" and "high".

        Args:
            level: share of such intervals that hold the true parameter.
            method: "wald": estimate and standard error, by Student's t; quick, and too narrow where the shape is weakly
                identified. "profile": all values that some curve of the law has with SSE <= SSE_min (1 + F/(n - p)), F
                of the F(1, n - p) distribution; laws with one shape. "bootstrap": percentiles of fits to curve plus
                resampled residuals, made as this fit was. All three take the points for independent
                (`diagnostics.bootstrap` does not).
            resamples, seed: of the bootstrap.

        Raises:
            ValueError: for another level or method, a law or a fit that the method does not know.
        """
        if not 0 < level < 1:
            raise ValueError(f"interval: level must lie between 0 and 1, found {level}")
        if method not in INTERVALS:
            raise ValueError(f"interval: method must be one of {tuple(INTERVALS)}, found {method!r}")
        low, high = INTERVALS[method](self, level, resamples, seed)
        both = xr.concat([low, high], "bound").assign_coords(bound=["low", "high"])
        return both.transpose(..., "bound")

    def plot(self, curves: int = 3, by: str = "quantile") -> Any:
        """A matplotlib figure of a few curves: data, fitted curve, residuals.

        Args:
            curves: how many at most. by: "worst" or "best" by R2, or "quantile": evenly from the worst to the best.

        Raises:
            ValueError: for another choice, or a law of several covariates.
        """
        # drawn by a layer above, which this one must not know when it is imported
        return import_module("tsl_jax.reporting.plots").fitted_curves(self, curves, by)

    def raise_if_failed(self) -> Fit:
        """The fit itself if every curve converged; else ValueError with the count of each status and its sentence."""
        if bool(self.converged.all()):
            return self
        values, sentences = self.status.values.ravel(), self.message().values.ravel()
        bad = dict.fromkeys(
            f"{Status(value).short}: {sentence}"
            for value, sentence in sorted(zip(values, sentences, strict=True))
            if value != Status.CONVERGED
        )
        raise ValueError(f"fit: {self._counts()}. " + "; ".join(bad))

    def report(self) -> str:
        """The fit as text: of one curve its parameters with errors and correlations, of many the range of each.

        Example:
            >>> import numpy as np, tsl_jax as tsl
            >>> i = np.arange(1.0, 33.0)
            >>> noise = 0.01 * np.random.default_rng(0).standard_normal(32)
            >>> print(tsl.fit(tsl.laws.HYPERBOLIC, 1.5 / (1 + 0.2 * i) + 3 + noise, x=i).report())
            hyperbolic: a0/(1 + a1 i) + a2
            over position 1..32, 32 points, equal weights
            converged: interior optimum, shape identified
            SSE 0.001993, R2 0.9991
            parameter       value      stderr
            a0              1.508      0.0104  (0.7%)
            a1             0.2013      0.0056  (2.8%)
            a2              2.998     0.00632  (0.2%)
            correlations over 0.1: a0 a1 0.60, a0 a2 0.22, a1 a2 0.89
        """
        points = self.predict().shape[-1]
        weighted = "equal weights" if self.weights is None else "weighted"
        head = [f"{self.law.name}: {self.law.formula}", f"over {self.range_in_words()}, {points} points, {weighted}"]
        if self.status.size == 1:
            values, errors = self.params.values.ravel(), self.stderr.values.ravel()
            status, sentence = Status(int(self.status.values.item())), self.message().values.item()
            head.append(f"{status.short}: {sentence}")
            head.append(f"SSE {self.sse.item():.4g}, R2 {self.r2.item():.4f}")
            head.append(f"{'parameter':<12}{'value':>9}{'stderr':>12}")
            for name, value, error in zip(self.law.params, values, errors, strict=True):
                share = f"  ({abs(error / value):.1%})" if value and np.isfinite(error) else ""
                head.append(f"{name:<12}{value:>9.4g}{error:>12.3g}{share}")
            covariance = self.covariance.values.reshape(len(values), -1)
            pairs = [
                f"{name} {other} {covariance[j, k] / (errors[j] * errors[k]):.2f}"
                for j, name in enumerate(self.law.params)
                for k, other in enumerate(self.law.params[j + 1 :], j + 1)
                if abs(covariance[j, k]) > 0.1 * errors[j] * errors[k]
            ]
            return "\n".join([*head, f"correlations over 0.1: {', '.join(pairs)}"] if pairs else head)
        head.append(self._counts())
        usable = self.usable.values.ravel()
        head.append(f"{'usable curves':<14}{'least':>10}{'median':>10}{'greatest':>10}")
        rows = {name: self.params.sel(param=name).values.ravel() for name in self.law.params}
        for name, values in {**rows, "R2": self.r2.values.ravel()}.items():
            finite = values[usable & np.isfinite(values)]
            numbers = (np.min(finite), np.median(finite), np.max(finite)) if finite.size else (np.nan,) * 3
            head.append(f"{name:<14}" + "".join(f"{number:>10.4g}" for number in numbers))
        return "\n".join(head)

    def _repr_html_(self) -> str:
        """The report as a small table, for notebooks."""
        lines = [escape(line) for line in self.report().splitlines()]
        return f"<b>{lines[0]}</b><pre>" + "\n".join(lines[1:]) + "</pre>"

    def _designs(self) -> list[tuple[Design | None, Any]]:
        """For each curve what is wrong with its covariates, or None; and the points (point,) that it was fitted to."""
        curves = self.status.size
        if not self.law.covariate_params:
            return [(None, None)] * curves
        points = len(self.x[self.law.covariate_params[0][0]])
        weights = np.ones((1, points)) if self.weights is None else self.weights.values.reshape(-1, points)
        judged = list(zip(judge_design(self.law, self.x, weights), weights > 0, strict=True))
        return judged if len(judged) == curves else judged * curves

    def _counts(self) -> str:
        values, counts = np.unique(self.status.values, return_counts=True)
        parts = [f"{count} {Status(value).short}" for value, count in zip(values, counts, strict=True)]
        return f"of {self.status.size} curves " + ", ".join(parts)

    def __repr__(self) -> str:
        sizes = " x ".join(f"{size} {dim}" for dim, size in self.status.sizes.items()) or "1 curve"
        good = int(self.converged.sum())
        rest = "" if good == self.status.size else f" · {self._counts()}"
        r2 = "" if not self.status.size else f" · median R2 {np.nanmedian(self.r2.values):.4f}"
        return f"{self.law.formula} · {self.range_in_words()} · {sizes} · {good}/{self.status.size} converged{r2}{rest}"


def as_covariates(x: Any) -> Any:
    """Arrays of floats from arrays, DataArrays, or a dict of them from any mapping."""
    if isinstance(x, Mapping):
        return {name: np.asarray(value, float) for name, value in x.items()}
    return np.asarray(x, float)


def evaluate(law: Law, raw: np.ndarray, x: Any) -> np.ndarray:
    """The curves (curve, point) of raw parameters (curve, raw_param) at x, in float64."""
    with jax.enable_x64(True):
        return np.asarray(_evaluate(law, jnp.asarray(raw, float), jax.tree.map(jnp.asarray, as_covariates(x))))


@partial(jax.jit, static_argnums=0)
def _evaluate(law: Law, raw: jax.Array, x: Covariates) -> jax.Array:
    shapes = len(law.shapes)
    return jax.vmap(lambda values: law.evaluate(values[:shapes], values[shapes:], x))(raw)
