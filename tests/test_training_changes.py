"""Changes in mid-run: how they are written, where they begin, and that nothing else in the run differs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import tsl_command
from training_material import at, interrupt_me, small_run, write_words

import tsl_jax as tsl
from tsl_jax.laws import Schedule
from tsl_jax.training import interventions, mesh, run_dir
from tsl_jax.training.checks import check_shares, validate_config
from tsl_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig, config_hash, from_dict
from tsl_jax.training.interventions import run_segments
from tsl_jax.training.loop import train
from tsl_jax.training.optimizer import run_optimizer
from tsl_jax.training.timeline import RunTimeline, resolve_timeline

CHANGES = {
    "none": (),
    "mixture": (".5:mixture=tale@.25,list@.75",),
    "lr": (".5:lr=.3",),
    "batch": (".5:batch=8", ".8:batch=16"),
    "spike": (".5:lr=10", ".575:lr=1"),
    "skip": (".5:skip=3",),
}
HALF = 20 * 64  # tokens of half a run


@pytest.fixture(name="config", scope="module")
def _config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = small_run(write_words(tmp_path_factory.mktemp("text")), evaluations=9)
    return replace(config, optimizer=OptimizerConfig(schedule="wsd", warmup=0.1))


@pytest.fixture(name="runs", scope="module")
def _runs(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of every kind of change."""
    out = tmp_path_factory.mktemp("runs")
    return {name: train(replace(config, changes=changes), out / name) for name, changes in CHANGES.items()}


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / run_dir.METRICS).read_text().splitlines()]


def tokens_of(timeline: RunTimeline) -> list[int]:
    """Tokens seen after each step."""
    return [timeline.tokens_at(step) for step in range(1, timeline.steps + 1)]


def test_tokens_and_steps_are_counted_through_changes() -> None:
    config = TrainConfig(tokens=1000, context=5, batch_size=4, changes=(".5:batch=8", ".7:batch=2"))
    timeline = resolve_timeline(config)
    begins = [(segment.step, segment.tokens, segment.sequence) for segment in timeline.segments]
    assert begins == [(0, 0, 0), (25, 500, 100), (30, 700, 140)]
    assert timeline.steps == 60
    assert [timeline.tokens_at(step) for step in (0, 1, 25, 26, 30, 31, 60)] == [0, 20, 500, 540, 700, 710, 1000]
    assert [timeline.first_sequence(step) for step in (0, 24, 25, 29, 30, 59)] == [0, 96, 100, 132, 140, 198]


def test_changes_of_one_place_hold_together_and_those_before_go_on() -> None:
    segments = run_segments((".5:lr=.5", ".5:skip=2", ".25:batch=8", ".75:lr=1"), 1000, 5, 4)
    assert [(s.lr_factor, s.batch_size) for s in segments] == [(1.0, 4), (1.0, 8), (0.5, 8), (1.0, 8)]
    half = segments[2]
    assert half.sequence == half.tokens // 5 + 2 * 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((".5",), r"of the form AT:WHAT=VALUE .*, found '.5'"),
        ((".5:momentum=1",), "of the form AT:WHAT=VALUE"),
        (("1.5:lr=2",), r"is at 1.5, expected a share between 0 and 1"),
        ((".5:lr=.3,.7:lr=1",), "separate entries by spaces"),
        ((".5:lr=fast",), "lr needs a number, found 'fast'"),
        ((".5:lr=0",), "lr must be positive"),
        ((".5:batch=2.5",), "batch needs a whole number, found '2.5'"),
        ((".5:mixture=tale",), "mixture needs DOMAIN@WEIGHT,..., found 'tale'"),
        ((".5:mixture=tale@.5",), "weights of the domains must sum to one"),
        ((".5:mixture=tale@.5,tale@.5",), "names 'tale' twice"),
        ((".5:mixture=song@1",), "mixes in 'song', the domains of this run are tale, list"),
        ((".5:lr=2", "0.50:lr=3"), "say the same thing twice at 0.5"),
        ((".5:lr=.5", ".501:batch=8"), "no whole step before the change at 0.501"),
        ((".001:mixture=song@1",), "no whole step before the change at 0.001"),
        ((".5:batch=100",), "no whole step after the last change"),
        ((".5", 0.7), "of the form"),
        ((0.7,), r"changes are texts AT:WHAT=VALUE \(in YAML within quotes\), found 0.7"),
        ((".05:lr=2",), "a change begins after 2 steps, 0.05 of the run, while the warm-up takes 4"),
    ],
)
def test_impossible_changes_are_refused_at_once(config: TrainConfig, changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_config(replace(config, changes=changes))


def test_batches_of_every_segment_must_share_evenly(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="accumulate must divide batch_size, found batch_size 5 and accumulate 2"):
        validate_config(replace(config, accumulate=2, changes=(".5:batch=5",)))


def test_batches_of_every_segment_must_share_the_devices_there_are(config: TrainConfig) -> None:
    assert mesh.shape(MeshConfig(), 4) == (4, 1, 1)
    sizes = [resolve_timeline(replace(config, changes=(f".5:batch={size}",))).batch_sizes for size in (8, 6)]
    assert sizes == [[4, 8], [4, 6]]
    check_shares(sizes[0], 1, 4)
    with pytest.raises(ValueError, match="6 sequences at a time over data x fsdp = 4 devices"):
        check_shares(sizes[1], 1, 4)


def test_tokens_beyond_32_bits_are_counted_in_the_optimizer() -> None:
    config = TrainConfig(tokens=6_000_000_000, context=1024, batch_size=512, changes=(".5:lr=.3",))
    optimizer, params = run_optimizer(config.optimizer, resolve_timeline(config)), {"scale": jnp.zeros(3)}
    _, state = jax.jit(optimizer.update)({"scale": jnp.ones(3)}, optimizer.init(params), params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state))


