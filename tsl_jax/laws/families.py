"""One-shape families of curves that several laws share, each with the range of its shape.

A family's basis maps (shape (1,), x (point,)) to columns (point, coef); the last column of most is the constant.
"""

import jax.numpy as jnp
from jax import Array

from tsl_jax.laws.law import Covariates


def hyperbola(shape: Array, x: Covariates) -> Array:
    """1/(1 + shape x), 1."""
    x = jnp.asarray(x)
    return jnp.stack([1 / (1 + shape[0] * x), jnp.ones_like(x)], axis=-1)


def logarithm(shape: Array, x: Covariates) -> Array:
    """log(1 + shape x), 1."""
    x = jnp.asarray(x)
    return jnp.stack([jnp.log1p(shape[0] * x), jnp.ones_like(x)], axis=-1)


def power(shape: Array, x: Covariates) -> Array:
    """x^-shape, 1."""
    x = jnp.asarray(x)
    return jnp.stack([x ** -shape[0], jnp.ones_like(x)], axis=-1)


def pure_power(shape: Array, x: Covariates) -> Array:
    """x^-shape, without a constant."""
    return (jnp.asarray(x) ** -shape[0])[:, None]


def rate(x: Covariates) -> Array:
    """Range (1, 2) of a shape a that enters as a*x: from a straight line over all points to its limit at the first."""
    x = jnp.asarray(x)
    smallest = jnp.min(jnp.where(x > 0, x, jnp.max(x)))
    return jnp.stack([1e-3 / jnp.max(x), 1e3 / smallest])[None]


def exponent(x: Covariates) -> Array:
    """Range (1, 2) of an exponent: from nearly logarithmic to one that is over after the first point."""
    return jnp.asarray([[5e-3, 1e1]])


def exponential(shape: Array, x: Covariates) -> Array:
    """exp(-shape x), 1."""
    x = jnp.asarray(x)
    return jnp.stack([jnp.exp(-shape[0] * x), jnp.ones_like(x)], axis=-1)


def wave(shape: Array, x: Covariates) -> Array:
    """cos(shape x), sin(shape x), 1."""
    x = jnp.asarray(x)
    return jnp.stack([jnp.cos(shape[0] * x), jnp.sin(shape[0] * x), jnp.ones_like(x)], axis=-1)


def decay(x: Covariates) -> Array:
    """Range (1, 2) of the rate of an exponential: from a straight line to one that is over after the first point."""
    x = jnp.asarray(x)
    smallest = jnp.min(jnp.where(x > 0, x, jnp.max(x)))
    return jnp.stack([1e-3 / jnp.max(x), 10 / smallest])[None]


def frequency(x: Covariates) -> Array:
    """Range (1, 2) of an angular frequency: from a twentieth of a period over the range of x to two periods."""
    x = jnp.asarray(x)
    return (2 * jnp.pi * jnp.asarray([0.05, 2.0]) / (jnp.max(x) - jnp.min(x)))[None]
