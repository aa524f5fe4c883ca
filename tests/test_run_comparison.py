"""`tsl compare`: groups of seeds, paired where they can be, with the intervals that they should have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import tsl_jax as tsl
from tsl_jax.cli import run_verb
from tsl_jax.diagnostics import compare_runs

TOKENS, POSITION = np.linspace(1e5, 2e6, 20).astype(int), np.arange(1, 9)


def run(level: float, noise: float = 0.0, end: int = 20, positions: int = 8, **attrs: Any) -> xr.Dataset:
    loss = level + 30 * TOKENS[:end, None] ** -0.3 + 0.5 / POSITION[None, :positions] + noise
    return tsl.from_losses(loss[None], tokens=TOKENS[:end], split=["id"], **attrs)


def groups(
    difference: float, paired: bool, seeds: int = 5, seed: int = 0, same_noise: bool = False
) -> dict[str, dict[str, xr.Dataset]]:
    """A seed's noise is shared by both arms, and each has a little of its own."""
    rng = np.random.default_rng(seed)
    shared, own = 0.02 * rng.standard_normal(seeds), 0.002 * rng.standard_normal((2, seeds))
    names = [list(map(str, range(seeds))), [str(k + 0 if paired else k + 100) for k in range(seeds)]]
    of_arm = [shared, shared if paired or same_noise else 0.02 * rng.standard_normal(seeds)]
    return {
        arm: {name: run(3 + k * difference, of_arm[k][j] + own[k, j]) for j, name in enumerate(names[k])}
        for k, arm in enumerate(("plain", "new"))
    }


def test_pairs_see_what_independent_groups_do_not() -> None:
    paired, apart = (compare_runs(groups(-0.006, pairs, same_noise=True)).table.loc["new"] for pairs in (True, False))
    assert paired.pairs == 5
    assert apart.pairs == 0
    assert paired.difference == pytest.approx(apart.difference)
    assert paired.high < 0
    assert apart.low < 0 < apart.high
    assert "surely lower" in paired.verdict
    assert "not surely lower" in apart.verdict


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_hold_the_difference_as_often_as_they_say(paired: bool) -> None:
    held = []
    for seed in range(200):
        row = compare_runs(groups(0.01, paired, seeds=4, seed=seed), level=0.9).table.loc["new"]
        held.append(row.low <= 0.01 <= row.high)
    assert 0.84 <= np.mean(held) <= 0.97


def test_tokens_to_match_and_equal_compute() -> None:
    table = compare_runs(
        {"a": {"": run(3.0, flops_per_token=100)}, "b": {"": run(2.9, flops_per_token=200)}}, tokens=2e6
    ).table
    truth = (30 * 2e6**-0.3 + 0.1) / 30
    assert table.loc["b"].tokens_to_match == pytest.approx(truth ** (-1 / 0.3), rel=0.02)
    assert table.loc["b"].speed == pytest.approx(2e6 / table.loc["b"].tokens_to_match)
    assert table.loc["b"].loss_at_flops == pytest.approx(2.9 + 30 * 1e6**-0.3 + 0.5 * np.mean(1 / POSITION), abs=1e-3)
    assert np.isnan(table.loc["a"].loss_at_flops)


def test_runs_of_unequal_length_are_compared_where_both_have_losses_and_by_position() -> None:
    comparison = compare_runs({"a": {"": run(3.0)}, "b": {"": run(3.05, end=12)}})
    assert comparison.tokens == TOKENS[11]
    assert comparison.table.loc["b"].difference == pytest.approx(0.05)
    assert comparison.by_position is not None
    np.testing.assert_allclose(comparison.by_position.sel(group="b"), 0.05)
    assert "one run each does not tell" in comparison.table.loc["b"].verdict
    assert compare_runs({"a": {"": run(3.0, positions=1)}, "b": {"": run(3.1, positions=1)}}).by_position is None


