"""All parameters of the surface L(i, N) = a0(N)/(1 + a1(N) i) + a2(N) at once, from every position and checkpoint.

Given the shapes of a0(N) and a2(N) and all of a1(N), the surface is linear in the remaining coefficients, which are
projected out; jaxopt's Levenberg-Marquardt moves the rest, started from the separate temporal fits. a2 takes the power
form delta0 N^-delta1 + delta2, which falls on where the hyperbola of the separate fits has already settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array

from tsl_jax import laws
from tsl_jax.fitting import Fit, fit
from tsl_jax.fitting.levenberg_marquardt import DAMPINGS, MAXITER, search
from tsl_jax.fitting.varpro import orthonormal
from tsl_jax.laws import Law

PAD = 32  # checkpoints: prefixes are filled up with weight zero, so that they share a compiled program


@dataclass(frozen=True)
class Joint:
    """The jointly fitted surface of each split.

    Attributes:
        laws: the temporal laws of a0, a1, a2. sse, settled: DataArrays (split,).
        theta, coef: DataArrays (split, ...): what is searched and what is solved, as `_design` has them.
    """

    laws: tuple[Law, Law, Law]
    theta: xr.DataArray
    coef: xr.DataArray
    sse: xr.DataArray
    settled: xr.DataArray

    def predict(self, tokens: np.ndarray, position: xr.DataArray) -> xr.DataArray:
        """The surface (split, tokens, position)."""
        with jax.enable_x64(True):
            axes = jnp.asarray(tokens, float), jnp.asarray(position.values, float)
            curves = np.asarray(
                _surface(self.laws, jnp.asarray(self.theta.values), jnp.asarray(self.coef.values), *axes)
            )
        coordinates = {"split": self.sse.split.values, "tokens": tokens, "position": position.values}
        return xr.DataArray(curves, coordinates, ("split", "tokens", "position"))


class _Found(NamedTuple):
    theta: Array
    coef: Array
    sse: Array
    settled: Array


def refine(parts: Mapping[str, Fit], loss: xr.DataArray, usable: xr.DataArray) -> Joint:
    """Fit the surface jointly, from the separate fits of a0, a1, a2.

    Args:
        parts: temporal fits by name. loss: (split, tokens, position), nats. usable: (split, tokens), which to fit;
            the loss of the others may be NaN.
    """
    loss = loss.where(usable, 0.0).transpose("split", "tokens", "position")  # weight zero times NaN would be NaN
    power = fit(laws.POWER, parts["a2"].predict(loss.tokens.values), over="tokens", weights=usable)
    parts = {**parts, "a2": power}
    forms = (parts["a0"].law, parts["a1"].law, parts["a2"].law)
    starts = np.stack([_start(parts, k) for k in range(loss.sizes["split"])])
    more = -loss.sizes["tokens"] % PAD
    values = np.pad(loss.values, ((0, 0), (0, more), (0, 0)))
    weights = np.pad(usable.transpose("split", "tokens").values.astype(float), ((0, 0), (0, more)))
    tokens = np.pad(loss.tokens.values.astype(float), (0, more), mode="edge")
    with jax.enable_x64(True):
        arrays = [jnp.asarray(a, float) for a in (starts, tokens, loss.position.values, values, weights)]
        found = jax.tree.map(np.asarray, _solve(forms, *arrays))
    by_split = {"split": loss.split.values}
    sse, settled = (xr.DataArray(np.asarray(a), by_split, ("split",)) for a in (found.sse, found.settled))
    theta, coef = (
        xr.DataArray(a, by_split, ("split", name)) for a, name in ((found.theta, "theta"), (found.coef, "coef"))
    )
    return Joint(forms, theta, coef, sse, settled)


def _start(parts: Mapping[str, Fit], split: int) -> np.ndarray:
    """theta = log shapes of a0, a1, a2, then the coefficients of a1."""
    theta = []
    for name in ("a0", "a1", "a2"):
        theta.append(
            np.log(parts[name].raw_params.isel(split=split, raw_param=slice(len(parts[name].law.shapes))).values)
        )
    coef1 = parts["a1"].raw_params.isel(split=split, raw_param=slice(len(parts["a1"].law.shapes), None)).values
    return np.concatenate([*theta, coef1])


def _design(forms: tuple[Law, Law, Law], theta: Array, tokens: Array, position: Array) -> Array:
    """Columns (tokens, position, coef) of the surface, linear in the coefficients of a0 and a2."""
    sizes = np.cumsum([len(law.shapes) for law in forms])
    shape0, shape1, shape2, coef1 = jnp.split(theta, sizes)
    basis0, basis1, basis2 = (
        _basis(law)(jnp.exp(shape), tokens) for law, shape in zip(forms, (shape0, shape1, shape2), strict=True)
    )
    # a hyperbola has a pole where a1 is negative, and is over before the first position where it is huge
    a1 = jnp.clip(basis1 @ coef1, 0, laws.HYPERBOLIC.bounds(position)[0, 1])
    falling = 1 / (1 + a1[:, None] * position[None])
    constant = jnp.ones_like(falling)
    return jnp.concatenate([falling[..., None] * basis0[:, None], constant[..., None] * basis2[:, None]], axis=-1)


@partial(jax.jit, static_argnums=0)
def _surface(forms: tuple[Law, Law, Law], theta: Array, coef: Array, tokens: Array, position: Array) -> Array:
    """(split, tokens, position)."""
    return jax.vmap(lambda t, c: _design(forms, t, tokens, position) @ c)(theta, coef)


def _basis(law: Law) -> Any:
    if law.basis is None:
        raise ValueError(f"joint: temporal laws must be separable, {law.name} is not")
    return law.basis


def _within(limits: Array, theta: Array) -> Array:
    """theta with its log shapes kept in the range of their laws: beyond it extrapolation means nothing."""
    shapes = len(limits)
    return jnp.concatenate([jnp.clip(theta[:shapes], limits[:, 0], limits[:, 1]), theta[shapes:]])


@partial(jax.jit, static_argnums=0)
def _solve(
    forms: tuple[Law, Law, Law], starts: Array, tokens: Array, position: Array, loss: Array, weights: Array
) -> _Found:
    """Least squares over every checkpoint and position of each split; starts (split, theta), loss (split, ...)."""

    limits = jnp.log(jnp.concatenate([law.bounds(tokens) for law in forms]))

    def one(start: Array, loss: Array, weights: Array) -> _Found:
        root = jnp.broadcast_to(weights[:, None], loss.shape).ravel()
        target = root * loss.ravel()
        size = jnp.sqrt(jnp.sum(target**2))

        def frame(theta: Array) -> tuple[Array, Array]:
            design = _design(forms, _within(limits, theta), tokens, position).reshape(len(root), -1)
            return orthonormal(root[:, None] * design)

        def residual(u: Array) -> Array:
            q, _ = frame(start + u)
            return (target - q @ (q.T @ target)) / size

        here = jnp.zeros_like(start)
        end = search(residual, here, jnp.ones_like(start), DAMPINGS[1], MAXITER, rounds=1)
        u = end.params
        first, last = (jnp.sum(residual(v) ** 2) for v in (here, u))
        theta = _within(limits, start + jnp.where(last <= first, u, 0))
        q, r = frame(theta)
        coef = jax.scipy.linalg.solve_triangular(r, q.T @ target)
        sse = size**2 * jnp.minimum(first, last)
        return _Found(theta, coef, sse, end.stopped)

    return jax.vmap(one)(starts, loss, weights)
