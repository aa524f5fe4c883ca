"""Checkpoints of the training state on disk, through orbax.

Orbax writes a checkpoint under a temporary name and gives it its own when it is whole, so that a kill in mid-save
leaves the one before. It neither calls fsync nor keeps checksums: here each checkpoint is synced to disk once
written, carries the SHA-256 of its arrays and a manifest with that of each of its files, and is verified when it is
read, the files before anything parses them. The newest that verifies wins. A kill between save and manifest leaves a
checkpoint without one, as earlier versions wrote them: it is verified by its arrays.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tsl_jax.atomic_write import remove_temporary_files, sync, write_atomically
from tsl_jax.training import hosts
from tsl_jax.training.step import TrainState

# What tensorstore says of a disk that takes no more; its errors are ValueErrors.
FULL = ("No space left on device", "Disk quota exceeded", "File too large", "RESOURCE_EXHAUSTED")
MANIFEST = "manifest.json"
GONE = 0.5  # seconds until a checkpoint that is being removed is gone
OVERHEAD = 256 * 1024  # bytes of a checkpoint beside its arrays, at most


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self, folder: Path, *, keep: int, model_hash: str, planned: Collection[int] = (), read_only: bool = False
    ):
        """Open, or begin, the checkpoints in `folder`; the newest `keep` stay; `model_hash` names the model.

        Args:
            planned: the newest at one of these steps stays as well, however many interruptions have saved since.
            read_only: nothing is written, and what another process is writing there is left alone.
        """
        self.folder = Path(folder).absolute()
        self.model_hash = model_hash
        self._keep, self._planned = keep, frozenset(planned)
        self._damaged: set[int] = set()
        reads = read_only or not hosts.is_writer()
        settings: dict[str, Any] = {"create": not reads}
        if hosts.count() > 1:  # each process reads by itself, and the writer has gathered what it writes
            alone = ocp.options.MultiprocessingOptions(hosts.index(), {hosts.index()}, f"process{hosts.index()}")
            settings = {"create": False, "multiprocessing_options": alone}
            self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None,  # orbax knows no planned steps: `_prune` does it
            enable_async_checkpointing=False,
            read_only=reads,
            cleanup_tmp_directories=not reads,  # left by kills
            **settings,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        if not reads:
            for step in self._manager.all_steps():
                remove_temporary_files(self.folder / str(step))

    def steps(self) -> list[int]:
        """Steps on disk, increasing, without those found damaged."""
        return hosts.from_writer(lambda: sorted(set(self._manager.all_steps()) - self._damaged))

    def save(self, state: TrainState) -> None:
        """Write the state of `state.step`, durably, unless it is there already; older ones make room for it.

        Raises:
            OSError: if it cannot be written; the checkpoints before stay as they are.
        """
        step = int(state.step)
        if step in self.steps():
            if hosts.is_writer():
                self._prune()  # a kill may have come before it
            return
        host = _in_writer(state)
        if host is None:
            return
        facts = {"model": self.model_hash, "step": step, "sha256": _digest(_tree(host))}
        parts = ocp.args.Composite(state=ocp.args.StandardSave(_tree(host)), facts=ocp.args.JsonSave(facts))
        try:
            self._drop_damaged()
            _need_space(self.folder, sum(leaf.nbytes for leaf in jax.tree.leaves(host)))
            with _quiet():
                self._manager.save(step, args=parts)
            _write_manifest(self.folder / str(step))
            _sync(self.folder / str(step))
            self._prune()
        except Exception as error:
            reasons = [sign for sign in FULL if sign in str(error)]
            if not reasons and not isinstance(error, OSError):
                raise
            reason = _first_line(error) if isinstance(error, OSError) else reasons[0]
            raise OSError(f"training: checkpoint {self.folder / str(step)} was not written: {reason}") from error

    def restore(self, like: TrainState, *, planned: bool = False) -> TrainState | None:
        """The newest state that loads and verifies, or None where there is no checkpoint; warns of damaged ones.

        Args:
            like: a state of the same shapes, kept as it is. planned: of the planned steps, where one of them is there.

        Raises:
            ValueError: for a checkpoint of another model, or where there are checkpoints and none loads.
        """
        problems = []
        steps = self.steps()
        if planned:  # the others come last
            steps.sort(key=lambda step: (step in self._planned, step))
        for step in reversed(steps):
            state, problem = self._load(step, like)
            if state is not None:
                if problems:
                    warnings.warn(f"training: {'; '.join(problems)}; using the one of step {step}", stacklevel=2)
                return state
            problems.append(f"damaged checkpoint {self.folder / str(step)} ({problem})")
            self._damaged.add(step)
        if problems:
            raise ValueError(f"training: {'; '.join(problems)}; none is left, restore a copy or train anew")
        return None

    def read(self, step: int, like: TrainState) -> TrainState:
        """The state of one step.

        Raises:
            ValueError: where it is damaged, or of another model. FileNotFoundError: where it is no longer there, as a
                training that goes on keeps the newest only.
        """
        state, problem = self._load(step, like)
        if state is None:
            time.sleep(GONE)  # it may be half removed
            if not (self.folder / str(step)).exists():
                raise FileNotFoundError(f"training: the checkpoint of step {step} has been removed meanwhile")
            damage = f"damaged checkpoint {self.folder / str(step)} ({problem})"
            raise ValueError(f"training: {damage}; name another one, or restore it from a copy")
        return state

    def close(self) -> None:
        """Release the manager's threads."""
        self._manager.close()

    def _load(self, step: int, like: TrainState) -> tuple[TrainState | None, str]:
        """The state of one step, or None and what is wrong with it: in all processes, where it is so in one."""
        tree, expected, problem = self._read(step, like)
        if hosts.anywhere(bool(problem)):
            return None, problem or "another process cannot read it"
        if _digest(tree) != expected:
            return None, "its checksum does not match"
        return TrainState(tree["params"], tree["opt_state"], tree["step"]), ""

    def _read(self, step: int, like: TrainState) -> tuple[Any, str, str]:
        """The arrays of one step, what their checksum should be, and what is wrong with them, which may be nothing."""
        if problem := _broken_file(self.folder / str(step)):
            return None, "", problem
        try:
            with _quiet():
                facts = self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
            model, expected = facts["model"], facts["sha256"]
        except Exception as error:  # damage shows as whatever the layer that meets it raises
            return None, "", _first_line(error)
        if model != self.model_hash:
            mismatch = f"{self.folder / str(step)} is of model {model}, this one is {self.model_hash}"
            raise ValueError(f"training: checkpoint of another model: {mismatch}; use the config it was trained with")
        try:
            target = jax.tree.map(abstract_array, _tree(like))
            parts = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            with _quiet():
                return self._manager.restore(step, args=parts)["state"], expected, ""
        except Exception as error:
            return None, "", _first_line(error)

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        if hosts.is_writer():
            for later in self._manager.all_steps():
                if later > step:
                    self._manager.delete(later)
            self._damaged = {damaged for damaged in self._damaged if damaged <= step}

    def _prune(self) -> None:
        """Remove all but what is to stay."""
        steps = sorted(self._manager.all_steps())
        kept = {*steps[-self._keep :], *[step for step in steps if step in self._planned][-1:]}
        for step in steps:
            if step not in kept:
                self._manager.delete(step)

    def _drop_damaged(self) -> None:
        """Remove what was found damaged: it may be of later steps, which are about to be written again."""
        for step in self._damaged:
            self._manager.delete(step)
        self._damaged.clear()


