"""The study of mixtures: losses are those of the half and target they name, costs add up, verdicts follow the plan."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import tsl_jax as tsl
from experiments.archive_runs import mean_over_positions
from experiments.mixture_selection import losses, repetition, strategies, study
from experiments.shared import Runs
from tsl_jax.selection.mixture_columns import worth
from tsl_jax.surface import validate_surface

DOMAINS = ("cloud", "dictionary", "linux", "tests")
POSITION, LEVELS = np.arange(1, 17), np.array([-0.2, -0.1, 0.1, 0.2])  # of four clusters of documents
SHARES = {
    "m0": (0.25, 0.25, 0.25, 0.25),
    "m1": (0.7, 0.1, 0.1, 0.1),
    "m2": (0.1, 0.7, 0.1, 0.1),
    "m3": (0.1, 0.1, 0.7, 0.1),
    "m4": (0.1, 0.1, 0.1, 0.7),
    "m5": (0.4, 0.3, 0.2, 0.1),
    "m6": (0.1, 0.2, 0.3, 0.4),
    "m7": (0.02, 0.02, 0.48, 0.48),
}
TOKENS = {"proxy": 1_000_000, "code": 1_000_000, "target": 3_000_000, "limited": 3_000_000}
LITTLE = 20_000  # tokens of a domain that the limited runs have


def planted(kind: str, shares: tuple[float, ...], seed: int) -> xr.Dataset:
    """A run whose loss on a domain falls with its share: 2.5 + 1/(1 + .3 i) + .3 (share tokens / 1e6)^-.3.

    Tokens of limited runs count by what they are worth in new ones.
    """
    tokens = np.unique(np.geomspace(5e4, TOKENS[kind], 20).round().astype(int))
    read = np.array(shares)[:, None] * tokens / 1e6
    if kind == "limited":
        read = read * worth(read * 1e6 / LITTLE)
    loss = 2.5 + (kind in ("proxy", "code")) + 0.3 * read[:, :, None] ** -0.3 + 1 / (1 + 0.3 * POSITION)
    loss = loss + 0.001 * np.random.default_rng(seed).standard_normal(loss.shape)
    plan = {"kind": "constant", "peak": 3e-3, "warmup_tokens": 0, "total_tokens": int(tokens[-1])}
    surface = tsl.from_losses(loss, tokens=tokens, position=POSITION, split=list(DOMAINS), schedule=plan)
    dims, count = ("split", "tokens", "cluster", "position"), 10.0
    of_text = 0.01 * np.random.default_rng(1).standard_normal((4, 4, len(POSITION)))
    of_text = LEVELS[:, None] + (of_text - of_text.mean(1, keepdims=True))[:, None]
    sums = count * (loss[:, :, None] + of_text)
    surface = surface.assign(cluster_sum=(dims, sums), cluster_count=(dims, np.full(sums.shape, count)))
    four = surface.cluster_count.sum("cluster").transpose("split", "tokens", "position")
    steps = {name: ("tokens", np.arange(len(tokens))) for name in ("step", "lr")}
    return surface.assign({"count": four, "loss_sum": surface.loss * four}).assign_coords(steps)


@pytest.fixture(scope="module")
def runs() -> Runs:
    surfaces, manifests = {}, {}
    for kind, seeds in (("proxy", 2), ("code", 1), ("target", 2), ("limited", 1)):
        for k, (mixture, shares) in enumerate(SHARES.items()):
            for seed in range(seeds):
                name = f"mix-{kind}-{mixture}@{seed}" if seeds > 1 else f"mix-{kind}-{mixture}"
                surfaces[name] = planted(kind, shares, 10 * k + seed)
                text = [f"{domain}@{share}" for domain, share in zip(DOMAINS, shares, strict=True)]
                small = kind in ("proxy", "code")
                manifests[name] = {
                    "config": {"data": {"text": text}},
                    "n_params": 25_000 if small else 222_000,
                    "flops_per_token": 1e6 if small else 4e6,
                    "total_tokens": TOKENS[kind],
                    "corpus": {"tokens": {domain: {"train": LITTLE} for domain in DOMAINS}},
                }
    return Runs(surfaces, manifests, "cpu")


def test_losses_are_of_their_half_and_their_target(runs):
    target, small = losses.group(runs, "target"), losses.group(runs, "proxy")
    assert target.shares.loc["m5"].tolist() == [0.4, 0.3, 0.2, 0.1]
    assert losses.targets_of(DOMAINS) == ["even", "code", "language"]
    assert losses.targets_of(("web", "books")) == ["even"]
    for weights in losses.TARGETS:
        own = list(losses.weights_of(weights, DOMAINS).values())
        assert sum(own) == pytest.approx(1)
        ends = target.ends("a", weights)
        read = 3 * np.array(SHARES["m5"])
        expected = 2.5 + float(np.dot(own, 0.3 * read**-0.3)) + float(np.mean(1 / (1 + 0.3 * POSITION)))
        assert ends["m5"] == pytest.approx(expected - 0.15, abs=2e-3)
        assert target.ends("b", weights)["m5"] == pytest.approx(expected + 0.15, abs=2e-3)
    assert small.ends("a", "even", ("0",))["m0"] != small.ends("a", "even")["m0"]
    assert 0 < target.seed_sd("b", "even") < 1e-3
    assert np.isnan(losses.group(runs, "code").seed_sd("b", "even"))


def test_costs_are_counted_in_full_runs_of_the_target(runs):
    target, small = losses.group(runs, "target"), losses.group(runs, "proxy")
    one = small.flops() / target.flops()
    assert one == pytest.approx(1 / 12)
    made = pd.Series(dtype=float)
    assert strategies.Strategy("x", 0.4, True, made).cost(small, target, 24, 6) == pytest.approx(48 / 12 + 2.4 + 0.6)
    assert strategies.Strategy("x", 0.1, False, made, 0).cost(small, target, 24, 6) == pytest.approx(2.4 + 0.9)
    with_them = strategies.Strategy("x", 0.0, False, made, 1).cost(small, target, 24, 6, evaluations=True)
    each = [g.flops(evaluations=True) for g in (small, target)]
    assert with_them == pytest.approx(24 * each[0] / each[1] + 1)


def test_a_forecast_that_was_refused_ranks_last_and_the_list_is_what_small_models_say():
    predicted = pd.Series({"a": np.nan, "b": 2.0, "c": 1.0})
    small = pd.Series({"a": 1.0, "b": 2.0, "c": 3.0})
    some = strategies.short_list(small, 2)
    assert some == ["a", "b"]
    assert strategies.ranked(strategies.Strategy("x", 0.1, True, predicted), list("abc"), some) == ["b", "a"]
    assert strategies.ranked(strategies.Strategy("x", 0.1, False, predicted), list("abc"), some) == ["c", "b", "a"]
    nothing = strategies.Strategy("x", 0.1, True, predicted * np.nan)
    assert strategies.ranked(nothing, list("abc"), some) == ["a", "b"]


def test_of_a_short_list_only_its_own_target_runs_are_seen(runs):
    small, target = losses.group(runs, "proxy"), losses.group(runs, "target")
    seen = strategies.runs_of(small, target, "even", ("m1", "m0"))
    of_target = seen.table[seen.table.n_params == target.facts["n_params"]]
    assert sorted(of_target.candidate) == ["m0", "m1"]
    asked = []
    constant = pd.Series(range(3), list("abc"), dtype=float)

    def of_list(listed: tuple[str, ...]) -> pd.Series:
        asked.append(listed)
        return constant

    one = strategies.Strategy("x", 0.1, True, constant, of_list=of_list)
    assert strategies.ranked(one, list("abc"), ["c", "b"]) == ["b", "c"]
    assert asked == [("b", "c")]


def test_the_study_finds_the_planted_best_and_judges_by_the_plan(runs, monkeypatch):
    monkeypatch.setattr(study, "HALVES", 40)
    monkeypatch.setattr(study, "RESAMPLES", 40)
    monkeypatch.setattr(strategies, "CUTOFFS", (0.4,))
    monkeypatch.setattr(study, "CUTOFFS", (0.4,))
    monkeypatch.setattr(repetition, "SEEN", (0, 4))
    monkeypatch.setattr(repetition, "DRAWS", 4)
    monkeypatch.setattr(study, "targets_of", lambda domains: ["even"])
    found = study.analyse(runs)
    table = found.tables["strategies"].set_index("strategy")
    for name in (study.SMALL, "loss at the cut-off", "forecast of the mean", "tsl select"):
        assert table.loc[name, "chosen"] == "m0"
        assert table.loc[name, "regret"] == 0
    assert table.loc["by chance", "regret"] > 0.02
    assert table.loc["tsl select, all mixtures", "spearman"] > 0.9
    assert [claim.verdict for claim in found.claims][1:3] == ["undecided", "undecided"]
    warned = found.tables["warnings"].set_index("order_by")
    assert warned.loc["small models, a tokenizer of code", "regret"] == 0
    repeated = found.tables["repetition"].set_index(["repeating", "counted"])
    assert repeated.sd_about_bias[4, True] < 0.7 * repeated.sd_about_bias[4, False]
    by_domain = found.tables["by_domain"]
    assert set(by_domain.domain) == set(DOMAINS)
    assert by_domain.a1.between(0.2, 0.45).all()
    assert set(found.figures) == {"ranks", "regret", "by_domain"}


def test_claims_follow_the_rule_of_the_plan():
    rows = [
        {"strategy": name, "cutoff": cutoff, "regret": 0.001, "regret_halves": lost, "cost": cost, "chosen": "m0"}
        for name, cutoff, lost, cost in (
            *((study.PAPER, c, 0.001, 5.0) for c in study.CUTOFFS),
            (study.SMALL, 0.0, 0.02, 5.0),
            ("loss at the cut-off, all mixtures", 0.1, 0.02, 3.3),
            (study.RACE, 0.1, 0.001, 3.0),
        )
    ]
    table = pd.DataFrame(rows).assign(target="even", spearman=0.9, seed_sd=0.001, judged=24, refused=0)
    low_high = {study.SMALL: (-0.02, -0.01), study.AT_CUTOFF: (0.001, 0.02)}
    apart = pd.DataFrame(
        [
            {"target": "even", "cutoff": c, "minus": other, "difference": sum(ends) / 2, "difference_low": ends[0]}
            | {"difference_high": ends[1], "better": 0.5, "worse": 0.5}
            for c in study.CUTOFFS
            for other, ends in low_high.items()
        ]
    )
    assert [claim.verdict for claim in study.claims(table, apart)] == ["agrees", "agrees", "differs", "agrees"]
    assert study.claims(table.assign(seed_sd=0.0004), apart)[0].verdict == "differs"
    assert study.claims(table, apart)[0].why == ""
    assert study.claims(table.assign(refused=17), apart)[0].why.startswith("The law refused 17 of 24 mixtures")
    dearer = table.assign(cost=table.cost.where(table.strategy != study.RACE, 9.0))
    assert study.claims(dearer, apart)[3].verdict == "differs"


def test_a_surface_summed_over_positions_keeps_its_mean(runs):
    surface = runs.surfaces["mix-target-m0@0"]
    one = validate_surface(mean_over_positions(surface))
    assert one.sizes["position"] == 1
    np.testing.assert_allclose(one.loss.values[..., 0], surface.loss.mean("position").values, rtol=1e-12)
    whole, half = losses.halves(surface).mean("position"), losses.halves(one).mean("position")
    np.testing.assert_allclose(half, whole, rtol=1e-12)
