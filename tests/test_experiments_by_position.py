"""The study of forecasts by position: each case is what its name says, and verdicts follow the rule of the plan."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import tsl_jax as tsl
from experiments.by_position import study as program
from experiments.shared.seeds_and_intervals import Interval

TOKENS = np.linspace(1e5, 3e6, 24).round().astype(int)
PLAN = {"kind": "constant", "peak": 3e-3, "warmup_tokens": 0, "total_tokens": int(TOKENS[-1])}
LEVELS = np.array([-0.3, -0.1, 0.1, 0.3])  # of four clusters of documents


def planted(seed: int) -> xr.Dataset:
    """A run whose laws hold but for a little noise; ood lies a nat above id, clusters at LEVELS about the mean."""
    position, million = np.arange(1, 17), TOKENS[:, None] / 1e6
    loss = (1 + 0.1 * np.log1p(million)) / (1 + 0.3 * position) + 3 + 0.4 * million**-0.4
    loss = loss + 0.002 * np.random.default_rng(seed).standard_normal(loss.shape)
    both = np.stack([loss, loss + 1])
    surface = tsl.from_losses(both, tokens=TOKENS, position=position, split=["id", "ood"], schedule=PLAN)
    dims, count = ("split", "tokens", "cluster", "position"), 10.0
    sums = count * (both[:, :, None] + LEVELS[:, None])
    return surface.assign(cluster_sum=(dims, sums), cluster_count=(dims, np.full(sums.shape, count)))


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Two tiny runs by the default and by position, from 40 % of their tokens."""
    made = [
        {"runs": "small-constant", "seed": str(seed), "cutoff": 0.4, "method": name, **row}
        for seed in (0, 1)
        for name in (program.BASE, "annealing")
        for row in program.of_run(planted(seed), 0.4, program.METHODS[name])
    ]
    return pd.DataFrame(made)


def test_every_case_is_forecast_near_its_own_end(rows):
    assert rows.error.notna().all()
    assert rows.groupby(["seed", "method"]).case.count().unique().tolist() == [4 + 2 * len(program.QUARTERS)]
    exact = rows[rows.case != program.END]
    assert exact.error.abs().max() < 0.08  # the ends of the cases lie .1 to 1 apart
    assert set(rows.final_inside) <= {0.0, 1.0}


def test_the_level_of_a_quarter_counts_in_the_end_and_cancels_in_the_fall(rows):
    apart = rows.pivot(index=["seed", "method", "subset"], columns="case", values="error")
    level = {"1a": LEVELS[0], "1b": LEVELS[2]}
    for (_, _, subset), row in apart.loc[:, :, list(level)].iterrows():
        assert row[program.END] - row[program.FALL] == pytest.approx(level[str(subset)], abs=1e-9)


def test_by_position_is_the_forecast_of_the_library_and_a_law_of_the_mean_sees_its_positions_alone():
    surface, end = planted(0)[["loss"]], float(TOKENS[-1])
    past = surface.sel(tokens=surface.tokens <= 0.4 * end)
    everywhere = program.ranges(surface.sizes["position"])
    assert {case: places.tolist() for case, places in everywhere.items()} == {
        program.KNOWN: list(range(16)), program.LATE: [12, 13, 14, 15], program.EARLY: list(range(8))
    }  # fmt: skip
    shipped = tsl.forecast(past, end, method="annealing")
    draws = program.draws_of_end(program.METHODS["annealing"], past.sel(split="id"), end, everywhere[program.KNOWN])
    np.testing.assert_allclose(draws, shipped.draws.sel(split="id").values[:, 0], rtol=1e-12)
    late = past.isel(position=everywhere[program.LATE])
    others = past.copy(deep=True)
    others["loss"] = others.loss.where(others.position > 12, 9.0)
    draws = program.draws_of_end(program.METHODS[program.BASE], others.sel(split="id"), end, everywhere[program.LATE])
    np.testing.assert_allclose(draws, tsl.forecast(late, end).draws.sel(split="id").values[:, 0], rtol=1e-12)


def test_a_run_with_too_few_checkpoints_is_a_missing_forecast():
    past = planted(0).isel(tokens=slice(2)).sel(split="id")
    for name in (program.BASE, "annealing"):
        draws = program.draws_of_end(program.METHODS[name], past, float(TOKENS[-1]), np.arange(16))
        assert np.isnan(list(program.judged(draws, 3.0).values())).all()


def test_the_verdict_needs_the_margin_and_its_interval():
    better, slight, worse = (
        Interval(-0.02, -0.03, -0.01, 9),
        Interval(-0.004, -0.0045, -0.003, 9),
        Interval(1, 0.5, 2, 9),
    )
    wide = Interval(-0.02, -0.05, 0.01, 9)
    assert program.verdict({"a": worse, "b": better}) == "helps"
    assert program.verdict({"a": worse, "b": slight}) == "does not help"
    assert program.verdict({"a": worse, "b": wide}) == "undecided"
    assert program.verdict({"a": worse, "b": Interval(np.nan, np.nan, np.nan, 0)}) == "undecided"


def made_up(gain: float) -> pd.DataFrame:
    """Errors of four seeds under two schedules, one cut-off, all cases: `annealing` better by `gain`."""
    offsets = dict.fromkeys(program.METHODS, 0.2) | {"annealing": 0.2 - gain}
    made = pd.DataFrame(
        [
            {"runs": f"small-{schedule}", "seed": str(seed), "case": case, "subset": "all", "cutoff": 0.2}
            | {"method": name, "error": (-1) ** seed * (off + 0.001 * seed), "interval_score": off, "final_inside": 1.0}
            for schedule in ("constant", "wsd")
            for seed in range(4)
            for case in (program.KNOWN, *program.CASES)
            if case != program.SCHEDULES
            for name, off in offsets.items()
        ]
    )
    return pd.concat([made, program.schedule_differences(made)], ignore_index=True)


def test_claims_are_of_paired_differences_over_seeds():
    rows = made_up(0.03)
    table = program.comparisons(rows)
    row = table[(table.case == program.LATE) & (table.method == "annealing") & (table.minus == program.BASE)].iloc[0]
    assert (row.difference, row.difference_low, row.seeds) == (pytest.approx(-0.03), pytest.approx(-0.03), 4)
    assert row.score_difference == pytest.approx(-0.03)
    verdicts = {claim.claim: claim.verdict for claim in program.claims(table)}
    assert verdicts.pop(program.CASES[program.SCHEDULES]) == "differs"  # both schedules err alike: no difference
    assert list(verdicts.values()) == ["agrees"] * 5 + ["out of reach"]
    turned = {"difference": -table.difference, "difference_low": -table.difference_high, "difference_high": 0.04}
    assert {claim.verdict for claim in program.claims(table.assign(**turned))} == {"differs", "out of reach"}
    assert program.cells(rows).helps.sum() == 5 * 2
    assert program.by_method(rows).missing.sum() == 0
    assert program.larger(rows).pairs.min() == 4
    rows.loc[0, "error"] = np.nan
    refused = program.notes(rows, program.cells(rows))[2]
    assert refused.startswith(f"1 of {len(rows)} forecasts were refused, 0 of them by position")
