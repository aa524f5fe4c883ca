"""Sweeps: what a file says, runs found by what they are, stopped, gone on with, and made side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from training_material import small_run, write_words

import tsl_jax as tsl
from tsl_jax.sweeps import Pool, distribute, read_archive, read_sweep, write_archive
from tsl_jax.sweeps.archive import read_manifests
from tsl_jax.sweeps.sweep import cost
from tsl_jax.training import run_dir
from tsl_jax.training.config import TrainConfig, config_hash, from_dict, to_dict

REPOSITORY = Path(__file__).parents[1]
KEPT = REPOSITORY / "experiments" / "kept_runs"
SCALES = ("cpu", "gpu", "paper", "paper-small")
PLANS = sorted(path for path in (REPOSITORY / "experiments").glob("*/**/*.yaml") if path.stem in SCALES)


def sweep(folder: Path, text: str) -> dict[str, TrainConfig]:
    (folder / "sweep.yaml").write_text(text)
    return read_sweep(folder / "sweep.yaml")


# ----------------------------------------------------------------------------------------------------- what a file says


def test_every_combination_of_grid_and_variants_is_a_run_named_by_its_entries(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {preset: tiny, dtype: bfloat16}\nseed: 7\n")
    runs = sweep(
        tmp_path,
        """
name: "{variant}-{optimizer.schedule}-lr{optimizer.peak_lr}@{seed}"
base: base.yaml
set: {tokens: 3e6}
grid: {optimizer.schedule: [cosine, wsd], seed: [0, 1], optimizer.peak_lr: 0.002}
variants:
  plain:
  tail: {position_weights: "tail:32@4", context: 128}