# Published worked cases of the speedruns' rule, (3.28 - mean) sqrt(n) >= .004: losses, and the statistic they state.
RECORDS = {
    "16 seeds at step 3148": (
        (3.27888, 3.27934, 3.28172, 3.27806, 3.27840, 3.27796, 3.27715, 3.27835, 3.27760, 3.27729, 3.28080, 3.27650,
         3.27822, 3.27977, 3.27832, 3.27924),
        0.0056,
    ),
    "11 seeds at step 3050": (
        (3.27806, 3.28110, 3.27866, 3.27724, 3.27834, 3.27795, 3.27896, 3.28001, 3.27837, 3.27867, 3.27877),
        0.00418196,
    ),
    "5 seeds at step 3040": ((3.27865, 3.27793, 3.27937, 3.27673, 3.27805), 0.00414567),
    "one run": ((3.27523,), 0.00477),
    "9 seeds at step 3200, which fail": ((3.27885,) * 9, 0.00345),
}  # fmt: skip


def ended(losses: Sequence[float], steps: int = 1000) -> dict[str, xr.Dataset]:
    return {str(k): tsl.from_losses(np.array([[[loss]]]), tokens=[steps]) for k, loss in enumerate(losses)}


@pytest.mark.parametrize("name", RECORDS)
def test_published_records_of_the_speedruns_are_judged_as_they_were(name: str) -> None:
    losses, statistic = RECORDS[name]
    row = compare_runs({"record": ended(losses)}, target=3.28, sd=0.0013).table.loc["record"]
    assert (3.28 - row.loss) * np.sqrt(row.runs) == pytest.approx(statistic, abs=2e-8)
    assert row.p_target == pytest.approx(stats.norm.sf(statistic / 0.0013), rel=1e-4)
    assert (row.p_target < 0.00105) == (statistic >= 0.004)  # 3.09 x .0013 = .00402, which they round to .004


def test_a_published_p_is_met_and_an_estimated_sd_is_more_careful() -> None:
    row = compare_runs({"record": ended([3.278540625] * 16)}, target=3.28, sd=0.0016).table.loc["record"]
    assert row.p_target == pytest.approx(0.000131920034357, rel=1e-6)
    losses = RECORDS["5 seeds at step 3040"][0]
    known = compare_runs({"record": ended(losses)}, target=3.28, sd=0.0013).table.loc["record"]
    estimated = compare_runs({"record": ended(losses)}, target=3.28).table.loc["record"]
    assert known.p_target < 0.001 < estimated.p_target < 0.05


def falling(end: int, level: float, seed: int, slope: float = 1e-5) -> xr.Dataset:
    """A run of `end` steps that loses `slope` a step at its end, whose loss at step 3,000 is `level`."""
    steps = np.arange(250, end + 1, 125)
    noise = 0.0013 * np.random.default_rng(seed).standard_normal() + 1e-5 * np.random.default_rng(seed).standard_normal(
        len(steps)
    )
    loss = level - slope * (steps - 3000) + noise
    return tsl.from_losses(loss[None, :, None], tokens=steps)


def test_runs_of_unequal_length_are_carried_to_one_step_by_their_slope() -> None:
    groups = {
        "plain": {str(k): falling(3250, 3.2805, k) for k in range(10)},
        "new": {str(k): falling(3000, 3.2805, 100 + k) for k in range(8)},
    }
    given = compare_runs(groups, sd=0.0013, own_ends=True, slope=1e-5)
    row, ends = given.table.loc["new"], [float(run.loss[0, -1, 0]) for run in groups["new"].values()]
    own = [float(run.loss[0, -1, 0]) for run in groups["plain"].values()]
    assert row.difference == pytest.approx(np.mean(ends) - 1e-5 * 250 - np.mean(own))  # 250 steps fewer
    assert row.weighted == pytest.approx(row.difference / np.sqrt(1 / 10 + 1 / 8))
    assert abs(row.weighted) < 0.004  # the same curves: no record by their rule
    better = {**groups, "new": {str(k): falling(3000, 3.2775, 100 + k) for k in range(8)}}
    assert compare_runs(better, sd=0.0013, own_ends=True, slope=1e-5).table.loc["new"].weighted < -0.004
    estimated = compare_runs(better, own_ends=True)
    (fall, error) = estimated.slopes["new"]
    assert fall == pytest.approx(1e-5, abs=4 * error)
    assert 0 < error < 2e-7
    assert estimated.table.loc["new"].high < 0
    assert "at each run's own end, carried to 3,250 tokens by the fall a token: plain 1e-05" in estimated.report()
    with pytest.raises(ValueError, match="nor a slope without own_ends"):
        compare_runs(groups, slope=1e-5)
    with pytest.raises(ValueError, match="has no slope at its end; give it"):
        compare_runs({"a": ended([3.0]), "b": ended([3.1])}, own_ends=True)


