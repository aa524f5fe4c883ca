"""Curves with weights of their own, by the hundred: as exact as one by one, and judged alike."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

import tsl_jax as tsl
from tsl_jax import Status, laws
from tsl_jax.diagnostics import held_out
from tsl_jax.fitting import batching, fit_law, lowrank_weighted_tables, prepare

X = np.arange(1.0, 97.0)
CURVES = fit_law.MANY
RANDOM = np.random.default_rng(0)
KINDS = {
    "variances": RANDOM.uniform(0.2, 5.0, (CURVES, len(X))),
    "wide": np.exp(1.5 * RANDOM.standard_normal((CURVES, len(X)))),
    "missing": (RANDOM.uniform(size=(CURVES, len(X))) < 0.7).astype(float),
    "lengths": (np.arange(len(X)) < RANDOM.integers(12, len(X) + 1, (CURVES, 1))).astype(float),
    "late": (np.arange(len(X)) >= RANDOM.integers(0, 60, (CURVES, 1))).astype(float),
    "few": (RANDOM.uniform(size=(CURVES, len(X))) < 0.06).astype(float),
}
LAWS = [laws.HYPERBOLIC, laws.POSITION_POWER, laws.POWER_PURE]  # the last without a constant


def curves_of(law: laws.Law, sd: float = 0.02) -> np.ndarray:
    """Curves of a law with shapes inside its range, and noise."""
    random = np.random.default_rng(1)
    low, high = {"power_pure": (0.05, 0.6)}.get(law.name, (0.1, 1.5))
    shapes = np.exp(random.uniform(np.log(low), np.log(high), CURVES))
    coefs = (1.5, 3.0)[: len(law.coefs)]
    clean = [law(X, **dict(zip(law.raw_params, (shape, *coefs), strict=True))) for shape in shapes]
    return np.asarray(clean) + sd * random.standard_normal((CURVES, len(X)))


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits by the solver of curves one by one, as below MANY."""
    monkeypatch.setattr(fit_law, "MANY", CURVES + 1)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_many_curves_are_fitted_as_one_by_one(law: laws.Law, monkeypatch: pytest.MonkeyPatch) -> None:
    y = curves_of(law)
    for kind in KINDS if law is laws.HYPERBOLIC else ("missing",):
        weights = KINDS[kind]
        holed = np.where(weights > 0, y, np.nan)  # a point of weight zero may be anything
        fast = tsl.fit(law, holed, x=X, weights=weights)
        with monkeypatch.context() as patched:
            one_by_one(patched)
            slow = tsl.fit(law, holed, x=X, weights=weights)
        np.testing.assert_array_equal(fast.status, slow.status, err_msg=kind)
        solved = ~np.isin(slow.status, (Status.TOO_FEW_POINTS, Status.NON_FINITE))
        assert np.all(fast.sse.values[solved] <= slow.sse.values[solved] * (1 + 1e-9)), kind
        known = np.isin(slow.status, (Status.CONVERGED, Status.WEAKLY_IDENTIFIED))
        assert known.mean() > 0.05
        for name, tolerance in (("params", 1e-5), ("stderr", 2e-4), ("r2", 1e-9), ("log_shape_stderr", 2e-4)):
            ours, theirs = (getattr(fit, name).values[known] for fit in (fast, slow))
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=1e-12, err_msg=f"{kind}, {name}")


def test_most_curves_need_no_other_solver() -> None:
    y = curves_of(laws.HYPERBOLIC)
    with jax.enable_x64(True):
        prepared = prepare(laws.HYPERBOLIC, X, many=True)
        sure = {kind: batching._run(prepared, y, KINDS[kind])[-1].mean() for kind in KINDS}
    assert min(sure[kind] for kind in ("variances", "wide", "missing", "lengths")) > 0.98, sure
    assert sure["few"] < 1, "five points of a hundred settle little"


def test_a_float32_fit_is_within_a_millionth_of_the_least_sse() -> None:
    y, weights = curves_of(laws.HYPERBOLIC), KINDS["variances"]
    best = tsl.fit(laws.HYPERBOLIC, y, x=X, weights=weights).sse.values
    fast = tsl.fit(laws.HYPERBOLIC, y, x=X, weights=weights, dtype="float32")
    a0, a1, a2 = fast.params.values.astype(float).T[..., None]
    sse = (weights * (y - a0 / (1 + a1 * X) - a2) ** 2).sum(axis=1)
    assert np.all(sse <= best * (1 + 1e-6))
    np.testing.assert_allclose(fast.sse, best, rtol=2e-5)


def test_weights_that_are_equal_give_the_fit_without_weights() -> None:
    y = curves_of(laws.HYPERBOLIC)
    shared = tsl.fit(laws.HYPERBOLIC, y, x=X)
    own = tsl.fit(laws.HYPERBOLIC, y, x=X, weights=np.full(y.shape, 3.0))
    np.testing.assert_array_equal(own.status, shared.status)
    for name in ("params", "stderr"):
        np.testing.assert_allclose(getattr(own, name), getattr(shared, name), rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(own.sse, 3 * shared.sse, rtol=1e-12)


def test_bad_curves_have_their_status_and_leave_their_neighbours_alone() -> None:
    y, weights = curves_of(laws.HYPERBOLIC), KINDS["missing"].copy()
    good = tsl.fit(laws.HYPERBOLIC, y, x=X, weights=weights)
    y, first = y.copy(), int(np.flatnonzero(weights[0] > 0)[3])
    y[0, first] = np.nan
    y[1] = 2.5
    y[2] = 1e30 * y[2]
    weights[3] = 0.0
    weights[4] = np.where(np.arange(len(X)) < 3, 1.0, 0.0)
    y[5] = 4.0 - y[5]
    fit = tsl.fit(laws.HYPERBOLIC, y, x=X, weights=weights)
    names = [Status(status).name for status in fit.status.values[:6]]
    assert names == ["NON_FINITE", "FLAT", "CONVERGED", "TOO_FEW_POINTS", "TOO_FEW_POINTS", "RISING"]
    np.testing.assert_array_equal(fit.params.values[6:], good.params.values[6:])


@pytest.mark.exact_bits
def test_the_bits_do_not_depend_on_the_batch() -> None:
    y, weights = curves_of(laws.HYPERBOLIC), KINDS["variances"]
    twice, own = np.concatenate([y[::-1], y]), np.concatenate([weights[::-1], weights])
    one, two = (tsl.fit(laws.HYPERBOLIC, a, x=X, weights=w) for a, w in ((y, weights), (twice, own)))
    for name in ("params", "stderr", "sse"):
        np.testing.assert_array_equal(getattr(two, name).values[CURVES:], getattr(one, name).values, err_msg=name)
        np.testing.assert_array_equal(getattr(two, name).values[:CURVES], getattr(one, name).values[::-1])


def test_a_family_whose_products_are_too_many_is_left_to_the_other_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank_weighted_tables, "LARGEST", 1000)
    with jax.enable_x64(True):
        hyperbola = replace(laws.HYPERBOLIC, source="not kept from another test")
        assert prepare(hyperbola, X, many=True).tables is None


def test_held_out_blocks_are_predicted_for_thousands_of_curves() -> None:
    y = np.tile(curves_of(laws.HYPERBOLIC), (4, 1))
    errors = held_out(laws.HYPERBOLIC, y, X, blocks=8)
    assert errors.shape == (len(y), 6, len(X))
    np.testing.assert_allclose(errors[:3], held_out(laws.HYPERBOLIC, y[:3], X, blocks=8), atol=1e-6)
    assert 0.015 < np.nanstd(errors) < 0.025, "the noise, and little more"
