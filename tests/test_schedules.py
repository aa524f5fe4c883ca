"""Learning-rate schedules: the equations, plans that change do not leak, straight lines stay close."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsl_jax import laws
from tsl_jax.laws import Schedule
from tsl_jax.training.config import OptimizerConfig
from tsl_jax.training.optimizer import lr_plan

STEPS, BATCH = 1000, 3_000_001  # beyond 2^31 tokens, and no token count that float32 holds exactly
CONFIGS = {
    "constant": OptimizerConfig(schedule="constant"),
    "cosine": OptimizerConfig(),
    "no warm-up": OptimizerConfig(warmup=0.0),
    "wsd": OptimizerConfig(schedule="wsd"),
    "exponential": OptimizerConfig(schedule="wsd", decay_form="exponential", decay=0.3),
    "sqrt": OptimizerConfig(schedule="wsd", decay_form="sqrt", final_ratio=0.0),
    "restarts": OptimizerConfig(schedule="restarts", warmup=0.3, cycles=7),  # of 100 steps; float32 rounds their ends
    "restarts within steps": OptimizerConfig(schedule="restarts", warmup=0.0, cycles=7),
}
TOTAL = 50_000
FIRST = {"kind": "constant", "peak": 3e-3, "warmup_tokens": 1000, "total_tokens": TOTAL}
COSINE = {**FIRST, "kind": "cosine", "final_ratio": 0.1}
TABLE = {"kind": "table", "tokens": [0, 1000, 20_000, 40_000], "lr": [0, 2e-3, 2e-3, 1e-4]}
CHANGED = [
    {"from_tokens": 0, **FIRST},
    {"from_tokens": 20_000, **COSINE, "peak": 4e-3, "warmup_tokens": 25_000},
    {"from_tokens": 30_000, "kind": "wsd", "peak": 2e-3, "total_tokens": 80_000, "final_ratio": 0.1}
    | {"decay_start_tokens": 60_000, "decay_form": "exponential"},
]


def planned(name: str) -> dict[str, Any]:
    return lr_plan(CONFIGS[name], STEPS, BATCH)


def equations(config: OptimizerConfig) -> np.ndarray:
    """The learning rate of every step, from the equations in steps, one step at a time."""
    warmup, decay = round(config.warmup * STEPS), round(config.decay * STEPS)
    r, rates = config.final_ratio, []
    for step in range(1, STEPS + 1):
        share = (step - warmup) / (STEPS - warmup)
        if config.schedule == "restarts":
            cycles = Fraction(config.cycles * (step - warmup), STEPS - warmup)
            share = float(cycles - max(math.ceil(cycles) - 1, 0))
        if config.schedule in ("cosine", "restarts"):
            rate = r + (1 - r) * (1 + math.cos(math.pi * share)) / 2
        elif config.schedule == "wsd" and step > STEPS - decay:
            q = (step - STEPS + decay) / decay
            forms = {"linear": 1 - (1 - r) * q, "exponential": r**q, "sqrt": 1 - (1 - r) * math.sqrt(q)}
            rate = forms[config.decay_form]
        else:
            rate = 1.0
        rates.append(config.peak_lr * (step / warmup if step < warmup else rate))
    return np.array(rates)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_and_laws_take_the_rate_of_the_equations_at_every_step(name: str) -> None:
    """Also in float32, as the compiled step takes it: no step falls into another cycle."""
    schedule, tokens = Schedule.from_plan(planned(name)), BATCH * np.arange(1, STEPS + 1)
    expected = equations(CONFIGS[name])
    np.testing.assert_allclose(schedule.rate(tokens, np), expected, rtol=1e-12)
    steps = jnp.arange(1, STEPS + 1, dtype=jnp.float32)
    compiled = jax.jit(lambda steps: schedule.rate(steps * float(BATCH)))(steps)
    for rate in (schedule.lr(tokens), compiled):
        np.testing.assert_allclose(rate, expected, rtol=1e-5, atol=1e-6 * expected.max())


def test_decays_and_cycles_go_where_their_names_say() -> None:
    wsd = {"kind": "wsd", "peak": 1.0, "warmup_tokens": 0, "total_tokens": 100, "decay_start_tokens": 20}
    forms = {"linear": 0.7525, "exponential": 0.01**0.25, "sqrt": 0.505}  # a quarter of the way to a hundredth
    for form, rate in forms.items():
        lr = Schedule.from_plan({**wsd, "final_ratio": 0.01, "decay_form": form}).lr([20, 40, 100])
        np.testing.assert_allclose(lr, [1, rate, 0.01], rtol=1e-5)
    restarts = Schedule("restarts", 1.0, 10, 110, 0.2, cycles=4)
    np.testing.assert_allclose(restarts.lr([5, 10, 22.5, 35, 35.001, 60, 85, 97.5, 110]),
                               [0.5, 1, 0.6, 0.2, 1, 0.2, 0.2, 0.6, 0.2], atol=1e-4)  # fmt: skip


def test_the_last_plan_that_has_begun_holds() -> None:
    schedule = Schedule.from_plan(CHANGED)
    assert (schedule.peak, schedule.warmup_tokens, schedule.total_tokens) == (4e-3, 1000, 80_000)
    lr = schedule.lr([500, 19_999, 20_000, 22_500, 25_000, 37_500, 60_000, 70_000, 80_000])
    expected = [1.5e-3, 3e-3, 0, 2e-3, 4e-3, 2e-3, 2e-3, 2e-3 * 0.1**0.5, 2e-4]
    np.testing.assert_allclose(lr, expected, rtol=1e-5)
    drawn = Schedule.from_plan(TABLE)
    assert (drawn.peak, drawn.warmup_tokens, drawn.total_tokens) == (2e-3, 0, 40_000)
    np.testing.assert_allclose(drawn.lr([500, 5000, 30_000, 50_000]), [1e-3, 2e-3, 1.05e-3, 1e-4], rtol=1e-5)


def test_a_change_after_the_cut_off_is_not_known() -> None:
    schedule = Schedule.from_plan(CHANGED)
    cut = [schedule.known_at(tokens) for tokens in (0, 19_999.5, 20_000, 29_999, 10**6)]
    assert cut == [Schedule.from_plan(plans) for plans in (FIRST, FIRST, CHANGED[:2], CHANGED[:2], CHANGED)]
    other = Schedule.from_plan([*CHANGED[:2], {"from_tokens": 30_000, **TABLE}])
    assert cut[3] == other.known_at(29_999)
    assert cut[3].total_tokens == TOTAL
    assert Schedule.from_plan(COSINE).known_at(0) == Schedule.from_plan(COSINE)


ALL = {**{name: planned(name) for name in CONFIGS}, "table": TABLE, "changed": CHANGED}


@pytest.mark.parametrize("name", ["exponential", "sqrt", "restarts within steps", "table", "changed"])
def test_lines_between_the_knots_stay_close(name: str) -> None:
    schedule = Schedule.from_plan(ALL[name])
    tokens, lr = schedule.knots()
    assert (tokens[0], tokens[-1]) == (0, schedule.total_tokens)
    assert np.diff(tokens).min() > 0
    assert len(tokens) < 150 * schedule.cycles
    between = np.linspace(0, schedule.total_tokens, 20_001)
    with jax.enable_x64(True):
        exact = np.asarray(schedule.lr(between))
    error = np.abs(np.interp(between, tokens, lr) - exact).max()
    assert error <= 1e-4 * schedule.peak


def test_a_jump_is_two_knots_beside_each_other() -> None:
    tokens, lr = Schedule.from_plan(
        [{"from_tokens": 0, **FIRST}, {"from_tokens": 20_000, **FIRST, "peak": 1e-3}]
    ).knots()
    np.testing.assert_allclose(tokens, [0, 1000, 20_000, 20_000, TOTAL], rtol=1e-9)
    np.testing.assert_allclose(lr, [0, 3e-3, 3e-3, 1e-3, 1e-3])
    with pytest.raises(ValueError, match="tolerance is a positive share of the peak, found 0"):
        Schedule.from_plan(FIRST).knots(0)


@pytest.mark.parametrize("name", ALL)
def test_a_plan_survives_the_way_through_json(name: str) -> None:
    schedule = Schedule.from_plan(ALL[name])
    assert Schedule.from_plan(json.loads(json.dumps(schedule.to_plan()))) == schedule


def test_old_plans_are_written_as_ever() -> None:
    assert Schedule.from_plan({**COSINE, "of": "others"}).to_plan() == {**COSINE, "decay_start_tokens": 0}


WSD = {**COSINE, "kind": "wsd", "decay_start_tokens": 40_000}
REFUSED = {
    "nothing": ([], r"expected a plan \(kind, peak, ...\) or a list of plans, found '\[\]'"),
    "text": ("cosine", "or a list of plans, found 'cosine'"),
    "short": ({"kind": "cosine", "peak": 1}, "it needs warmup_tokens and total_tokens; found kind, peak"),
    "word": ({**COSINE, "peak": "3e-4"}, "peak is '3e-4', expected a number"),
    "nan": ({**COSINE, "final_ratio": float("nan")}, "final_ratio is nan, expected a number"),
    "half": ({**COSINE, "total_tokens": 0.5}, "total_tokens is 0.5, expected a whole number"),
    "peak": ({**COSINE, "peak": -1}, "expected a positive peak and a final_ratio of at least 0, found peak -1"),
    "kind": ({**COSINE, "kind": "step"}, r"expected one of \('constant', .*, 'table'\), found 'step'"),
    "form": ({**WSD, "decay_form": "root"}, r"decay_form must be one of \('linear', .* found 'root'"),
    "never": ({**WSD, "decay_form": "exponential", "final_ratio": 0}, "never reaches 0; give a final_ratio above it"),
    "cycles": ({**COSINE, "kind": "restarts", "cycles": 0}, "cycles of at least 1, found 0"),
    "alone": ({**COSINE, "from_tokens": 5}, "a plan alone begins at 0, found from_tokens 5"),
    "entry": ([{"from_tokens": 0, **COSINE}, 3], "plan 2 of 2: expected a mapping .* found '3'"),
    "start": ([COSINE], "plan 1 of 1: it needs from_tokens, the tokens seen"),
    "late": ([{"from_tokens": 7, **COSINE}], r"from_tokens must begin with 0 and increase .* found \[7\]"),
    "order": ([{"from_tokens": 0, **COSINE}] * 2, r"increase from plan to plan, found \[0, 0\]"),
    "over": ([{"from_tokens": TOTAL, **COSINE}], "plan 1 of 1: it begins at 50000 tokens and ends at 50000"),
    "no lr": ({**TABLE, "lr": 3}, "a table needs lr, a list of at least two numbers, found '3'"),
    "lengths": ({**TABLE, "lr": [1, 2]}, "as many lr as tokens, found 2 and 4"),
    "back": ({**TABLE, "tokens": [0, 5, 5, 6]}, "the tokens of a table must increase from 0 or later"),
    "negative": ({**TABLE, "lr": [0, 1, 2, -3]}, "must not be negative, found -3"),
    "cell": ({**TABLE, "lr": [0, 1, None, 3]}, "one of lr is None, expected a number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_plan_that_makes_no_sense_is_refused_in_words(name: str) -> None:
    given, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=f"^schedule: .*{sentence}"):
        Schedule.from_plan(given)


def test_the_piecewise_cosine_wants_a_plan_of_one_cosine() -> None:
    """A list that is one cosine, as known before its first change, is such a plan."""
    extended = Schedule.from_plan(
        [{"from_tokens": 0, **COSINE}, {"from_tokens": 40_000, **COSINE, "total_tokens": 10**5}]
    )
    assert laws.piecewise_cosine(extended.known_at(30_000)) == laws.piecewise_cosine(Schedule.from_plan(COSINE))
    with pytest.raises(ValueError, match="expected a cosine schedule, found 'changing'"):
        laws.piecewise_cosine(extended)
