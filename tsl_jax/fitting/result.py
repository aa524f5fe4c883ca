"""What a fit gives back: labelled parameters with errors, and for every curve a status with a sentence.

Nothing in a batch raises: a bad curve gets a status and leaves its neighbours untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from tsl_jax.fitting.status import USABLE, Status
from tsl_jax.laws import Covariates, Law


@dataclass(frozen=True)
class Fit:
    """A law fitted to every curve of an array.

    Attributes:
        law: the law. params, stderr: DataArrays (..., param) in published order, with standard errors.
        covariance: DataArray (..., param, param_).
        status: DataArray (...) of int8 `Status` values. sse, r2: DataArrays (...), weighted.
        raw_params: DataArray (..., raw_param): shapes and coefficients as the solver has them.
        log_shape_stderr: DataArray (..., shape), standard errors of the logarithms of the shapes.
        n_agreeing_starts: DataArray (...) of int8: starts that ended at the best SSE; -1 for global searches.
        active: DataArray (..., coef) of int8: -1 or 1 where a coefficient is at its lower or upper limit, else 0.
        over: the dimensions that were fitted; x: where, as the law's covariates; range: from where to where.
        weights: DataArray (point,), or (..., point) where curves have their own; None where all of them are equal.
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
    weights: xr.DataArray | None

    @property
    def range(self) -> dict[str, tuple[float, float]]:
        """Covariate -> least and largest value that was fitted; parameters are not comparable across ranges."""
        given = as_covariates(self.x)
        by_name = given if isinstance(given, dict) else {self._covariate(): given}
        return {name: (float(np.min(values)), float(np.max(values))) for name, values in by_name.items()}

    def range_in_words(self) -> str:
        """Such as "position 1..128"."""
        return ", ".join(f"{name} {low:g}..{high:g}" for name, (low, high) in self.range.items())

    def _covariate(self) -> str:
        """The name of a single covariate: the law's own, else that of the dimension."""
        return self.law.covariates[0] if self.law.covariates != ("x",) else self.over[0]

    @property
    def converged(self) -> xr.DataArray:
        """True where the optimum is interior and the shape identified."""
        return self.status == Status.CONVERGED

    @property
    def usable(self) -> xr.DataArray:
        """True where the curve is known: converged, or weakly identified (whose parameters are not)."""
        return self.status.isin([int(status) for status in USABLE])

    def message(self) -> xr.DataArray:
        """The status of each curve in words."""
        return xr.apply_ufunc(np.vectorize(lambda value: Status(value).message(), otypes=[str]), self.status)

    def predict(self, x: Any = None) -> xr.DataArray:
        """The fitted curves at x, default the fitted points; new dimension(s): those fitted over.

        Args:
            x: (point,) values, a DataArray, or a mapping of covariates for laws with several.
        """
        x = self.x if x is None else x
        values = np.asarray(self.raw_params.values, float).reshape(-1, len(self.law.raw_params))
        points = as_covariates(x)
        curves = evaluate(self.law, values, x)
        outer = self.raw_params.dims[:-1]
        name = self.over[0] if len(self.over) == 1 else "point"
        coordinates = {key: c for key, c in self.raw_params.coords.items() if set(c.dims) <= set(outer)}
        if not isinstance(points, dict):
            coordinates[name] = (name, points)
        shape = (*self.raw_params.shape[:-1], curves.shape[-1])
        return xr.DataArray(np.asarray(curves).reshape(shape), coordinates, (*outer, name))

    def raise_if_failed(self) -> Fit:
        """The fit itself if every curve converged; else ValueError with the count of each status and its sentence."""
        if bool(self.converged.all()):
            return self
        raise ValueError(f"fit: {self._counts()}. " + "; ".join(_worst(self.status.values)))

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
    """Arrays of floats from arrays, DataArrays, or a mapping of them."""
    if isinstance(x, dict):
        return {name: np.asarray(value, float) for name, value in x.items()}
    return np.asarray(x, float)


def evaluate(law: Law, solved: np.ndarray, x: Any) -> np.ndarray:
    """The curves (curve, point) of solved values (curve, solved) at x, in float64."""
    with jax.enable_x64(True):
        return np.asarray(_evaluate(law, jnp.asarray(solved, float), jax.tree.map(jnp.asarray, as_covariates(x))))


@partial(jax.jit, static_argnums=0)
def _evaluate(law: Law, values: jax.Array, x: Covariates) -> jax.Array:
    shapes = len(law.shapes)
    return jax.vmap(lambda v: law.evaluate(v[:shapes], v[shapes:], x))(values)


def _worst(status: np.ndarray) -> list[str]:
    found = sorted(set(np.unique(status)) - {Status.CONVERGED})
    return [f"{Status(value).short}: {Status(value).message()}" for value in found]