CURVES = Path(os.environ.get("TSL_JAX_CURVES", "none"))


@pytest.mark.skipif(not CURVES.is_dir(), reason="TSL_JAX_CURVES names no folder of public loss curves")
def test_public_optimizer_races_are_compared_at_their_own_ends() -> None:
    races = {
        name: {run: surface.sel(split=["val_loss"]) for run, surface in tsl.read_log(folder).surfaces.items()}
        for name, folder in (
            (name, CURVES / "modded_nanogpt" / name) for name in ("20260430_muonh", "20260430_normuonh")
        )
    }
    for options in ({"sd": 0.0013}, {}):
        made = compare_runs(races, own_ends=True, **options)
        row = made.table.loc["20260430_normuonh"]
        assert made.tokens == 3325
        assert row.high < 0  # 50 steps fewer to the same loss, which is what was claimed for it
        assert 1e-6 < made.slopes["20260430_muonh"][0] < 3e-4


def test_the_rule_of_the_speedruns_by_hand() -> None:
    """Runs of sd .0013: a mean .004 nats below the target over sqrt(n) is p < .001, one-sided (3.09 sd)."""
    losses = [3.2781, 3.2769, 3.2788, 3.2774]
    runs = {str(k): tsl.from_losses(np.array([[[value]]]), tokens=[1000]) for k, value in enumerate(losses)}
    row = compare_runs({"record": runs}, target=3.28, sd=0.0013).table.loc["record"]
    z = (3.28 - np.mean(losses)) * 2 / 0.0013
    assert z > 3.09
    assert row.p_target == pytest.approx(stats.norm.sf(z))
    assert row.p_target < 0.001
    estimated = compare_runs({"record": runs}, target=3.28).table.loc["record"]
    assert estimated.p_target > row.p_target  # the sd of four runs is itself not known
    with_sd = compare_runs({"a": {"": run(3.0)}, "b": {"": run(3.002)}}, sd=0.0013).table.loc["b"]
    assert with_sd.high - with_sd.low == pytest.approx(2 * 1.96 * 0.0013 * np.sqrt(2), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": {"a": {"": run(3.0)}}}, "two groups of runs or more"),
        ({"margin": -1.0}, "margin must be a positive number"),
        ({"tokens": 1e9}, "every run has losses up to 2,000,000 tokens"),
        ({"split": "none"}, "has the splits id, found 'none'"),
        ({"level": 1.5}, "between .5 and 1"),
    ],
)
def test_requests_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    both = {"a": {"": run(3.0)}, "b": {"": run(3.1)}}
    with pytest.raises(ValueError, match=message):
        compare_runs(**({"groups": both} | arguments))


def test_a_folder_of_runs_is_compared_by_one_word(tmp_path: Path, capsys: Any) -> None:
    for arm, of_seed in groups(-0.006, True).items():
        for seed, surface in of_seed.items():
            tsl.save_surface(surface, tmp_path / "sweep" / f"{arm}@{seed}.npz")
    out = tmp_path / "compared.csv"
    arguments = [str(tmp_path / "sweep"), "--against", "plain", "--margin", "0.02", "--out", str(out)]
    assert run_verb("compare", arguments, debug=False) == 0
    printed = capsys.readouterr().out
    assert "new: surely lower" in printed
    assert "within 0.02 nats" in printed
    assert len(out.read_text().splitlines()) == 3
    assert run_verb("compare", [*arguments[:-1], str(tmp_path / "figure.png")], debug=False) == 0
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert run_verb("compare", [str(tmp_path), "--against", "x"], debug=False) == 2
