"""Weights over positions: one text names them, functions are tried first, adaptive ones survive a stop."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from training_material import at, interrupt_me, small_run, write_words

from tsl_jax import position_weight_rules, surface
from tsl_jax.commands import options
from tsl_jax.commands.train import TrainCommand
from tsl_jax.laws import HYPERBOLIC
from tsl_jax.training import run_dir
from tsl_jax.training.checks import validate_config
from tsl_jax.training.config import TrainConfig, config_hash, from_dict, to_dict
from tsl_jax.training.loop import train
from tsl_jax.training.position_weights import adaptive, gradient_noise, sources, updates
from tsl_jax.training.position_weights.weights import PositionWeights, mean_one
from tsl_jax.training.timeline import resolve_timeline

STATIC = {
    "uniform": PositionWeights(),
    "linear": PositionWeights.linear(),
    "head:16@0.1": PositionWeights.head(16),
    "tail:32@4": PositionWeights.tail(32, 4.0),
    "middle:33-64@0.1": PositionWeights.middle(33, 64),
}
ADAPTIVE = ("inverse_loss", "learnable_excess", "gradient_noise")
OWN_RULE = "def rule(observed):\n    return observed.loss ** -2\n"


def observed(
    loss: np.ndarray,
    noise: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    losses: np.ndarray | None = None,
) -> adaptive.Observed:
    n = len(loss)
    weights = np.ones(n) if weights is None else weights
    losses = loss[None] if losses is None else losses
    return adaptive.Observed(np.arange(1, n + 1), loss, 100, 1000, noise, weights, losses)


@pytest.mark.parametrize("text", [*STATIC, *ADAPTIVE])
def test_one_text_names_the_rule_in_files_and_on_the_command_line(text: str, tmp_path: Path) -> None:
    rule = STATIC.get(text, PositionWeights(text))
    assert PositionWeights.parse(text) == rule
    assert str(rule) == text
    config = from_dict(TrainConfig, {"position_weights": text})
    assert config.position_weights == rule
    assert to_dict(config)["position_weights"] == text
    command = options.parse(TrainCommand, "train", ["--out", str(tmp_path), "--position-weights", text])
    assert command.train.position_weights == rule


@pytest.mark.parametrize("text", STATIC)
def test_mapping_and_text_of_a_static_rule_are_one_run(text: str) -> None:
    rule = STATIC[text]
    mapping = {"kind": rule.kind, "k": rule.k, "a": rule.a, "b": rule.b, "factor": rule.factor}
    configs = [from_dict(TrainConfig, {"context": 128, "position_weights": value}) for value in (text, mapping)]
    assert configs[0] == configs[1]
    assert config_hash(configs[0]) == config_hash(configs[1])


def test_a_mapping_with_entries_that_do_not_matter_to_the_rule_keeps_its_hash_through_a_file() -> None:
    odd = from_dict(TrainConfig, {"position_weights": {"kind": "uniform", "k": 0, "a": 0, "b": 0, "factor": 4}})
    assert config_hash(from_dict(TrainConfig, to_dict(odd))) == config_hash(odd)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hed:16", r"'hed:16' are unknown; they are one of uniform, .*learnable_excess.* module:function"),
        ("head", "are unknown; they are one of"),
        ("head:1-3", "expected head:K, as head:16@0.1"),
        ("middle:3", "expected middle:A-B"),
        ("tail:3@much", "'much' after @ is no number"),
        ("none.npy", "cannot be read"),
        ("no_such_package.part:rule", "there is no module no_such_package.part; .*inverse_loss"),
        ("./none.py:rule", "cannot be read"),
    ],
)
def test_a_text_that_names_no_rule_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PositionWeights.parse(text)


@pytest.mark.parametrize("factor", ["-1", "nan", "inf"])
@pytest.mark.parametrize("rule", ["head:3", "tail:3", "middle:3-5"])
def test_a_factor_that_is_no_weight_is_refused_however_it_is_given(rule: str, factor: str) -> None:
    """Of a text on the command line, and of a mapping in YAML."""
    parsed = PositionWeights.parse(f"{rule}@{factor}")
    mapped = from_dict(TrainConfig, {"position_weights": asdict(parsed)}).position_weights
    for weights in (parsed, mapped):
        with pytest.raises(
            ValueError, match=f"position weights {rule}@{factor}.* gave weight .*; weights must be finite"
        ):
            weights.check(64)


def test_rules_named_by_the_module_they_used_to_be_in_are_found() -> None:
    rule = PositionWeights.parse("tsl_jax.weighting:inverse_loss")
    assert sources.load_rule(rule.kind, rule.source) is position_weight_rules.inverse_loss
    rule.check(64)


def test_files_give_one_weight_a_position(tmp_path: Path) -> None:
    raw = np.arange(1.0, 65.0)
    np.save(tmp_path / "w.npy", raw)
    np.savetxt(tmp_path / "w.csv", raw)
    (tmp_path / "w.json").write_text(json.dumps(raw.tolist()))
    hashes = set()
    for name in ("w.npy", "w.csv", "w.json"):
        config = from_dict(TrainConfig, {"position_weights": str(tmp_path / name)})
        validate_config(config)
        np.testing.assert_allclose(config.position_weights.values(64), raw / raw.mean())
        assert from_dict(TrainConfig, to_dict(config)) == config
        hashes.add(config_hash(config))
    assert len(hashes) == 3
    with pytest.raises(ValueError, match=r"gave shape \(64,\), expected \(32,\)"):
        validate_config(replace(config, context=32))


def test_a_file_belongs_to_the_run_by_its_content_not_its_place(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(64))
    shutil.copy(tmp_path / "a.npy", tmp_path / "b.npy")
    a, b = (from_dict(TrainConfig, {"position_weights": str(tmp_path / f"{name}.npy")}) for name in "ab")
    assert config_hash(a) == config_hash(b)
    np.save(tmp_path / "a.npy", np.arange(64.0))
    with pytest.raises(ValueError, match="are not those of this run"):
        validate_config(a)
    assert config_hash(from_dict(TrainConfig, {"position_weights": str(tmp_path / "a.npy")})) != config_hash(a)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return observed.loss[:-1]", r"rule .*own.py:rule gave shape \(63,\), expected \(64,\)"),
        ("return observed.loss * float('nan')", "gave weight nan at position 1; weights must be finite"),
        ("return -observed.loss", "weights must be finite, and 0 or more"),
        ("return 0 * observed.loss", "some weight must be left"),
        ("return 'heavy'", "gave str, expected 64 numbers"),
        ("return observed.los", "failed: AttributeError: .*made up"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_before_the_run(body: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"def rule(observed):\n    {body}\n")
    config = from_dict(TrainConfig, {"position_weights": f"{tmp_path}/own.py:rule"})
    with pytest.raises(ValueError, match=message):
        validate_config(config)


def test_answers_are_held_within_limits_at_mean_one() -> None:
    rng = np.random.default_rng(0)
    for raw in (rng.lognormal(0, 3, 128), np.eye(128)[0], np.r_[np.zeros(100), np.ones(28)], 1e300 * np.ones(5)):
        weights, _ = adaptive.apply_rule(lambda _, raw=raw: raw, "x", observed(np.ones(len(raw))))
        assert weights.min() >= 0.2
        assert weights.max() <= 5
        assert weights.mean() == pytest.approx(1, abs=1e-12)
        assert (np.diff(weights[np.argsort(raw)]) >= 0).all(), "the order of positions stays"


def test_the_excess_is_the_part_of_a_planted_law_that_falls() -> None:
    i = np.arange(1.0, 65.0, dtype=np.float32)
    weights, sentence = position_weight_rules.learnable_excess(
        observed(np.asarray(HYPERBOLIC(i, a0=3.0, a1=0.2, a2=2.0)))
    )
    np.testing.assert_allclose(weights, 3.0 / (1 + 0.2 * i), rtol=1e-5)
    assert sentence.startswith("converged: a0 3, a1 0.2, a2 2")


def test_the_excess_follows_a_law_that_no_single_update_shows() -> None:
    """Noise of 64 sequences; of updates before the later half nothing counts."""
    i = np.arange(1.0, 129.0)
    noise = np.random.default_rng(0).normal(0, 0.3, (24, 128))
    later = HYPERBOLIC(i, a0=3.0, a1=0.2, a2=2.0)[None] + noise
    losses = np.concatenate([np.full((24, 128), 9.0), later])
    weights, _ = position_weight_rules.learnable_excess(observed(losses[-1], losses=losses))
    expected = 1 / (1 + 0.2 * i)
    np.testing.assert_allclose(weights / weights.mean(), expected / expected.mean(), rtol=0.35)
    alone = position_weight_rules.learnable_excess(observed(losses[-1]))[0]
    error = [np.abs(np.log(w / w.mean() * expected.mean() / expected)).max() for w in (weights, alone)]
    assert error[0] < error[1] / 2


def test_the_excess_goes_as_one_over_i_where_the_fall_is_too_steep_for_a1() -> None:
    i = np.arange(1.0, 65.0)
    steep = np.where(i == 1, 9.0, 3.0 + 1 / i)
    weights, sentence = position_weight_rules.learnable_excess(observed(steep))
    assert sentence.startswith("upper_bound")
    np.testing.assert_allclose(weights / weights[0], 1 / i, rtol=1e-3)


def test_a_fit_that_is_not_usable_keeps_the_weights_and_says_so() -> None:
    before = np.linspace(0.5, 1.5, 64)
    flat = observed(np.full(64, 3.0), weights=before)
    weights, sentence = adaptive.apply_rule(position_weight_rules.learnable_excess, "x", flat)
    assert weights is before or np.array_equal(weights, before)
    assert sentence.startswith("weights kept: flat")


def test_losses_and_noise_weigh_inversely() -> None:
    loss, noise = np.array([4.0, 2.0, 1.0]), np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(position_weight_rules.inverse_loss(observed(loss)) * loss, 1)
    np.testing.assert_allclose(position_weight_rules.gradient_noise(observed(loss, noise)) * noise, 1)


def test_a_rule_by_the_noise_says_so_where_none_was_measured() -> None:
    with pytest.raises(ValueError, match=r"needs observed\.noise"):
        position_weight_rules.gradient_noise(observed(np.ones(4)))


@pytest.mark.parametrize("context", [1, 2, 16, 64, 128, 1000])
def test_bands_cover_every_position_once(context: int) -> None:
    bands = gradient_noise.bands(context)
    assert [i for first, last in bands for i in range(first, last + 1)] == list(range(1, context + 1))
    assert len(bands) <= 8


def test_noise_is_the_trace_of_the_covariance_of_the_bands_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against gradients of single microbatches, of a small model."""
    import jax

    from tsl_jax.models.build import build, hidden, unembedding
    from tsl_jax.models.config import ModelConfig, resolve
    from tsl_jax.training.objective import token_losses

    graphdef, params = build(resolve(ModelConfig(preset="tiny"), vocabulary=50, context=8), 0, None)
    tokens = np.random.default_rng(0).integers(0, 50, (16, 9)).astype(np.int32)
    first, last = gradient_noise.bands(8)[-1]

    def loss(params, batch):  # of the last band
        h = hidden(graphdef, params, batch[:, :-1])
        return token_losses(h, unembedding(params), batch[:, 1:])[:, first - 1 : last].mean()

    gradient = jax.jit(jax.grad(loss))
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient(params, tokens[m : m + 2]))]) for m in
            range(0, 16, 2)]  # fmt: skip
    trace = 2 * np.var(np.array(flat, np.float64), axis=0, ddof=1).sum()
    noise = gradient_noise.noise_by_position(gradient_noise.make_noise(graphdef), params, tokens, None)
    assert noise.shape == (8,)
    assert noise[-1] == pytest.approx((last - first + 1) * trace, rel=1e-3)


