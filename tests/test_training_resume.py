"""A run that goes on elsewhere or later: what has changed and what is lost is named, and recorded."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_material import at, in_other_order, interrupt_me, small_run, write_words

from tsl_jax import surface
from tsl_jax.data import corpora, preparation
from tsl_jax.models.config import ModelConfig
from tsl_jax.training import provenance, run_dir, setup
from tsl_jax.training.config import TrainConfig
from tsl_jax.training.loop import train
from tsl_jax.training.timeline import resolve_timeline


@pytest.fixture(name="text", scope="module")
def _text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(name="config", scope="module")
def _config(text: Path) -> TrainConfig:
    return small_run(write_words(text))


@pytest.fixture(name="begun", scope="module")
def _begun(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted after 16 of 40 steps; tests continue a copy."""
    out = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config, out, progress=at("train", 16, interrupt_me))
    return out


@pytest.fixture(name="whole", scope="module")
def _whole(config: TrainConfig, begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, continued to its end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(begun, out)
    return train(config, out, resume=True)


@pytest.fixture(name="out")
def _out(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def set_environment(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> dict[str, Any]:
    """Let this process seem another one; its facts."""
    now = {**provenance.environment(), **facts}
    monkeypatch.setattr(provenance, "environment", lambda: now)
    return now


def test_a_run_begun_by_an_earlier_version_continues_under_the_hashes_it_has(
    config: TrainConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models had fewer entries then, and hashes other digits: in the record, the surface and the checkpoints."""
    later = ("experts", "remat", "dropout")

    def earlier_entries(model: ModelConfig) -> dict[str, Any]:
        return {name: value for name, value in asdict(model).items() if name not in later}

    out = tmp_path / "run"
    monkeypatch.setattr(setup, "config_hash", lambda config: "0123456789ab")
    monkeypatch.setattr(setup, "asdict", earlier_entries)
    with pytest.raises(KeyboardInterrupt):
        train(config, out, progress=at("train", 16, interrupt_me))
    monkeypatch.undo()
    train(config, out, resume=True)
    record, loaded = run_dir.read_record(out), surface.load_surface(out)
    assert record["config_hash"] == loaded.attrs["config_hash"] == "0123456789ab"
    assert not set(later) & record["model"].keys()
    np.testing.assert_array_equal(loaded.loss_sum, surface.load_surface(whole).loss_sum)


def test_a_run_whose_model_resolves_otherwise_now_is_refused(config: TrainConfig, out: Path) -> None:
    record = run_dir.read_record(out)
    run_dir.write_record(out, {**record, "model": {**record["model"], "rope_base": 500.0}})
    with pytest.raises(ValueError, match=r"was begun with ModelConfig\(.*rope_base=500.0.*found ModelConfig"):
        train(config, out, resume=True)


def test_a_lost_checkpoint_of_a_run_that_continues_is_named(config: TrainConfig, out: Path) -> None:
    planned = [step * 64 for step in resolve_timeline(config).evaluations]
    surface.checkpoints(out / "surface")[planned[0]].unlink()
    message = (
        rf"has no checkpoint at {planned[0]} tokens, and it cannot be measured again; restore a copy, or do without"
    )
    with pytest.warns(UserWarning, match=message):
        train(config, out, resume=True)
    assert list(surface.checkpoints(out / "surface")) == planned[1:]
    record = run_dir.read_record(out)
    assert record["complete"]
    assert record["missing_checkpoints"] == planned[:1]


def test_a_lost_checkpoint_of_a_complete_run_is_named(config: TrainConfig, whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    planned = list(surface.checkpoints(out / "surface"))
    assert run_dir.read_record(out)["missing_checkpoints"] == []
    shutil.rmtree(out / run_dir.CHECKPOINTS)  # with it the end could be measured again
    copies = {}
    for tokens in (planned[1], planned[-1]):
        file = surface.checkpoints(out / "surface")[tokens]
        copies[file] = file.read_bytes()
        file.unlink()
    with pytest.warns(UserWarning, match=f"has no checkpoint at {planned[1]}, {planned[-1]} tokens"):
        train(config, out, resume=True)
    assert run_dir.read_record(out)["missing_checkpoints"] == [planned[1], planned[-1]]
    for file, data in copies.items():
        file.write_bytes(data)
    train(config, out)
    assert run_dir.read_record(out)["missing_checkpoints"] == []


def test_an_evaluation_that_the_run_makes_when_it_goes_on_is_not_lost(
    config: TrainConfig, whole: Path, tmp_path: Path
) -> None:
    out, step = tmp_path / "run", resolve_timeline(config).evaluations[1]
    with pytest.raises(KeyboardInterrupt):
        train(config, out, progress=at("train", step, interrupt_me))
    assert list(surface.checkpoints(out / "surface")) == [resolve_timeline(config).evaluations[0] * 64]
    assert run_dir.read_record(out)["missing_checkpoints"] == []
    train(config, out, resume=True)
    assert surface.load_surface(out).loss.identical(surface.load_surface(whole).loss)


def test_other_versions_that_make_the_same_tokens_continue_the_run(
    config: TrainConfig, out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (corpora, preparation):
        monkeypatch.setattr(module, "python_version", lambda: "3.99.0")
        monkeypatch.setattr(module, "version", lambda name: "0.99.0")
    before = run_dir.read_record(out)["corpus"]
    versions = {**provenance.versions(), "python": "3.99.0", "tokenizers": "0.99.0"}
    set_environment(monkeypatch, versions=versions)
    with pytest.warns(UserWarning, match=r"begun under other conditions, bits may differ: versions: .*3\.99\.0"):
        train(config, out, resume=True)
    assert corpora.load(config.data).record["hash"] != before["hash"]
    assert run_dir.read_record(out)["corpus"] == before, "as it was prepared when the run was begun"
    np.testing.assert_array_equal(surface.load_surface(out).loss, surface.load_surface(whole).loss)


def test_text_that_has_changed_is_refused_and_what_differs_is_named(
    config: TrainConfig, out: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = r"the text has changed since .*run was begun"
    with in_other_order(text / "tale"):
        with pytest.raises(ValueError, match=rf"{changed} \(checksums differ\); restore it"):
            train(config, out, resume=True)
        for module in (corpora, preparation):
            monkeypatch.setattr(module, "version", lambda name: "0.99.0")
        with pytest.raises(ValueError, match=rf"{changed} \(checksums differ; prepared with tokenizers .*, now 0\.99"):
            train(config, out, resume=True)


def test_a_record_without_checksums_goes_by_the_hash(config: TrainConfig, out: Path) -> None:
    record = run_dir.read_record(out)
    del record["corpus"]["checksums"]
    run_dir.write_record(out, {**record, "corpus": {**record["corpus"], "hash": "of other text"}})
    with pytest.raises(ValueError, match=r"was begun \(hash differ\)"):
        train(config, out, resume=True)
    run_dir.write_record(out, record)
    train(config, out, resume=True)


def test_the_record_keeps_every_environment_a_run_was_made_in(
    config: TrainConfig, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_dir.read_record(out)["environment"]
    stops = [step for step in resolve_timeline(config).evaluations if step > 16]
    second = set_environment(monkeypatch, cores=98)
    with pytest.warns(UserWarning, match="cores: .* now 98"), pytest.raises(KeyboardInterrupt):
        train(config, out, resume=True, progress=at("train", stops[0], interrupt_me))
    stopped = run_dir.read_record(out)
    assert stopped["environment"] == first
    assert stopped["later_environments"] == [{"after_step": 16, "environment": second}]
    with warnings.catch_warnings(action="ignore"), pytest.raises(KeyboardInterrupt):
        train(config, out, resume=True, progress=at("train", stops[1], interrupt_me))  # the same again
    assert run_dir.read_record(out)["later_environments"] == stopped["later_environments"]
    third = set_environment(monkeypatch, cores=97)
    with pytest.warns(UserWarning, match="cores: .* now 97"):
        train(config, out, resume=True)
    record = run_dir.read_record(out)
    assert record["environment"] == first
    assert [later["environment"] for later in record["later_environments"]] == [second, third]
    assert record["later_environments"][1]["after_step"] == stops[1]


def test_a_run_that_was_moved_continues_under_its_name(config: TrainConfig, begun: Path, tmp_path: Path) -> None:
    out = shutil.copytree(begun, tmp_path / "moved")
    train(config, out, resume=True)
    assert run_dir.read_record(out)["run"] == surface.load_surface(out).attrs["run"] == "run"
