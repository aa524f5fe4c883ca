"""The experiments about temporal laws: planted surfaces come back, pairs and rules follow their plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import tsl_jax as tsl
from experiments.selection_cost import study as cost
from experiments.shared import laws_over_tokens as tl
from experiments.shared.cached_tables import cached
from experiments.shared.seeds_and_intervals import Interval
from experiments.shared.surface_measures import loss_on_clusters
from experiments.temporal_fit import study as fitting
from experiments.temporal_prediction import study as prediction
from tsl_jax.forecasting import position_route
from tsl_jax.sweeps import read_sweep

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

TOKENS, POSITION = np.geomspace(1e6, 1e8, 24), np.arange(1, 17)
CONSTANT = {"kind": "constant", "peak": 1.0, "warmup_tokens": 0, "total_tokens": int(1e8)}


def planted(level: float = 2.0) -> xr.Dataset:
    """a0 logarithmic, a1 and a2 hyperbolic in tokens: what `temporal` describes exactly."""
    million = TOKENS[:, None] / 1e6
    a0, a1 = 1 + 0.3 * np.log1p(0.5 * million), 0.3 + 2 / (1 + 0.2 * million)
    loss = a0 / (1 + a1 * POSITION) + level + 3 / (1 + 0.4 * million)
    return tsl.from_losses(loss[None], tokens=TOKENS, position=POSITION, split=["id"], schedule=CONSTANT)


@pytest.mark.parametrize("study", [cost.STUDY, fitting.STUDY, prediction.STUDY])
def test_studies_of_the_base_runs_share_their_plans(study):
    for scale in ("cpu", "gpu", "paper"):
        assert study.runs(scale) == read_sweep(EXPERIMENTS / "plans" / "base-runs" / f"{scale}.yaml")


# ------------------------------------------------------------------------------------------------------ temporal laws


def test_a_planted_surface_is_described_without_rest_and_held_out_checkpoints_too():
    learned = tl.stacked({"0": planted(), "7": planted(2.5)})
    assert learned.split.values.tolist() == ["id@0", "id@7"]
    half = learned.isel(tokens=slice(None, None, 2))
    curve = tl.position_surface("temporal", half, learned.tokens.values)
    assert curve is not None
    np.testing.assert_allclose(curve, learned.loss, atol=2e-5)
    for name in learned.split.values:
        scores = fitting.judged(*(part.sel(split=name).mean("position") for part in (learned.loss, curve, curve)), 9)
        assert min(scores[measure] for measure in fitting.MEASURES) > 1 - 1e-8
        assert fitting.of_surface(learned.loss.sel(split=name), curve.sel(split=name))["within_r2"] > 1 - 1e-8


def test_a_split_that_learns_nothing_from_context_is_not_described_and_leaves_the_others_alone():
    flat = planted()
    flat["loss"] = xr.ones_like(flat.loss) * (1 + flat.tokens / 1e8)
    learned = tl.stacked({"0": planted(), "1": flat})
    curve = tl.position_surface("temporal", learned, TOKENS)
    assert curve is not None
    assert np.isnan(curve.sel(split="id@1")).all()
    np.testing.assert_allclose(curve.sel(split="id@0"), learned.loss.sel(split="id@0"), atol=2e-5)
    nothing = tl.position_surface("temporal", learned.sel(split=["id@1"]), TOKENS)
    assert nothing is not None
    assert np.isnan(nothing).all()


def test_the_paper_law_is_refused_without_a_cosine():
    learned = tl.stacked({"0": planted()})
    assert tl.position_surface(position_route.Paper(), learned, TOKENS) is None
    with pytest.raises(ValueError, match="cosine"):
        position_route.described(learned, tsl.laws.Schedule.from_plan(CONSTANT), position_route.Paper())
    with pytest.raises(ValueError, match="checkpoints"):
        position_route.described(learned.isel(tokens=slice(3)))


def test_seeds_with_other_checkpoints_are_not_stacked():
    with pytest.raises(ValueError, match="seed 1"):
        tl.stacked({"0": planted(), "1": planted().isel(tokens=slice(None, None, 2))})


def test_measures_are_those_of_the_plan_by_hand():
    tokens = np.array([1.0, 2.0, 3.0, 4.0])
    observed = xr.DataArray([4.0, 3.0, 2.0, 1.0], {"tokens": tokens}, "tokens")
    scores = fitting.judged(observed, observed + np.eye(4)[0], observed + np.eye(4)[1], 2)
    assert scores["r2"] == pytest.approx(1 - 1 / 5)
    assert scores["r2_heldout"] == pytest.approx(1 - 1 / 2)  # of the second and the fourth: 3 and 1 about 2
    assert scores["r2_late"] == 1.0
    assert scores["bic"] == pytest.approx(4 * np.log(1 / 4) + 2 * np.log(4))
    surface = xr.DataArray([[1.0, 3.0], [2.0, 4.0]], {"tokens": [1, 2]}, ("tokens", "position"))
    off = fitting.of_surface(surface, surface + xr.DataArray([1.0, 0.0], dims="position"))
    assert off["surface_r2"] == pytest.approx(1 - 2 / 5)
    assert off["within_r2"] == pytest.approx(1 - 2 / 1)


def test_a_claim_agrees_only_where_every_interval_lies_above():
    above, across, below = Interval(2, 1, 3, 5), Interval(1, -1, 3, 5), Interval(-2, -3, -1, 5)
    assert fitting.above([above, above], 0) == "agrees"
    assert fitting.above([above, across], 0) == "undecided"
    assert fitting.above([above, below], 0) == "differs"


def test_free_numbers_are_counted_without_what_the_schedule_fixes():
    assert [tl.position_parameters(tl.BY_POSITION[name]) for name in ("paper", "temporal", "temporal_joint")] == [
        10,
        9,
        9,
    ]
    assert {law.name: law.parameters(None) for law in tl.OF_MEAN}["power"] == 3


# -------------------------------------------------------------------------------------------------------- predictions


def test_differences_are_paired_by_seed_and_refused_forecasts_leave_their_pair():
    seeds = ["0", "1", "2", "3"]
    rows = [
        {"runs": "a", "split": "id", "seed": seed, "cutoff": 0.1, "method": name, "error": float(k), "rmse": k + 1.0}
        for k, seed in enumerate(seeds)
        for name in prediction.NAMES
    ]
    table = pd.DataFrame(rows)
    table.loc[table.method == "paper", "rmse"] -= 0.5
    table.loc[(table.method == "paper") & (table.seed == "3"), ["rmse", "error"]] = np.nan
    difference = prediction.pairs(table).set_index(["method", "minus"]).loc[("paper", "power")]
    assert (difference.rmse, difference.rmse_low, difference.rmse_high) == pytest.approx((-0.5, -0.5, -0.5), abs=1e-12)
    assert (difference.seeds, difference.error, difference.rmse_better) == (3, 0.0, 1.0)


def test_the_verdict_needs_all_cut_offs():
    better, worse, open_one = Interval(-2, -3, -1, 5), Interval(2, 1, 3, 5), Interval(0, -1, 1, 5)
    assert prediction.verdict({0.1: better, 0.2: better}) == "agrees"
    assert prediction.verdict({0.1: worse, 0.2: open_one}) == "differs"
    assert prediction.verdict({0.1: worse, 0.2: better}) == "undecided"
    assert prediction.verdict({0.1: better, 0.2: open_one}) == "undecided"


def test_tables_are_made_once_and_again_when_the_losses_or_the_question_change(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"rows": pd.DataFrame({"seed": ["0"], "error": [np.nan], "x": [1 / 3]})}

    first = cached({"a": planted()}, "question", make, tmp_path)["rows"]
    again = cached({"a": planted()}, "question", make, tmp_path)["rows"]
    assert len(calls) == 1
    assert again.seed.tolist() == ["0"]
    assert np.isnan(again.error[0])
    assert again.x[0] == pytest.approx(first.x[0], abs=1e-15)
    cached({"a": planted()}, "another", make, tmp_path)
    cached({"a": planted(2.1)}, "question", make, tmp_path)
    assert len(calls) == 3


# --------------------------------------------------------------------------------------------------------------- cost


def clustered() -> xr.Dataset:
    """Eight clusters of different sizes and levels."""
    surface, count = planted(), np.arange(1.0, 9.0)
    losses = surface.loss.values[..., None, :] + np.arange(8)[:, None]  # (split, tokens, cluster, position)
    dims = ("split", "tokens", "cluster", "position")
    counts = np.broadcast_to(count[:, None], losses.shape)
    return surface.assign(cluster_sum=(dims, losses * counts), cluster_count=(dims, counts))


def test_subsets_of_documents_are_disjoint_and_all_of_them_give_the_plain_mean():
    surface, sets = clustered(), cost.subsets(8)
    assert {name: list(chosen) for name, (_, chosen) in sets.items()} == {
        "all": list(range(8)), "1a": [0, 1], "1b": [4, 5], "2a": [0, 1, 2, 3], "2b": [4, 5, 6, 7]
    }  # fmt: skip
    assert cost.clusters_of(surface) == 8
    with pytest.raises(ValueError, match="multiple of 4"):
        cost.subsets(6)
    weights = np.arange(1.0, 9.0)
    shift = (weights * np.arange(8)).sum() / weights.sum()
    np.testing.assert_allclose(loss_on_clusters(surface, range(8)), surface.loss + shift)
    np.testing.assert_allclose(loss_on_clusters(surface, [4]), surface.loss + 4)


def test_thinning_keeps_the_last_checkpoint():
    past = planted().isel(tokens=slice(10))
    assert cost.thinned(past, 4).tokens.values.tolist() == TOKENS[[1, 5, 9]].tolist()


def _forecasts(level: float) -> pd.DataFrame:
    """Subsets whose level is off by `level` in every run alike; wsd is forecast .01 too low."""
    rows = []
    for schedule, final in (("constant", 3.0), ("wsd", 2.8)):
        for seed in "012":
            for subset, quarters in (("all", 4), ("1a", 1)):
                value = final + (level if quarters == 1 else 0.0) - (0.01 if schedule == "wsd" else 0.0)
                row = {"runs": f"small-{schedule}", "split": "id", "seed": seed, "subset": subset, "quarters": quarters}
                row |= {"cutoff": 0.2, "every": 1, "checkpoints": 5, "method": cost.MAIN}
                rows.append(row | {"forecast": value, "final": final})
    return pd.DataFrame(rows)


def test_the_level_of_the_documents_counts_in_errors_and_cancels_in_differences():
    rows = _forecasts(0.5)
    table = cost.errors(rows, {("small-constant", "id"): 800.0, ("small-wsd", "id"): 800.0})
    row = table[(table.runs == "small-constant") & (table.quarters == 1)].iloc[0]
    assert (row.error, row.evaluated_tokens) == (pytest.approx(0.5), 1000.0)
    apart = cost.contrast_table(cost.contrasts(rows))
    assert apart.difference_error.tolist() == pytest.approx([0.01, 0.01])
    assert apart.excess.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert apart.right.tolist() == [1, 1]
    assert cost.recommended(apart, "small") == (1, 1)


def test_a_design_that_may_be_much_worse_is_not_recommended():
    rows = _forecasts(0.0)
    worse = (rows.subset == "1a") & (rows.runs == "small-wsd")
    rows.loc[worse, "forecast"] -= np.array([0.1, 0.0, 0.2])
    assert cost.recommended(cost.contrast_table(cost.contrasts(rows)), "small") == (1, 4)


def test_a_selection_costs_short_runs_their_evaluations_and_the_rest_of_the_winner():
    table = pd.DataFrame(
        {"runs": ["a"], "n_params": [1], "training_flops": [100.0], "evaluation_flops": [50.0], "checkpoints": [10]}
    ).assign(**{cost._until(share): int(20 * share) for share in cost.SHARES})  # dense at the start
    row = cost.selections(table, (2, 2)).set_index(["k", "share"]).loc[(4, 0.2)]
    assert row["all_to_end"] == 4 * 105
    assert row["full_evaluation"] == pytest.approx(4 * 20 + 4 * 4 * 5 + 80 + 5)
    assert row["thin_evaluation"] == pytest.approx(4 * 20 + 4 * 2 * 5 / 2 + 80 + 5)
