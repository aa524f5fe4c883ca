"""`tsl watch LOG|RUN`: beside a running job, where it will end as known now; `tsl check`: did it leave its forecast?"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    import xarray as xr

    from tsl_jax.forecasting import Forecast
    from tsl_jax.forecasting.watching import Outlook

STOPPED = 4  # exit code of --stop-above
OFF_COURSE = 5  # exit code of tsl check
AHEAD = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)  # shares of what is left, at which new checkpoints are expected


@dataclass(frozen=True)
class WatchCommand:
    """Follow a run or a log that another process writes: the forecast of its end, and how it moved.

    tsl watch train.log --end 20e9 | tsl watch runs/mine --stop-above 2.95 --on-event 'notify-send'
    """

    log: tyro.conf.Positional[Path]
    """Folder of a run, or any log that tsl import reads."""
    split: str = ""
    """Default the first."""
    end: float | None = None
    """Tokens at which to forecast; default the end of the plan."""
    schedule: Path | None = None
    """YAML or JSON: the learning-rate plan, where the log does not carry it."""
    tokens_per_step: int | None = None
    """Of a log that counts steps alone; 1 makes steps the clock."""
    stop_above: float | None = None
    """Exit with code 4 when the chance that the end is at most this loss falls below --alpha, whenever one looks."""
    alpha: float = 0.05
    """Largest chance of stopping a run whose end would be at most --stop-above."""
    on_event: str = ""
    """Command that is called with one more argument, a sentence, when the run stops, or leaves its course."""
    every: float = 10.0
    """Seconds between looks."""
    once: bool = False
    """Look once."""
    page: Path | None = None
    """FOLDER/report.html: the page of tsl report, made anew at each checkpoint."""


def run_watch(command: WatchCommand) -> int | None:
    """Look until the end of the plan, Ctrl-C, or a stop."""
    from tsl_jax.forecasting.watching import FEWEST
    from tsl_jax.importers import read_plans

    _check(command)
    watch = _Watch(command, None if command.schedule is None else read_plans(command.schedule))
    while True:
        past = watch.read()
        if past is not None and command.once and past.sizes["tokens"] < FEWEST:
            raise ValueError(f"watch: {FEWEST} checkpoints are needed, {past.sizes['tokens']} are there")
        if past is not None and past.sizes["tokens"] >= FEWEST and float(past.tokens[-1]) != watch.seen:
            if watch.look(past):
                return STOPPED
            if watch.seen >= watch.end:
                print("the end of the plan is reached", flush=True)
                return None
        if command.once:
            return None
        time.sleep(command.every)


class _Watch:
    """What is remembered between two looks at a log."""

    def __init__(self, command: WatchCommand, schedule: Any) -> None:
        self.command, self.schedule = command, schedule
        self.seen, self.end = -1.0, float("inf")  # tokens at the last look, and of the end
        self.said: set[Any] = set()  # events, and why there was nothing to read
        self.before: Outlook | None = None
        self.expected: Forecast | None = None  # an earlier forecast, which new checkpoints are compared with

    def read(self) -> xr.Dataset | None:
        """The run as it is now; None while it is being written, rotated, or not there yet."""
        try:
            return _read(self.command)
        except (OSError, ValueError) as error:
            if self.command.once:
                raise
            if str(error) not in self.said:
                print(f"waiting: {error}", flush=True)
                self.said.add(str(error))
            return None

    def look(self, past: xr.Dataset) -> bool:
        """Compare new checkpoints with what was expected of them, and print the end as known now; whether to stop."""
        from tsl_jax.forecasting import forecast
        from tsl_jax.forecasting.watching import events, outlook

        command, tokens = self.command, float(past.tokens[-1])
        if tokens < self.seen:
            print(f"the log goes back to {tokens:,.0f} tokens: read anew", flush=True)
            self.before = self.expected = None
        self.seen = tokens
        for event in events(past, self.expected, command.split) if self.expected is not None else ():
            if (event.kind, event.tokens) in self.said:
                continue
            self.said.add((event.kind, event.tokens))
            _announce(command, event.sentence)
            if event.kind != "spike":  # a spike is over; after all others the forecast begins again
                self.expected = None
        now = outlook(past, command.split, command.end, command.stop_above, self.schedule)
        print(_line(now, self.before), flush=True)
        self.before, self.end = now, now.end
        if command.page is not None:
            _write_page(command, past)
        if command.stop_above is not None and now.chance_below < command.alpha:
            _announce(
                command,
                f"stop: the end is at most {command.stop_above:g} nats with a chance of {now.chance_below:.1%}, "
                f"expected {now.expected:.3f} ({now.low:.3f} to {now.high:.3f})",
            )
            return True
        if self.expected is None and now.end > tokens:
            ahead = [tokens + (now.end - tokens) * share for share in AHEAD]
            self.expected = forecast(past, ahead, self.schedule, by_position=False)
        return False


def _check(command: WatchCommand) -> None:
    """Raises ValueError for options that make no sense, before any work."""
    from tsl_jax.commands import report

    for name in ("every", "end", "stop_above"):
        value = getattr(command, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"watch: --{name.replace('_', '-')} is a positive number, found {value}")
    if not 0 < command.alpha < 0.5:
        raise ValueError(f"watch: --alpha is a chance between 0 and .5, found {command.alpha}")
    if command.page is not None and command.page.name != "report.html":
        raise ValueError(f"watch: --page is the path of a report.html, found {command.page}")
    if command.page is not None:  # somebody else's page is not replaced
        report.check_out(command.log, command.page.parent)


def _read(command: WatchCommand) -> xr.Dataset:
    """The run as it is now."""
    from tsl_jax.importers import read_log
    from tsl_jax.surface import load_surface

    path = command.log
    if (path / "surface").is_dir() or path.suffix == ".npz":
        return load_surface(path)
    if not path.exists():
        raise OSError(f"watch: {path} is not there")
    surfaces = read_log(path, tokens_per_step=command.tokens_per_step).surfaces
    if len(surfaces) != 1:
        raise ValueError(f"watch: {path} holds {len(surfaces)} runs ({', '.join(surfaces)}); import the one to watch")
    return next(iter(surfaces.values()))


def _line(now: Outlook, before: Outlook | None) -> str:
    moved = f", moved {now.expected - before.expected:+.3f}" if before is not None else f"; {now.note}"
    status = "" if now.status == "ok" else f"; {now.status}"
    return (
        f"{time.strftime('%H:%M:%S')}  {now.loss:.3f} nats at {now.tokens:.4g} tokens; at {now.end:.4g}: "
        f"{now.expected:.3f} ({now.low:.3f} to {now.high:.3f}){moved}{status}"
    )


def _announce(command: WatchCommand, sentence: str) -> None:
    """Print a sentence, and hand it to the user's command."""
    print(sentence, flush=True)
    if command.on_event:
        subprocess.run([*command.on_event.split(), sentence], check=False)


