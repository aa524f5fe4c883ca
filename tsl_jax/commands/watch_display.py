"""What `tsl watch` shows: a panel that stays in place in a terminal, a line a look elsewhere."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.panel import Panel

    from tsl_jax.forecasting.watching import Outlook

BARS = "▁▂▃▄▅▆▇█"
SHOWN = 32  # forecasts of the row of bars
EVENTS = 4  # last ones that stay in the panel
DONE = 28  # characters of the bar of progress


class Display(Protocol):
    """Where looks and sentences go."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, now: Outlook) -> None:
        """The end as known now."""
        ...

    def say(self, sentence: str, event: bool = False) -> None:
        """A sentence that happened; an event also stays in sight."""
        ...


def display_for(log: Path, console: Console | None = None) -> Display:
    """The panel where stdout is a terminal, lines where it is not."""
    from rich.console import Console

    console = console or Console()
    return LivePanel(log, console) if console.is_terminal else PlainLines()


class PlainLines:
    """A line a look, for files and pipes."""

    def __init__(self) -> None:
        self.before: Outlook | None = None

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, now: Outlook) -> None:
        """Print loss, end, interval, and how the forecast moved."""
        moved = f", moved {now.expected - self.before.expected:+.3f}" if self.before is not None else f"; {now.note}"
        status = "" if now.status == "ok" else f"; {now.status}"
        self.say(
            f"{time.strftime('%H:%M:%S')}  {now.loss:.3f} nats at {now.tokens:.4g} tokens; at {now.end:.4g}: "
            f"{now.expected:.3f} ({now.low:.3f} to {now.high:.3f}){moved}{status}"
        )
        self.before = now

    def say(self, sentence: str, event: bool = False) -> None:
        """Print it."""
        del event
        print(sentence, flush=True)


class LivePanel:
    """Loss, forecast of the end, how it moved, and what happened, in place."""

    def __init__(self, log: Path, console: Console) -> None:
        from rich.live import Live

        self.log, self.console = log, console
        self.looks: deque[tuple[float, Outlook]] = deque(maxlen=SHOWN)  # when, and what was known
        self.first: tuple[float, float] | None = None  # when and at which tokens the watch began
        self.events: deque[str] = deque(maxlen=EVENTS)
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def __enter__(self) -> LivePanel:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, now: Outlook) -> None:
        """Draw the panel anew."""
        clock = time.monotonic()
        if self.first is None or now.tokens < self.first[1]:
            self.first = clock, now.tokens
        self.looks.append((clock, now))
        self._live.update(self.panel(), refresh=True)

    def say(self, sentence: str, event: bool = False) -> None:
        """Print it above the panel; an event stays in it."""
        from rich.text import Text

        if event:
            self.events.append(f"{time.strftime('%H:%M:%S')}  {sentence}")
        self.console.print(Text(sentence, "bold red" if event else "dim"), soft_wrap=True)
        if self.looks:
            self._live.update(self.panel(), refresh=True)

    def panel(self) -> Panel:
        """What is known at the last look. Names and sentences are no markup."""
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        now = self.looks[-1][1]
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        share = min(now.tokens / now.end, 1.0) if now.end > 0 else 1.0
        done = round(DONE * share)
        grid.add_row("now", Text(f"{now.loss:.3f} nats at {now.tokens:.4g} tokens"))
        progress = Text("━" * done, "cyan").append("━" * (DONE - done), "dim").append(f"  {share:.0%}", "default")
        grid.add_row("done", progress.append(self._remaining(now)))
        end = Text(f"{now.expected:.3f}", "bold").append(f" nats at {now.end:.4g} tokens, 90 %: ", "default")
        grid.add_row("end", end.append(f"{now.low:.3f} to {now.high:.3f}", "bold"))
        if len(self.looks) > 1:
            grid.add_row("moved", Text(self._moved()))
        grid.add_row("assumes", Text(now.note))
        if now.status != "ok":
            grid.add_row("status", Text(now.status, "yellow"))
        for event in self.events:
            grid.add_row("event", Text(event, "red"))
        title = Text(f" tsl watch {self.log} ", no_wrap=True, overflow="ellipsis")
        return Panel(grid, title=title, title_align="left", border_style="dim", width=min(self.console.width, 100))

    def _moved(self) -> str:
        """The last change of the forecast, and the forecasts as bars."""
        ends = [look.expected for _, look in self.looks if look.expected == look.expected]
        if len(ends) < 2:
            return "unknown"
        low, span = min(ends), max(ends) - min(ends)
        bars = "".join(BARS[round((end - low) / span * (len(BARS) - 1)) if span else 0] for end in ends)
        return f"{ends[-1] - ends[-2]:+.3f}  {bars}  {low:.3f} to {low + span:.3f}"

    def _remaining(self, now: Outlook) -> str:
        """The time left at the pace since the watch began, where there is one."""
        from tsl_jax.commands.progress import duration

        assert self.first is not None
        seconds, tokens = self.looks[-1][0] - self.first[0], now.tokens - self.first[1]
        if tokens <= 0 or seconds <= 0 or now.end <= now.tokens:
            return ""
        left: Any = (now.end - now.tokens) * seconds / tokens
        return f", {duration(left)} left; ends {time.strftime('%a %H:%M', time.localtime(time.time() + left))}"
