"""A plain Python function is a law: linear parameters found by tracing, mistakes in one sentence."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import tsl_jax as tsl
from tsl_jax.fitting.problem import as_law
from tsl_jax.laws import HYPERBOLIC, Law, from_function

X = np.arange(1.0, 101.0)
NOISE = np.random.default_rng(0).standard_normal((3, len(X)))


def hyperbola(x: Any, a0: Any, a1: Any, a2: Any) -> Any:
    return a0 / (1 + a1 * x) + a2


def stretched(x: Any, a: Any, b: Any, tau: Any, beta: Any) -> Any:
    return a + b * jnp.exp(-((x / tau) ** beta))


def product(x: Any, a: Any, b: Any) -> Any:
    return a * b * x


def offset(x: Any, a: Any, k: Any) -> Any:
    return 1.7 + a * x**-k


def straight(x: Any, a: Any, b: Any) -> Any:
    return a - b * x


def saturating(x: Any, k: Any, m: Any) -> Any:
    return jnp.exp(-k * x) / (1 + m)


@pytest.mark.parametrize(
    ("function", "shapes", "coefs"),
    [
        (hyperbola, ("a1",), ("a0", "a2")),
        (stretched, ("tau", "beta"), ("a", "b")),
        (product, ("b",), ("a",)),
        (offset, ("a", "k"), ()),  # a constant part is no coefficient's
        (straight, (), ("a", "b")),
        (saturating, ("k", "m"), ()),
        (lambda x, p, q: p * x**q, ("q",), ("p",)),
    ],
)
def test_linear_parameters_are_found_by_tracing(function: Any, shapes: Any, coefs: Any) -> None:
    law = from_function(function)
    assert (law.shapes, law.coefs) == (shapes, coefs)
    assert from_function(function) is law, "one function is one law, compiled once"


def test_a_function_is_fitted_as_the_law_that_it_is() -> None:
    y = np.asarray(HYPERBOLIC(X, a0=1.5, a1=0.2, a2=3.0)) + 0.01 * NOISE
    ours, named = tsl.fit(hyperbola, y, x=X), tsl.fit(HYPERBOLIC, y, x=X)
    np.testing.assert_allclose(ours.params, named.params, rtol=1e-6)
    np.testing.assert_allclose(ours.stderr, named.stderr, rtol=1e-5)
    assert ours.law.params == ("a0", "a1", "a2")
    labelled = xr.DataArray(y, {"step": X}, ("run", "step"))
    np.testing.assert_allclose(tsl.fit(hyperbola, labelled, over="step").params, ours.params)


def test_a_function_with_two_shapes_is_recovered() -> None:
    y = np.asarray(stretched(X, 3.0, 1.5, 20.0, 0.6)) + 1e-3 * NOISE
    fit = tsl.fit(stretched, y, x=X).raise_if_failed()
    errors = (fit.params.values - [3.0, 1.5, 20.0, 0.6]) / fit.stderr.values
    assert np.abs(errors).max() < 4


def test_starts_and_bounds_say_where_a_shape_is_searched() -> None:
    def near(x: Any, a: Any, b: Any, tau: Any = 1e-5) -> Any:
        return a + b * jnp.exp(-x / tau)

    shapes = {"bounds": {"tau": (2.0, 50.0)}}
    np.testing.assert_allclose(from_function(near).bounds(X), [[1e-8, 1e-2]], rtol=1e-5)
    np.testing.assert_allclose(from_function(near, **shapes).bounds(X), [[2.0, 50.0]])
    low, high = from_function(hyperbola).bounds(X)[0]
    assert low <= 1e-6 < 1e6 <= high


def test_several_covariates_come_as_a_mapping() -> None:
    def joint(v: Any, e: Any, a: Any, alpha: Any) -> Any:
        return e + a * v["n"] ** -alpha * v["d"] ** -0.1

    n, d = np.geomspace(1e6, 1e9, 40), np.geomspace(1e9, 1e10, 40)[::-1]
    y = np.asarray(joint({"n": n, "d": d}, 1.7, 400.0, 0.3))
    fit = tsl.fit(joint, y, x={"n": n, "d": d})
    np.testing.assert_allclose(fit.params, [1.7, 400.0, 0.3], rtol=1e-4)


def with_math(x: Any, a: Any, b: Any) -> Any:
    return a * math.exp(b) * x


def with_numpy(x: Any, a: Any, b: Any) -> Any:
    return a * np.exp(b * x)


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        (with_math, {}, "law with_math: jax cannot trace it .*; write it with jax.numpy in place of numpy or math"),
        (with_numpy, {}, "law with_numpy: jax cannot trace it"),
        (lambda x: x, {}, "expected a function f.x, a, b, ...."),
        (lambda x, *values: x, {}, "expected a function f.x, a, b, ...."),
        (lambda x, a: jnp.ones((2, 3)), {}, r"expected a value for each of 4 points, found an array of shape \(2, 3\)"),
        (hyperbola, {"linear": ("a1",)}, r"it is not linear in \('a1',\)"),
        (hyperbola, {"linear": ("c",)}, "it has the parameters .*, found 'c'"),
        (hyperbola, {"bounds": {"a0": (1.0, 2.0)}, "linear": ("a0", "a2")}, "bounds are of parameters that are not"),
        (hyperbola, {"bounds": {"a1": (2.0, 1.0)}}, "0 < low < high; found a1"),
        (lambda x, a, b, c, d, e, f, g, h, i, j, k: x, {}, "at most 10 parameters, found 11"),
    ],
)
def test_mistakes_in_a_function_have_one_sentence(function: Any, options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_function(function, **options)


GOOD: dict[str, Any] = {
    "name": "mine",
    "formula": "a x^-k + b",
    "params": ("a", "b", "k"),
    "shapes": ("k",),
    "coefs": ("a", "b"),
    "source": "a test",
    "bounds": lambda x: jnp.array([[0.1, 1.0]]),
    "basis": lambda shape, x: jnp.stack([x ** -shape[0], jnp.ones_like(x)], axis=-1),
}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"bounds": lambda x: jnp.array([0.1, 1.0])},
            r"bounds\(x\) must be an array .* \(1, 2\), found the shape \(2,\)",
        ),
        ({"basis": lambda shape, x: x[:, None]}, r"a column for each of \('a', 'b'\), found the shape \(100, 1\)"),
        ({"basis": lambda shape, x: x + X[:3]}, "law mine: its basis fails: TypeError"),
        ({"basis": None, "curve": lambda shape, x: x[:, None], "coefs": (), "params": ("k",)}, r"must give \(point,\)"),
    ],
)
def test_mistakes_in_a_law_have_one_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tsl.fit(Law(**{**GOOD, **wrong}), 1 / X + 2, x=X)
    assert tsl.fit(Law(**GOOD), 1 / X**0.5 + 2, x=X).usable


def test_what_is_no_law_is_refused() -> None:
    for wrong in ("hyperbolic", 3):
        with pytest.raises(ValueError, match=r"law must be a Law such as .* or a function f\(x, a, b, ...\), found"):
            as_law(wrong)
    pairs = SimpleNamespace(**{**GOOD, "curve": None, "bounds": ((0.1, 1.0),)})
    with pytest.raises(ValueError, match=r"bounds must be a function x -> .*; write bounds=lambda x: jnp.array"):
        Law.__post_init__(pairs)  # pyright: ignore[reportArgumentType]
