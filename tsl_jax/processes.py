"""Processes: what ends one, and how one starts another.

Ctrl-C, SIGTERM (schedulers, `timeout`) and SIGHUP (a closed terminal) end a command alike: what is under way is saved,
and the exit code is 128 + the number of the signal. A `KeyboardInterrupt` alone may be lost: Python drops one that is
raised within a callback from C, and libraries turn it into errors of their own. So a signal is noted as well, and
whoever is about to go on, or to report an error, asks `received`. While C++ compiles a program, for minutes, Python
runs no handler at all: where nothing can be lost, a thread ends the process instead (`ending_at_once`).

A child runs with `python -P`: the folder it is started in is not searched for modules, as a file `random.py` that
happens to lie there would run in place of Python's own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

LINES, WIDEST = 6, 1200  # of a message
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 2.0  # seconds in which Python itself may come to a handler
ON_DISK = "what was computed is on disk: repeat the command to go on"
_received: list[int] = []
_deferred: list[bool] = []  # not empty: signals are noted only


def _note(number: int, frame: FrameType | None) -> None:
    """The handler. While signals are deferred only a second Ctrl-C interrupts at once."""
    again = number == signal.SIGINT and signal.SIGINT in _received
    _received.append(number)
    if again or not _deferred:
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Meanwhile the three signals raise `KeyboardInterrupt`, and are noted. nohup's ignored SIGHUP stays ignored.

    Ctrl-C does so too where a script's `&` made this process ignore it, or a worker of Ray that started it blocks it.
    Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is _note:
        yield
        return
    before, report = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook
    ours = [number for number in SIGNALS if number == signal.SIGINT or before[number] != signal.SIG_IGN]
    try:
        sys.unraisablehook = partial(_report_lost, report)
        for number in ours:
            signal.signal(number, _note)
        blocked = _unblock(ours)
        try:
            yield
        finally:
            _block(blocked)
    finally:
        for number in ours:
            signal.signal(number, before[number])
        sys.unraisablehook = report
        _received.clear()


def _report_lost(report: Callable[[Any], object], lost: Any) -> None:
    """Say nothing of a `KeyboardInterrupt` that Python drops, whose traceback it would print: the signal is noted."""
    if not (_received and issubclass(lost.exc_type, KeyboardInterrupt)):
        report(lost)


def _unblock(numbers: Iterable[int]) -> set[int]:
    """Let this thread get the signals; gives those that it did not get before."""
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        return set()
    return set(numbers) & signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def _block(numbers: set[int]) -> None:
    if numbers:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


@contextmanager
def interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether a signal came; within `interruptible`. A second Ctrl-C interrupts at once.

    A step consumes the state it is given, so an exception between its call and the assignment of its result would lose
    both: the loop asks between steps. Outside the main thread no signal comes, and the answer is always no.
    """
    _deferred.append(True)
    try:
        yield lambda: bool(_received)
    finally:
        _deferred.pop()


@contextmanager
def ending_at_once(advice: Callable[[], str] = lambda: ON_DISK) -> Iterator[None]:
    """Meanwhile there is nothing to save: SIGTERM and SIGHUP end the process in `GRACE` seconds whatever it does.

    Within `interruptible`. Python comes to its handlers between two instructions of its own, not while it waits for
    C++; the system's handler writes to a pipe at once, which a thread reads. If Python then has not left this block in
    time, the process ends there, with the sentence and the exit code of every other interruption. Ctrl-C never does so:
    in a notebook the process is the user's.

    Args:
        advice: how to go on, asked for when it is needed.

    Raises:
        KeyboardInterrupt: where a signal had come before, and was lost.
    """
    if received():
        raise KeyboardInterrupt
    ends = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is _note]
    if threading.current_thread() is not threading.main_thread() or not ends:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    left = threading.Event()

    def watch() -> None:
        while byte := os.read(reader, 1):  # nothing once the writer is closed
            if before >= 0:  # such as that of an event loop
                os.write(before, byte)
            if byte[0] in ends and not left.wait(GRACE):
                _end(byte[0], advice)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)


def _end(number: int, advice: Callable[[], str]) -> None:
    """End this process, from a thread, without what other threads would still do."""
    sentence = ON_DISK
    with suppress(Exception):  # it may read files
        sentence = advice()
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # which bars of progress hide
    with suppress(OSError):
        os.write(2, f"{show_cursor}{message(f'tsl: interrupted; {sentence}')}\n".encode(errors="backslashreplace"))
    exit_at_once(128 + number)


def exit_at_once(code: int) -> NoReturn:
    """End this process after an interruption, without Python's own end.

    That would free what threads of XLA, which compile or run what nobody waits for any more, still use: a segmentation
    fault, in 7 of 40 runs that were interrupted early (experiments/interrupts.py). All contexts are left by then.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def received() -> int:
    """The first signal that came since `interruptible` began; 0: none."""
    return _received[0] if _received else 0


def printable(text: str) -> str:
    """Text for a terminal: control characters, which may hide or rewrite what stands there, as Python writes them."""
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text)


def message(text: str) -> str:
    """A text for the terminal in a few lines, each of some length at most."""
    lines = [line if len(line) <= WIDEST else f"{line[:WIDEST]} ..." for line in text.splitlines() or [""]]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 2], "...", lines[-1]]
    return printable("\n".join(lines))


def python(option: str) -> list[str]:
    """The beginning of a command that runs Python's `option`, -m or -c, without the current folder in its path."""
    return [sys.executable, "-P", option]


def environment() -> dict[str, str]:
    """The environment of such a child: this library is found where it was found here."""
    root = str(Path(__file__).resolve().parents[1])
    if any(place and os.path.realpath(place) == root for place in sys.path[1:]):  # the first may be the current folder
        return dict(os.environ)
    paths = filter(None, [os.environ.get("PYTHONPATH"), root])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def forget_current_folder() -> None:
    """No module is searched for in the current folder from here on, unless this library itself lies there."""
    root = os.path.realpath(Path(__file__).parents[1])
    first = os.path.realpath(sys.path[0] or ".") if sys.path else root
    if not sys.flags.safe_path and first == os.path.realpath(".") and first != root:
        del sys.path[0]
