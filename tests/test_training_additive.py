"""The two-way additive estimator on simulated losses: exact without noise, unbiased with it, its errors right."""

from __future__ import annotations

import numpy as np

from tsl_jax.training.evaluation import AdditiveDesign, EvaluationSet, additive_design, additive_estimate, reduce

N, CLUSTERS, PER_CLUSTER, OFFSETS = 12, 40, 2, 6
POSITION = 2.0 / (1 + 0.5 * np.arange(1, N + 1)) + 3.0


def layout(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stretch, offset and cluster of each window; clusters have one or three stretches."""
    sizes = np.where(np.arange(CLUSTERS) % 2, 1, 2 * PER_CLUSTER - 1)
    owner = np.repeat(np.arange(CLUSTERS), sizes)
    stretch = np.repeat(np.arange(len(owner)), len(offsets))
    return stretch, np.tile(offsets, len(owner)), owner[stretch]


def design_of(offsets: np.ndarray) -> AdditiveDesign | None:
    return additive_design(*layout(offsets), CLUSTERS, N)


CONNECTED = np.array([4 * k + k // 2 for k in range(OFFSETS)])


def simulated(seed: int, noise: float) -> np.ndarray:
    """Losses with an effect of the target, one of the cluster, one of cluster and position, and noise."""
    rng = np.random.default_rng(seed)
    stretch, offset, cluster = layout(CONNECTED)
    place = offset[:, None] + np.arange(1, N + 1)
    target = rng.normal(0, 1.5, (stretch.max() + 1, place.max() + 1))
    tilt = rng.normal(0, 0.2, CLUSTERS)[:, None] * np.linspace(-1, 1, N)
    level = rng.normal(0, 0.5, CLUSTERS)
    losses = target[stretch[:, None], place] + POSITION + level[cluster][:, None] + tilt[cluster]
    return losses + rng.normal(0, noise, losses.shape)


def test_without_noise_the_position_effects_are_exact_whatever_the_targets() -> None:
    stretch, offset, _ = layout(CONNECTED)
    place = offset[:, None] + np.arange(1, N + 1)
    target = np.random.default_rng(0).normal(0, 1.5, (stretch.max() + 1, place.max() + 1))
    losses = target[stretch[:, None], place] + POSITION
    design = design_of(CONNECTED)
    assert design is not None
    mean, _ = additive_estimate(losses, design)
    np.testing.assert_allclose(mean - mean.mean(), POSITION - POSITION.mean(), atol=1e-10)
    np.testing.assert_allclose(mean.mean(), losses.mean(), atol=1e-10)


def test_it_equals_least_squares_on_dummies() -> None:
    some = slice(0, 60)
    stretch, offset, cluster = (part[some] for part in layout(CONNECTED))
    losses = simulated(3, noise=0.5)[some]
    place = stretch[:, None] * 1000 + offset[:, None] + np.arange(1, N + 1)
    _, cell = np.unique(place, return_inverse=True)
    cell, position = cell.reshape(-1), np.tile(np.arange(N), len(losses))
    columns = np.zeros((losses.size, cell.max() + 1 + N))
    columns[np.arange(losses.size), cell] = 1
    columns[np.arange(losses.size), cell.max() + 1 + position] = 1
    effects = np.linalg.lstsq(columns, losses.ravel(), rcond=None)[0][-N:]
    design = additive_design(stretch, offset, cluster, CLUSTERS, N)
    assert design is not None
    mean, _ = additive_estimate(losses, design)
    np.testing.assert_allclose(mean - mean.mean(), effects - effects.mean(), atol=1e-8)


def test_it_is_unbiased_and_its_errors_are_those_seen_over_repetitions() -> None:
    design = design_of(CONNECTED)
    assert design is not None
    runs = [additive_estimate(simulated(seed, noise=0.4), design) for seed in range(300)]
    means, sems = np.array([m for m, _ in runs]), np.array([s for _, s in runs])
    spread = means.std(axis=0, ddof=1)
    # 300 repetitions: the bias is known to spread / 17, the spread itself to 4 %
    assert np.abs((means.mean(axis=0) - POSITION) / (spread / np.sqrt(300))).max() < 3.5
    np.testing.assert_allclose(np.sqrt((sems**2).mean(axis=0)), spread, rtol=0.15)
    shape, plain = (
        means - means.mean(axis=1, keepdims=True),
        np.array([x - x.mean() for x in (simulated(seed, 0.4).mean(axis=0) for seed in range(300))]),
    )
    assert shape.std(axis=0).mean() < 0.8 * plain.std(axis=0).mean(), "it should beat the plain mean"


def test_offsets_that_leave_odd_and_even_positions_apart_give_nothing() -> None:
    even = 4 * np.arange(OFFSETS)
    assert design_of(even) is None
    with np.errstate(all="raise"):
        assert design_of(np.array([0])) is None  # no target has two positions
    stretch, _, cluster = layout(even)
    windows = EvaluationSet(np.zeros((len(stretch), N + 1), np.int32), cluster, CLUSTERS, None)
    assert np.isnan(reduce(simulated(0, 0.1), windows)["loss_additive"]).all()


def test_one_cluster_has_no_error() -> None:
    design = additive_design(np.zeros(OFFSETS, int), CONNECTED, np.zeros(OFFSETS, int), 1, N)
    if design is not None:
        assert np.isnan(additive_estimate(simulated(0, 0.1)[:OFFSETS], design)[1]).all()
