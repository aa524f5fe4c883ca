"""Errors of fitted parameters, and how well a fit could do at all.

With J the Jacobian of the weighted curve in q = (log shapes, coefficients), n points of positive weight and p =
len(q):

    cov(q) = SSE/(n - p) (J^T J)^-1,    cov(published) = G cov(q) G^T,   G = d published / d q  (delta method).

Weights are relative: multiplying all of them by a constant changes nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array

from tsl_jax.fitting.result import Fit
from tsl_jax.fitting.varpro import orthonormal
from tsl_jax.laws import Covariates, Law


def _jacobian(law: Law, q: Array, x: Covariates) -> Array:
    """d curve / d q, (point, p)."""
    shapes = len(law.shapes)
    return jax.jacfwd(lambda q: law.evaluate(jnp.exp(q[:shapes]), q[shapes:], x))(q)


def published(law: Law, q: Array) -> Array:
    """Published parameters (param,) of q = (log shapes, coefficients)."""
    shapes = len(law.shapes)
    return law.published(jnp.concatenate([jnp.exp(q[:shapes]), q[shapes:]]))


def spread(law: Law, q: Array, x: Covariates, root_weight: Array) -> Array:
    """(J^T J)^-1 of the weighted curve in q, (p, p); infinite or NaN where the data do not identify a parameter."""
    columns = root_weight[:, None] * _jacobian(law, q, x)
    size = jnp.sqrt(jnp.sum(columns**2, axis=0))  # columns of very different size: scale first
    _, r = orthonormal(columns / size)
    inverse = jax.scipy.linalg.solve_triangular(r, jnp.eye(len(law.solved), dtype=q.dtype)) / size[:, None]
    return inverse @ inverse.T


def published_with_covariance(law: Law, q: Array, cov: Array) -> tuple[Array, Array]:
    """Published parameters (param, curve) and their covariance (param, param, curve), by the delta method.

    Args:
        q: (p, curve), log shapes and coefficients. cov: (p, p, curve), their covariance.
    """
    if law.publish is None:  # an order, and the exponential of the shapes
        shapes = len(law.shapes)
        order = np.array([law.solved.index(name) for name in law.params])
        values = jnp.concatenate([jnp.exp(q[:shapes]), q[shapes:]])[order]
        slope = jnp.concatenate([jnp.exp(q[:shapes]), jnp.ones_like(q[shapes:])])[order]
        return values, cov[order][:, order] * slope[:, None] * slope[None]
    values = jax.vmap(partial(published, law), -1, -1)(q)
    g = jax.vmap(jax.jacfwd(partial(published, law)), -1, -1)(q)
    return values, jnp.einsum("ikc,klc,jlc->ijc", g, cov, g, precision="highest")


def noise_ceiling(fit: Fit, y: xr.DataArray, covariance: xr.DataArray) -> xr.DataArray:
    """The R2 that each fit would reach if its law were exactly true: 1 - tr((I - H) Sigma) / SST.

    Sigma is the covariance of the data's noise, H the projection on the law's tangent space at the fit: noise that
    the fit follows is not missed. The expectation of SSE under a true law is tr((I - H) Sigma), not tr(Sigma).

    Args:
        fit: a fit of y over one dimension, unweighted. y: the data it was made from.
        covariance: (..., point, point_) of y's noise, from clusters.
    """
    (over,) = fit.over
    noise = covariance.transpose(*fit.status.dims, ...).values.reshape(-1, *covariance.shape[-2:])
    solved = fit.solved.values.reshape(len(noise), -1)
    with jax.enable_x64(True):
        x = jnp.asarray(fit.x, float)
        shapes = len(fit.law.shapes)
        q = jnp.concatenate([jnp.log(jnp.asarray(solved[:, :shapes])), jnp.asarray(solved[:, shapes:])], axis=-1)
        missed = np.asarray(jax.vmap(lambda q, s: _missed(fit.law, q, x, s))(q, jnp.asarray(noise)))
    total = ((y - y.mean(over)) ** 2).sum(over).transpose(*fit.status.dims)
    return 1 - fit.sse.copy(data=missed.reshape(fit.sse.shape)) / total


def _missed(law: Law, q: Array, x: Covariates, noise: Array) -> Array:
    """tr((I - H) Sigma)."""
    frame, _ = orthonormal(_jacobian(law, q, x))
    return jnp.trace(noise) - jnp.sum(frame * (noise @ frame))
