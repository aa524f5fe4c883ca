"""Spikes: what is one, and that a run stops or goes back to the same bits however it is interrupted or called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_material import STEPS, at, interrupt_me, small_run, write_words

from tsl_jax import surface
from tsl_jax.data import corpora
from tsl_jax.training import bad_losses, programs, run_dir, setup, timeline
from tsl_jax.training.bad_losses import RECENT, LossRule
from tsl_jax.training.checks import validate_config
from tsl_jax.training.config import TrainConfig, config_hash, from_dict, to_dict
from tsl_jax.training.loop import train
from tsl_jax.training.timeline import resolve_timeline

PLANTED, FEW = 38, 16  # the step of a planted spike, in a run that compares with so few steps
FAILED = [(PLANTED - 1) * 4, PLANTED * 4]  # its sequences


def first_problem(losses: Any, sigmas: float) -> int | None:
    rule = LossRule(sigmas)
    return next((i for i, loss in enumerate(losses) if rule.problem(float(loss), 1.0)), None)


def a_training(seed: int, steps: int = 1000, noise: float = 0.15) -> np.ndarray:
    """Losses as training gives them: falling fast, then slowly, with the noise of batches, and a heavy tail of it."""
    rng = np.random.default_rng(seed)
    falling = 2.5 + 5.0 * np.exp(-np.arange(steps) / 100) + 1.5 * (1 + np.arange(steps)) ** -0.2
    return falling + noise * rng.standard_t(8, steps)


def test_ordinary_noise_is_no_spike_and_a_planted_one_is() -> None:
    for seed in range(4):
        losses = a_training(seed)
        assert first_problem(losses, 10.0) is None
        for place in (200, 500, 999):
            spiked = losses.copy()
            spiked[place] += 6.0 if place < 500 else 3.0  # while the loss falls fast the spread is wide
            assert first_problem(spiked, 10.0) == place


def test_what_a_spike_is() -> None:
    losses = [1.0, 3.0] * (RECENT // 2)  # median 2, spread 1.4826
    bound = 2.0 + 4.0 * 1.4826
    assert first_problem([*losses, bound - 1e-9], 4.0) is None
    assert first_problem([*losses, bound + 1e-9], 4.0) == RECENT
    assert first_problem([*losses, -100.0], 4.0) is None, "a loss that falls is none"
    assert first_problem([*losses[1:], 100.0], 4.0) is None, "too few before it"
    assert first_problem([*losses, 100.0], 0.0) is None, "not asked for"
    assert first_problem([2.0] * RECENT + [100.0], 4.0) is None, "no spread to compare with"
    assert first_problem([*losses, float("nan")], 0.0) == RECENT
    assert "is not finite" in LossRule(0.0).problem(1.0, float("inf"))
    rule = LossRule(4.0)
    rule.begin(losses)
    assert rule.problem(1e9, 1.0).startswith("is a spike")
    assert rule.problem(3.0, 1.0) == "", "the bad one is forgotten"


def test_losses_of_another_kind_are_not_compared() -> None:
    config = TrainConfig(tokens=64 * 8 * 400, evaluations=4, changes=(".25:batch=16", ".5:lr=.5", ".75:skip=2"))
    planned = resolve_timeline(config)
    assert [planned.comparable_since(step) for step in (0, 99, 100, 250)] == [0, 0, 100, 100]
    skipping = planned.skipping(120, 32)
    assert skipping.comparable_since(200) == 100, "after a rollback they are of the same kind"


@pytest.mark.parametrize("sigmas", [-1.0, 2.9, float("inf"), float("nan")])
def test_a_rule_that_every_run_would_break_is_refused(sigmas: float) -> None:
    with pytest.raises(ValueError, match=r"spike_sigmas must be 0, for none, or at least 3 and finite, found "):
        validate_config(TrainConfig(spike_sigmas=sigmas))


def test_a_run_without_the_rule_is_written_and_named_as_before() -> None:
    assert "spike_sigmas" not in to_dict(TrainConfig())
    assert from_dict(TrainConfig, to_dict(TrainConfig(spike_sigmas=8.0))).spike_sigmas == 8.0
    assert config_hash(TrainConfig(spike_sigmas=8.0)) != config_hash(TrainConfig()) == "2bc459cef835"


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(name="config", scope="module")
def _config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return replace(small_run(write_words(tmp_path_factory.mktemp("text"))), spike_sigmas=10.0)


@pytest.fixture(name="whole", scope="module")
def _whole(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a spike."""
    return train(replace(config, spike_sigmas=0.0), tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(name="few")
def _few_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs here are short; the rule by itself is tested with as many as it has."""
    monkeypatch.setattr(timeline, "FLUSH", 1)
    monkeypatch.setattr(bad_losses, "RECENT", FEW)


def plant(config: TrainConfig, patch: pytest.MonkeyPatch) -> None:
    """The loss of the batch of step PLANTED is 5 nats higher than it is, and the parameters after it are spoiled."""
    order = setup.DataOrder(resolve_timeline(config), corpora.load(config.data), config.seed, None)
    wild, make_step = order.batch(PLANTED - 1), programs.make_step

    def make(graphdef: Any, optimizer: Any, weights: Any, steps: int, *rest: Any) -> Any:
        step = make_step(graphdef, optimizer, weights, 1, *rest)

        def spiked(state: Any, given: Any) -> Any:
            bad = jnp.all(given == jnp.asarray(wild))
            state, metrics = step(state, given)
            params = jax.tree.map(lambda leaf: jnp.where(bad, leaf + 0.5, leaf), state.params)
            return state._replace(params=params), {**metrics, "loss": metrics["loss"] + jnp.where(bad, 5.0, 0.0)}

        return jax.jit(spiked if steps == 1 else lambda state, given: jax.lax.scan(spiked, state, given))

    patch.setattr(programs, "make_step", make)


def losses_of(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / run_dir.METRICS).read_text().splitlines()]


@pytest.mark.exact_bits
@pytest.mark.usefixtures("few")
def test_a_spike_stops_a_run_and_its_batch_is_recorded(config: TrainConfig, whole: Path, tmp_path: Path) -> None:
    spike = rf"at step {PLANTED} \(.*\) is a spike, .* standard deviations .* above .* the median of the {FEW} steps"
    with pytest.MonkeyPatch.context() as patch:
        plant(config, patch)
        with pytest.raises(ValueError, match=rf"{spike} before; sequences {FAILED[0]} to {FAILED[1] - 1} of the data"):
            train(config, tmp_path / "run")
    stopped = run_dir.read_record(tmp_path / "run")[run_dir.STOPPED]
    assert (stopped["failed_step"], stopped["failed_sequences"]) == (PLANTED, FAILED)
    assert losses_of(tmp_path / "run") == losses_of(whole)[: PLANTED - 1], "the good steps before it are kept"

    # where the cause is gone the run goes on, and a rule that finds nothing changes nothing
    train(config, tmp_path / "run", resume=True)
    assert run_dir.STOPPED not in run_dir.read_record(tmp_path / "run")
    assert losses_of(tmp_path / "run") == losses_of(whole)


@pytest.mark.exact_bits
@pytest.mark.usefixtures("few")
def test_a_rollback_comes_to_the_same_bits_however_the_run_is_interrupted(
    config: TrainConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(config, monkeypatch)
    rolling = replace(config, on_nonfinite="rollback", keep=1)
    good = max(step for step in resolve_timeline(config).evaluations if step < PLANTED)
    with pytest.warns(UserWarning, match=rf"is a spike, .*; back at the checkpoint of step {good}, the sequences"):
        train(rolling, tmp_path / "run")
    (rollback,) = run_dir.read_record(tmp_path / "run")[run_dir.ROLLBACKS]
    assert (rollback["after_step"], rollback["failed_step"]) == (good, PLANTED)
    assert (rollback["failed_sequences"], rollback["skipped_sequences"]) == (FAILED, [good * 4, FAILED[1]])
    got = losses_of(tmp_path / "run")
    assert len(got) == STEPS
    assert got[:good] == losses_of(whole)[:good]
    assert max(got) < max(losses_of(whole)) + 1.0

    # interrupted twice between that evaluation and the spike, whose checkpoint may only then go, and once after it
    for moment in (good + 4, good + 8):
        with pytest.raises(KeyboardInterrupt):
            train(rolling, tmp_path / "other", resume=True, progress=at("train", moment, interrupt_me))
    assert run_dir.metrics_until(tmp_path / "other", STEPS)[-1].startswith(f'{{"step": {good + 8},')
    with pytest.warns(UserWarning, match="is a spike"), pytest.raises(KeyboardInterrupt):
        train(rolling, tmp_path / "other", resume=True, progress=at("train", good + 4, interrupt_me))
    train(rolling, tmp_path / "other", resume=True)
    assert losses_of(tmp_path / "other") == got
    (again,) = run_dir.read_record(tmp_path / "other")[run_dir.ROLLBACKS]
    assert {**again, "reason": ""} == {**rollback, "reason": ""}
    assert surface.load_surface(tmp_path / "other").loss.identical(surface.load_surface(tmp_path / "run").loss)


@pytest.mark.usefixtures("few")
def test_the_same_step_is_bad_with_several_steps_a_call(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(config, monkeypatch)
    rolling = replace(config, on_nonfinite="rollback", steps_per_call=4)
    with pytest.warns(UserWarning, match="is a spike"):
        train(rolling, tmp_path / "run")
    (rollback,) = run_dir.read_record(tmp_path / "run")[run_dir.ROLLBACKS]
    assert (rollback["failed_step"], rollback["failed_sequences"]) == (PLANTED, FAILED)
