"""The study of changes in mid-run, on planted surfaces: what an arm was given is what it is found to have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import tsl_jax as tsl
from experiments.mid_run_changes import study as program
from experiments.shared import Runs
from experiments.shared.surface_measures import final_errors
from tsl_jax.sweeps import read_sweep
from tsl_jax.training.timeline import resolve_timeline

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

TOTAL, SEEDS = 100_000, 3
TOKENS = np.unique(np.concatenate([np.geomspace(2000, 10_000, 6), np.linspace(10_000, TOTAL, 19)]).astype(int))
POSITION = np.arange(1.0, 17)
PLAN = {"kind": "constant", "peak": 1e-2, "warmup_tokens": 1000, "total_tokens": TOTAL, "final_ratio": 1.0}


def surface(seed: int, arm: int, after: np.ndarray | float) -> xr.Dataset:
    """A hyperbola whose level falls with tokens; beyond half of the run something is added."""
    random = np.random.default_rng(seed)
    level = 3 + 40 * TOKENS[:, None] ** -0.4 + 0.02 * random.standard_normal()
    loss = level + 1.5 / (1 + 0.4 * POSITION) + np.where(TOKENS[:, None] > TOTAL / 2, after, 0.0)
    noise = 3e-4 * np.random.default_rng((seed, arm)).standard_normal((2, *loss.shape))
    labels = {"tokens": TOKENS, "split": ["id", "ood"], "schedule": PLAN, "run": "planted"}
    return tsl.from_losses(np.stack([loss, loss + 0.5]) + noise, **labels)


@pytest.fixture(scope="module")
def runs() -> Runs:
    added = {"none": 0.0, "mixture": 0.1, "rollback": 0.0, "spike": 0.3 / (1 + 0.4 * POSITION)}
    surfaces = {
        f"change-{arm}@{seed}": surface(seed, k, effect)
        for k, (arm, effect) in enumerate(added.items())
        for seed in range(SEEDS)
    }
    return Runs(surfaces, {}, "cpu")


@pytest.fixture(scope="module")
def findings(runs: Runs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "METHODS", (tsl.baselines.POWER_LAW,))
        patch.setattr(program, "JUDGED", tsl.baselines.POWER_LAW.name)
        patch.setattr(program, "CUTOFFS", (0.4, 0.6))
        yield program.analyse(runs)


def test_what_a_change_adds_to_the_loss_is_found_in_pairs(findings):
    table = findings.tables["losses"].set_index(["split", "arm"])
    assert table.loc[("id", "mixture"), "at_end"] == pytest.approx(0.1, abs=1e-3)
    assert table.verdict["id"].to_dict() == {
        "mixture": "higher",
        "rollback": "no difference: equivalent",
        "spike": "higher",
    }
    assert abs(table.lm_sse_excess).max() < 1e-6


def test_the_parameter_that_moved_is_named(findings):
    law = findings.tables["law"]
    late = law[law["at"] == 1.0].set_index("arm").moves
    assert late.to_dict() == {"none": "", "mixture": "a2", "rollback": "", "spike": "a0"}
    assert set(law[law["at"] == 0.75].moves) == {""}  # the plan judges two places only


def test_a_forecast_from_before_the_change_misses_it_and_says_no_less(findings, runs):
    table = findings.tables["forecasts"].set_index(["split", "cutoff", "arm"])
    assert table.loc[("id", 0.4, "mixture"), "as_good"] == "worse"
    assert table.loc[("id", 0.4, "rollback"), "as_good"] == "as good"
    errors = [
        final_errors(runs.surfaces[f"change-{arm}@0"], tsl.baselines.POWER_LAW, 0.4)["id"][0]
        for arm in ("none", "mixture")
    ]
    assert errors[1] - errors[0] == pytest.approx(-0.1, abs=1e-3)  # the same past, another end


def test_figures_and_claims_are_made(findings):
    assert (
        set(findings.figures)
        == set(findings.captions)
        == {
            "differences",
            "parameters",
            "parameters_mixture",
            "by_position",
            "forecasts",
        }
    )
    assert [claim.verdict for claim in findings.claims][-1] == "agrees"


def test_arms_that_are_no_pairs_are_refused(runs):
    some = {name: curve for name, curve in runs.surfaces.items() if name != "change-spike@1"}
    with pytest.raises(ValueError, match=r"spike has the seeds \['0', '2'\]"):
        program.arms_of(Runs(some, {}, "cpu"))
    other = runs.surfaces | {"change-spike@1": runs.surfaces["change-spike@1"].isel(tokens=slice(3, None))}
    with pytest.raises(ValueError, match="measured at other tokens than its twin"):
        program.arms_of(Runs(other, {}, "cpu"))


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_every_arm_of_a_plan_is_measured_at_the_tokens_of_its_twin(scale):
    configs = read_sweep(EXPERIMENTS / "mid_run_changes" / "plans" / f"{scale}.yaml")
    timelines = {name: resolve_timeline(config) for name, config in configs.items()}
    tokens = {name: [line.tokens_at(step) for step in line.evaluations] for name, line in timelines.items()}
    assert len({tuple(arm_tokens) for arm_tokens in tokens.values()}) == 1
    config, ends = next(iter(configs.values())), next(iter(tokens.values()))
    steps = next(iter(timelines.values())).steps
    assert ends[-1] == config.tokens == steps * config.batch_size * config.context
