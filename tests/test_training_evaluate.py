"""From windows to a surface: sums, errors and the additive estimate against group-bys made by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import xarray as xr

from tsl_jax import surface
from tsl_jax.data import windows
from tsl_jax.data.config import EvalConfig
from tsl_jax.training import evaluation

N = 9
CONFIG = EvalConfig(stride=2, id_stretches=9, id_offsets=5, ood_stretches=5, ood_offsets=4)
SIZES = {"id": [60, 25, 31, 90, 28, 40], "ood": [70, 33, 12, 18]}  # tokens of documents; most hold several stretches


@dataclass(frozen=True)
class Scored:
    """The windows of a split, made-up losses of them, and where each target truly lies."""

    windows: windows.Windows
    losses: np.ndarray  # (window, position)
    document: np.ndarray  # (window,)
    target: np.ndarray  # (window, position) place in the stream


def scored(split: str) -> Scored:
    """Losses with effects of document, target and position on a stream whose tokens are their own places."""
    ends = np.cumsum(SIZES[split])
    starts = (ends - SIZES[split]).astype(np.int64)
    built = windows.build(np.arange(ends[-1], dtype=np.uint16), starts, N, CONFIG, split)
    target = built.tokens[:, 1:]
    document = np.searchsorted(ends, built.tokens[:, 0], side="right")
    rng = np.random.default_rng(len(split))
    level, hard = rng.normal(4, 1, len(ends)), rng.normal(0, 1, ends[-1])
    losses = level[document][:, None] + hard[target] + 1 / np.arange(1, N + 1) + rng.normal(0, 0.3, target.shape)
    return Scored(built, losses.astype(np.float32), document, target)


@pytest.fixture(name="loaded", scope="module")
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """The surface of one checkpoint of both splits."""
    folder: Path = tmp_path_factory.mktemp("surface")
    both = {split: scored(split) for split in SIZES}
    clusters = {split: part.windows.n_clusters for split, part in both.items()}
    arrays = {split: evaluation.reduce(part.losses, evaluation.prepare(part.windows)) for split, part in both.items()}
    surface.create(folder, clusters=clusters, context=N, attrs={})
    surface.append(folder, tokens=1, step=1, lr=0.1, splits=arrays)
    return surface.load_surface(folder).isel(tokens=0)


def test_the_splits_are_of_different_sizes() -> None:
    """So that clusters which only fill up the narrower split would show."""
    wide, narrow = scored("id"), scored("ood")
    assert wide.windows.n_clusters > narrow.windows.n_clusters > 1
    for part in (wide, narrow):
        counts = np.bincount(part.document)
        assert len(set(counts[counts > 0])) > 1, "documents have different numbers of windows"


@pytest.mark.parametrize("split", SIZES)
def test_the_mean_and_its_error_are_those_of_documents(loaded: xr.Dataset, split: str) -> None:
    part, measured = scored(split), loaded.sel(split=split)
    x = part.losses.astype(np.float64)
    np.testing.assert_allclose(measured.loss, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(measured["count"], len(x))
    squares = np.zeros(N)
    documents = set(part.document.tolist())
    for document in documents:
        squares += (x[part.document == document] - x.mean(axis=0)).sum(axis=0) ** 2
    expected = np.sqrt(len(documents) / (len(documents) - 1) * squares) / len(x)
    np.testing.assert_allclose(measured.sem, expected, rtol=1e-10)
    covariance = surface.position_covariance(loaded.expand_dims("tokens", axis=1)).sel(split=split)[0]
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), expected, rtol=1e-10)


@pytest.mark.parametrize("split", SIZES)
def test_the_sums_by_cluster_are_those_of_documents(loaded: xr.Dataset, split: str) -> None:
    part, measured = scored(split), loaded.sel(split=split)
    x = part.losses.astype(np.float64)
    groups = [x[part.document == document] for document in np.unique(part.document)]
    used = measured.isel(cluster=slice(0, len(groups)))
    np.testing.assert_allclose(used.cluster_sum, [g.sum(axis=0) for g in groups], rtol=1e-12)
    np.testing.assert_allclose(used.cluster_sum_squares, [(g**2).sum(axis=0) for g in groups], rtol=1e-12)
    np.testing.assert_array_equal(used.cluster_count[:, 0], [len(g) for g in groups])
    assert float(measured.cluster_count[len(groups) :].sum()) == 0


@pytest.mark.parametrize("split", SIZES)
def test_the_additive_loss_is_least_squares_over_targets_and_positions(loaded: xr.Dataset, split: str) -> None:
    part, measured = scored(split), loaded.sel(split=split)
    y, row = part.losses.ravel().astype(np.float64), np.arange(part.losses.size)
    columns = np.zeros((len(y), part.target.max() + 1 + N))
    columns[row, part.target.ravel()] = 1
    columns[row, part.target.max() + 1 + np.tile(np.arange(N), len(part.losses))] = 1
    solve = scipy.linalg.pinv(columns, rtol=1e-10)  # a constant is free; numpy's default limit is too near rounding
    shape = solve[-N:] - solve[-N:].mean(axis=0)  # (position, loss): the map from losses to position effects
    np.testing.assert_allclose(measured.loss_additive, shape @ y + y.mean(), atol=1e-9)
    residual = y - columns @ (solve @ y)
    influence = shape * residual + (y - y.mean()) / len(y)
    document = np.repeat(part.document, N)
    by_document = np.array([influence[:, document == d].sum(axis=1) for d in np.unique(document)])
    factor = len(by_document) / (len(by_document) - 1)
    np.testing.assert_allclose(measured.loss_additive_sem, np.sqrt(factor * (by_document**2).sum(axis=0)), rtol=1e-8)


def test_windows_that_do_not_overlap_have_no_additive_loss() -> None:
    ends = np.cumsum(SIZES["id"])
    random = EvalConfig(design="random", id_stretches=4, id_offsets=3)
    built = windows.build(np.arange(ends[-1]), ends - SIZES["id"], N, random, "id")
    arrays = evaluation.reduce(np.ones((len(built.tokens), N)), evaluation.prepare(built))
    assert np.isnan(arrays["loss_additive"]).all()
