"""Live progress in the terminal: a bar a stage, with rate and remaining time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import nan
from time import monotonic
from typing import Any


class Bars:
    """The bars on the screen: called with (stage, done, total); what is observed stands below them."""

    def __init__(self, progress: Any, note: Any):
        """Draw on rich's progress and text."""
        self._progress, self._note = progress, note
        self._tasks: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}  # the newest of each

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Draw the bar of a stage at `done` of `total`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)

    def observe(self, facts: Mapping[str, Any]) -> None:
        """Take numbers of a run, see `training.loop.train`."""
        self._facts |= facts
        self._note.plain = note(self._facts)


def note(facts: Mapping[str, Any]) -> str:
    """Loss and speed of training, and for each split the losses by thirds of the positions at the last evaluation."""
    lines = []
    if "loss" in facts:
        lines.append(f"loss {facts['loss']:.3f}, {facts['tokens_per_second']:,.0f} tokens/s")
    if "utilisation" in facts:
        lines[-1] += f", {facts['utilisation']:.0%} of the devices' peak"
    for split in (name.removesuffix("/head") for name in facts if name.endswith("/head")):
        thirds = [f"{third} {facts.get(f'{split}/{third}', nan):.3f}" for third in ("head", "middle", "tail")]
        lines.append(f"{split}: {', '.join(thirds)}")
    return "\n".join(lines)


@contextmanager
def bars() -> Iterator[Bars]:
    """Live bars, which the library calls as its progress."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    columns = (
        TextColumn("{task.description:<14}", markup=False),  # a split may be called [a]
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    progress, line = Progress(*columns), Text()
    with Live(Group(progress, line), refresh_per_second=10) as live:
        yield Bars(progress, line)
    if not live.console.is_interactive:  # what is printed next begins on a new line
        live.console.print()


@contextmanager
def rate(stage: str, unit: str) -> Iterator[Callable[[float, int], None]]:
    """Gives the callback (share done, units done by this call), drawn with units per second; silent without a screen.

    On stderr, so that what a verb prints can be read by another program.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    counted = TextColumn("{task.fields[count]:,} " + unit + ", {task.fields[rate]:,.0f}/s", markup=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        counted,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(stage, total=1.0, count=0, rate=0.0)
        started = monotonic()

        def report(share: float, count: int) -> None:
            progress.update(task, completed=share, count=count, rate=count / max(monotonic() - started, 1e-9))

        yield report
