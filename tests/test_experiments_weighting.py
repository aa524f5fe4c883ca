"""Studies over seeds, on values whose truth is known: equivalence, bands, rates of fall, and paired arms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from experiments.learning_dynamics import study as dynamics
from experiments.position_weighting import downstream
from experiments.position_weighting import study as weighting
from experiments.shared import paired_differences, seeds_and_intervals
from experiments.shared.surface_measures import in_bands


def test_equivalence_needs_small_differences_and_little_noise():
    tight = np.array([0.001, -0.002, 0.0, 0.002, -0.001])
    assert paired_differences.equivalence(tight, 0.01).verdict == paired_differences.EQUIVALENT
    assert paired_differences.equivalence(tight + 0.05, 0.01).verdict == paired_differences.DIFFERENT
    assert paired_differences.equivalence(20 * tight, 0.01).verdict == paired_differences.UNDECIDED
    assert paired_differences.equivalence(tight[:1], 0.01).verdict == paired_differences.UNDECIDED
    with pytest.raises(ValueError, match="margin must be positive"):
        paired_differences.equivalence(tight, 0.0)


def test_an_effect_of_the_detectable_size_is_found_with_the_planned_power():
    random, n = np.random.default_rng(0), 5
    drawn = paired_differences.detectable(1.0, n) + random.standard_normal((4000, n))
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / np.sqrt(n))
    power = np.mean(np.abs(t) > paired_differences.stats.t.ppf(0.975, n - 1))
    assert power == pytest.approx(0.8, abs=0.03)


def test_holm_is_no_smaller_than_p_and_keeps_its_order():
    p = np.array([0.01, 0.5, 0.02])
    np.testing.assert_allclose(paired_differences.holm(p), [0.03, 0.5, 0.04])


@pytest.mark.parametrize("common", [0.0, 0.9])
def test_simultaneous_bands_hold_the_whole_curve(common, monkeypatch):
    monkeypatch.setattr(seeds_and_intervals, "DRAWS", 200)
    random, inside = np.random.default_rng(0), []
    for k in range(60):
        shared = np.sqrt(common) * random.standard_normal((5, 1))
        band = seeds_and_intervals.bands(shared + np.sqrt(1 - common) * random.standard_normal((5, 16)), 0.9, seed=k)
        inside.append(((band.low <= 0) & (band.high >= 0)).all())
        assert (band.low <= band.pointwise_low).all()
    assert np.mean(inside) > 0.78  # .9 within three standard errors


def curves(slopes: np.ndarray) -> xr.DataArray:
    """Losses (tokens, position) that fall by these slopes for each e-fold of tokens."""
    tokens = np.geomspace(1e4, 1e6, 12)
    return xr.DataArray(
        5 - np.log(tokens)[:, None] * slopes,
        {"tokens": tokens, "position": np.arange(1, len(slopes) + 1)},
        ("tokens", "position"),
    )


def test_rates_are_the_slopes_and_bands_of_positions_their_means():
    slopes = np.linspace(0.1, 0.8, 8)
    rates = dynamics.rates(curves(slopes))
    np.testing.assert_allclose(rates, slopes, rtol=1e-10)
    np.testing.assert_allclose(in_bands(rates), [0.1, 0.2, 0.35, 0.65], rtol=1e-10)
    np.testing.assert_allclose(dynamics.relative(rates).mean(), 0, atol=1e-12)


def test_equal_rates_are_found_the_same_and_others_different():
    noise = 1e-3 * np.random.default_rng(0).standard_normal((6, 8))
    same = xr.DataArray(noise, dims=("seed", "position"))
    assert dynamics.judged(same, 0.1)["verdict"] == "same"
    assert dynamics.judged(same + 0.3, 0.1)["verdict"] == "different"


def surface(shift: float, seed: int) -> xr.Dataset:
    """Two splits, two checkpoints, four clusters; the second half of the clusters is lower by `shift`."""
    random = np.random.default_rng(seed)
    loss = 4 + 1e-3 * random.standard_normal((2, 2, 4, 8))
    loss[:, :, 2:] -= shift
    dims = ("split", "tokens", "cluster", "position")
    coordinates = {"split": ["id", "ood"], "tokens": [10, 20], "position": np.arange(1, 9)}
    return xr.Dataset({"cluster_sum": (dims, 3 * loss), "cluster_count": (dims, np.full(loss.shape, 3.0))}, coordinates)


def test_arms_are_compared_by_seed_on_their_own_half_of_the_documents():
    arms = {"uniform": {"0": surface(0, 0), "1": surface(0, 1)}, "tail-4": {"0": surface(0.2, 2), "1": surface(0.2, 3)}}
    final = weighting.differences(arms, "tail-4").mean(("split", "position"))
    np.testing.assert_allclose(final, -0.2, atol=2e-3)
    developed = weighting.differences(arms, "tail-4", weighting.DEVELOPMENT).mean(("split", "position"))
    np.testing.assert_allclose(developed, 0, atol=2e-3)


def test_the_best_learning_rate_is_chosen_and_a_plan_with_another_is_refused():
    developed = weighting.development(
        {"weights-linear-lr0.002@50": surface(0, 0), "weights-linear-lr0.005@50": surface(0, 0) * 0.5}
    )
    assert weighting.arm_rate_seed("weights-head-0.1-lr0.03@4") == ("head-0.1", 0.03, "4")
    rates = weighting.chosen(developed)
    assert set(rates) == {"linear"}
    runs = weighting.Runs({"weights-linear-lr0.9@0": surface(0, 0)}, {}, "cpu")
    with pytest.raises(ValueError, match="development chose"):
        weighting.final_runs(runs, rates)


def test_the_true_continuation_is_among_those_of_other_documents():
    documents = np.arange(12) // 2  # two windows of each
    tokens = 100 * documents[:, None] + np.arange(41)  # of every token the hundreds say its document
    part = downstream.windows.Windows(tokens.astype(np.int32), documents, np.arange(12), np.zeros(12), {}, 6, 12)
    made = downstream.items({"a": part})
    assert made.shape == (12, 4, 41)
    first = 41 - downstream.CONTINUATION
    np.testing.assert_array_equal(made[:, 0], tokens)
    np.testing.assert_array_equal(made[:, :, :first], np.repeat(tokens[:, None, :first], 4, axis=1))
    of_choice = made[:, :, first:] // 100
    assert (of_choice == of_choice[:, :, :1]).all()  # one document a choice
    assert (of_choice[:, 1:, 0] != documents[:, None]).all()
    one = downstream.windows.Windows(tokens, np.zeros(12, int), np.arange(12), np.zeros(12), {}, 1, 12)
    with pytest.raises(ValueError, match="of 1 documents, 4 are needed"):
        downstream.items({"a": one})


def test_the_continuation_of_the_least_loss_is_taken():
    losses = np.ones((3, 4, 40))
    losses[:, :, : 40 - downstream.CONTINUATION] = 50.0 * np.arange(4)[:, None]  # the context does not count
    losses[0, 0] -= 0.5
    losses[1, 2] -= 0.5
    found = downstream.scores(losses)  # an item whose choices are all alike is not got right
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["continuation_loss"] == pytest.approx((0.5 + 1 + 1) / 3)


def test_accuracies_are_compared_by_seed():
    arms = {"uniform": dict.fromkeys("0123"), "inverse_loss": dict.fromkeys("0123")}
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "accuracy": 0.3 + 0.05 * int(seed) + 0.02 * (arm != "uniform"),
            "continuation_loss": 4.0,
        }
        for arm in arms
        for seed in reversed("0123")
    ]
    noise = 1e-4 * np.random.default_rng(0).standard_normal(len(rows))
    measured = pd.DataFrame(rows).assign(accuracy=lambda table: table.accuracy + noise)
    found = weighting.downstream_table(arms, measured).iloc[0]
    assert found.accuracy == pytest.approx(0.02, abs=3e-4)
    assert found.verdict == "gain"
    claim = weighting.larger_claims(measured.iloc[:0], weighting.downstream_table(arms, measured))[0]
    assert claim.verdict == "differs"


def test_arms_of_every_plan_are_named_alike():
    for start in weighting.PLANS:
        assert weighting.arm_rate_seed(f"{start}gradient_noise-lr0.0125@60") == ("gradient_noise", 0.0125, "60")


def test_a_folder_without_runs_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["downstream", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        downstream.main()
    assert ended.value.code == 2
    assert f"{tmp_path} has no run larger-weights-* that is not measured yet" in capsys.readouterr().err
