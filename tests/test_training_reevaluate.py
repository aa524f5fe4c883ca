"""Measuring a run again: only on the run's own text, only with its own tokenizer, and into a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from training_material import in_other_order, quiet, small_run, write_words

from tsl_jax import surface
from tsl_jax.reporting import json_values
from tsl_jax.training import run_dir
from tsl_jax.training.config import OptimizerConfig, TrainConfig
from tsl_jax.training.loop import train
from tsl_jax.training.reevaluation import reevaluate


@pytest.fixture(name="text", scope="module")
def _text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(name="config", scope="module")
def _config(text: Path) -> TrainConfig:
    return small_run(write_words(text), steps=4, evaluations=2)


@pytest.fixture(name="run", scope="module")
def _run(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config, tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(name="tokenizer")
def _tokenizer(run: Path) -> Iterator[Path]:
    """The run's tokenizer, put back after the test."""
    file = run / "tokenizer.json"
    before = file.read_bytes()
    yield file
    file.write_bytes(before)


def test_the_losses_of_another_run_are_not_taken_for_this_ones(config: TrainConfig, run: Path, tmp_path: Path) -> None:
    """Both runs have one model, the same windows and one seed."""
    other = train(replace(config, optimizer=OptimizerConfig(peak_lr=1e-4)), tmp_path / "second")
    reevaluate(run, tmp_path / "out", progress=quiet)
    with pytest.raises(ValueError, match=r"holds another run's surface \(run, config_hash differ\); use a new folder"):
        reevaluate(other, tmp_path / "out", progress=quiet)
    reevaluate(run, tmp_path / "out", progress=quiet)
    np.testing.assert_array_equal(surface.load_surface(tmp_path / "out").loss, surface.load_surface(run).loss)


@pytest.mark.parametrize("domain", ["tale", "list"])
def test_text_that_has_changed_is_not_the_runs_own(run: Path, text: Path, tmp_path: Path, domain: str) -> None:
    sentence = r"the text has changed since .*first was begun \(checksums differ\); restore it"
    with in_other_order(text / domain), pytest.raises(ValueError, match=sentence):
        reevaluate(run, tmp_path / "out", progress=quiet)
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_in_the_runs_folder_is_seen(run: Path, tokenizer: Path, tmp_path: Path) -> None:
    values = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps(values))  # the same one, written in another way
    reevaluate(run, tmp_path / "out", progress=quiet)
    values["model"]["merges"].pop()
    tokenizer.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"the text has changed .*its tokenizer is not that of .*tokenizer\.json"):
        reevaluate(run, tmp_path / "out", progress=quiet)


def test_the_summary_of_a_surface_alone_says_what_it_is(run: Path, tmp_path: Path) -> None:
    """There is no record beside it."""
    reevaluate(run, tmp_path / "out", progress=quiet)
    loaded = surface.load_surface(tmp_path / "out")
    values = json_values.summary(loaded, xr.Dataset(), None, {}, {})
    assert values["config_hash"] == run_dir.read_record(run)["config_hash"]
    assert values["corpus"]["tokens"] == run_dir.read_record(run)["corpus"]["tokens"]
    assert (
        json_values.summary(loaded, xr.Dataset(), None, {"config_hash": "of the record"}, {})["config_hash"]
        != (values["config_hash"])
    )


def test_token_ids_that_the_model_does_not_know_are_refused(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 9000, 20_000).astype(np.uint16))
    with pytest.raises(ValueError, match="the corpus has 9000 tokens, the model 300"):
        reevaluate(run, tmp_path / "out", text=(f"{tmp_path}/a.npy",), progress=quiet)


@pytest.mark.parametrize("place", [".", "surface", "../first", "../first/surface"])
def test_a_surface_does_not_hide_that_of_a_run(run: Path, place: str) -> None:
    with pytest.raises(ValueError, match=r"belongs to a run, which has a surface of its own; name a new folder as out"):
        reevaluate(run, run / place, progress=quiet)
    assert not (run / "surface.json").exists()


@pytest.mark.parametrize("place", ["", "surface"])
def test_the_folder_of_any_other_run_is_refused_too(run: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "config.yaml").write_text("another run\n")
    with pytest.raises(ValueError, match="belongs to a run"):
        reevaluate(run, tmp_path / place, progress=quiet)