def _write_page(command: WatchCommand, past: xr.Dataset) -> None:
    """The page of the run as it is now, in place of the one before."""
    from tsl_jax.commands import options, report

    assert command.page is not None
    report.write(command.log, command.page.parent, past, options.stamp(command), lambda *_: None)


# ------------------------------------------------------------------------------------------------ tsl check, tsl score


@dataclass(frozen=True)
class CheckCommand:
    """Is a log still inside the forecast that was registered of it? Exit code 5 where it is not: a gate for scripts."""

    log: tyro.conf.Positional[Path]
    """Folder of a run, or any log that tsl import reads."""
    against: Path
    """The file of tsl forecast --register."""
    split: str = ""
    """Default the first."""
    tokens_per_step: int | None = None
    """Of a log that counts steps alone."""


def run_check(command: CheckCommand) -> int | None:
    """Compare each later checkpoint with the interval that was forecast."""
    return None if _judged(command.against, command.log, command.split, command.tokens_per_step) else OFF_COURSE


@dataclass(frozen=True)
class ScoreCommand:
    """Settle a registered forecast: what came, beside what was said, and the interval score."""

    forecast: tyro.conf.Positional[Path]
    """The file of tsl forecast --register."""
    log: tyro.conf.Positional[Path]
    """Folder of the run, or any log that tsl import reads."""
    split: str = ""
    """Default all."""
    tokens_per_step: int | None = None
    """Of a log that counts steps alone."""


def run_score(command: ScoreCommand) -> None:
    """Print what came of each token count."""
    _judged(command.forecast, command.log, command.split, command.tokens_per_step)


def _judged(file: Path, log: Path, split: str, tokens_per_step: int | None) -> bool:
    """Print the outcome; whether the run is inside its forecast."""
    from tsl_jax.forecasting import registered

    try:
        content: Any = json.loads(file.read_text())
    except json.JSONDecodeError:
        raise ValueError(f"score: {file} is no file of tsl forecast --register: not JSON") from None
    outcome = registered.judge(content, _read(WatchCommand(log, tokens_per_step=tokens_per_step)), split)
    if isinstance(content, dict):
        print(f"registered {content['registered']} by {content['method']}; {'; '.join(content['assumes'])}")
    print(outcome.report())
    return outcome.inside
