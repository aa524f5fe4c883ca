"""Progress without a terminal: a line every half minute with what is done, how fast, and how long it still takes."""

from __future__ import annotations

import pytest

from tsl_jax.commands import progress


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


def test_a_log_gets_a_line_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bars() as shown:
        for step in range(0, 401, 4):
            shown("train", step, 400)
            shown.observe({"loss": 3.25, "tokens_per_second": 1234.5})
            clock.now += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: 120 of 400, 4/s, 70 s left; loss 3.250, 1,234 tokens/s",
        "train: 240 of 400, 4/s, 40 s left; loss 3.250, 1,234 tokens/s",
        "train: 360 of 400, 4/s, 10 s left; loss 3.250, 1,234 tokens/s",
    ]


def test_a_stage_that_begins_anew_is_timed_anew(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bars() as shown:
        shown.observe({"loss": 3.25, "tokens_per_second": 1234.5})
        for done in (10, 50, 10, 20, 30):  # an evaluation, and the next one
            shown("evaluate [id]", done, 50)
            clock.now += 20
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["evaluate [id]: 10 of 50", "evaluate [id]: 30 of 50, 0.5/s, 40 s left"]


def test_a_table_of_curves_has_lines_too(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.rate("fit", "curves") as report:
        report(0.5, 0)  # an earlier call had come so far
        clock.now += 31
        report(0.6, 31_000)
        clock.now += 5
        report(1.0, 36_000)
    assert capsys.readouterr().err.splitlines() == ["fit: 60%, 31,000 curves, 1,000/s, 2.1 min left"]
