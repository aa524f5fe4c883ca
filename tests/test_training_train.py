"""A run from text to surface: killed, interrupted, damaged or refused, nothing already computed is lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_material import EVALUATIONS, STEPS, at, interrupt_me, small_run, write_words

from tsl_jax import surface
from tsl_jax.data.config import DataConfig
from tsl_jax.models.build import build
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.training import checkpoint, programs, run_dir
from tsl_jax.training.config import OptimizerConfig, TrainConfig, from_dict, to_dict
from tsl_jax.training.loop import train
from tsl_jax.training.optimizer import run_optimizer
from tsl_jax.training.provenance import model_hash
from tsl_jax.training.step import TrainState, initial_state
from tsl_jax.training.timeline import resolve_timeline


@pytest.fixture(name="config", scope="module")
def _config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of seconds on made-up words, prepared once; with dropout, and a model that adds a loss of its own."""
    config = small_run(write_words(tmp_path_factory.mktemp("text")))
    return replace(config, model=replace(config.model, architecture="moe", n_experts=3, dropout=0.1))


@pytest.fixture(name="whole", scope="module")
def _whole(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    return train(config, tmp_path_factory.mktemp("runs") / "whole")


def final_state(config: TrainConfig, out: Path) -> TrainState:
    """Parameters and optimizer state of a run's newest checkpoint."""
    model = run_dir.read_record(out)["model"]
    _, params = build(resolve(from_dict(ModelConfig, model)), 0)
    state = initial_state(params, run_optimizer(config.optimizer, resolve_timeline(config)))
    checkpoints = checkpoint.Checkpoints(out / run_dir.CHECKPOINTS, keep=2, model_hash=model_hash(model))
    restored = checkpoints.restore(state)
    checkpoints.close()
    assert restored is not None
    return restored


def metrics(out: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, but for the speed, which is of the machine."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("tokens_per_second",)} for line in lines]


def assert_same_bits(config: TrainConfig, a: Path, b: Path) -> None:
    """Surface, losses, parameters and optimizer state."""
    first, second = surface.checkpoints(a / "surface"), surface.checkpoints(b / "surface")
    assert list(first) == list(second)
    for tokens in first:
        with np.load(first[tokens]) as x, np.load(second[tokens]) as y:
            assert str(x["digest"]) == str(y["digest"]), f"surface at {tokens} tokens"
    assert metrics(a) == metrics(b)
    jax.tree.map(np.testing.assert_array_equal, final_state(config, a), final_state(config, b))


def test_a_run_leaves_a_surface_checkpoints_metrics_and_a_record(config: TrainConfig, whole: Path) -> None:
    loaded = surface.load_surface(whole)
    assert loaded.sizes["tokens"] == EVALUATIONS
    assert loaded.tokens.values[-1] == STEPS * 64
    assert loaded.split.values.tolist() == ["id", "ood"]
    assert loaded.sizes["position"] == 16
    assert np.isfinite(loaded.loss_additive).all()
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert all(0 < line["auxiliary"] < 0.02 for line in lines)
    np.testing.assert_allclose(loaded.lr, [lines[step - 1]["lr"] for step in loaded.step.values])
    record = run_dir.read_record(whole)
    assert record["complete"]
    assert set(record["seconds"]) == {"prepare", "compile", "train", "evaluate", "checkpoint"}
    assert record["tokens_per_second"] > 0
    assert record["stretches"]["ood"] == {"asked": 3, "found": 3}
    assert {"versions", "cores", "flags", "git_commit"} <= set(record["environment"])
    assert (whole / "tokenizer.json").exists()
    assert run_dir.read_config(whole) == config
    for name in ("run", "model", "n_params", "schedule", "windows", "document_boundary", "seed", "versions"):
        assert name in loaded.attrs


def test_the_first_evaluations_equal_a_naive_mean_over_windows(config: TrainConfig, whole: Path) -> None:
    from tsl_jax.data import corpora, windows
    from tsl_jax.models.build import hidden, unembedding

    state = final_state(config, whole)
    graphdef, _ = build(resolve(from_dict(ModelConfig, run_dir.read_record(whole)["model"])), 0)
    part = windows.for_splits(corpora.load(config.data), config.context, config.evaluation)["ood"]
    logits = hidden(graphdef, state.params, jnp.asarray(part.tokens[:, :-1])) @ unembedding(state.params).T
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), part.tokens[:, 1:, None], 2)[..., 0]
    loss = surface.load_surface(whole).loss.sel(split="ood").values[-1]
    np.testing.assert_allclose(loss, -chosen.mean(axis=0), atol=1e-4)