@pytest.fixture(name="config", scope="module")
def _config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = small_run(write_words(tmp_path_factory.mktemp("text")), evaluations=3)
    return replace(config, weight_updates=4, position_weights=PositionWeights("gradient_noise"))


@pytest.fixture(name="whole", scope="module")
def _whole(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config, tmp_path_factory.mktemp("whole") / "run")


def test_updates_begin_after_the_warm_up_and_go_on_evenly(config: TrainConfig) -> None:
    assert resolve_timeline(config).weight_updates == (1, 11, 21, 31)
    assert not resolve_timeline(replace(config, position_weights=PositionWeights())).weight_updates
    assert max(resolve_timeline(replace(config, weight_updates=400)).weight_updates) == 39


# Between two updates nothing is left to be made: the easier case.
@pytest.mark.parametrize("step", [11, pytest.param(16, marks=pytest.mark.slow)])
def test_a_stopped_run_ends_as_the_one_that_was_not(
    step: int, config: TrainConfig, whole: Path, tmp_path: Path
) -> None:
    """Stopped at an update, before it is made, and between two."""
    out, stop = tmp_path / "run", min(s for s in (11, 16, 21, 27, 31, 40) if s >= step)
    seen: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "train" and done >= stop and not seen:
            seen.append(done)
            interrupt_me()

    with pytest.raises(KeyboardInterrupt):
        train(config, out, progress=progress)
    # lines of updates after the checkpoint, as of a kill: they are forgotten, and a line cut short too
    later = [line for line in updates.read_lines(whole) if line["step"] >= seen[0]]
    with open(out / "weights.jsonl", "a") as file:
        file.write("".join(json.dumps({**line, "said": "of another time"}) + "\n" for line in later) + '{"step": 3')
    train(config, out, resume=True)
    assert (out / "weights.jsonl").read_bytes() == (whole / "weights.jsonl").read_bytes()
    assert surface.load_surface(out).loss.equals(surface.load_surface(whole).loss)
    assert run_dir.read_record(out)["probes"] == run_dir.read_record(whole)["probes"]


