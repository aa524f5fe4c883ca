"""Checkpoints: what is saved comes back bit for bit, damage is found, another model is refused."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsl_jax.training import checkpoint
from tsl_jax.training.checkpoint import Checkpoints
from tsl_jax.training.config import OptimizerConfig
from tsl_jax.training.optimizer import adamw, lr_plan
from tsl_jax.training.step import TrainState, initial_state


def state_at(step: int) -> TrainState:
    """A state with numbers of its own in every leaf."""
    config = OptimizerConfig()
    params = {"embedding": jnp.zeros((6, 4)), "blocks": {"w": jnp.zeros((2, 4, 4))}}
    state = initial_state(params, adamw(config, lr_plan(config, 100, 8), 8))
    keys = iter(jax.random.split(jax.random.key(step), 100))

    def fill(leaf: jax.Array) -> jax.Array:
        return jax.random.normal(next(keys), leaf.shape) if leaf.dtype == jnp.float32 else leaf + step

    return jax.tree.map(fill, state)


@pytest.fixture(name="saved")
def _saved(tmp_path: Path) -> Path:
    checkpoints = Checkpoints(tmp_path, keep=2, model_hash="a")
    for step in (3, 5, 8):
        checkpoints.save(state_at(step))
    assert checkpoints.steps() == [5, 8]
    checkpoints.close()
    return tmp_path


def restored(folder: Path, model_hash: str = "a") -> TrainState | None:
    checkpoints = Checkpoints(folder, keep=2, model_hash=model_hash)
    try:
        return checkpoints.restore(state_at(0))
    finally:
        checkpoints.close()


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_the_newest_state_comes_back_bit_for_bit(saved: Path) -> None:
    state = restored(saved)
    assert state is not None
    assert jax.tree.structure(state) == jax.tree.structure(state_at(8))
    jax.tree.map(np.testing.assert_array_equal, state, state_at(8))
    same = jax.tree.map(lambda a, b: (a.dtype, a.weak_type) == (b.dtype, b.weak_type), state, state_at(8))
    assert all(jax.tree.leaves(same)), "a compiled step takes it as it took the first one"


def test_a_kill_before_old_checkpoints_are_removed_leaves_none_in_the_end(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(Checkpoints, "_prune", lambda self: None)
        checkpoints = Checkpoints(saved, keep=2, model_hash="a")
        checkpoints.save(state_at(9))
        assert checkpoints.steps() == [5, 8, 9]
        checkpoints.close()
    checkpoints = Checkpoints(saved, keep=2, model_hash="a")
    checkpoints.save(state_at(9))  # as the run does that goes on from there
    assert checkpoints.steps() == [8, 9]
    checkpoints.close()


def test_what_a_kill_left_in_a_checkpoint_is_swept(saved: Path) -> None:
    left = saved / "8" / ".manifest.json.1542-5c55263b.tmp"
    left.touch()
    Checkpoints(saved, keep=2, model_hash="a", read_only=True).close()
    assert left.exists(), "who only reads leaves it alone"
    assert restored(saved) is not None
    assert not left.exists()


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert restored(tmp_path / "new") is None


def test_a_flipped_byte_is_found_and_the_one_before_is_used(saved: Path) -> None:
    file = largest_file(saved / "8")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"damaged checkpoint .*/8 .*; using the one of step 5"):
        state = restored(saved)
    assert state is not None
    assert int(state.step) == 5


def test_a_flipped_bit_in_any_file_is_found_before_it_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [path for path in (saved / "8").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    checkpoints = Checkpoints(saved, keep=2, model_hash="a")
    monkeypatch.setattr(checkpoints._manager, "restore", None)  # nothing parses a file that is damaged
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match=rf"damaged checkpoint {saved}/8 \("):
            checkpoints.read(8, state_at(0))
        file.write_bytes(whole)
    checkpoints.close()


def test_a_checkpoint_without_manifest_is_verified_by_its_arrays(saved: Path) -> None:
    """As earlier versions wrote it, and a kill between the save and the manifest."""
    (saved / "8" / checkpoint.MANIFEST).unlink()
    state = restored(saved)
    assert state is not None
    assert int(state.step) == int(state_at(8).step)


def test_what_a_killed_save_has_left_is_removed(saved: Path) -> None:
    left = saved / "11.orbax-checkpoint-tmp"
    shutil.copytree(saved / "8", left)
    Checkpoints(saved, keep=2, model_hash="a", read_only=True).close()
    assert left.exists(), "another process may be writing it"
    assert restored(saved) is not None
    assert not left.exists()


def test_a_missing_file_is_found_and_the_step_can_be_saved_again(saved: Path) -> None:
    largest_file(saved / "8").unlink()
    checkpoints = Checkpoints(saved, keep=2, model_hash="a")
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        checkpoints.restore(state_at(0))
    checkpoints.save(state_at(7))
    assert checkpoints.steps() == [5, 7]
    checkpoints.save(state_at(8))
    checkpoints.close()
    state = restored(saved)
    assert state is not None
    jax.tree.map(np.testing.assert_array_equal, state, state_at(8))


def test_a_checksum_that_does_not_match_is_found(saved: Path) -> None:
    for facts in saved.glob("*/facts/metadata"):
        facts.write_text(facts.read_text().replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(ValueError, match=r"its checksum does not match.*none is left"):
        restored(saved)


def test_a_checkpoint_of_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint of another model: .* is of model a, this one is b"):
        restored(saved, "b")


def test_a_full_disk_is_an_os_error_and_leaves_the_checkpoints_before(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(saved, keep=2, model_hash="a")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"checkpoint .*/11 was not written: .*No space left .*, 100 are free"):
        checkpoints.save(state_at(11))
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"checkpoint .*/12 was not written: .*No space left"):
        checkpoints.save(state_at(12))
    monkeypatch.undo()
    checkpoints.close()
    assert restored(saved) is not None


def test_a_checkpoint_can_be_read_by_its_step(saved: Path) -> None:
    checkpoints = Checkpoints(saved, keep=2, model_hash="a")
    jax.tree.map(np.testing.assert_array_equal, checkpoints.read(5, state_at(0)), state_at(5))
    largest_file(saved / "8").unlink()
    with pytest.raises(ValueError, match=r"damaged checkpoint .*/8"):
        checkpoints.read(8, state_at(0))
    checkpoints.close()
