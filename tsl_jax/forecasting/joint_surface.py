"""All parameters of the surface L(i, N) = a0(N)/(1 + a1(N) i) + a2(N) at once, from every position and checkpoint.

Given the shapes of a0(N) and a2(N) and all of a1(N), the surface is linear in the remaining coefficients, which are
projected out; Levenberg-Marquardt moves the rest, started from the separate temporal fits. a2 takes the power
form delta0 N^-delta1 + delta2, which goes on falling where the hyperbola of the separate fits is flat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from scipy.linalg import qr

from tsl_jax import laws
from tsl_jax.fitting import Fit, fit
from tsl_jax.fitting.levenberg_marquardt import DAMPINGS, MAXITER, search
from tsl_jax.fitting.varpro import orthonormal
from tsl_jax.forecasting.baselines import padded
from tsl_jax.forecasting.rolling_origin import Copies
from tsl_jax.laws import Law

LARGE = 2**18  # losses of a split beyond which positions are compressed
SAMPLES, MISSED = 256, 1e-14  # of the family in log a1; what the positions kept may miss of it, relative
PAD = 32  # checkpoints: prefixes are padded with weight zero, so that they share a compiled program


@dataclass(frozen=True)
class JointFit:
    """The jointly fitted surface of each split.

    Attributes:
        laws: the temporal laws of a0, a1, a2. sse: (split,). converged: (split,), whether the search stopped by itself.
        theta: (split, theta) what is searched: log shapes of a0, a1, a2, then the coefficients of a1.
        coef: (split, coef) what is solved: the coefficients of a0 and a2.
    """

    laws: tuple[Law, Law, Law]
    theta: xr.DataArray
    coef: xr.DataArray
    sse: xr.DataArray
    converged: xr.DataArray

    def predict(self, tokens: np.ndarray, position: xr.DataArray) -> xr.DataArray:
        """The surface (split, tokens, position)."""
        arrays = (self.theta.values, self.coef.values, tokens, position.values)
        with jax.enable_x64(True):
            surface = np.asarray(_surface(self.laws, *(jnp.asarray(array, float) for array in arrays)))
        coordinates = {"split": self.sse.split.values, "tokens": tokens, "position": position.values}
        return xr.DataArray(surface, coordinates, ("split", "tokens", "position"))


class _Solution(NamedTuple):
    theta: Array
    coef: Array
    sse: Array
    converged: Array


def refine(
    parts: Mapping[str, Fit], loss: xr.DataArray, usable: xr.DataArray, copies: Copies | None = None
) -> JointFit:
    """Fit the surface jointly, from the separate fits of a0, a1, a2.

    Args:
        parts: temporal fits by name. loss: (split, tokens, position), nats. usable: (split, tokens), which to fit;
            the loss of the others may be NaN. copies: which splits of `usable` are copies of those of `loss`.
    """
    compressed = _compress(loss) if loss.sizes["tokens"] * loss.sizes["position"] > LARGE else _Compressed.nothing(loss)
    own = copies or Copies()
    loss, beyond = (own.of(part).sel(split=usable.split) for part in (compressed.loss, compressed.beyond))
    loss = loss.where(usable, 0.0).transpose("split", "tokens", "position")  # weight zero times NaN would be NaN
    least = padded(loss.sizes["tokens"])
    power = fit(laws.POWER, parts["a2"].predict(loss.tokens.values), over="tokens", weights=usable, points=least)
    separate = (parts["a0"], parts["a1"], power)
    forms = (separate[0].law, separate[1].law, power.law)
    starts = []
    for k in range(loss.sizes["split"]):
        raw = [(of.raw_params.isel(split=k).values, len(of.law.shapes)) for of in separate]
        log_shapes = [np.log(params[:shapes]) for params, shapes in raw]
        starts.append(np.concatenate([*log_shapes, raw[1][0][raw[1][1] :]]))  # theta: all log shapes, then c1
    padding = max(-loss.sizes["tokens"] % PAD, least - loss.sizes["tokens"])  # up to the next multiple of PAD
    values = np.pad(loss.values, ((0, 0), (0, padding), (0, 0)))
    weights = np.pad(usable.transpose("split", "tokens").values.astype(float), ((0, 0), (0, padding)))
    tokens = np.pad(loss.tokens.values.astype(float), (0, padding), mode="edge")  # not 0, where N^-delta is infinite
    with jax.enable_x64(True):
        arrays = [np.stack(starts), tokens, loss.position.values, compressed.mixing, values, weights]
        solution = jax.tree.map(np.asarray, _solve(forms, *(jnp.asarray(array, float) for array in arrays)))
    split = {"split": loss.split.values}
    return JointFit(
        laws=forms,
        theta=xr.DataArray(solution.theta, split, ("split", "theta")),
        coef=xr.DataArray(solution.coef, split, ("split", "coef")),
        sse=xr.DataArray(solution.sse, split, ("split",)) + beyond.where(usable, 0.0).sum("tokens"),
        converged=xr.DataArray(solution.converged, split, ("split",)),
    )


@dataclass(frozen=True)
class _Compressed:
    """Least squares over positions as the same over a few numbers.

    Of a loss y (position,) and f of `interpolation`, Q orthonormal: |y - f|^2 = |Q'y - R f(i_k)|^2 + |y - QQ'y|^2.

    Attributes:
        loss: (split, tokens, number) Q'y, its dimension called position, its coordinate the positions i_k.
        mixing: R (number, number). beyond: |y - QQ'y|^2 (split, tokens).
    """

    loss: xr.DataArray
    mixing: np.ndarray
    beyond: xr.DataArray

    @classmethod
    def nothing(cls, loss: xr.DataArray) -> _Compressed:
        """The losses as they are."""
        return cls(loss, np.eye(0), xr.zeros_like(loss.isel(position=0, drop=True)))


def interpolation(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every f = b/(1 + a1 i) + c the values at a few positions i_k say all others, f(i) = sum_k W_ik f(i_k):

    the family has low rank, as 1/(1 + a1 i) is smooth in log a1. i_k are the pivots of a QR of the family sampled in
    log a1 up to its bound, W their interpolation. Exact up to rounding (MISSED).

    Returns:
        Places k of the i_k in position (number,), and W (position, number).
    """
    highest = float(laws.HYPERBOLIC.bounds(position)[0, 1])
    a1 = np.append(0.0, np.geomspace(1e-6 / position[-1], highest, SAMPLES))[:, None]
    family = (1 + a1 * position[0]) / (1 + a1 * position)  # (sample, position), 1 at the first position
    _, triangle, pivots = qr(family, mode="economic", pivoting=True)  # pyright: ignore[reportAssignmentType]
    size = np.abs(np.diagonal(triangle))
    count = int((size > MISSED * size[0]).sum())
    weights = np.empty((len(position), count))  # W
    weights[pivots] = np.linalg.lstsq(triangle[:count, :count], triangle[:count], rcond=None)[0].T
    return pivots[:count], weights