def test_a_run_without_changes_keeps_its_name(config: TrainConfig) -> None:
    assert config_hash(TrainConfig()) == config_hash(replace(TrainConfig(), changes=()))
    assert len({config_hash(replace(config, changes=changes)) for changes in CHANGES.values()}) == len(CHANGES)


def test_until_its_change_a_run_is_its_twin_to_the_bit_and_another_after_it(runs: dict[str, Path]) -> None:
    twin = tsl.load_surface(runs["none"])
    for name in set(CHANGES) - {"none"}:
        changed = tsl.load_surface(runs[name])
        np.testing.assert_array_equal(changed.tokens, twin.tokens, name)
        same = (changed.loss_sum == twin.loss_sum).all(("split", "position")).values
        np.testing.assert_array_equal(same, twin.tokens <= HALF, name)
        assert changed.attrs["changes"] == list(CHANGES[name])


def test_lines_count_the_tokens_and_tell_the_rate_of_every_step(runs: dict[str, Path], config: TrainConfig) -> None:
    for name, changes in CHANGES.items():
        timeline, metrics = resolve_timeline(replace(config, changes=changes)), lines(runs[name])
        assert [line["tokens"] for line in metrics] == tokens_of(timeline)
        plan = Schedule.from_plan(tsl.load_surface(runs[name]).attrs["schedule"])  # as the laws read it
        np.testing.assert_allclose([line["lr"] for line in metrics], plan.lr(tokens_of(timeline)), 1e-5)
    assert [len(lines(runs[name])) for name in ("none", "batch")] == [40, 20 + 6 + 2]


def test_a_change_of_the_rate_is_not_known_before_it(config: TrainConfig) -> None:
    plan = Schedule.from_plan(resolve_timeline(replace(config, changes=CHANGES["lr"])).lr_plan)
    without = Schedule.from_plan(resolve_timeline(config).lr_plan)
    assert plan.known_at(HALF) == without
    assert float(plan.lr(HALF)) == float(without.lr(HALF))
    np.testing.assert_allclose(plan.lr(HALF + 64), 0.3 * without.lr(HALF + 64))
    np.testing.assert_allclose(plan.lr(40 * 64), 0.3 * without.lr(40 * 64))


