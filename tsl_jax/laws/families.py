"""One-shape families of curves that several laws share, each with the range of its shape.

A family's basis maps (shape (1,), x (point,)) to columns (point, coef); the last column of most is the constant.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from tsl_jax.laws.law import Covariates

Shape = Float[Array, " 1"]
Columns = Float[Array, "point coef"]
Range = Float[Array, "shape 2"]


def hyperbola(shape: Shape, x: Covariates) -> Columns:
    """1/(1 + shape x), 1."""
    x = jnp.asarray(x)
    return jnp.stack([1 / (1 + shape[0] * x), jnp.ones_like(x)], axis=-1)


def logarithm(shape: Shape, x: Covariates) -> Columns:
    """log(1 + shape x), 1."""
    x = jnp.asarray(x)
    return jnp.stack([jnp.log1p(shape[0] * x), jnp.ones_like(x)], axis=-1)


def power(shape: Shape, x: Covariates) -> Columns:
    """x^-shape, 1."""
    x = jnp.asarray(x)
    return jnp.stack([x ** -shape[0], jnp.ones_like(x)], axis=-1)


def pure_power(shape: Shape, x: Covariates) -> Columns:
    """x^-shape, without a constant."""
    return (jnp.asarray(x) ** -shape[0])[:, None]


def exponential(shape: Shape, x: Covariates) -> Columns:
    """exp(-shape x), 1."""
    x = jnp.asarray(x)
    return jnp.stack([jnp.exp(-shape[0] * x), jnp.ones_like(x)], axis=-1)


def rate(x: Covariates) -> Range:
    """Range (1, 2) of a shape a in 1 + a x: from a straight line over all points to its limit at the first."""
    x = jnp.asarray(x)
    smallest = jnp.min(jnp.where(x > 0, x, jnp.max(x)))
    return jnp.stack([1e-3 / jnp.max(x), 1e3 / smallest])[None]


def decay(x: Covariates) -> Range:
    """Range (1, 2) of the rate of an exponential: from a straight line to one that is over after the first point.

    An exponential has no origin, so the range follows from the extent of x and the least distance of two points, which
    for positions 1..n are n - 1 and 1: (1e-3/n, 10).
    """
    x = jnp.sort(jnp.ravel(jnp.asarray(x)))
    extent, gaps = x[-1] - x[0], jnp.diff(x)
    extent = jnp.where(extent > 0, extent, 1)
    # Points a millionth of the extent apart are one point, measured twice.
    spacing = jnp.min(jnp.where(gaps > 1e-6 * extent, gaps, extent))
    return jnp.stack([1e-3 / (extent + spacing), 10 / spacing])[None]


def exponent(x: Covariates) -> Range:
    """Range (1, 2) of an exponent: from nearly logarithmic to one that is over after the first point."""
    return jnp.asarray([[5e-3, 1e1]])
