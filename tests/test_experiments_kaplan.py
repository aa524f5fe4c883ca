"""The study of Kaplan's laws, on runs drawn from laws of known constants: these come back, and verdicts follow."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from experiments.kaplan import claims, comparisons, fits, runs_table, study
from experiments.shared import Runs
from experiments.shared.labels import column
from tsl_jax.laws import KAPLAN_ND, KAPLAN_NS
from tsl_jax.models.config import resolve
from tsl_jax.models.cost import n_params
from tsl_jax.scaling import simulate, with_minimal
from tsl_jax.scaling.ladder import losses
from tsl_jax.sweeps import read_sweep

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
POSITION = np.arange(1, 9)
SIZES = {"1x8": 888.0, "1x16": 3312.0, "2x24": 14496.0, "2x48": 56640.0, "3x80": 233680.0, "4x128": 793344.0}
CRITICAL = {"B_star": 2e5, "alpha_B": 0.5}
NS = {"N_c": 1e8, "S_c": 30.0, "alpha_N": 0.09, "alpha_S": 0.7}
ND = {"N_c": 1e8, "D_c": 3e6, "alpha_N": 0.09, "alpha_D": 0.09 / 0.74}
NO_DROPOUT = {**ND, "alpha_D": 0.2}
NOISE = 0.002


def surface(loss: np.ndarray, tokens: np.ndarray, other: float | None = None, tilt: float = 0.0) -> xr.Dataset:
    """Losses (tokens,) as a surface: falling with position about the mean, on other texts at a constant offset."""
    shape = -0.3 * (np.log(POSITION) - np.log(POSITION).mean()) + tilt * (POSITION - POSITION.mean())
    by_position = loss[:, None] + shape
    splits, values = ["id"], [by_position]
    if other is not None:
        splits, values = ["id", "ood"], [by_position, by_position + other]
    each = np.stack(values)
    clusters = each[:, :, None, :] + np.array([0.0, 0.1])[:, None]
    data = {
        "loss": (("split", "tokens", "position"), each),
        "cluster_sum": (("split", "tokens", "cluster", "position"), clusters),
        "cluster_count": (("split", "tokens", "cluster", "position"), np.ones_like(clusters)),
    }
    coordinates = {"split": splits, "tokens": tokens.astype(int), "position": POSITION}
    coordinates |= {"step": ("tokens", tokens), "lr": ("tokens", np.ones_like(tokens))}
    attrs = {"schedule": {"warmup_tokens": float(tokens[0]) / 2}, "windows": {}}
    if other is not None:
        attrs["windows"] = {"ood": {"domains": ["books", "code"], "documents": 8, "stretches": 8}}
    return xr.Dataset(data, coordinates, attrs)


def planted() -> Runs:
    """Runs of every set, of laws with known constants and noise of .2 %."""
    random, surfaces, manifests = np.random.default_rng(0), {}, {}

    def add(name: str, size: float, batch: float, tokens: np.ndarray, loss: np.ndarray, **facts) -> None:
        noisy = loss * np.exp(NOISE * random.standard_normal())
        surfaces[name] = surface(noisy, tokens, facts.pop("other", None), facts.pop("tilt", 0.0))
        manifests[name] = {"n_params": size, "batch_tokens": batch, "config": {"unique_tokens": facts.pop("unique", 0)}}
        manifests[name]["model"] = {"dropout": 0.1 * ("dropout" in name)}
        manifests[name] |= facts

    def along(size: float, tokens: float, batch: float) -> tuple[np.ndarray, np.ndarray]:
        curve = simulate(size, tokens, batch, KAPLAN_NS, NS, CRITICAL, points=24)
        return curve.tokens.to_numpy(), curve.loss.to_numpy()

    for model, size in SIZES.items():
        for seed in (0, 1) if model == "2x24" else (0,):
            tokens, loss = along(size, 3e7 * (SIZES["2x24"] / size) ** 0.5, 2048)
            noise: dict[str, list[float]] = {"tokens": tokens.astype(int).tolist(), "training_loss": loss.tolist()}
            noise["noise_scale"] = (CRITICAL["B_star"] / loss ** (1 / CRITICAL["alpha_B"])).tolist()
            add(f"size-{model}@{seed}", size, 2048, tokens, loss, other=0.5, gradient_noise=noise)
    for batch in 2.0 ** np.arange(11, 18):
        tokens, loss = along(SIZES["2x24"], 3e3 * batch, batch)
        add(f"batch-2x24-{batch:.0f}", SIZES["2x24"], batch, tokens, loss)
    seen = np.geomspace(1e5, 4e6, 12)
    for model in ("1x16", "2x24", "2x48", "3x80"):
        for unique, (variant, law) in product((16e3, 32e3, 64e3, 128e3, 0), {"": NO_DROPOUT, "dropout-": ND}.items()):
            x = {"n_params": np.array([SIZES[model]]), "tokens": np.array([unique or seen[-1]])}
            floor = losses(KAPLAN_ND, x, np.array([[law[name] for name in KAPLAN_ND.params]]))[0, 0]
            stop = np.abs(np.log(seen / seen[6])) if unique else np.abs(np.log(seen / seen[-1]))
            name, loss = f"data-{model}-{variant}{unique:.0f}", floor * (1 + 0.1 * stop)
            add(name, SIZES[model], 1024, seen, loss, unique=int(unique))
    tokens, loss = along(SIZES["2x48"], 1e7, 2048)
    for name, worse in {"2x48-base@3": 1, "2x48-base@4": 1, "1x68": 1.005, "6x28": 1.01}.items():
        add(f"shape-{name}", SIZES["2x48"], 2048, tokens, loss * worse)
    add("arch-55k-lstm", SIZES["2x48"], 2048, tokens, loss + 0.1, tilt=0.05)
    add("arch-55k-universal", SIZES["2x48"], 2048, tokens, loss - 0.05)
    add("rate-2x48-twice", SIZES["2x48"], 2048, tokens, loss * 1.01)
    return Runs(surfaces, manifests, "cpu")


@pytest.fixture(scope="module")
def runs() -> Runs:
    return planted()


@pytest.fixture(scope="module")
def findings(runs: Runs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits, "RESAMPLES", 24)
        return study.analyse(runs)


def test_the_noise_scale_the_batches_and_the_best_sizes_give_back_their_constants(runs):
    table = runs_table.checkpoints(runs)
    noise = study.gradient_noise(runs, table)
    constants, draws = fits.noise_law(noise)
    assert constants["alpha_B"] == pytest.approx(CRITICAL["alpha_B"], rel=0.01)
    assert (np.abs(draws[:, 1] / CRITICAL["alpha_B"] - 1) < 0.02).all()
    curves = runs_table.of_set(table, "batch")
    points = pd.DataFrame(
        [
            {
                "loss": loss,
                "tokens": comparisons.reached(curve, loss),
                "steps": comparisons.reached(curve, loss) / batch,
            }
            for loss in fits.common_losses(curves)
            for batch, curve in curves.groupby("batch_tokens")
        ]
    )
    assert fits.critical_constants(points)[1] == pytest.approx(CRITICAL["alpha_B"], rel=0.1)
    minimal = with_minimal(runs_table.curves_of_sizes(table), CRITICAL)
    slopes, truth = (
        fits.slopes(fits.best_sizes(runs_table.by_budget(minimal, "pf_days_min"), CRITICAL)),
        fits.from_constants({**NS, **CRITICAL}),
    )
    assert sum(truth.values()) == pytest.approx(1)
    for name, exponent in truth.items():
        assert slopes[name] == pytest.approx(exponent, abs=0.02)
    exact = runs_table.envelope(runs_table.by_budget(minimal, "pf_days")).assign(
        loss=lambda t: (1e3 / t.pf_days) ** 0.06
    )
    np.testing.assert_allclose(fits.power_of(exact, "pf_days"), [1e3, 0.06], rtol=1e-6)


def test_the_base_of_the_shapes_is_the_run_of_that_size_where_none_is_named(runs):
    table = runs_table.checkpoints(runs)
    named = comparisons.shapes(table, 0.08)
    assert named.shape_name.tolist() == ["2x48 base", "1x68", "6x28"]
    np.testing.assert_allclose(named.above, [0, 0.005, 0.01], atol=3 * NOISE)
    other = comparisons.shapes(table[~table.run.str.contains("base")], 0.08)
    assert other.shape_name.tolist() == named.shape_name.tolist()
    np.testing.assert_allclose(other.above, [0, 0.005, 0.01], atol=3 * NOISE)


@pytest.mark.slow
def test_constants_of_planted_laws_come_back(findings):
    table = findings.tables["exponents"].set_index(["law", "quantity"])
    for (law, quantity), truth in {
        ("kaplan_ns", "alpha_N"): NS["alpha_N"], ("kaplan_ns", "alpha_S"): NS["alpha_S"],
        ("kaplan_nd", "alpha_N/alpha_D"): ND["alpha_N"] / ND["alpha_D"], ("critical_batch", "alpha_B"): 0.5,
        (study.WITHOUT_DROPOUT, "alpha_N/alpha_D"): NO_DROPOUT["alpha_N"] / NO_DROPOUT["alpha_D"],
    }.items():  # fmt: skip
        row = table.loc[(law, quantity)]
        assert row.value == pytest.approx(truth, rel=0.1), (law, quantity)
        assert row.value_low - 0.02 * truth <= truth <= row.value_high + 0.02 * truth, (law, quantity)
    batch = findings.tables["batch"]
    np.testing.assert_allclose(batch.b_crit, CRITICAL["B_star"] / batch.loss**2, rtol=0.15)
    np.testing.assert_allclose(batch.noise_scale.dropna() / batch.b_crit[batch.noise_scale.notna()], 1, rtol=0.2)


@pytest.mark.slow
def test_the_best_size_grows_as_its_constants_say(findings):
    quantities = findings.tables["allocation"].set_index("quantity")
    truth = fits.from_constants({**NS, **CRITICAL})
    for name, exponent in truth.items():
        assert quantities.from_constants[name] == pytest.approx(exponent, abs=0.04)
    assert quantities.fitted["n_params"] == pytest.approx(truth["n_params"], abs=0.12)
    assert quantities.paper_from_constants.round(2).tolist() == [0.68, 0.25, 0.07]
    assert sum(truth.values()) == pytest.approx(1)


@pytest.mark.slow
def test_verdicts_of_planted_runs(findings):
    found = [claim.verdict for claim in findings.claims]
    assert len(found) == 11
    assert [found[k] for k in (0, 2, 3, 4, 5, 6, 7, 8, 9, 10)] == ["agrees"] * 10
    assert found[1] != "differs"  # a sum of two powers is no power


def test_rules_tell_agreement_difference_and_neither():
    shapes = pd.DataFrame({"shape_name": ["a", "b"], "n_params": 5e4, "loss": 3.0, "above": [0.0, 0.02]})
    assert claims.shape(shapes, 0.01).verdict == "agrees"
    assert claims.shape(shapes.assign(above=[0.0, 0.045]), 0.01).verdict == "undecided"
    assert claims.shape(shapes.assign(above=[0.0, 0.06]), 0.01).verdict == "differs"
    ends = pd.DataFrame({"n_params": [1e3, 1e4], "observed": 3.0, "predicted": 3.0, "error": [0.04, -0.05]})
    assert claims.training_curves(ends).verdict == "undecided"
    assert claims.training_curves(ends * 2).verdict == "differs"
    empty = pd.DataFrame(columns=["pf_days_min", "n_params", "loss", "above_convergence"])
    assert claims.convergence(empty).verdict == "out of reach"


def test_a_phase_that_matters_for_other_text_is_no_constant_offset(runs):
    table = runs_table.checkpoints(runs)
    pairs = comparisons.offsets(runs, table)
    assert set(pairs.text) == {"books", "code"}
    same = comparisons.transfer(pairs)
    assert same.equivalence.tolist() == ["equivalent", "equivalent"]
    np.testing.assert_allclose(same.slope, 1, atol=1e-6)
    few = runs.surfaces["size-1x8@0"]
    few = few.assign_attrs(windows={"ood": {**few.attrs["windows"]["ood"], "documents": 5}})
    with pytest.raises(ValueError, match="5 documents for 8 excerpts of 2 texts in 2 clusters; ask for fewer excerpts"):
        comparisons.offsets(Runs({**runs.surfaces, "size-1x8@0": few}, runs.manifests, "cpu"), table)
    before_the_end = pairs.tokens < pairs.groupby("n_params").tokens.transform("max")
    early = pairs.assign(offset=pairs.offset + 0.2 * before_the_end)
    assert comparisons.transfer(early).equivalence.tolist() == ["different", "different"]


def test_early_stopping_takes_the_least_loss_and_the_envelope_the_least_over_sizes(runs):
    table = runs_table.checkpoints(runs)
    with_dropout = fits.grid(table)
    assert with_dropout.dropout.all()
    assert not fits.data_sets(table).dropout.any()
    undropped = fits.grid(table[~table.dropout])
    assert len(undropped) == len(with_dropout) == 20
    longest = runs_table.longest_ends(table)
    assert longest.model.nunique() == len(SIZES)
    assert (longest.groupby("model").tokens.nunique() == 1).all()
    stopped = runs_table.early_stops(runs_table.of_set(table, "data")).set_index("run")
    assert stopped.tokens["data-2x24-32000"] < stopped.tokens["data-2x24-0"]
    assert stopped.unique_tokens["data-2x24-32000"] == 32000
    sizes = runs_table.curves_of_sizes(table)
    frontier = runs_table.envelope(runs_table.by_budget(sizes, "pf_days"))
    assert (np.diff(frontier.loss) < 0).all()
    assert (np.diff(frontier.n_params) >= 0).all()
    assert frontier.n_params.nunique() > 3


def test_a_run_of_no_set_is_refused(runs):
    other = Runs({"depth-1": runs.surfaces["shape-1x68"]}, {"depth-1": runs.manifests["shape-1x68"]}, "cpu")
    with pytest.raises(ValueError, match=r"names of runs begin with size, data, .* found 'depth-1'"):
        runs_table.checkpoints(other)


@pytest.mark.slow
def test_every_figure_has_a_caption_and_every_column_words(findings):
    assert set(findings.figures) == set(findings.captions) == set(study.CAPTIONS)
    for table in findings.tables.values():
        assert [name for name in table if "_" in column(str(name))] == []


@pytest.mark.parametrize(("scale", "least", "most"), [("cpu", 768, 3.2e6), ("gpu", 9e4, 2.1e8), ("paper", 768, 1.6e9)])
def test_the_plan_is_a_sweep_of_every_set_and_of_the_sizes_it_says(scale, least, most):
    plan = read_sweep(EXPERIMENTS / "kaplan" / "plans" / f"{scale}.yaml")
    kinds = [name.removeprefix(f"{scale}-").split("-")[0] for name in plan]
    assert set(kinds) >= set(runs_table.SETS) - {"rate"}
    sizes = [
        n_params(resolve(config.model, vocabulary=512, context=config.context))
        for kind, config in zip(kinds, plan.values(), strict=True)
        if kind == "size"
    ]
    assert least <= min(sizes) <= 1.2e5
    assert most / 2 <= max(sizes) <= most
    assert any(config.noise_scale == "total" for config in plan.values())
    assert any(config.unique_tokens for config in plan.values())