def test_a_run_without_its_updates_is_not_continued(config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config, out, progress=at("train", 11, interrupt_me))
    (out / "weights.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has updates at steps \[\], expected \[1\]; restore it"):
        train(config, out, resume=True)


def test_what_is_kept_of_the_updates(config: TrainConfig, whole: Path) -> None:
    weights = updates.read(whole)
    assert weights.dims == ("tokens", "position")
    assert weights.tokens.values.tolist() == [0, 64, 11 * 64, 21 * 64, 31 * 64]
    np.testing.assert_allclose(weights.mean("position"), 1)
    assert (weights[0] == 1).all()
    assert not (weights[1] == 1).all()
    record = run_dir.read_record(whole)["probes"]["weights"]
    assert record["tokens"] == weights.tokens.values.tolist()[1:]
    assert record["tokens_forward"] == 4 * 64 * 16
    assert record["tokens_forward_and_backward"] == 4 * len(gradient_noise.bands(16)) * 16 * 16


def test_the_steps_take_the_weights_of_the_last_update(config: TrainConfig, whole: Path, tmp_path: Path) -> None:
    """Several steps a call, accumulated; up to the first update the run is the plain one, afterwards another."""
    plain = train(replace(config, position_weights=PositionWeights()), tmp_path / "plain")
    several = train(replace(config, steps_per_call=3, accumulate=2), tmp_path / "several")
    lines = {
        run: [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, plain, several)
    }
    assert lines[whole][0] == pytest.approx(lines[plain][0], rel=1e-6)
    assert abs(lines[whole][2] - lines[plain][2]) > 1e-4
    np.testing.assert_allclose(lines[several], lines[whole], rtol=1e-3)


def test_a_rule_of_ones_own_weighs_a_run_and_cannot_change_under_it(config: TrainConfig, tmp_path: Path) -> None:
    rule = tmp_path / "own.py"
    rule.write_text(OWN_RULE)
    own = replace(config, position_weights=PositionWeights.parse(f"{rule}:rule"))
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(own, out, progress=at("train", 11, interrupt_me))
    rule.write_text(OWN_RULE.replace("-2", "-3"))
    with pytest.raises(ValueError, match="are not those of this run"):
        train(run_dir.read_config(out), out, resume=True)
    with pytest.raises(ValueError, match="holds a run with another configuration"):
        train(replace(own, position_weights=PositionWeights.parse(f"{rule}:rule")), out, resume=True)
    rule.write_text(OWN_RULE)
    train(run_dir.read_config(out), out, resume=True)
    line = updates.read_lines(out)[-1]
    np.testing.assert_allclose(line["weights"], mean_one(np.array(line["loss"]) ** -2.0, "", 16))
    assert line["noise"] is None