""",
    )
    schedules, seeds = ("cosine", "wsd"), (0, 1)
    names = [f"{v}-{s}-lr0.002@{k}" for v in ("plain", "tail") for s in schedules for k in seeds]
    assert list(runs) == names
    run = runs["tail-wsd-lr0.002@1"]
    assert (run.optimizer.schedule, run.seed, run.context, run.tokens) == ("wsd", 1, 128, 3_000_000)
    assert (run.model.preset, run.model.dtype) == ("tiny", "bfloat16")
    assert run.position_weights.factor == 4
    assert runs["plain-cosine-lr0.002@0"].position_weights.kind == "uniform"


def test_a_base_is_not_changed_by_the_runs_made_of_it(tmp_path):
    runs = sweep(
        tmp_path, "name: r@{seed}\nbase: {optimizer: {warmup: .1}}\ngrid: {optimizer.peak_lr: [1.0e-3], seed: 1}"
    )
    assert runs["r@1"].optimizer.warmup == 0.1
    text = "- {name: a, base: {model: {preset: tiny}}, set: {model.n_layers: 3}}\n"
    text += "- {name: b, base: {model: {preset: tiny}}}"
    assert [run.model.n_layers for run in sweep(tmp_path, text).values()] == [3, 0]


def test_text_stands_where_tsl_train_has_it(tmp_path):
    text = "name: r-{variant}\nbase: {text: ['a=a/*.txt'], data: {vocabulary: 300}}\n"
    runs = sweep(tmp_path, text + "variants: {base: {}, short: {text: [b.txt]}, long: {data.text: [c.txt]}}")
    assert [run.data.text for run in runs.values()] == [("a=a/*.txt",), ("b.txt",), ("c.txt",)]
    assert {run.data.vocabulary for run in runs.values()} == {300}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping with a name"),
        ("[]", "names no run"),
        ("name: [", "not YAML"),
        ("{name: a, base: &own [*own]}", "refers to itself in line 1"),
        ("{name: a, grids: {}}", "'grids' is not an entry"),
        ("{name: a, grid: {seed: [0, 1]}}", "there twice"),
        ("[{name: a}, {name: A, set: {seed: 1}}]", "there twice"),
        ("[{name: a}, {name: b}]", "a and b are the same run"),
        ("[{name: a}, {name: b, set: {keep: 3}}]", "a and b are the same run"),
        ("{name: ../a}", "cannot name a file"),
        ("{name: ..}", "cannot name a file"),
        ("{name: " + "a" * 201 + "}", "cannot name a file"),
        ("{name: 'a{seeds}', grid: {seed: 1}}", "name has {seeds}; it may have seed, variant"),
        ("{name: a, base: [1]}", "base must be a mapping"),
        ("{name: a, variants: [x]}", "variants must be a mapping"),
        ("{name: a, variants: {x: 3}}", "variant x must be a mapping"),
        ("{name: '{seed}', grid: {seed: [1]}, variants: {x: {seed: 2}}}", "seed is in the grid and in variant x"),
        ("{name: a, set: {seed.k: 3}, base: {seed: 1}}", "seed.k leads into seed, which is 1"),
        ("{name: a, set: {sed: 3}}", "run a: .*has no 'sed'"),
        ("{name: a, set: {context: 0}}", "run a: .*context must be at least 1"),
    ],
)
def test_a_mistake_is_refused_with_its_file_and_a_fix(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        sweep(tmp_path, text)
    assert "sweep.yaml" in str(error.value)


def test_all_plans_of_experiments_can_be_read_and_a_name_is_one_run():
    assert len(PLANS) == 21
    named: dict[str, str] = {}
    for path in PLANS:
        for name, config in read_sweep(path).items():
            assert named.setdefault(name, config_hash(config)) == config_hash(config), f"{path}: {name}"


# ----------------------------------------------------------------------------------------------- found by what they are


def test_every_kept_run_is_found_by_its_own_configuration():
    manifests = {name: manifest for file in KEPT.glob("*.parquet") for name, manifest in read_manifests(file).items()}
    runs = {f"other-{name}": from_dict(TrainConfig, run["config"]) for name, run in manifests.items()}
    assert len(runs) > 40
    stored = Pool(KEPT, Path("nowhere")).manifests_of(runs)
    assert {name: run["name"] for name, run in stored.items()} == {name: name.removeprefix("other-") for name in runs}
    assert set(Pool(KEPT, Path("nowhere")).states(runs).values()) == {"kept"}


def test_plans_of_kept_runs_find_them_under_the_names_of_before():
    runs = read_sweep(REPOSITORY / "experiments/plans/base-runs/cpu.yaml")
    manifests = Pool(KEPT, Path("nowhere")).manifests_of(runs)
    assert manifests.keys() == runs.keys()
    assert manifests["small-cosine@0"]["name"] == "small-cosine"
    assert manifests["small-wsd@3"]["name"] == "small-wsd@3"


@pytest.mark.parametrize("file", sorted(KEPT.glob("*.parquet")), ids=lambda file: file.stem)
def test_final_losses_of_an_archive_are_those_of_the_manifests_that_the_runs_wrote(file):
    manifests = read_manifests(file)
    some = list(manifests)[:: max(1, len(manifests) // 10)]
    for name, surface in read_archive(file, some).items():
        final = surface.loss.isel(tokens=-1).mean("position")
        kept = {str(split): float(final.sel(split=split)) for split in final.split.values}
        written = {split: value for split, value in manifests[name]["final_loss"].items() if split in kept}
        assert kept == (written if surface.sizes["position"] > 1 else pytest.approx(written, rel=1e-12))
        assert kept


def test_an_archive_keeps_every_bit_of_the_losses_and_the_clusters_that_were_asked_for(tmp_path):
    source, file = KEPT / "position_law.parquet", tmp_path / "many.parquet"
    surface, manifest = read_archive(source, ["small-64-cosine"])["small-64-cosine"], read_manifests(source)
    runs = {"whole": (surface, manifest["small-64-cosine"]), "begun": (surface.isel(tokens=slice(3)), {"seed": 1})}
    for last, additive in ((slice(None), True), (slice(-1, None), False), (None, False)):
        write_archive(file, runs, last, additive)
        assert read_manifests(file) == {name: manifest for name, (_, manifest) in runs.items()}
        for name, read in read_archive(file).items():
            written = runs[name][0]
            names = ["loss", "loss_sum", "count"] + ["loss_additive"] * additive
            xr.testing.assert_identical(read[names[:3]], written[names[:3]])
            xr.testing.assert_allclose(read[names], written[names], rtol=1e-7)
            assert set(read) - set(names) == ({"cluster_sum", "cluster_count", "sem"} if last else set())
            if last:
                sums = written.cluster_sum.where(written.tokens.isin(written.tokens[last]))
                xr.testing.assert_allclose(read.cluster_sum, sums, rtol=1e-5)
                xr.testing.assert_equal(read.cluster_count, written.cluster_count.where(sums.notnull()))


def test_runs_of_an_archive_are_found_and_what_is_no_archive_says_so(tmp_path):
    source, file = KEPT / "position_law.parquet", tmp_path / "many.parquet"
    name, manifest = next(iter(read_manifests(source).items()))
    write_archive(file, {"other": (read_archive(source, [name])[name], manifest)})
    config, pool = from_dict(TrainConfig, manifest["config"]), Pool(tmp_path, tmp_path / "runs")
    assert pool.states({"a": config, "b": replace(config, seed=1)}) == {"a": "kept", "b": "to do"}
    with pytest.raises(ValueError, match=r"many\.parquet has a run other with another configuration"):
        pool.validate_name("other", replace(config, seed=1))
    with pytest.raises(ValueError, match="has no run 'x'; it has other"):
        read_archive(file, ["x"])
    file.write_text("text")
    with pytest.raises(ValueError, match="no archive of runs, or damaged"):
        read_archive(file)


def write_kept(pool: Pool, name: str, config: TrainConfig) -> None:
    pool.kept.mkdir(parents=True, exist_ok=True)
    (pool.kept / f"{name}.npz").write_bytes(b"")
    (pool.kept / f"{name}.json").write_text(json.dumps({"config": to_dict(config)}))


def test_a_surface_without_manifest_or_the_reverse_is_not_kept(tmp_path):
    """As a kill between the two files leaves it, or somebody's other files do."""
    pool, config = Pool(tmp_path / "kept", tmp_path / "runs"), TrainConfig()
    assert pool.states({"a": config}) == {"a": "to do"}
    write_kept(pool, "a", config)
    assert pool.states({"a": config, "b": replace(config, seed=1)}) == {"a": "kept", "b": "to do"}
    (pool.kept / "a.npz").rename(pool.kept / "c.npz")
    (pool.kept / "list.json").write_text("[1]")
    assert pool.find(config) is None
    with pytest.raises(FileNotFoundError, match="make it with tsl sweep"):
        pool.load({"a": config})
    (pool.kept / "c.json").write_text("{")
    with pytest.raises(ValueError, match=r"c\.json is damaged"):
        pool.manifests()


