"""A plain function as a law: `def decay(x, a, b, tau): return a + b * jnp.exp(-x / tau)`.

The names of the parameters are read from the signature. Which of them are *coefficients*, in which the function is
linear, and which are *shapes*, is found by tracing: `jax.linear_transpose` accepts only what is linear as written. The
largest set of parameters in which the function is jointly linear, and zero where all of them are, becomes the
coefficients; everything else is a positive shape, whose logarithm is searched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tsl_jax.laws.law import Covariates, Law

MOST = 10  # parameters: of more, the sets that may be linear are too many to try
AROUND_A_START = 1e3  # a shape with a start is searched from a share of this to so many times it
FAR = 1e4  # without a start: from 1/FAR of the least of x, 1/x and 1 to FAR times the largest
SOME_X = 4  # points at which a function of one covariate is traced


def from_function(
    function: Callable[..., Any],
    bounds: Mapping[str, tuple[float, float]] | None = None,
    linear: Sequence[str] | None = None,
    covariates: Sequence[str] = ("x",),
) -> Law:
    """The law that a function f(x, p1, p2, ...) of jax is.

    Args:
        function: of x (point,), or of a mapping where there are several covariates, and of parameters; its default
            values are starts: the shape is then searched within a thousandth and a thousand times its start.
        bounds: {name: (low, high)}, positive, of shapes whose range is known; default four decades beyond x, 1/x and 1.
        linear: names of the parameters in which the function is linear; default those that tracing finds.
        covariates: names of what x holds; with more than one, x is a mapping.

    Raises:
        ValueError: for a function that jax cannot trace, or bounds or names that make no sense.

    Example:
        >>> import jax.numpy as jnp, tsl_jax as tsl
        >>> def decay(x, a, b, tau):
        ...     return a + b * jnp.exp(-x / tau)
        >>> law = tsl.laws.from_function(decay)
        >>> law.shapes, law.coefs
        (('tau',), ('a', 'b'))
    """
    ranges = tuple((name, tuple(pair)) for name, pair in (bounds or {}).items())
    return _made(function, ranges, None if linear is None else tuple(linear), tuple(covariates))


@lru_cache(maxsize=64)  # one function is one law: what is compiled for it is found again
def _made(
    function: Callable[..., Any], ranges: tuple[Any, ...], linear: tuple[str, ...] | None, covariates: tuple[str, ...]
) -> Law:
    name = getattr(function, "__name__", "function").strip("<>")
    params, starts = _parameters(function, name)
    given = dict(ranges)
    for other in (*given, *(linear or ())):
        if other not in params:
            raise ValueError(f"law {name}: it has the parameters {params}, found {other!r}")
    x = jnp.arange(1.0, SOME_X + 1)
    points = x if len(covariates) == 1 else dict.fromkeys(covariates, x)

    def value(shapes: Mapping[str, Any], coefs: Mapping[str, Any], x: Covariates) -> Array:
        named = {**shapes, **coefs}
        return jnp.asarray(function(x, *(named[parameter] for parameter in params)))

    ones = {parameter: jnp.asarray(1.5) for parameter in params}
    _check_traceable(name, value, ones, points)
    free = [parameter for parameter in params if parameter not in given]
    if linear is not None and not _is_linear(value, ones, linear, points):
        raise ValueError(f"law {name}: it is not linear in {linear}, or not zero where these are; leave linear= out")
    coefs = linear if linear is not None else _largest_linear(value, ones, free, points)
    shapes = tuple(parameter for parameter in params if parameter not in coefs)
    for parameter, (low, high) in given.items():
        if parameter not in shapes or not 0 < low < high < float("inf"):
            wanted = "bounds are of parameters that are not linear, 0 < low < high"
            raise ValueError(f"law {name}: {wanted}; found {parameter}: {(low, high)}")

    def basis(shape: Array, x: Covariates) -> Array:
        named = dict(zip(shapes, shape, strict=True))
        unit = jnp.eye(len(coefs))
        columns = [value(named, dict(zip(coefs, row, strict=True)), x) for row in unit]
        length = max(jnp.shape(leaf)[0] for leaf in jax.tree.leaves(x))
        return jnp.stack([jnp.broadcast_to(column, (length,)) for column in columns], axis=-1)

    def curve(shape: Array, x: Covariates) -> Array:
        return value(dict(zip(shapes, shape, strict=True)), {}, x)

    def range_of(x: Covariates) -> Array:
        sizes = jnp.concatenate([jnp.abs(jnp.ravel(jnp.asarray(leaf))) for leaf in jax.tree.leaves(x)])
        sizes = jnp.where(sizes > 0, sizes, 1.0)
        low = jnp.minimum(jnp.minimum(sizes.min(), 1 / sizes.max()), 1.0) / FAR
        high = jnp.maximum(jnp.maximum(sizes.max(), 1 / sizes.min()), 1.0) * FAR
        rows = []
        for shape in shapes:
            start = starts.get(shape)
            pair = (low, high) if start is None else (start / AROUND_A_START, start * AROUND_A_START)
            rows.append(jnp.stack([jnp.asarray(end, sizes.dtype) for end in given.get(shape, pair)]))
        return jnp.stack(rows) if rows else jnp.zeros((0, 2), sizes.dtype)

    return Law(
        name=name,
        formula=f"{name}(x; {', '.join(params)})",
        params=params,
        shapes=shapes,
        coefs=coefs,
        bounds=range_of,
        source="a Python function of the user's",
        basis=basis if coefs else None,
        curve=None if coefs else curve,
        covariates=covariates,
    )


def _parameters(function: Callable[..., Any], name: str) -> tuple[tuple[str, ...], dict[str, float]]:
    """Names of all arguments but the first, and the starts that some have."""
    try:
        _, *arguments = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        arguments = []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not arguments or any(argument.kind not in kinds for argument in arguments):
        raise ValueError(f"law {name}: expected a function f(x, a, b, ...) with named parameters after x")
    if len(arguments) > MOST:
        raise ValueError(f"law {name}: at most {MOST} parameters, found {len(arguments)}; give a tsl.laws.Law instead")
    starts = {a.name: float(a.default) for a in arguments if a.default is not inspect.Parameter.empty}
    return tuple(argument.name for argument in arguments), starts


def _check_traceable(name: str, value: Callable[..., Array], ones: Mapping[str, Array], x: Covariates) -> None:
    try:
        found = jax.eval_shape(value, ones, {}, x)
    except Exception as error:  # whatever the user's function raises under a tracer
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "write it with jax.numpy in place of numpy or math, and without `if` on its arguments"
        raise ValueError(f"law {name}: jax cannot trace it ({reason}); {advice}") from None
    if len(found.shape) > 1 or not jnp.issubdtype(found.dtype, jnp.floating):
        expected = f"expected a value for each of {SOME_X} points"
        raise ValueError(f"law {name}: {expected}, found an array of shape {found.shape} of {found.dtype}")


def _largest_linear(
    value: Callable[..., Array], ones: Mapping[str, Array], names: Sequence[str], x: Covariates
) -> tuple[str, ...]:
    """The largest set of parameters in which the function is linear; of several the first, as they are written."""
    for size in range(len(names), 0, -1):
        for some in combinations(names, size):
            if _is_linear(value, ones, some, x):
                return some
    return ()


def _is_linear(value: Callable[..., Array], ones: Mapping[str, Array], names: Sequence[str], x: Covariates) -> bool:
    """Whether the function is linear in these parameters together, as it is written."""
    shapes = {name: one for name, one in ones.items() if name not in names}
    coefs = {name: ones[name] for name in names}
    try:
        transposed = jax.linear_transpose(lambda coefs: value(shapes, coefs, x), coefs)
        jax.eval_shape(transposed, jax.eval_shape(value, shapes, coefs, x))
    except Exception:  # jax says "not linear" in several ways
        return False
    # a constant part passes for linear there: 1.7 + a / x
    return bool(jnp.all(value(shapes, {name: jnp.zeros(()) for name in names}, x) == 0))
