"""The runs of a sweep, one after another or side by side: one task a run, and each run a process, `tsl train`.

`make_all` hands `Pool.make` to a `concurrent.futures` executor. With none the runs go one after another; `side_by_side`
gives each of several its own cores of this machine; and any executor whose workers see the same folders does, such as
`curve_tables.RayExecutor`, which is the way to many machines: one run a task, never one inside the other. What a run
says that has no terminal to itself stands in RUNS/.NAME.log.

The process of a run is of a group of its own, so that a terminal's Ctrl-C reaches only the sweep, which passes it on:
interrupted once, a run writes a checkpoint and ends, interrupted twice it ends without one. It inherits the lock of its
run: should the sweep be killed, the run goes on alone, and until it ends no other sweep begins it a second time.
"""

from __future__ import annotations

import fcntl
import os
import queue
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsl_jax.atomic_write import write_atomically
from tsl_jax.processes import environment, python
from tsl_jax.training import run_dir
from tsl_jax.training.config import TrainConfig, to_dict

if TYPE_CHECKING:
    from tsl_jax.sweeps.pool import Pool

INTERRUPTED = (130, -signal.SIGINT)  # `tsl` after Ctrl-C; the second while it still loads
ASKED_TO_END = (143, 129, -signal.SIGTERM, -signal.SIGHUP)  # the same of SIGTERM and SIGHUP
POLL = 0.2  # seconds between looks at a run under way
PATIENCE = 600  # seconds that a run may take to write its checkpoint once it is asked to stop

Outcome = tuple[str, Callable[[], bool]]  # a name, and what gives or raises how it ended


def make_all(
    pool: Pool,
    runs: Mapping[str, TrainConfig],
    executor: Executor | None = None,
    deadline: float | None = None,
    watch: Callable[[str, bool], Any] = lambda name, done: None,
    retries: int = 0,
) -> list[str]:
    """Make the runs that are not kept yet; the names of those that are unfinished, in order.

    A run that fails, as one does whose learning rate is too high, keeps no other from being made. After Ctrl-C, SIGTERM
    or SIGHUP no further one begins, and those under way stop at a checkpoint.

    Args:
        pool: keeps them. runs: name -> configuration. executor: None: one after another, here.
        deadline: of `time.time`, for all together. watch: called with each name that was worked on, and whether it is
            complete. retries: how often a run that failed goes on from its last checkpoint, after all others; a warning
            says why it failed.

    Raises:
        ValueError: naming the runs that failed, once all others have ended. KeyboardInterrupt: see above.
    """
    todo = {name: runs[name] for name, state in pool.states(runs).items() if state != "kept"}
    left, failed, trying = [], {}, todo
    for attempt in range(1 + retries):
        failed = {}
        with _every_end_interrupts(), closing(_outcomes(pool, trying, executor, deadline)) as outcomes:
            for name, outcome in outcomes:
                try:
                    done = outcome()
                except Exception as error:
                    failed[name] = _reason(error)
                    if attempt < retries:
                        warnings.warn(f"{failed[name]}; it is tried again after the others", stacklevel=2)
                    continue
                left += [] if done else [name]
                watch(name, done)
        trying = {name: todo[name] for name in failed}
        if not trying:
            break
    if failed:
        attempts = f" {1 + retries} times" if retries else ""
        summary = f"sweep: {len(failed)} of {len(todo)} runs failed{attempts}, see above"
        raise ValueError("\n".join([*failed.values(), summary]))
    return [name for name in todo if name in left]


def _reason(error: Exception) -> str:
    """Why a run failed; what is neither a mistake, the system's nor Ray's is a defect, and is raised again."""
    cause = getattr(error, "cause", None) or error  # Ray wraps what a task raises
    if isinstance(cause, ValueError | OSError):
        return str(cause)
    if type(cause).__module__.partition(".")[0] == "ray":  # a worker or its machine died
        return f"sweep: {type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
    raise error


def _outcomes(
    pool: Pool, todo: Mapping[str, TrainConfig], executor: Executor | None, deadline: float | None
) -> Generator[Outcome, None, None]:
    """Each run and how it ended: one after another, or as they end."""
    if executor is None:
        yield from ((name, partial(pool.make, name, config, deadline)) for name, config in todo.items())
        return
    stop = threading.Event()
    stop_check = (stop.is_set,) if isinstance(executor, ThreadPoolExecutor) else ()  # an event reaches only threads
    tasks = {executor.submit(pool.make, name, config, deadline, *stop_check): name for name, config in todo.items()}
    try:
        for task in as_completed(tasks):
            yield tasks[task], task.result
    finally:  # also where the loop that we feed was left by an exception: Ctrl-C comes to the main thread alone
        stop.set()
        if not all(task.done() for task in tasks):
            executor.shutdown(cancel_futures=True)