def _compress(loss: xr.DataArray) -> _Compressed:
    """The losses over the few numbers of `interpolation`, W = Q R."""
    position = loss.position.values.astype(float)
    pivots, weights = interpolation(position)
    basis, mixing = np.linalg.qr(weights)
    over = xr.DataArray(basis, {"position": loss.position}, ("position", "number"))
    kept = xr.dot(loss, over, dim="position")
    beyond = (loss**2).sum("position", skipna=False) - (kept**2).sum("number", skipna=False)
    kept = kept.rename(number="position").assign_coords(position=position[pivots])
    return _Compressed(kept, mixing, beyond.clip(min=0))


def _design(
    forms: tuple[Law, Law, Law], theta: Array, tokens: Array, position: Array, mixing: Array | None = None
) -> Array:
    """Columns (tokens, position, coef) of the surface, linear in the coefficients of a0 and a2.

    a0(N) = B0(N) c0 and a2(N) = B2(N) c2, so that L = [B0(N)/(1 + a1(N) i), B2(N)] [c0, c2]; positions mixed by R
    where they are compressed.
    """
    shape0, shape1, shape2, coef1 = jnp.split(theta, np.cumsum([len(law.shapes) for law in forms]))
    bases = []
    for law, log_shape in zip(forms, (shape0, shape1, shape2), strict=True):
        if law.basis is None:
            raise ValueError(f"joint: temporal laws must be separable, {law.name} is not")
        bases.append(law.basis(jnp.exp(log_shape), tokens))
    # a hyperbola has a pole where a1 is negative, and is over before the first position where it is huge
    a1 = jnp.clip(bases[1] @ coef1, 0, laws.HYPERBOLIC.bounds(position)[0, 1])
    falling = 1 / (1 + a1[:, None] * position[None])  # (tokens, position)
    constant = jnp.ones_like(falling)
    if mixing is not None and mixing.size:
        falling, constant = falling @ mixing.T, constant @ mixing.T
    return jnp.concatenate([falling[..., None] * bases[0][:, None], constant[..., None] * bases[2][:, None]], axis=-1)


