"""One law of size, time and schedule by position comes back from runs drawn of it, and knows what it cannot tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import tsl_jax as tsl
from tsl_jax.cli import run_verb
from tsl_jax.forecasting import fit_size_ladder
from tsl_jax.laws import Schedule

SIZES, TOKENS, POSITION = (1e4, 3e4, 1e5, 3e5), np.linspace(5e4, 2e6, 40), np.arange(1, 17)
CONSTANT = Schedule("constant", 1.0, 40_000, 2_000_000)
COSINE = Schedule("cosine", 1.0, 40_000, 2_000_000, final_ratio=0.1)


def truth(size: float, area: np.ndarray, annealing: np.ndarray) -> np.ndarray:
    """(tokens, position)"""
    n, s = np.log(size / 1e5), np.log(area / 1e6)
    mean = 1.2 - 0.08 * n - 0.09 * s - 0.02 * n * s - 0.05 * annealing
    return np.exp(mean[:, None] + 0.5 / POSITION[None])


def drawn(size: float, schedule: Any, seed: int, noise: float = 0.002) -> xr.Dataset:
    """A run of the law above; the annealing takes effect at once."""
    rate = np.asarray(schedule.rate(TOKENS, np)) / schedule.peak
    grid = np.linspace(0, 2e6, 4001)
    eta = np.asarray(schedule.rate(grid, np)) / schedule.peak
    area = np.interp(TOKENS, grid, np.concatenate([[0], np.cumsum((eta[1:] + eta[:-1]) / 2 * np.diff(grid))]))
    scatter = noise * np.random.default_rng(seed).standard_normal((len(TOKENS), len(POSITION)))
    loss = truth(size, area, 1 - rate) * np.exp(scatter)
    return tsl.from_losses(
        loss[None], tokens=TOKENS.astype(int), position=POSITION, split=["id"], lr=rate, n_params=size,
        schedule=schedule.to_plan(),
    )  # fmt: skip


def ladder(schedules: Any = (CONSTANT,)) -> list[xr.Dataset]:
    """A run of each size and schedule."""
    return [drawn(size, s, k) for k, (size, s) in enumerate((size, s) for size in SIZES for s in schedules)]


def test_an_unseen_size_is_predicted_by_position_within_its_interval() -> None:
    fitted = fit_size_ladder(ladder())
    assert fitted.columns == ("constant", "size", "time", "size_time")
    unseen = drawn(9e5, CONSTANT, 99, noise=0.0).loss.isel(split=0)
    predicted = fitted.predict(9e5, TOKENS[10:], CONSTANT)
    np.testing.assert_allclose(predicted.loss, unseen.values[10:], rtol=0.01)
    assert bool(((predicted.low < unseen.values[10:]) & (unseen.values[10:] < predicted.high)).all())
    assert predicted.attrs["beyond"] == pytest.approx(3)
    within = fitted.predict(5e4, TOKENS[10:])
    assert float((within.mean_high - within.mean_low).max()) < float((predicted.mean_high - predicted.mean_low).max())


def test_the_schedule_is_read_from_runs_whose_rate_decays_and_asked_for_where_none_does() -> None:
    fitted = fit_size_ladder(ladder((CONSTANT, COSINE)))
    assert "annealing" in fitted.columns
    unseen = drawn(9e5, COSINE, 99, noise=0.0).loss.isel(split=0).values
    predicted = fitted.predict(9e5, TOKENS[10:], COSINE)
    np.testing.assert_allclose(predicted.loss, unseen[10:], rtol=0.02)
    with pytest.raises(ValueError, match="none of the ladder's does"):
        fit_size_ladder(ladder()).predict(9e5, TOKENS[10:], COSINE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs[:2], "3 sizes or more"),
        (lambda runs: [runs[0].drop_attrs(), *runs[1:]], "surface 1 does not say how many parameters"),
        (lambda runs: [*runs[:3], runs[3].isel(position=slice(8))], "positions of surface 4"),
    ],
)
def test_ladders_that_tell_nothing_are_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_size_ladder(change(ladder()))
    with pytest.raises(ValueError, match="positive numbers"):
        fit_size_ladder(ladder()).predict(-1, [1e6])


def test_the_command_prints_the_mean_and_the_thirds(tmp_path: Path, capsys: Any) -> None:
    paths = [tmp_path / f"{k}.npz" for k in range(len(SIZES))]
    for path, surface in zip(paths, ladder(), strict=True):
        tsl.save_surface(surface, path)
    arguments = ["predict", *map(str, paths), "--by-position", "--at", "n_params=9e5", "tokens=2e6"]
    assert run_verb("scale", [*arguments, "--out", str(tmp_path / "by_position.csv")], debug=False) == 0
    out = capsys.readouterr().out
    assert "4 runs of 4 sizes" in out
    assert "extrapolated 3 times beyond the largest run" in out
    assert len((tmp_path / "by_position.csv").read_text().splitlines()) == 1 + len(POSITION)
