"""The study of the law over positions, on small planted surfaces: what was planted is what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from experiments.position_law import measures
from experiments.position_law import study as program
from experiments.position_law.last_checkpoint import at_last_checkpoint
from experiments.shared import Runs
from tsl_jax import surface as surfaces
from tsl_jax.sweeps import read_sweep

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

POSITION = np.arange(1.0, 33)
CLUSTERS = 8


def planted(folder: Path, curve: np.ndarray, seed: int = 0, noise: float = 0.02) -> xr.Dataset:
    """Three checkpoints around a curve; the noise of a cluster is that of its text, the same in all runs."""
    surfaces.create(folder, clusters={"id": CLUSTERS, "ood": CLUSTERS}, context=len(curve), attrs={"windows": "w"})
    random = np.random.default_rng(0)
    text = {split: noise * random.standard_normal((CLUSTERS, len(curve))) for split in ("id", "ood")}
    own = np.random.default_rng(100 + seed)
    for k, tokens in enumerate((1000, 50_000, 100_000)):
        splits = {}
        for split in ("id", "ood"):
            each = 100 * (curve + 0.5 * (2 - k) + text[split] + noise / 10 * own.standard_normal(text[split].shape))
            count, loss = np.full(each.shape, 100.0), each.mean(axis=0) / 100
            splits[split] = {
                "loss_sum": each.sum(axis=0),
                "loss_sum_squares": (each**2).sum(axis=0) / 100,
                "count": count.sum(axis=0),
                "cluster_sum": each,
                "cluster_sum_squares": each**2 / 100,
                "cluster_count": count,
                "loss_additive": loss,
                "loss_additive_sem": np.full(len(curve), noise),
            }
        surfaces.append(folder, tokens=tokens, step=k, lr=1e-3, splits=splits)
    return surfaces.load_surface(folder)


def hyperbola(a1: float = 0.4, a2: float = 3.0) -> np.ndarray:
    return 1.5 / (1 + a1 * POSITION) + a2


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    measures.DRAWS = 40
    folder = tmp_path_factory.mktemp("runs")
    late = 0.2 * (POSITION > 8) * np.log(POSITION / 8 + (POSITION <= 8))
    surfaces = {
        "small-cosine@0": planted(folder / "a", hyperbola()),
        "small-cosine@1": planted(folder / "b", hyperbola(), 1),
        "small-lstm-cosine": planted(folder / "c", hyperbola() + late, 2),
    }
    manifest = {"config": {"model": {"architecture": ""}}, "n_params": 1}
    return program.analyse(Runs(surfaces, dict.fromkeys(surfaces, manifest), "cpu"))


def test_a_planted_hyperbola_passes_is_found_and_has_its_i90(findings):
    row = findings.tables["position_law"].iloc[0]
    assert row.p > 0.05
    assert row.r2 > 0.98
    assert row.positions == "position 1..32"
    assert row.i90 == pytest.approx(9 / 0.4, rel=0.25)
    assert row.i90_low < row.i90 < row.i90_high
    assert row.lm_r2 == pytest.approx(row.r2, abs=0.02)


def test_what_is_no_hyperbola_fails_and_shows_no_i90(findings):
    row = findings.tables["position_law"].set_index(["run", "split"]).loc[("small-lstm-cosine", "id")]
    assert row.p < 0.05
    assert np.isnan(row.i90)


def test_a_gap_that_grows_with_position_is_found_from_paired_clusters(findings):
    pairs = findings.tables["architectures"].set_index(["split", "part"]).loc["id"]
    assert abs(pairs.difference["early"]) < 0.01
    assert pairs.difference["late"] == pytest.approx(np.mean(0.2 * np.log(POSITION[16:] / 8)), abs=0.02)
    assert pairs.low["late minus early"] > 0.1
    verdicts = [claim.verdict for claim in findings.claims if claim.claim.startswith("LSTMs")]
    assert verdicts == ["agrees", "agrees"]


def test_pairs_need_the_same_windows(findings, tmp_path):
    first = planted(tmp_path / "x", hyperbola())
    other = first.assign_attrs(windows="others")
    with pytest.raises(ValueError, match="same windows"):
        measures.paired(first, other, "id")


def test_alternatives_to_a_planted_hyperbola_lose_where_they_are_not_fitted(findings):
    overall = findings.tables["alternatives_overall"].set_index(["estimate", "alternative"])
    assert set(overall.index.get_level_values(0)) == {"plain", "additive"}
    comparisons = (
        findings.tables["alternatives"]
        .query("run == 'small-cosine@0' and estimate == 'plain'")
        .set_index(["alternative", "split"])
    )
    log = comparisons.loc["position_log"]
    assert (log.log_likelihood_ratio > 2).all()
    assert (log.held_out_alternative > log.held_out).all()
    assert (log.second_half_alternative > log.second_half).all()


def test_the_fall_since_a_tenth_of_the_run_is_that_which_was_planted(findings):
    falls = findings.tables["falls"].set_index(["run", "split", "part"]).loc["small-cosine@0", "id"]
    assert falls.fall[["early", "late"]].to_numpy() == pytest.approx([1.0, 1.0], abs=0.01)
    gap = falls.loc["late minus early"]
    assert gap.fall_low < 0 < gap.fall_high


def test_at_the_last_checkpoint_the_planted_law_is_nearer_and_a_missing_estimate_is_left_out(tmp_path):
    surface = planted(tmp_path / "x", hyperbola(), noise=0.002)
    tested, compared = at_last_checkpoint(surface)
    assert tested.split.tolist() == ["id", "ood"]
    assert (tested.p > 0.05).all()
    assert (tested.p_position_power < 0.05).all()
    assert tested.a1.to_numpy() == pytest.approx([0.4, 0.4], rel=0.05)
    power = compared[compared.alternative == "position_power"]
    assert power.estimate.tolist() == ["plain", "additive"] * 2
    assert (power.held_out < power.held_out_alternative).all()
    without = surface.assign(loss_additive=surface.loss_additive * np.nan)
    assert set(at_last_checkpoint(without)[1].estimate) == {"plain"}


def test_every_figure_has_a_caption(findings):
    assert set(findings.figures) == set(findings.captions)


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_the_plan_is_a_sweep(scale):
    runs = read_sweep(EXPERIMENTS / "position_law" / "plans" / f"{scale}.yaml")
    assert len({(r.model.architecture, r.model.preset) for r in runs.values()}) >= 4
