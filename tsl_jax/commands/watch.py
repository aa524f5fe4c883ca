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

    from tsl_jax.commands.watch_display import Display
    from tsl_jax.forecasting.course import Course, Event
    from tsl_jax.forecasting.watching import Outlook

STOPPED = 4  # exit code of --stop-above
OFF_COURSE = 5  # exit code of tsl check
AHEAD = 24  # points of the page's forecast, from here to the end
EVENTS, SHOWN = 6, 12  # last events, and last forecasts, that the page names
NOT_FINITE = ("nan_loss", "inf_loss")  # findings of an import


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
    """FOLDER/report.html: loss, forecast and events, made anew at each checkpoint; an open page reads itself again."""


def run_watch(command: WatchCommand) -> int | None:
    """Look until the end of the plan, Ctrl-C, or a stop."""
    from tsl_jax.commands.watch_display import display_for
    from tsl_jax.forecasting.watching import FEWEST
    from tsl_jax.importers import read_plans

    _check(command)
    schedule = None if command.schedule is None else read_plans(command.schedule)
    with display_for(command.log) as display:
        watch = _Watch(command, schedule, display)
        while True:
            past = watch.read()
            if past is not None and command.once and past.sizes["tokens"] < FEWEST:
                raise ValueError(f"watch: {FEWEST} checkpoints are needed, {past.sizes['tokens']} are there")
            if past is not None and watch.seen < 0 and command.end is not None and past.tokens[-1] > command.end:
                display.say(f"--end {command.end:,.0f} is passed: the last checkpoint is at {int(past.tokens[-1]):,}")
                return None
            if past is not None and past.sizes["tokens"] >= FEWEST and float(past.tokens[-1]) != watch.seen:
                if watch.look(past):
                    return STOPPED
                if watch.seen >= watch.end:
                    display.say("the end of the plan is reached")
                    return None
            if command.once:
                return None
            time.sleep(command.every)