@partial(jax.jit, static_argnums=0)
def _surface(forms: tuple[Law, Law, Law], theta: Array, coef: Array, tokens: Array, position: Array) -> Array:
    """(split, tokens, position)."""
    return jax.vmap(lambda t, c: _design(forms, t, tokens, position) @ c)(theta, coef)


@partial(jax.jit, static_argnums=0)
def _solve(
    forms: tuple[Law, Law, Law],
    starts: Array,
    tokens: Array,
    position: Array,
    mixing: Array,
    loss: Array,
    weights: Array,
) -> _Solution:
    """Least squares over every checkpoint and position of each split; starts (split, theta), loss (split, ...).

    Variable projection: with Q an orthonormal basis of the weighted design at theta, the residual of the best
    coefficients is y - Q Q'y, a function of theta alone. It is scaled by |y|, so that one tolerance serves all units.
    """
    limits = jnp.log(jnp.concatenate([law.bounds(tokens) for law in forms]))  # (shape, 2)
    shapes = len(limits)

    def within(theta: Array) -> Array:  # log shapes in the range of their laws: beyond it extrapolation means nothing
        return jnp.concatenate([jnp.clip(theta[:shapes], limits[:, 0], limits[:, 1]), theta[shapes:]])

    def solve_split(start: Array, loss: Array, weights: Array) -> _Solution:
        root = jnp.broadcast_to(weights[:, None], loss.shape).ravel()  # weights are 0 or 1, their own roots
        target = root * loss.ravel()
        size = jnp.sqrt(jnp.sum(target**2))  # |y|

        def basis(theta: Array) -> tuple[Array, Array]:
            design = _design(forms, within(theta), tokens, position, mixing).reshape(len(root), -1)
            return orthonormal(root[:, None] * design)

        def residual(step: Array) -> Array:
            q, _ = basis(start + step)  # the step from the start is searched, not theta
            return (target - q @ (q.T @ target)) / size

        nowhere = jnp.zeros_like(start)
        end = search(residual, nowhere, jnp.ones_like(start), DAMPINGS[1], MAXITER, rounds=1)
        # a search that ended worse than it began is discarded: the start stays
        first, last = (jnp.sum(residual(step) ** 2) for step in (nowhere, end.params))
        theta = within(start + jnp.where(last <= first, end.params, 0))
        q, r = basis(theta)
        coef = jax.scipy.linalg.solve_triangular(r, q.T @ target)  # R c = Q'y
        sse = size**2 * jnp.minimum(first, last)  # nats^2 again
        return _Solution(theta, coef, sse, end.stopped)

    # one after the other: two programs with QRs of batches can wait for each other's threads for ever, see
    # `levenberg_marquardt.solve`
    return jax.lax.map(lambda split: solve_split(*split), (starts, loss, weights))
