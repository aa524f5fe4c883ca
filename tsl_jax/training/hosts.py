"""Several processes in one run, joined by `jax.distributed`: each computes on its own devices, process 0 writes.

All run the same program, and must take every decision alike, or they wait for one another in vain:

* what stands in files decides as process 0, the writer, reads it (`from_writer`);
* a signal that came to one process stops all at the same step (`anywhere`);
* files are written by the writer alone (`writer_only`), while the others wait (`together`).

A thread of each process looks after the others: one that ends with an error has said so, and of one that is gone no
beat comes. Either ends all with a sentence, also in the midst of a collective. (Where process 0 is killed, jax itself
ends the others at once, in words of its own: it is the one that all are connected to.)

Without `joined` there is one process, and every function here does what that needs. jax is imported only to join.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from tsl_jax import processes

T = TypeVar("T")
P = ParamSpec("P")

JOIN = 300  # seconds in which all processes must have started
BEAT, MISSED = 2.0, 30.0  # seconds between signs of life; without one for so long a process is taken for gone
GRACE = 3.0  # seconds in which a process may end by itself once another has
FOREVER = 7 * 24 * 3600 * 1000  # ms that processes wait for one another: no limit, those that are gone are missed first
END, BEATS, GONE = "tsl/end", "tsl/beat/", "gone"
# How a collective fails whose peer is gone.
LOST = re.compile(r"gloo|nccl|socket closed|connection (closed|reset)|coordination service|unavailable:", re.IGNORECASE)


@dataclass
class _Group:
    """The processes of this run; client is jax's: keys and values that all see, and barriers."""

    index: int
    count: int
    client: Any
    left: threading.Event = field(default_factory=threading.Event)  # this process ends by itself
    calls: int = 0  # of what all do together: names for the next


_group: _Group | None = None


@contextmanager
def joined(coordinator: str = "", total: int = 0, index: int = -1) -> Iterator[None]:
    """Meanwhile this process is one of several; call it before jax has looked at any device.

    Args:
        coordinator: HOST:PORT on which process 0 listens. total: how many processes there are. index: of this one,
            from 0. What is left out jax reads from SLURM, Open MPI, Kubernetes or a TPU pod.

    Raises:
        ValueError: where they do not come together. SystemExit: in all but one of several that end for one reason.
    """
    global _group
    _group = _join(coordinator, total, index)
    with warnings.catch_warnings():
        if not is_writer():
            warnings.simplefilter("ignore")  # the writer says the same
        watch = threading.Thread(target=_watch, args=(_group,), daemon=True)
        watch.start()
        try:
            yield
            together()
        except BaseException as error:
            other = _ended(_group, error)
            if other is error:
                raise
            raise other from error
        finally:
            _group.left.set()
            watch.join()
            _group = None
    import jax

    jax.distributed.shutdown()


def count() -> int:
    """Processes of this run."""
    return 1 if _group is None else _group.count


def index() -> int:
    """Number of this process, from 0."""
    return 0 if _group is None else _group.index


def is_writer() -> bool:
    """Whether this process writes the files of the run."""
    return index() == 0


def writer_only(write: Callable[P, Any]) -> Callable[P, None]:
    """The same function in the writer, nothing elsewhere."""

    @wraps(write)
    def only(*args: P.args, **kwargs: P.kwargs) -> None:
        if is_writer():
            write(*args, **kwargs)

    return only


def together() -> None:
    """Go on when all processes have come here."""
    if _group is not None:
        _group.client.wait_at_barrier(_next_name(_group), FOREVER)


def from_writer(make: Callable[[], T]) -> T:
    """What `make` gives in the writer, a JSON value, in every process."""
    if _group is None:
        return make()
    name = _next_name(_group)
    if is_writer():
        _group.client.key_value_set(name, json.dumps(make()))
    return json.loads(_group.client.blocking_key_value_get(name, FOREVER))


def anywhere(flag: bool) -> bool:
    """Whether it is so in any process."""
    if _group is None:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def check_same(what: str, value: Any) -> None:
    """Nothing, where every process has the same JSON value as the writer.

    Raises:
        ValueError: in those that have another.
    """
    theirs, own = from_writer(lambda: value), json.loads(json.dumps(value))
    if own != theirs:
        if isinstance(own, dict) and isinstance(theirs, dict):  # only what differs
            names = [name for name in {**theirs, **own} if own.get(name) != theirs.get(name)]
            own, theirs = ({name: values.get(name) for name in names} for values in (own, theirs))
        found = f"{what} of process {index()} is {own}, of process 0 {theirs}"
        raise ValueError(f"training: {found}; all processes need the same")


def whole(array: Any) -> np.ndarray:
    """An array of jax in the memory of this process, wherever its parts lie; all processes call it for the same one."""
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


# ----------------------------------------------------------------------------------------------- coming and going