def test_a_name_that_another_configuration_has_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(distribute, "train", None)
    pool, config = Pool(tmp_path / "kept", tmp_path / "runs"), TrainConfig()
    write_kept(pool, "a", config)
    with pytest.raises(ValueError, match="another name in the sweep file"):
        pool.make("a", replace(config, seed=1))
    (tmp_path / "runs" / "b").mkdir(parents=True)
    run_dir.write_config(tmp_path / "runs" / "b", config)
    with pytest.raises(ValueError, match=r"run b: .*seed 1, there 0.*another name in the sweep file, or remove"):
        pool.make("b", replace(config, seed=1))


# --------------------------------------------------------------------------------- stopped, gone on with, and made once


@dataclass
class Pair:
    """One run in two pools: made at once, and with an interruption; what happened meanwhile."""

    config: TrainConfig
    whole: Pool
    broken: Pool
    seen: list[bool | str] = field(default_factory=list)


@pytest.fixture(scope="module")
def pools(tmp_path_factory) -> Pair:
    home = tmp_path_factory.mktemp("sweeps")
    config = replace(small_run(write_words(home / "text"), steps=400), accumulate=2, noise_scale="total")
    both = Pair(config, *(Pool(home / kind / "kept", home / kind / "runs", clusters=2) for kind in ("whole", "broken")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribute, "POLL", 0.01)
        assert both.whole.make("whole", config)
        run = both.broken.runs / "run"

        deadline = time.time() + 3600
        patch.setattr(time, "time", lambda: deadline if under_way(run) else deadline - 1)
        both.seen.append(both.broken.make("run", config, deadline))
        both.seen.append(both.broken.states({"run": config})["run"])
        assert 0 < run_dir.read_record(run)["step"] < 400
        with pytest.raises(ValueError, match="not complete; go on with"):
            both.broken.keep("run")
        patch.undo()
    assert both.broken.make("run", config)
    return both


def under_way(run: Path) -> bool:
    return (run / run_dir.METRICS).exists() and len((run / run_dir.METRICS).read_text().splitlines()) > 5


def test_a_run_stopped_by_a_deadline_ends_as_one_made_at_once(pools):
    assert pools.seen == [False, "begun"]
    whole, broken = (pool.load({"run": pools.config})["run"] for pool in (pools.whole, pools.broken))
    assert whole.sizes["tokens"] == 6
    assert whole.sizes["cluster"] == 2
    xr.testing.assert_equal(whole.drop_attrs(), broken.drop_attrs())
    first, second = (pool.find(pools.config) for pool in (pools.whole, pools.broken))
    assert first is not None
    assert second is not None
    assert first["final_loss"] == second["final_loss"]
    noise = first["gradient_noise"]  # at the checkpoints, and of the whole run though it was resumed
    assert noise == second["gradient_noise"]
    assert noise["tokens"] == whole.tokens.values.tolist()
    measured = tsl.noise_scale(pools.whole.runs / "whole").sel(group="total", tokens=noise["tokens"])
    np.testing.assert_array_equal(np.array(noise["noise_scale"], float), measured.noise_scale)
    np.testing.assert_array_equal(np.array(noise["training_loss"], float), measured.loss)
    assert (first["name"], second["name"]) == ("whole", "run")
    assert from_dict(TrainConfig, first["config"]) == pools.config


def test_what_is_kept_is_not_made_again_under_any_name(pools, monkeypatch):
    monkeypatch.setattr(distribute, "train", None)
    assert pools.whole.make("whole", pools.config)
    assert pools.whole.make("other", pools.config)
    assert distribute.make_all(pools.whole, {"other": pools.config}) == []


def test_no_run_begins_after_the_deadline_nor_beside_itself(pools, monkeypatch):
    monkeypatch.setattr(distribute, "train", None)
    other = replace(pools.config, seed=1)
    assert not pools.whole.make("new", other, deadline=time.time() - 1)
    with distribute.lock(pools.whole.runs / "new") as locked, distribute.lock(pools.whole.runs / "new") as second:
        assert locked is not None
        assert second is None
        assert not pools.whole.make("new", other)


def test_a_run_that_fails_says_so(pools):
    bad = replace(pools.config, data=replace(pools.config.data, text=("text=/nowhere/*.txt@1",)))
    with pytest.raises(ValueError, match=r"run bad ended with exit code 2: data: '/nowhere/\*.txt' matches no file"):
        pools.whole.make("bad", bad)
    assert pools.whole.find(bad) is None


def test_cost_counts_what_the_run_evaluated(pools):
    estimate = cost(pools.config)
    assert (estimate.runs, estimate.tokens) == (1, pools.config.tokens)
    assert estimate.evaluated == 6 * (4 * 5 + 3 * 4) * 16
    alone = replace(pools.config, data=replace(pools.config.data, text=pools.config.data.text[:1]))
    assert cost(alone).evaluated == 6 * 4 * 5 * 16
    manifest = pools.whole.find(pools.config)
    assert manifest is not None
    assert estimate.training == manifest["flops_per_token"] * pools.config.tokens
    assert (estimate + estimate).runs == 2


# ------------------------------------------------------------------------------------------------------ its own process


def started(monkeypatch, program: str) -> None:
    def start(run, config, locked, bars):
        return subprocess.Popen([sys.executable, "-c", program], process_group=0, pass_fds=(locked,))

    monkeypatch.setattr(distribute, "_start", start)


def test_a_run_that_does_not_stop_in_time_is_killed_and_can_go_on(tmp_path, monkeypatch):
    ready = tmp_path / "ready"
    ignores = f"import signal, time; signal.signal(2, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(100)"
    started(monkeypatch, ignores)
    monkeypatch.setattr(distribute, "PATIENCE", 0.1)
    with distribute.lock(tmp_path / "run") as locked:
        assert locked is not None
        assert not distribute.train(tmp_path / "run", TrainConfig(), locked, ready.exists, bars=False)


def test_ctrl_c_is_passed_on_once_and_waits_for_the_checkpoint(tmp_path, monkeypatch):
    ready, log = tmp_path / "ready", tmp_path / "log"
    program = f"""
import signal, sys, time
def stop(*_):
    open({str(log)!r}, "a").write("interrupted\\n")
    time.sleep(0.3)
    open({str(log)!r}, "a").write("checkpoint\\n")
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
open({str(ready)!r}, "w")
time.sleep(100)
"""
    started(monkeypatch, program)

    def press() -> bool:
        if ready.exists():
            raise KeyboardInterrupt
        return False

    with distribute.lock(tmp_path / "run") as locked, pytest.raises(KeyboardInterrupt):
        distribute.train(tmp_path / "run", TrainConfig(), locked or 0, press, bars=False)
    assert log.read_text().splitlines() == ["interrupted", "checkpoint"]


@pytest.mark.parametrize(("number", "message"), [(signal.SIGKILL, "memory"), (signal.SIGSEGV, "signal 11")])
def test_a_run_that_the_system_ends_is_a_failure_not_a_stop(tmp_path, monkeypatch, number, message):
    started(monkeypatch, f"import os; os.kill(os.getpid(), {int(number)})")
    with distribute.lock(tmp_path / "run") as locked, pytest.raises(ValueError, match=message):
        distribute.train(tmp_path / "run", TrainConfig(), locked or 0, lambda: False, bars=False)


def test_a_run_whose_sweep_was_killed_holds_its_lock_until_it_ends(tmp_path):
    with distribute.lock(tmp_path / "run") as locked:
        assert locked is not None
        orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], pass_fds=(locked,))
    try:
        with distribute.lock(tmp_path / "run") as second:
            assert second is None
    finally:
        orphan.kill()
        orphan.wait()
    with distribute.lock(tmp_path / "run") as third:
        assert third is not None


