"""Where a run leaves its course: each kind is named at once, healthy runs are left alone, real logs too."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import tsl_jax as tsl
from tsl_jax.forecasting.course import KINDS, Course, Event, fitted_line

ROWS = 120
TOKENS = np.arange(1, ROWS + 1) * 1e8
AT = 80  # row of the event
CURVES = Path(os.environ.get("TSL_JAX_CURVES", "none"))


def loss(noise: float = 0.004, seed: int = 0) -> np.ndarray:
    return 2.5 + 60 * TOKENS**-0.2 + noise * np.random.default_rng(seed).standard_normal(ROWS)


def followed(y: np.ndarray, lr: np.ndarray | None = None, **options) -> list[tuple[int, Event]]:
    """(row at which it was said, event), one row at a time."""
    course, said = Course("loss", **options), []
    for row in range(1, len(y) + 1):
        some = None if lr is None else lr[:row]
        said += [(row - 1, event) for event in course.update(TOKENS[:row], y[:row], some)]
    return said


later = np.maximum(np.arange(ROWS) - AT + 1, 0)
EVENTS = {
    "spike": 0.3 * (np.arange(ROWS) == AT),
    "divergence": 0.004 * np.expm1(later / 2.0).clip(0, 200),
    "data_switch": 0.1 * (later > 0),
    "plateau": np.where(later > 0, loss(0.0)[AT] - loss(0.0), 0),
    "non_finite": np.where(np.arange(ROWS) == AT, np.nan, 0),
}
WITHIN = {"spike": 1, "divergence": 8, "data_switch": 4, "plateau": 30, "non_finite": 1}


@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_is_named_within_a_few_rows(kind: str) -> None:
    constant = np.full(ROWS, 3e-4)
    said = [(row, event) for row, event in followed(loss() + EVENTS[kind], constant) if event.kind == kind]
    row, event = said[0]
    assert AT <= row < AT + WITHIN[kind]
    assert event.tokens == pytest.approx(TOKENS[AT], rel=0.1)
    assert event.sentence.startswith(f"{kind}: ")
    assert kind in KINDS


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.0005, 0.004, 0.05])
def test_a_healthy_run_stays_silent(noise: float, seed: int) -> None:
    assert followed(loss(noise, seed)) == []


def test_a_fall_that_the_rate_explains_is_none_and_one_that_it_does_not_is() -> None:
    fall = loss() - 0.15 * (1 - np.exp(-later / 6.0))
    decay = 3e-4 * np.where(later > 0, np.maximum(1 - later / 40, 0.0), 1.0)
    assert followed(fall, decay) == []
    assert [event.kind for _, event in followed(fall)] == ["rate_drop"]
    assert [event.kind for _, event in followed(fall, np.full(ROWS, 3e-4))] == ["data_switch"]


def test_a_rate_that_drops_is_said_unless_it_was_planned() -> None:
    dropped = np.where(later > 0, 3e-5, 3e-4)
    (said,) = followed(loss(), dropped)
    assert said[0] == AT
    assert said[1].sentence == "rate_drop: the learning rate falls from 0.0003 to 3e-05 at 8,100,000,000 tokens"
    assert followed(loss(), dropped, planned=lambda at: 3e-5 if at >= TOKENS[AT] else 3e-4) == []
    assert [row for row, _ in followed(loss(), dropped, planned=lambda _: 3e-4)] == [AT]
    cosine = 1.5e-4 * (1 + np.cos(np.pi * np.arange(ROWS) / ROWS))
    assert followed(loss(), cosine) == []
    warmup = np.minimum(np.arange(ROWS) / 20, 1.0) * 3e-4
    assert followed(loss(), warmup) == []


def test_a_restart_is_said_whether_the_log_is_shorter_or_went_on_past_its_end() -> None:
    y, other = loss(), loss(seed=1)
    for rows in (90, 110):
        course = Course("loss")
        course.update(TOKENS[:100], y[:100])
        (event,) = course.update(TOKENS[:rows], np.append(y[:85], other[85:rows]))
        assert event.kind == "restart"
        assert event.tokens == TOKENS[85]
        assert course.update(TOKENS[:115], np.append(y[:85], other[85:115])) == []
    course = Course("loss")
    course.update(TOKENS[:100], y[:100])
    later_line = np.append(y[:99], 3.0)  # the last row was read before it was whole
    assert course.update(TOKENS[:100], later_line) == []


def test_the_course_begins_anew_after_an_event_and_not_after_a_spike() -> None:
    for kind, begins in (("spike", 0.0), ("data_switch", TOKENS[AT])):
        course = Course("loss")
        course.update(TOKENS, loss() + EVENTS[kind])
        assert course.begins == pytest.approx(begins)


def test_a_line_is_not_moved_by_a_spike() -> None:
    x = np.linspace(0, 1, 50)
    y = 3 - x + 0.01 * np.random.default_rng(0).standard_normal(50)
    y[25] += 5
    level, error = fitted_line(x, y).at(1.2)
    assert level == pytest.approx(1.8, abs=0.02)
    assert 0.05 < error < 0.4


@pytest.mark.skipif(not CURVES.is_dir(), reason="TSL_JAX_CURVES names no folder of public loss curves")
@pytest.mark.parametrize("size", ["25M", "100M"])
def test_real_curves_raise_no_alarm_but_for_rates_that_drop(size: str) -> None:
    for path in sorted((CURVES / "multipower" / size).glob("*.csv")):
        (surface,) = tsl.read_log(path).surfaces.values()
        values = surface.tokens.values, surface.loss.values[0, :, 0], surface.lr.values
        kinds = [event.kind for event in Course("loss").update(*values)]
        assert kinds == (["rate_drop"] if "wsdcon" in path.stem else []), path.stem