def _join(coordinator: str, total: int, index: int) -> _Group:
    import jax
    from jax._src import distributed  # nothing public gives jax's client, on which its own checkpointing stands too

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    local = re.fullmatch(r"(127\.\d+\.\d+\.\d+|localhost):\d+", coordinator)  # then nobody outside may come in
    try:
        jax.distributed.initialize(
            coordinator or None,
            total or None,
            index if index >= 0 else None,
            initialization_timeout=JOIN,
            coordinator_bind_address=coordinator if local else None,
        )
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        advice = "start one process a task of SLURM or Open MPI, or give --coordinator, --processes and --process-id"
        raise ValueError(f"training: the processes did not come together ({reason}); {advice}") from None
    return _Group(jax.process_index(), jax.process_count(), distributed.global_state.client)


def _next_name(group: _Group) -> str:
    group.calls += 1
    return f"tsl/{group.calls}"


def _watch(group: _Group) -> None:
    """Give signs of life, the writer looks for those of the others; end this process where one has ended."""
    last = dict.fromkeys(range(group.count), ("", time.monotonic()))
    number = 0
    while not group.left.wait(BEAT):
        number += 1
        try:
            group.client.key_value_set(f"{BEATS}{group.index}", str(number), allow_overwrite=True)
            reason = _end_of_another(group)
            if not reason and group.index == 0:
                beats = {int(key.rsplit("/", 1)[1]): beat for key, beat in group.client.key_value_dir_get(BEATS)}
                now = time.monotonic()
                last = {i: (beats.get(i, ""), now) if beats.get(i, "") != last[i][0] else last[i] for i in last}
                missed = [i for i, (_, since) in last.items() if now - since > MISSED]
                if missed:
                    reason = f"process {missed[0]} has given no sign of life for {MISSED:.0f} seconds"
                    _say(group, reason)
        except Exception:  # jax's own error types differ by version
            reason = "process 0, which all are connected to, is gone"
        if reason and not group.left.wait(GRACE):
            with suppress(Exception):
                group.client.key_value_set(f"{BEATS}{group.index}", GONE, allow_overwrite=True)
            _wait_for_others(group)
            show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
            print(f"{show_cursor}tsl: training: {reason}: all processes of the run end; {RESUME}", file=sys.stderr)
            _flush()
            os._exit(1)


RESUME = "what was computed is on disk up to the last checkpoint, the same command with --resume goes on"


def _ended(group: _Group, error: BaseException) -> BaseException:
    """What this process ends with, once the others know why."""
    group.left.set()
    reason = ""
    if LOST.search(str(error)):  # a collective that failed: not our fault, and who caused it may still say why
        deadline = time.monotonic() + BEAT + GRACE
        while not (reason := _end_of_another(group)) and time.monotonic() < deadline:
            time.sleep(0.1)
        reason = reason or "another process is gone"
        error = ChildProcessError(f"training: {reason}: all processes of the run end; {RESUME}")
    own = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"ended: {error}"
    mine = f"process {group.index} {own}"
    _say(group, reason or mine)
    first = _end_of_another(group)
    with suppress(Exception):
        group.client.key_value_set(f"{BEATS}{group.index}", GONE, allow_overwrite=True)
    _wait_for_others(group)
    mistake = isinstance(error, ValueError | OSError) and not reason
    signalled = 128 + (processes.received() or signal.SIGINT)
    code = signalled if isinstance(error, KeyboardInterrupt) else 2 if mistake else 1
    atexit.register(_exit_at_once, code)
    if group.index and first != mine and first.endswith(own):  # it is said there
        return SystemExit(code)
    return error


def leaving(advice: str) -> str:
    """The advice itself, once the other processes know that this one, interrupted, ends by itself."""
    if _group is not None:
        _say(_group, f"process {_group.index} was interrupted")
        _group.left.set()
    return advice


def _say(group: _Group, reason: str) -> None:
    """Tell all why the run ends; the first reason stays."""
    with suppress(Exception):
        group.client.key_value_set(END, reason)


def _end_of_another(group: _Group) -> str:
    try:
        return group.client.key_value_try_get(END)
    except Exception as error:
        if "NOT_FOUND" in str(error):
            return ""
        return "process 0, which all are connected to, is gone"


def _wait_for_others(group: _Group) -> None:
    """Process 0 stays until the others have read why it ends: with it ends what they read."""
    deadline = time.monotonic() + 2 * (BEAT + GRACE)
    with suppress(Exception):
        while group.index == 0 and time.monotonic() < deadline:
            beats = [beat for key, beat in group.client.key_value_dir_get(BEATS) if not key.endswith("/0")]
            if beats.count(GONE) == group.count - 1:
                return
            time.sleep(0.1)


def _exit_at_once(code: int) -> None:
    """jax would wait for processes that have ended."""
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
