"""The learning-rate plan, weight decay of matrices only, and when evaluations happen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsl_jax.schedules import Schedule
from tsl_jax.training.config import OptimizerConfig
from tsl_jax.training.optimizer import adamw, lr_plan, matrices
from tsl_jax.training.timeline import evaluation_steps

STEPS, BATCH = 200, 64


def rates(config: OptimizerConfig) -> np.ndarray:
    """Learning rate of steps 1..STEPS."""
    return Schedule.from_plan(lr_plan(config, STEPS, BATCH)).rate(BATCH * np.arange(1, STEPS + 1), np)


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    for schedule in ("cosine", "constant", "wsd"):
        lr = rates(OptimizerConfig(peak_lr=2.0, warmup=0.1, schedule=schedule))
        np.testing.assert_allclose(lr[:20], 2.0 * np.arange(1, 21) / 20)
        assert lr.max() == pytest.approx(2.0)


def test_cosine_ends_at_its_ratio_and_is_half_way_in_the_middle() -> None:
    lr = rates(OptimizerConfig(peak_lr=1.0, warmup=0.1, final_ratio=0.2))
    assert lr[-1] == pytest.approx(0.2)
    assert lr[20 + 90 - 1] == pytest.approx(0.6)


def test_wsd_is_stable_until_its_decay_and_then_linear() -> None:
    config = OptimizerConfig(peak_lr=1.0, warmup=0.1, schedule="wsd", decay=0.25, final_ratio=0.0)
    lr = rates(config)
    assert lr_plan(config, STEPS, BATCH)["decay_start_tokens"] == 150 * BATCH
    np.testing.assert_allclose(lr[19:150], 1.0)
    np.testing.assert_allclose(lr[149:], np.linspace(1.0, 0.0, 51))


def test_no_warm_up_starts_at_the_peak() -> None:
    assert rates(OptimizerConfig(peak_lr=1.0, warmup=0.0, schedule="constant"))[0] == 1.0


def test_the_optimizer_takes_the_planned_rate_at_every_step() -> None:
    config = OptimizerConfig(peak_lr=0.5, warmup=0.1, weight_decay=0.0, beta1=0.0, beta2=0.0, clip=0.0)
    optimizer = adamw(config, lr_plan(config, STEPS, BATCH), BATCH)
    params = {"blocks": {"w": jnp.zeros((2, 3, 3))}, "scale": jnp.zeros(3)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    taken = []
    for _ in range(STEPS):
        change, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        taken.append(-float(change["scale"][0]))  # without memory Adam's step is the sign of the gradient
    np.testing.assert_allclose(taken, rates(config), rtol=1e-5)


def test_only_matrices_decay() -> None:
    params = {
        "embedding": jnp.ones((5, 3)),
        "blocks": {"norm": {"scale": jnp.ones((2, 3))}, "qkv": jnp.ones((2, 3, 9))},
        "final_norm": {"scale": jnp.ones(3)},
    }
    assert matrices(params) == {
        "embedding": True,
        "blocks": {"norm": {"scale": False}, "qkv": True},
        "final_norm": {"scale": False},
    }


def test_gradients_are_clipped_by_their_global_norm() -> None:
    config = OptimizerConfig(clip=1.0, weight_decay=0.0, warmup=0.0, beta1=0.0)
    optimizer = adamw(config, lr_plan(config, STEPS, BATCH), BATCH)
    params = {"embedding": jnp.zeros((2, 2))}
    _, small = optimizer.update({"embedding": jnp.full((2, 2), 0.5)}, optimizer.init(params), params)
    _, large = optimizer.update({"embedding": jnp.full((2, 2), 50.0)}, optimizer.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), small, large)


def test_evaluations_are_dense_early_even_later_and_end_with_the_run() -> None:
    steps = evaluation_steps(1220, 24, 32)
    assert len(steps) == 32
    assert steps[:2] == [12, 24]
    early, late = [s for s in steps if 24 < s <= 122], [s for s in steps if s > 122]
    assert len(early) >= 8
    ratios, gaps = np.diff(np.log([24, *early])), np.diff(late)
    assert np.ptp(ratios) < 0.1
    assert np.ptp(gaps) <= 1
    assert steps[-1] == 1220


@pytest.mark.parametrize("total", [1, 2, 7, 31, 60, 100, 999, 10**6])
@pytest.mark.parametrize("n", [1, 2, 5, 12, 32, 64])
def test_evaluations_are_distinct_within_the_run_and_as_many_as_asked(total: int, n: int) -> None:
    for warmup in (0, 1, total // 50, total // 2, total):
        steps = evaluation_steps(total, warmup, n)
        assert steps == sorted(set(steps))
        assert len(steps) == min(n, total)
        assert steps[0] >= 1
        assert steps[-1] == total


def test_no_evaluation_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1, found 0"):
        evaluation_steps(10, 1, 0)
