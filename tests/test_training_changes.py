"""Changes in mid-run: what they are told as, where they begin, and that nothing else in the run is another."""

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
from tsl_jax.training import holes, mesh, run_dir
from tsl_jax.training.checks import check
from tsl_jax.training.config import (
    OptimizerConfig,
    TrainConfig,
    config_hash,
    from_dict,
    run_stretches,
    step_at,
    tokens_at,
    total_steps,
)
from tsl_jax.training.interventions import stretches
from tsl_jax.training.loop import train
from tsl_jax.training.optimizer import run_lr_plan, run_optimizer

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
    one = small_run(write_words(tmp_path_factory.mktemp("text")), evaluations=9)
    return replace(one, optimizer=OptimizerConfig(schedule="wsd", warmup=0.1))


@pytest.fixture(name="runs", scope="module")
def _runs(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of every kind of change."""
    out = tmp_path_factory.mktemp("runs")
    return {name: train(replace(config, changes=told), out / name) for name, told in CHANGES.items()}


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / run_dir.METRICS).read_text().splitlines()]


def test_tokens_and_steps_are_counted_through_changes() -> None:
    config = TrainConfig(tokens=1000, context=5, batch_size=4, changes=(".5:batch=8", ".7:batch=2"))
    assert [(one.step, one.tokens, one.sequence) for one in run_stretches(config)] == [
        (0, 0, 0),
        (25, 500, 100),
        (30, 700, 140),
    ]
    assert total_steps(config) == 60
    assert [tokens_at(config, step) for step in (0, 1, 25, 26, 30, 31, 60)] == [0, 20, 500, 540, 700, 710, 1000]
    assert [step_at(config, tokens) for tokens in (0, 500, 519, 521, 700, 706, 1000)] == [0, 25, 25, 26, 30, 31, 60]


def test_changes_of_one_place_hold_together_and_those_before_go_on() -> None:
    found = stretches((".5:lr=.5", ".5:skip=2", ".25:batch=8", ".75:lr=1"), 1000, 5, 4)
    assert [(one.lr, one.batch_size) for one in found] == [(1.0, 4), (1.0, 8), (0.5, 8), (1.0, 8)]
    half = found[2]
    assert half.sequence == half.tokens // 5 + 2 * 8


@pytest.mark.parametrize(
    ("told", "message"),
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
def test_what_cannot_be_is_said_before_any_work(config: TrainConfig, told: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(replace(config, changes=told))


def test_batches_of_every_stretch_must_share_evenly(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="accumulate must divide batch_size, found batch_size 5 and accumulate 2"):
        check(replace(config, accumulate=2, changes=(".5:batch=5",)))


def test_batches_of_every_stretch_must_share_the_devices_there_are(config: TrainConfig) -> None:
    assert mesh.shape(replace(config, changes=(".5:batch=8",)), 4) == (4, 1, 1)
    with pytest.raises(ValueError, match="6 sequences at a time over data x fsdp = 4 devices"):
        mesh.shape(replace(config, changes=(".5:batch=6",)), 4)


def test_tokens_beyond_32_bits_are_counted_in_the_optimizer() -> None:
    one = TrainConfig(tokens=6_000_000_000, context=1024, batch_size=512, changes=(".5:lr=.3",))
    optimizer, params = run_optimizer(one), {"scale": jnp.zeros(3)}
    _, state = jax.jit(optimizer.update)({"scale": jnp.ones(3)}, optimizer.init(params), params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state))


def test_a_run_without_changes_keeps_its_name(config: TrainConfig) -> None:
    assert config_hash(TrainConfig()) == config_hash(replace(TrainConfig(), changes=()))
    assert len({config_hash(replace(config, changes=told)) for told in CHANGES.values()}) == len(CHANGES)


def test_until_its_change_a_run_is_its_twin_to_the_bit_and_another_after_it(runs: dict[str, Path]) -> None:
    twin = tsl.load_surface(runs["none"])
    for name in set(CHANGES) - {"none"}:
        one = tsl.load_surface(runs[name])
        np.testing.assert_array_equal(one.tokens, twin.tokens, name)
        same = (one.loss_sum == twin.loss_sum).all(("split", "position")).values
        np.testing.assert_array_equal(same, twin.tokens <= HALF, name)
        assert one.attrs["changes"] == list(CHANGES[name])


def test_lines_count_the_tokens_and_tell_the_rate_of_every_step(runs: dict[str, Path], config: TrainConfig) -> None:
    for name, told in CHANGES.items():
        one = replace(config, changes=told)
        found = lines(runs[name])
        assert [line["tokens"] for line in found] == [tokens_at(one, step) for step in range(1, total_steps(one) + 1)]
        plan = Schedule.from_plan(tsl.load_surface(runs[name]).attrs["schedule"])  # the law wing's own reading of it
        np.testing.assert_allclose([line["lr"] for line in found], plan.lr([line["tokens"] for line in found]), 1e-5)
    assert [len(lines(runs[name])) for name in ("none", "batch")] == [40, 20 + 6 + 2]


def test_a_change_of_the_rate_is_not_known_before_it(config: TrainConfig) -> None:
    plan = Schedule.from_plan(run_lr_plan(replace(config, changes=CHANGES["lr"])))
    without = Schedule.from_plan(run_lr_plan(config))
    assert plan.known_at(HALF) == without
    assert float(plan.lr(HALF)) == float(without.lr(HALF))
    np.testing.assert_allclose(plan.lr(HALF + 64), 0.3 * without.lr(HALF + 64))
    np.testing.assert_allclose(plan.lr(40 * 64), 0.3 * without.lr(40 * 64))


def test_the_optimizer_takes_the_changed_rate_at_every_step(config: TrainConfig) -> None:
    plain = OptimizerConfig(schedule="cosine", warmup=0.1, weight_decay=0.0, beta1=0.0, beta2=0.0, clip=0.0)
    one = replace(config, optimizer=plain, changes=(*CHANGES["spike"], ".75:batch=16"))
    optimizer, params = run_optimizer(one), {"scale": jnp.zeros(3)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    taken = []
    for _ in range(total_steps(one)):
        change, state = update({"scale": jnp.ones(3)}, state, params)
        taken.append(-float(change["scale"][0]))
    tokens = np.array([tokens_at(one, step) for step in range(1, total_steps(one) + 1)])
    np.testing.assert_allclose(taken, Schedule.from_plan(run_lr_plan(one)).rate(tokens, np), rtol=1e-5)


def test_batches_grow_with_the_plan_in_tokens_as_it_was(runs: dict[str, Path], config: TrainConfig) -> None:
    twin, grown = (tsl.load_surface(runs[name]) for name in ("none", "batch"))
    assert grown.attrs["schedule"] == twin.attrs["schedule"]
    np.testing.assert_array_equal(grown.lr, twin.lr)
    assert grown.step.values[-1] == 28


def test_evaluations_stay_near_the_tokens_of_the_twin(config: TrainConfig) -> None:
    one = replace(config, tokens=40 * 64 + 13, changes=(".5:batch=7", ".7:batch=16"))
    planned = holes.planned(one)
    assert planned == sorted(set(planned))
    assert planned[-1] == total_steps(one)
    twin = np.array([64 * step for step in holes.planned(config)])
    tokens = np.array([tokens_at(one, step) for step in planned])
    assert all(np.abs(twin - t).min() <= 16 * 16 / 2 for t in tokens[:-1])
    assert 0 <= 40 * 64 + 13 - tokens[-1] < 16 * 16


@pytest.mark.parametrize(("name", "stop"), [("batch", 16), ("batch", 26), ("mixture", 24), ("skip", 24), ("spike", 20)])
def test_a_stopped_run_goes_on_bit_for_bit(
    runs: dict[str, Path], config: TrainConfig, tmp_path: Path, name: str, stop: int
) -> None:
    one = replace(config, changes=CHANGES[name])
    with pytest.raises(KeyboardInterrupt):
        train(one, tmp_path / name, progress=at("train", stop, interrupt_me))
    train(one, tmp_path / name, resume=True)
    here, whole = (tsl.load_surface(run) for run in (tmp_path / name, runs[name]))
    np.testing.assert_array_equal(here.loss_sum, whole.loss_sum)
    assert [line["loss"] for line in lines(tmp_path / name)] == [line["loss"] for line in lines(runs[name])]


def test_several_steps_a_call_end_at_a_change(runs: dict[str, Path], config: TrainConfig, tmp_path: Path) -> None:
    one = replace(config, changes=CHANGES["batch"], steps_per_call=3)
    found = lines(train(one, tmp_path / "run"))
    np.testing.assert_allclose(
        [line["loss"] for line in found], [line["loss"] for line in lines(runs["batch"])], rtol=1e-4
    )


def test_the_command_line_takes_changes_and_a_folder_remembers_them(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("--text", *config.data.text, "--tokens", 1280, "--context", 16, "--batch-size", 4, "--evaluations", 3)
    told += ("--model.preset", "tiny", "--data.vocabulary", 300, "--data.heldout", 0.3)
    told += ("--evaluation.id-stretches", 4, "--evaluation.id-offsets", 2, "--evaluation.ood-stretches", 3)
    told += ("--evaluation.ood-offsets", 2, "--changes", ".5:lr=.5", ".5:batch=8")
    assert tsl_command("train", "--out", tmp_path / "run", *told) == 0
    assert run_dir.read_config(tmp_path / "run").changes == (".5:lr=.5", ".5:batch=8")
    assert tsl_command("report", tmp_path / "run") == 0
    assert "this run changes on its way" not in capsys.readouterr().out
    assert tsl_command("forecast", tmp_path / "run", "--cutoff", 0.5) == 0
    assert "this run changes on its way (.5:lr=.5, .5:batch=8)" in capsys.readouterr().out
    assert "changes in mid-run" in (tmp_path / "run" / "report.html").read_text()


def test_a_file_must_give_a_list() -> None:
    with pytest.raises(ValueError, match=r"changes must be a list, found '.5:lr=2'"):
        from_dict(TrainConfig, {"changes": ".5:lr=2"})