# ------------------------------------------------------------------------------------------------------------ many runs


@dataclass
class Simulated:
    """A pool whose runs do what `act` does."""

    act: object
    begun: list[str] = field(default_factory=list)

    def states(self, runs):
        return dict.fromkeys(runs, "to do")

    def make(self, name, config, deadline=None, stop=None):
        self.begun.append(name)
        return self.act(name, stop)


RUNS = {f"run-{k}": replace(TrainConfig(), seed=k) for k in range(6)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_fails_keeps_no_other_from_being_made(workers):
    def act(name, stop):
        if name == "run-1":
            raise ValueError("its loss is not finite")
        return name != "run-4"

    pool, seen = Simulated(act), {}
    executor = distribute.ThreadPoolExecutor(workers) if workers else None
    with pytest.raises(ValueError, match=r"not finite\nsweep: 1 of 6 runs failed"):
        distribute.make_all(pool, RUNS, executor, watch=seen.__setitem__)
    assert sorted(pool.begun) == list(RUNS)
    assert seen == {name: name != "run-4" for name in RUNS if name != "run-1"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_fails_is_tried_again_after_the_others(workers):
    def act(name, stop):
        if name == "run-5" or (name == "run-1" and pool.begun.count(name) == 1):
            raise ValueError(f"{name}: a worker was lost")
        return True

    pool, seen = Simulated(act), {}
    executor = distribute.ThreadPoolExecutor(workers) if workers else None
    again, twice = (
        "a worker was lost; it is tried again after the others",
        r"run-5: .*\nsweep: 1 of 6 runs failed 2 times",
    )
    with pytest.warns(UserWarning, match=again), pytest.raises(ValueError, match=twice):
        distribute.make_all(pool, RUNS, executor, watch=seen.__setitem__, retries=1)
    assert set(pool.begun[-2:]) == {"run-1", "run-5"}
    assert seen == {name: True for name in RUNS if name != "run-5"}


def test_what_ray_says_of_a_lost_machine_is_a_failure_and_a_defect_is_not():
    lost = type("NodeDiedError", (Exception,), {"__module__": "ray.exceptions"})("its machine died\nmore")
    assert distribute._reason(lost) == "sweep: NodeDiedError: its machine died"
    with pytest.raises(TypeError):
        distribute._reason(TypeError("a defect"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_an_interrupt_runs_side_by_side_stop_and_no_other_begins(number):
    stopped = []

    def act(name, stop):
        if name == "run-0":
            threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        while not stop():
            time.sleep(0.01)
        stopped.append(name)
        return False

    pool = Simulated(act)
    with distribute.ThreadPoolExecutor(2) as executor, pytest.raises(KeyboardInterrupt):
        distribute.make_all(pool, RUNS, executor)
    assert sorted(pool.begun) == sorted(stopped) == ["run-0", "run-1"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_unfinished_runs_are_named_in_order():
    pool = Simulated(lambda name, stop: name in ("run-0", "run-3"))
    with distribute.ThreadPoolExecutor(3) as executor:
        assert distribute.make_all(pool, RUNS, executor) == ["run-1", "run-2", "run-4", "run-5"]


def test_each_of_several_runs_has_cores_of_its_own(monkeypatch):
    given = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4, 5, 8}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: given.append(tuple(cores)), raising=False)
    with distribute.side_by_side(2) as executor:
        barrier = threading.Barrier(2)
        list(executor.map(lambda _: barrier.wait(10), range(2)))
    assert sorted(given) == [(3, 4), (5, 8)]
    for number in (0, 5):
        with pytest.raises(ValueError, match="need a core each, there are 4"):
            distribute.side_by_side(number)


def test_where_cores_cannot_be_chosen_runs_go_side_by_side_all_the_same(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with distribute.side_by_side(2) as executor:
        assert distribute.make_all(Simulated(lambda name, stop: True), RUNS, executor) == []


def test_a_plan_is_the_configuration_that_the_process_reads(tmp_path, monkeypatch):
    """Position weights and lists survive the way through the file."""
    process = {}
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: process.update(command=command, **rest))
    config = from_dict(TrainConfig, {"position_weights": "head:16@4", "data": {"text": ["code@1", "docs@0"]}})
    distribute._start(tmp_path / "a.b@1", config, 3, bars=False)
    written = Path(process["command"][process["command"].index("--config") + 1])
    assert from_dict(TrainConfig, yaml.safe_load(written.read_text())) == config
    assert "--resume" not in process["command"]
    assert process["env"]["TERM"] == "dumb"
    assert process["process_group"] == 0