CHILD = """
import json, os, signal, sys
from pathlib import Path
from tsl_jax.training.config import TrainConfig, from_dict
from tsl_jax.training.loop import train

config, stage, done = from_dict(TrainConfig, json.loads(sys.argv[1])), sys.argv[3], int(sys.argv[4])
seen = []

def progress(name, now, total):
    if (name, now) == (stage, done):
        seen.append(now)
        if len(seen) > int(sys.argv[5]):
            os.kill(os.getpid(), signal.SIGKILL)

train(config, Path(sys.argv[2]), resume=True, progress=progress)
"""


def child(config: TrainConfig, out: Path, stage: str = "", done: int = 0, after: int = 0) -> subprocess.Popen:
    """A process that trains, and kills itself when it has met that moment of the run more than `after` times."""
    numbers = [str(done), str(after)]
    return subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(to_dict(config)), str(out), stage, *numbers])


def test_a_killed_run_continues_to_the_same_bits(config: TrainConfig, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    assert child(config, out, "evaluate ood", 12, after=2).wait() == -signal.SIGKILL
    before = len(surface.checkpoints(out / "surface"))
    assert before == 2
    # The second one dies between an evaluation and the end of its checkpoint.
    process = child(config, out)
    while len(surface.checkpoints(out / "surface")) == before and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert surface.load_surface(out).sizes["tokens"] >= 3
    assert not run_dir.read_record(out)["complete"]
    train(config, out, resume=True)
    assert_same_bits(config, whole, out)


@pytest.mark.parametrize(("stage", "done"), [("train", 16), ("evaluate id", 16)])
def test_ctrl_c_keeps_every_step_and_the_run_continues_to_the_same_bits(
    config: TrainConfig, whole: Path, tmp_path: Path, stage: str, done: int
) -> None:
    out, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(config, out, progress=at(stage, done, interrupt_me))
    steps = len((out / "metrics.jsonl").read_text().splitlines())
    assert int(final_state(config, out).step) == steps > 0
    assert not run_dir.read_record(out)["complete"]
    assert signal.getsignal(signal.SIGINT) is before
    assert train(config, out, resume=True) == out
    assert_same_bits(config, whole, out)


def poisoned(after: int) -> Any:
    """`make_step` whose loss is NaN from some step on."""

    def make_step(*arguments: Any) -> Any:
        step = make_whole_step(*arguments)

        def poisoned_step(state: TrainState, batch: Any) -> tuple:
            bad = state.step >= after
            state, metrics = step(state, batch)
            return state, {**metrics, "loss": jnp.where(bad, jnp.nan, metrics["loss"])}

        return jax.jit(poisoned_step)

    make_whole_step = programs.make_step
    return make_step


def test_a_loss_that_is_not_a_number_stops_the_run_and_says_where(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, observed = tmp_path / "run", []
    monkeypatch.setattr(programs, "make_step", poisoned(after=20))
    with pytest.raises(
        ValueError, match=r"loss nan.* at step 21 \(1344 tokens\).*checkpoint of step \d+ in .* is good"
    ):
        train(config, out, observe=lambda facts: observed.append(facts["step"]) if "lr" in facts else None)
    state = final_state(config, out)
    assert 0 < int(state.step) < 20
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert [line["step"] for line in metrics(out)] == observed == list(range(1, 21)), "the steps before it are kept"


def test_lines_of_metrics_are_cut_by_their_step_also_where_earlier_ones_are_lost(tmp_path: Path) -> None:
    """A file that was removed begins again at the step of the checkpoint."""
    lines = [json.dumps({"step": step, "loss": 4.0}) for step in range(8, 15)]
    (tmp_path / run_dir.METRICS).write_text("\n".join(lines) + '\n{"step": 15, "lo')
    with pytest.warns(UserWarning, match="metrics.jsonl lacks 7 of the 10 steps that are done"):
        run_dir.write_metrics(tmp_path, run_dir.metrics_until(tmp_path, 10), 10)
    remaining = (tmp_path / run_dir.METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in remaining] == [8, 9, 10]


def test_parameters_that_explode_stop_the_run_before_they_are_saved(config: TrainConfig, tmp_path: Path) -> None:
    wild = replace(config, optimizer=OptimizerConfig(peak_lr=1e38, warmup=0.0))
    with pytest.raises(ValueError, match=r"at step \d+.*Lower peak_lr"):
        train(wild, tmp_path / "run")
    assert not surface.checkpoints(tmp_path / "run" / "surface")


def test_a_full_disk_stops_with_a_sentence_and_the_run_continues(
    config: TrainConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, append = tmp_path / "run", surface.append

    def full(*arguments: Any, **keywords: Any) -> Path:
        if keywords["step"] > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return append(*arguments, **keywords)

    monkeypatch.setattr(surface, "append", full)
    with pytest.raises(
        OSError, match=r"No space left.*what was written before is whole; make room and go on with: tsl"
    ):
        train(config, out)
    assert surface.load_surface(out).sizes["tokens"] > 0
    monkeypatch.undo()
    train(config, out, resume=True)
    assert_same_bits(config, whole, out)


def test_a_complete_run_is_left_as_it_is(config: TrainConfig, whole: Path) -> None:
    before = (whole / "record.json").stat().st_mtime_ns
    assert train(config, whole) == whole
    assert train(replace(config, keep=5), whole, resume=True) == whole
    assert (whole / "record.json").stat().st_mtime_ns == before


def test_a_folder_with_something_else_is_refused(config: TrainConfig, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there and holds no run; use a new folder"):
        train(config, tmp_path)
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"another configuration \(model.d_model 8, there 0, seed 9, there 0\)"):
            train(replace(config, seed=9, keep=5, model=replace(config.model, d_model=8)), whole, resume=resume)


def test_what_cannot_work_leaves_no_folder(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    texts = {"none.txt": FileNotFoundError, "short.txt": ValueError}  # found wrong before the text is read, and after
    for text, error in texts.items():
        with pytest.raises(error):
            train(replace(config, data=DataConfig(text=(f"{tmp_path}/{text}",))), tmp_path / "new" / text)
        assert not (tmp_path / "new" / text).exists()


def test_another_models_checkpoint_is_refused(config: TrainConfig, whole: Path, tmp_path: Path) -> None:
    wider = replace(config, model=replace(config.model, d_ff=64))
    (tmp_path / "run").mkdir()
    run_dir.write_config(tmp_path / "run", wider)
    (whole / run_dir.CHECKPOINTS).rename(tmp_path / "run" / run_dir.CHECKPOINTS)
    try:
        with pytest.raises(ValueError, match="checkpoint of another model"):
            train(wider, tmp_path / "run", resume=True)
    finally:
        (tmp_path / "run" / run_dir.CHECKPOINTS).rename(whole / run_dir.CHECKPOINTS)


def test_other_conditions_are_warned_of(config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config, out, progress=at("train", 16, interrupt_me))
    record = run_dir.read_record(out)
    record["environment"]["cores"] = 999
    run_dir.write_record(out, record)
    with pytest.warns(UserWarning, match="begun under other conditions, bits may differ: cores: 999, now"):
        train(config, out, resume=True)
