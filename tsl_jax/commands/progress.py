"""Live progress in the terminal: a bar a stage, with rate and remaining time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Gives the callback (stage, done, total) that the library reports to."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        tasks: dict[str, int] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)  # pyright: ignore[reportArgumentType]

        yield report


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
    counted = TextColumn("{task.fields[count]:,} " + unit + ", {task.fields[rate]:,.0f}/s")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        counted,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(stage, total=1.0, count=0, rate=0.0)
        begun = monotonic()

        def report(share: float, count: int) -> None:
            progress.update(task, completed=share, count=count, rate=count / max(monotonic() - begun, 1e-9))

        yield report
