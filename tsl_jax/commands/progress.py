"""Progress: in the terminal a bar a stage, with rate and remaining time; elsewhere a line every half minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import nan
from time import monotonic
from typing import Any

EVERY = 30.0  # seconds between lines, where there is no terminal


class Lines:
    """What `Bars` shows, as lines on stderr, for a log: what is done, how fast, and how long it still takes."""

    def __init__(self) -> None:
        """Begin the first half minute."""
        self._last = monotonic()
        self._begun: dict[str, tuple[float, int]] = {}  # stage -> when, and what was done then
        self._done: dict[str, int] = {}
        self._facts: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """A line of the stage, if it is time."""
        now = monotonic()
        if stage not in self._done or done < self._done[stage]:  # it begins, perhaps anew
            self._begun[stage] = now, done
        self._done[stage] = done
        if now - self._last < EVERY:
            return
        self._last = now
        since, before = self._begun[stage]
        rate = (done - before) / max(now - since, 1e-9)
        speed = f", {rate:,.3g}/s, {duration((total - done) / rate)} left" if rate > 0 else ""
        facts = "; ".join(note(self._facts).splitlines()) if stage == "train" else ""
        say(f"{stage}: {done:,} of {total:,}{speed}{'; ' * bool(facts)}{facts}")

    def observe(self, facts: Mapping[str, Any]) -> None:
        """Take numbers of a run, see `training.loop.train`."""
        self._facts |= facts


def say(line: str) -> None:
    """A line on stderr, seen at once."""
    print(line, file=sys.stderr, flush=True)


def per_second(rate: float) -> str:
    """A rate without decimals, or with two digits where it is slow."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """A time in the largest unit of which there are two."""
    for unit, name in ((365 * 86_400, "years"), (86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.2g} {name}" if seconds < 100 * unit else f"{seconds / unit:,.0f} {name}"
    return f"{seconds:.2g} s"


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
def bars() -> Iterator[Bars | Lines]:
    """Live bars, or lines where there is no terminal, which the library calls as its progress."""
    from rich.console import Console, Group
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

    if not Console().is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description:<14}", markup=False),  # a split may be called [a]
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    progress, line = Progress(*columns), Text()
    with Live(Group(progress, line), refresh_per_second=10):
        yield Bars(progress, line)


@contextmanager
def rate(stage: str, unit: str) -> Iterator[Callable[[float, int], None]]:
    """Gives the callback (share done, units done by this call), drawn with units per second; lines without a terminal.

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
    counted = TextColumn("{task.fields[count]:,} " + unit + ", {task.fields[rate]}/s", markup=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        counted,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(stage, total=1.0, count=0, rate="0")
        started, last, first = monotonic(), monotonic(), -1.0

        def report(share: float, count: int) -> None:
            nonlocal last, first
            now, first = monotonic(), share if first < 0 else first  # what an earlier call had done
            speed = count / max(now - started, 1e-9)
            progress.update(task, completed=share, count=count, rate=per_second(speed))
            if not console.is_terminal and now - last >= EVERY:
                last = now
                left = (1 - share) * (now - started) / max(share - first, 1e-9)
                say(f"{stage}: {share:.0%}, {count:,} {unit}, {per_second(speed)}/s, {duration(left)} left")

        yield report
