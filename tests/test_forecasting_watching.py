"""A running job: its end as known now, the rule to stop it, where it left its course; registered forecasts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

import tsl_jax as tsl
from tsl_jax.cli import run_verb
from tsl_jax.commands.watch import WatchCommand, _read, _Watch
from tsl_jax.commands.watch_display import BARS, LivePanel, PlainLines, display_for
from tsl_jax.forecasting import registered
from tsl_jax.forecasting.watching import outlook

END = 2_000_000_000
TOKENS = np.linspace(0.02, 1, 50) * END


def run(share: float = 1.0, noise: float = 0.003, seed: int = 0, **shapes: Any) -> xr.Dataset:
    rows = round(50 * share)
    loss = 2.5 + 60 * TOKENS**-0.2 + noise * np.random.default_rng(seed).standard_normal(50)
    for shape, change in shapes.items():
        loss = loss + change
        del shape
    return tsl.from_losses(loss[None, :rows, None], tokens=TOKENS[:rows].astype(int), position=[1], split=["loss"])


TRUTH = 2.5 + 60 * END**-0.2


def test_the_end_as_known_now_and_the_chance_that_it_is_low_enough() -> None:
    now = outlook(run(0.5), end=END, below=TRUTH - 0.1)
    assert now.low < TRUTH < now.high
    assert now.tokens == pytest.approx(END / 2)
    assert now.chance_below < 0.05
    assert outlook(run(0.5), end=END, below=TRUTH + 0.1).chance_below > 0.9
    assert np.isnan(outlook(run(0.5), end=END).chance_below)


def test_after_an_event_the_forecast_begins_again_and_is_wider() -> None:
    moved = run(0.8, later=np.where(np.arange(50) >= 30, 0.5, 0))
    since = float(moved.tokens[30])
    before, anew = outlook(moved, end=END), outlook(moved, end=END, since=since)
    assert anew.low < TRUTH + 0.5 < anew.high
    assert anew.high - anew.low > outlook(run(0.8), end=END).high - outlook(run(0.8), end=END).low
    assert abs(anew.expected - TRUTH - 0.5) < abs(before.expected - TRUTH - 0.5)
    few = outlook(moved.isel(tokens=slice(0, 32)), end=END, since=since)
    assert few.note.startswith("the run left its course 2 checkpoints ago, 6 are needed")


def test_a_registered_forecast_is_judged_and_cannot_be_changed(tmp_path: Path, capsys: Any) -> None:
    past, whole, off = run(0.5), run(), run(later=np.where(np.arange(50) >= 30, 0.4, 0))
    for name, surface in (("past", past), ("whole", whole), ("off", off)):
        tsl.save_surface(surface, tmp_path / f"{name}.npz")
    file = tmp_path / "registered.json"
    arguments = [str(tmp_path / "past.npz"), "--at", str(END), "--register", str(file)]
    assert run_verb("forecast", arguments, debug=False) == 0
    assert run_verb("check", [str(tmp_path / "past.npz"), "--against", str(file)], debug=False) == 0
    assert "none of the 20 token counts has been reached yet" in capsys.readouterr().out
    assert run_verb("check", [str(tmp_path / "whole.npz"), "--against", str(file)], debug=False) == 0
    assert run_verb("check", [str(tmp_path / "off.npz"), "--against", str(file)], debug=False) == 5
    assert run_verb("score", [str(file), str(tmp_path / "whole.npz")], debug=False) == 0
    assert "inside its forecast" in capsys.readouterr().out
    content = json.loads(file.read_text())
    content["forecast"][0]["high90"] += 1
    with pytest.raises(ValueError, match="was changed after it was registered"):
        registered.judge(content, whole)
    content["forecast"][0]["high90"] -= 1
    with pytest.raises(ValueError, match="are not those that the forecast was made from"):
        registered.judge(json.loads(file.read_text()), run(seed=1))
    with pytest.raises(ValueError, match="found another"):
        registered.judge([], whole)


def test_a_log_is_watched_and_a_hopeless_run_stopped(tmp_path: Path, capsys: Any) -> None:
    surface = run(0.5)
    lines = [
        "tokens,loss",
        *(f"{t},{v:.4f}" for t, v in zip(surface.tokens.values, surface.loss.values[0, :, 0], strict=True)),
    ]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(lines) + "\n")
    arguments = [str(log), "--end", str(END), "--once", "--stop-above"]
    heard = tmp_path / "heard.txt"
    hear = tmp_path / "hear.sh"
    hear.write_text(f'#!/bin/sh\necho "$1" > {heard}\n')
    hear.chmod(0o755)
    assert run_verb("watch", [*arguments, f"{TRUTH + 0.2:.3f}"], debug=False) == 0
    assert "nats at 1e+09 tokens; at 2e+09: " in capsys.readouterr().out
    assert run_verb("watch", [*arguments, f"{TRUTH - 0.2:.3f}", "--on-event", str(hear)], debug=False) == 4
    assert "stop: the end is at most" in capsys.readouterr().out
    assert heard.read_text().startswith("stop: the end is at most")
    assert run_verb("watch", [str(tmp_path / "none.csv"), "--once"], debug=False) == 2
    assert run_verb("watch", [str(log), "--every", "-1"], debug=False) == 2


def test_a_watched_page_is_made_anew_and_a_foreign_one_is_left_alone(tmp_path: Path, capsys: Any) -> None:
    tsl.save_surface(run(0.5), tmp_path / "log.npz")
    foreign = tmp_path / "theirs" / "report.html"
    foreign.parent.mkdir()
    foreign.write_text("not ours")
    arguments = [str(tmp_path / "log.npz"), "--end", str(END), "--once", "--page"]
    assert run_verb("watch", [*arguments, str(foreign)], debug=False) == 2
    assert foreign.read_text() == "not ours"
    page = tmp_path / "ours" / "report.html"
    for _ in range(2):
        assert run_verb("watch", [*arguments, str(page)], debug=False) == 0
    text = page.read_text()
    assert "Looked at " in text
    assert "log.npz, watched" in text
    assert "loss at the end, as forecast so far" in text
    assert 'http-equiv="refresh"' not in text  # looked at once
    assert run_verb("watch", [str(tmp_path / "log.npz"), "--once"], debug=False) == 2  # no plan, no end
    assert "--end" in capsys.readouterr().err


def rows(surface: xr.Dataset, more: str = "") -> str:
    lines = zip(surface.tokens.values, surface.loss.values[0, :, 0], strict=True)
    return "\n".join(["tokens,loss", *(f"{tokens},{loss:.4f}" for tokens, loss in lines)]) + f"\n{more}"


def test_events_are_said_once_and_handed_to_a_command(tmp_path: Path, capsys: Any) -> None:
    log, heard = tmp_path / "log.csv", tmp_path / "heard.txt"
    hear = tmp_path / "hear.sh"
    hear.write_text(f'#!/bin/sh\necho "$1" >> {heard}\n')
    hear.chmod(0o755)
    command = WatchCommand(log, end=END, on_event=str(hear))
    log.write_text(rows(run(0.5)))
    looked = _Watch(command, None, PlainLines())
    looked.look(_read(command))
    moved = run(0.6, later=np.where(np.arange(50) >= 26, 0.5, 0))
    log.write_text(rows(moved, f"{int(TOKENS[30])},nan\n"))
    for _ in range(2):
        looked.look(_read(command))
    log.write_text(rows(run(0.5)))  # the job begins again from an earlier checkpoint
    looked.look(_read(command))
    said = [line.partition(":")[0] for line in heard.read_text().splitlines()]
    assert said == ["spike", "data_switch", "non_finite", "restart"]
    assert capsys.readouterr().out.count("data_switch") == 1


def test_the_panel_of_a_terminal_shows_end_moves_events_and_time_left(monkeypatch: Any) -> None:
    console = Console(force_terminal=True, width=110, record=True, file=io.StringIO())
    clock = iter((0.0, 60.0, 120.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with display_for(Path("run[1].log"), console) as shown:
        assert isinstance(shown, LivePanel)
        for share in (0.5, 0.52, 0.54):
            shown.show(outlook(run(share), end=END))
        shown.say("spike: [b]not markup[/b]", event=True)
    text = console.export_text()
    assert "tsl watch run[1].log" in text
    assert "spike: [b]not markup[/b]" in text
    assert f"nats at {END:.4g} tokens, 90 %: " in text
    assert "54%, 23 min left; ends " in text
    assert set(text.split("moved")[-1].split("to")[0]) & set(BARS)
    assert "assumes" in text
    assert isinstance(display_for(Path("run.log"), Console(file=io.StringIO())), PlainLines)


def watch(*arguments: Any) -> int:
    return run_verb("watch", [str(argument) for argument in arguments], debug=False)


def test_a_split_that_is_not_there_an_end_that_is_passed_and_other_units_are_said(tmp_path: Path, capsys: Any) -> None:
    """Steps are not called tokens in silence, nor nats per byte nats per token."""
    step = np.arange(20, 1001, 20)
    rows = (f"{s},{2 + 8 / s**0.3:.4f},{0.5 + 2 / s**0.3:.4f}" for s in step.tolist())
    file = tmp_path / "run.csv"
    file.write_text("\n".join(["step,train_loss,val_bpb", *rows]) + "\n")
    for verb in (
        ("watch", file, "--once", "--end", 2000),
        ("watch", file, "--once", "--end", 2000, "--split", "val_bpb"),
    ):
        assert watch(*verb[1:]) == 0
        out = capsys.readouterr().out
        assert "the log counts steps: what is called tokens are steps" in out
        assert ("val_bpb is in nats/byte, not nats per token" in out) == ("val_bpb" in verb)
    assert watch(file, "--once", "--end", 2000, "--split", "test") == 2
    assert "--split test is no split of the run; it has train_loss, val_bpb" in capsys.readouterr().err
    assert watch(file, "--once", "--end", 500) == 0
    assert "--end 500 is passed: the last checkpoint is at 1,000" in capsys.readouterr().out