class _Watch:
    """What is remembered between two looks at a log."""

    def __init__(self, command: WatchCommand, schedule: Any, display: Display) -> None:
        self.command, self.schedule, self.display = command, schedule, display
        self.seen, self.end = -1.0, float("inf")  # tokens at the last look, and of the end
        self.waiting: set[str] = set()  # why there was nothing to read
        self.not_finite: set[str] = set()  # codes of losses that are no numbers, once said
        self.course: Course | None = None
        self.looks: list[Outlook] = []
        self.events: list[str] = []

    def read(self) -> xr.Dataset | None:
        """The run as it is now; None while it is being written, rotated, or not there yet."""
        try:
            return _with_split(_read(self.command), self.command.split, "watch")
        except (OSError, ValueError) as error:
            if self.command.once:
                raise
            if str(error) not in self.waiting:
                self.display.say(f"waiting: {error}")
                self.waiting.add(str(error))
            return None

    def look(self, past: xr.Dataset) -> bool:
        """Say where new checkpoints left the course, and the end as known now; whether to stop."""
        from tsl_jax.forecasting.watching import outlook

        command, self.seen = self.command, float(past.tokens[-1])
        first = self.course is None
        for event in self._events(past):
            self._announce(event.sentence, aloud=not first or command.once)
        since = self.course.begins if self.course is not None else 0.0
        now = outlook(past, command.split, command.end, command.stop_above, self.schedule, since=since)
        self.end = now.end
        self.looks.append(now)
        self.display.show(now)
        stops = command.stop_above is not None and now.chance_below < command.alpha
        if command.page is not None:
            self._write_page(past, since, last=stops or command.once or self.seen >= self.end)
        if not stops:
            return False
        self._announce(
            f"stop: the end is at most {command.stop_above:g} nats with a chance of {now.chance_below:.1%}, "
            f"expected {now.expected:.3f} ({now.low:.3f} to {now.high:.3f})"
        )
        return True

    def _events(self, past: xr.Dataset) -> list[Event]:
        """What happened since the last look; at the first one, in the rows that are there."""
        import numpy as np

        from tsl_jax.forecasting.baselines import mean_loss
        from tsl_jax.forecasting.course import Course, Event
        from tsl_jax.forecasting.forecast_run import read_schedule

        split = self.command.split or str(past.split.values[0])
        plan, losses, tokens = read_schedule(past, self.schedule), mean_loss(past), past.tokens.values.astype(float)
        if self.course is None:
            self.course = Course(split, planned=None if plan is None else lambda at: float(plan.rate(at, np)))
        planned = np.full(len(tokens), np.nan) if plan is None else np.asarray(plan.rate(tokens, np))
        rate = past.lr.values.astype(float) if "lr" in past.coords else planned
        loss = losses.sel(split=split).values
        others = losses.transpose("split", "tokens").values
        rows = ~np.isnan(loss) | np.isnan(others).all(axis=0)  # the rest are rows of other splits
        found = self.course.update(tokens[rows], loss[rows], rate[rows])
        for sentence in past.attrs.get("log", {}).get("findings", ()):  # an import leaves such losses out
            code = sentence.partition(":")[0]
            if code in NOT_FINITE and f"({split})" in sentence and code not in self.not_finite:
                self.not_finite.add(code)
                found.append(Event("non_finite", tokens[-1], f"non_finite: {sentence.partition(': ')[2]}"))
        return found

    def _write_page(self, past: xr.Dataset, since: float, last: bool) -> None:
        """The loss so far, the forecast to the end, how it moved and what happened, in place of the page before."""
        import numpy as np

        from tsl_jax.forecasting import forecast
        from tsl_jax.forecasting.watching import course_since
        from tsl_jax.reporting import report

        assert self.command.page is not None
        now, split = self.looks[-1], self.command.split or str(past.split.values[0])
        seen = past.sel(split=[split])
        results: list[Any] = [seen]
        if now.end > now.tokens:
            ahead = np.linspace(now.tokens, now.end, AHEAD + 1)[1:]
            results.append(forecast(course_since(seen, since), ahead, self.schedule, by_position=False))
        moved = [f"{o.expected:.3f} ({o.low:.3f} to {o.high:.3f}) from {o.tokens:.4g}" for o in self.looks[::-1]]
        looked = f"Looked at {time.strftime('%Y-%m-%d %H:%M:%S')}; {now.note}."
        notes = [looked, *("Event: " + event for event in self.events[-EVENTS:][::-1])]
        facts = {"loss at the end, as forecast so far": "; ".join(moved[:SHOWN])}
        refresh = 0 if last else max(round(self.command.every), 2)
        report(
            self.command.page, *results, title=f"{self.command.log.name}, watched", facts=facts, notes=notes,
            refresh=refresh,
        )  # fmt: skip

    def _announce(self, sentence: str, aloud: bool = True) -> None:
        """Say a sentence, and hand it to the user's command, unless it happened before the watch began."""
        self.display.say(sentence, event=True)
        self.events.append(sentence)
        if self.command.on_event and aloud:
            subprocess.run([*self.command.on_event.split(), sentence], check=False)


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


def _with_split(run: xr.Dataset, split: str, area: str) -> xr.Dataset:
    """The run, if it has the split that is asked for.

    Raises:
        ValueError: if not; `area` begins the message.
    """
    if split and split not in run.split.values:
        there = ", ".join(map(str, run.split.values))
        raise ValueError(f"{area}: --split {split} is no split of the run; it has {there}")
    return run


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
    seen = _with_split(_read(WatchCommand(log, tokens_per_step=tokens_per_step)), split, "score")
    outcome = registered.judge(content, seen, split)
    if isinstance(content, dict):
        print(f"registered {content['registered']} by {content['method']}; {'; '.join(content['assumes'])}")
    print(outcome.report())
    return outcome.inside