@contextmanager
def _every_end_interrupts() -> Iterator[None]:
    """SIGTERM, of `timeout` and schedulers, and SIGHUP, of a closed terminal, meanwhile do what Ctrl-C does.

    So does Ctrl-C where a script's & made us ignore it: our runs would inherit that, and no signal could stop them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {end: signal.getsignal(end) for end in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = [end for end in before if end == signal.SIGINT or before[end] == signal.SIG_DFL]  # nohup's stays ignored
    try:
        for end in ours:
            signal.signal(end, signal.default_int_handler)
        yield
    finally:
        for end in ours:
            signal.signal(end, before[end])


def side_by_side(runs: int) -> ThreadPoolExecutor:
    """An executor for so many runs at a time, each on its own share of the cores this process may use.

    Raises:
        ValueError: for fewer cores than runs, or a number below one.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not 1 <= runs <= len(cores):
        raise ValueError(f"sweep: {runs} runs side by side need a core each, there are {len(cores)}; ask for fewer")
    shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for k in range(runs):
        shares.put(cores[k * len(cores) // runs : (k + 1) * len(cores) // runs])

    def take_cores() -> None:
        """A thread's cores are those of the processes it starts (Linux; elsewhere the system spreads them)."""
        mine = shares.get()
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, mine)

    return ThreadPoolExecutor(runs, initializer=take_cores)


# ---------------------------------------------------------------------------------------------- one run, as a process


@contextmanager
def lock(run: Path) -> Iterator[int | None]:
    """The lock of a run, a file descriptor; None while another process has it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(_beside(run, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = True
        except BlockingIOError:
            taken = False
        yield handle if taken else None
    finally:
        os.close(handle)


def train(run: Path, config: TrainConfig, locked: int, stop: Callable[[], bool], *, bars: bool) -> bool:
    """Whether the run is complete; False where it was asked to stop.

    Args:
        run: its folder. locked: its lock. stop: asked again and again whether to stop it. bars: it may draw them.

    Raises:
        ValueError: where it failed; its own message stands on stderr. KeyboardInterrupt: after Ctrl-C, here or there.
    """
    process = _start(run, config, locked, bars)
    try:
        while process.poll() is None and not stop():
            time.sleep(POLL)
    except KeyboardInterrupt:
        _interrupt(process)
        raise
    stopped = process.returncode is None
    code = _interrupt(process) if stopped else process.returncode
    if stopped and code in (*INTERRUPTED, *ASKED_TO_END, -signal.SIGKILL):
        return False
    if code in INTERRUPTED:
        raise KeyboardInterrupt
    if code == -signal.SIGKILL:
        reason = "was killed, as a system does whose memory is full; the same command goes on"
    elif code in ASKED_TO_END:
        reason = "was asked to end by another process; the same command goes on"
    elif code < 0:
        reason = f"was ended by signal {-code}; the same command goes on"
    else:
        reason = f"ended with exit code {code}{_last_words(run, bars)}"
    if code:
        raise ValueError(f"sweep: run {run.name} {reason}")
    return True


def _start(run: Path, config: TrainConfig, locked: int, bars: bool) -> subprocess.Popen[bytes]:
    """`tsl train`, from a file beside the run's folder."""
    import yaml

    file, log = _beside(run, "yaml"), _beside(run, "log")
    write_atomically(file, yaml.safe_dump(to_dict(config), sort_keys=False))
    resume = ["--resume"] if (run / run_dir.CONFIG).exists() else []
    # the sweep has asked for trust before, or a study in Python names its rules itself
    command = [*python("-m"), "tsl_jax.cli", "train", "--trust", "--config", str(file), "--out", str(run), *resume]
    if bars:
        return subprocess.Popen(command, process_group=0, pass_fds=(locked,), env=environment())
    here = {**environment(), "TERM": "dumb"}  # no bars over those of another run
    with open(log, "ab") as said:
        return subprocess.Popen(command, process_group=0, pass_fds=(locked,), env=here, stdout=said, stderr=said)


def _last_words(run: Path, bars: bool) -> str:
    """What a run has said last, and where the rest is."""
    if bars:
        return "; its message stands above"
    lines = _beside(run, "log").read_text(errors="replace").splitlines() if _beside(run, "log").exists() else []
    last = next((line.removeprefix("tsl: ") for line in reversed(lines) if line.strip()), "it said nothing")
    return f": {last} ({_beside(run, 'log')})"


def _beside(run: Path, kind: str) -> Path:
    """A file of ours beside a run; no run's name begins with a dot."""
    return run.with_name(f".{run.name}.{kind}")


def _interrupt(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a run that is asked to stop; one that does not is killed, and loses what no checkpoint has."""
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    except BaseException:  # a second Ctrl-C
        process.kill()
        process.wait()
        raise