def test_the_optimizer_takes_the_changed_rate_at_every_step(config: TrainConfig) -> None:
    plain = OptimizerConfig(schedule="cosine", warmup=0.1, weight_decay=0.0, beta1=0.0, beta2=0.0, clip=0.0)
    timeline = resolve_timeline(replace(config, optimizer=plain, changes=(*CHANGES["spike"], ".75:batch=16")))
    optimizer, params = run_optimizer(plain, timeline), {"scale": jnp.zeros(3)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    taken = []
    for _ in range(timeline.steps):
        change, state = update({"scale": jnp.ones(3)}, state, params)
        taken.append(-float(change["scale"][0]))
    np.testing.assert_allclose(taken, timeline.schedule.rate(np.array(tokens_of(timeline)), np), rtol=1e-5)


def test_batches_grow_with_the_plan_in_tokens_as_it_was(runs: dict[str, Path], config: TrainConfig) -> None:
    twin, grown = (tsl.load_surface(runs[name]) for name in ("none", "batch"))
    assert grown.attrs["schedule"] == twin.attrs["schedule"]
    np.testing.assert_array_equal(grown.lr, twin.lr)
    assert grown.step.values[-1] == 28


def test_evaluations_stay_near_the_tokens_of_the_twin(config: TrainConfig) -> None:
    timeline = resolve_timeline(replace(config, tokens=40 * 64 + 13, changes=(".5:batch=7", ".7:batch=16")))
    assert list(timeline.evaluations) == sorted(set(timeline.evaluations))
    assert timeline.evaluations[-1] == timeline.steps
    twin = np.array([64 * step for step in resolve_timeline(config).evaluations])
    tokens = np.array([timeline.tokens_at(step) for step in timeline.evaluations])
    assert all(np.abs(twin - t).min() <= 16 * 16 / 2 for t in tokens[:-1])
    assert 0 <= 40 * 64 + 13 - tokens[-1] < 16 * 16


# The others take the same way through the code: a stop before the change, and a change of the rate alone.
LIKE_OTHERS = [pytest.param(name, stop, marks=pytest.mark.slow) for name, stop in (("batch", 16), ("spike", 20))]


@pytest.mark.parametrize(("name", "stop"), [("batch", 26), ("mixture", 24), ("skip", 24), *LIKE_OTHERS])
def test_a_stopped_run_goes_on_bit_for_bit(
    runs: dict[str, Path], config: TrainConfig, tmp_path: Path, name: str, stop: int
) -> None:
    changed = replace(config, changes=CHANGES[name])
    with pytest.raises(KeyboardInterrupt):
        train(changed, tmp_path / name, progress=at("train", stop, interrupt_me))
    train(changed, tmp_path / name, resume=True)
    here, whole = (tsl.load_surface(run) for run in (tmp_path / name, runs[name]))
    np.testing.assert_array_equal(here.loss_sum, whole.loss_sum)
    assert [line["loss"] for line in lines(tmp_path / name)] == [line["loss"] for line in lines(runs[name])]


@pytest.mark.slow
def test_several_steps_a_call_end_at_a_change(runs: dict[str, Path], config: TrainConfig, tmp_path: Path) -> None:
    several = lines(train(replace(config, changes=CHANGES["batch"], steps_per_call=3), tmp_path / "run"))
    single = lines(runs["batch"])
    np.testing.assert_allclose([line["loss"] for line in several], [line["loss"] for line in single], rtol=1e-4)


def test_the_changes_of_a_run_are_read_before_its_first_step_and_not_again(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of thousands of steps reads them as often as one of some."""
    read: list[str] = []

    def counted(entry: str) -> tuple:
        read.append(entry)
        return parse(entry)

    parse = interventions._parse
    monkeypatch.setattr(interventions, "_parse", counted)
    train(replace(config, changes=CHANGES["lr"]), tmp_path / "run", progress=at("compile", 1, read.clear))
    assert not read


@pytest.mark.slow
def test_the_command_line_takes_changes_and_a_folder_remembers_them(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--text", *config.data.text, "--tokens", 1280, "--context", 16, "--batch-size", 4, "--evaluations", 3)
    options += ("--model.preset", "tiny", "--data.vocabulary", 300, "--data.heldout", 0.3)
    options += ("--evaluation.id-stretches", 4, "--evaluation.id-offsets", 2, "--evaluation.ood-stretches", 3)
    options += ("--evaluation.ood-offsets", 2, "--changes", ".5:lr=.5", ".5:batch=8")
    assert tsl_command("train", "--out", tmp_path / "run", *options) == 0
    assert run_dir.read_config(tmp_path / "run").changes == (".5:lr=.5", ".5:batch=8")
    assert tsl_command("report", tmp_path / "run") == 0
    assert "this run changes on its way" not in capsys.readouterr().out
    with jax.numpy_dtype_promotion("standard"):  # laws and fits promote as documented
        assert tsl_command("forecast", tmp_path / "run", "--cutoff", 0.5) == 0
    assert "this run changes on its way (.5:lr=.5, .5:batch=8)" in capsys.readouterr().out
    assert "changes in mid-run" in (tmp_path / "run" / "report.html").read_text()


def test_a_file_must_give_a_list() -> None:
    with pytest.raises(ValueError, match=r"changes must be a list, found '.5:lr=2'"):
        from_dict(TrainConfig, {"changes": ".5:lr=2"})
