"""Ctrl-C while a step is in flight: noted, and raised where nothing is lost by it.

A step consumes the state it is given, so an exception between its call and the assignment of its result would lose
both. Inside `deferred` the first Ctrl-C only sets a mark, which the loop asks for between steps; a second one
interrupts at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C was pressed; outside the main thread, where no signal comes, never."""
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