def abstract_array(array: Any) -> Any:
    """Shape, dtype and place of an array, for `restore`."""
    return ocp.utils.to_shape_dtype_struct(array)


def _write_manifest(checkpoint: Path) -> None:
    """The SHA-256 of each file of a checkpoint, in a file of its own."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sums = {path.relative_to(checkpoint).as_posix(): _checksum(path) for path in files}
    write_atomically(checkpoint / MANIFEST, json.dumps(sums, indent=1))


def _broken_file(checkpoint: Path) -> str:
    """What differs from the manifest of a checkpoint, in words; empty where nothing does, or there is no manifest."""
    try:
        sums = json.loads((checkpoint / MANIFEST).read_text())
        for name, expected in sums.items():
            if Path(name).is_absolute() or ".." in Path(name).parts or not (checkpoint / name).is_file():
                return f"{name} is missing"
            if _checksum(checkpoint / name) != expected:
                return f"its checksum does not match in {name}"
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{MANIFEST}: {_first_line(error)}"
    return ""


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_writer(state: TrainState) -> TrainState | None:
    """The state in the writer's memory, gathered array by array; None in other processes."""
    leaves = []
    for leaf in jax.tree.leaves(state):
        value = hosts.whole(leaf)
        leaves += [value] if hosts.is_writer() else []
    return jax.tree.unflatten(jax.tree.structure(state), leaves) if hosts.is_writer() else None


def _need_space(folder: Path, size: int) -> None:
    """Full disks are met here first: tensorstore's threads would print tracebacks of theirs."""
    free = shutil.disk_usage(folder).free
    if free < size + OVERHEAD:
        raise OSError(errno.ENOSPC, f"{FULL[0]} for {size + OVERHEAD:,} bytes, {free:,} are free")


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines, whose tracebacks say again what is raised anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _tree(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "opt_state": state.opt_state, "step": state.step}


def _digest(tree: Any) -> str:
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        value = np.ascontiguousarray(hosts.whole(leaf))
        sha.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _sync(folder: Path) -> None:
    """fsync every file and folder below `folder`, and the folder that holds it."""
    for root, _, files in os.walk(folder):
        for name in (*files, "."):
            sync(os.path.join(root, name))
    sync(folder.parent)
