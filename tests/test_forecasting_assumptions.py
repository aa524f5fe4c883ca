"""What a forecast assumes is said: the learning rate to come, tokens beyond a plan, a loss that rises, noisy rows."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import tsl_jax as tsl
from tsl_jax.cli import run_verb
from tsl_jax.forecasting import ForecastFlag, crossing
from tsl_jax.forecasting.assumed_rate import assumed_rate
from tsl_jax.forecasting.lr_history import of_run
from tsl_jax.forecasting.recorded_pace import recorded_pace
from tsl_jax.laws import Schedule

END = 10_000_000_000
COSINE = Schedule("cosine", 6e-4, END // 25, END, final_ratio=0.0)
LINEAR = Schedule("wsd", 1e-3, END // 100, END, final_ratio=0.0, decay_start_tokens=END // 100)
WSD = Schedule("wsd", 1e-3, END // 100, END, final_ratio=0.0, decay_start_tokens=8 * END // 10)
ROOT = Schedule("wsd", 1e-3, END // 100, END, final_ratio=0.1, decay_start_tokens=END // 2, decay_form="sqrt")


def log(
    schedule: Schedule | None, share: float, rows: int = 50, begin: float = 0.0, noise: float = 0.002
) -> xr.Dataset:
    """A log of the mean loss with rates of four digits, from `begin` to `share` of the run."""
    tokens = np.linspace(max(begin * END, share * END / rows), share * END, rows).round()
    loss = 3.0 + 20 * tokens**-0.15 + noise * np.random.default_rng(0).standard_normal(rows)
    surface = tsl.from_losses(loss[None, :, None], tokens=tokens.astype(int), position=[1], split=["loss"])
    if schedule is None:
        return surface
    rates = [float(f"{rate:.4g}") for rate in np.asarray(schedule.rate(tokens, np))]
    return surface.assign_coords(lr=("tokens", rates))


@pytest.mark.parametrize(
    ("schedule", "share", "name"),
    [
        (COSINE, 0.2, "a cosine"), (COSINE, 0.6, "a cosine"), (LINEAR, 0.3, "a linear decay"),
        (WSD, 0.9, "a linear decay"), (ROOT, 0.7, "a decay by 1 - sqrt"),
    ],
)  # fmt: skip
def test_a_schedule_is_recognised_in_the_rates_that_were_recorded(schedule: Schedule, share: float, name: str) -> None:
    rate = assumed_rate(log(schedule, share), None, END)
    assert f"those of {name} that ends at" in rate.sentence
    ends = [plan.total_tokens for plan in rate.plans if plan is not None]
    assert len(ends) == len(rate.plans)
    assert any(abs(end / END - 1) < 0.01 for end in ends)  # the truth is among those that are not distinguished
    assert all(0.85 < end / END < 1.15 for end in ends)


def test_a_rate_that_is_not_known_is_said() -> None:
    assert assumed_rate(log(None, 0.5), None, END).sentence == "no learning rate is known: a constant one is assumed"
    held = assumed_rate(log(WSD, 0.5), None, END)
    assert held.plans == (None,)
    assert "the last rate, 0.001, is held; a decay to come is left out" in held.sentence
    steps = log(WSD, 0.5)  # a rate by steps is none of the forms
    steps = steps.assign_coords(lr=("tokens", np.repeat([1e-3, 7e-4, 6e-4, 1e-4, 5e-5], 10)))
    unknown = assumed_rate(steps, None, END)
    assert len(unknown.plans) == 2
    assert unknown.reasons[0][0] == ForecastFlag.RATE_UNKNOWN


def test_the_interval_without_a_plan_holds_what_the_recognised_ones_say() -> None:
    surface = log(COSINE, 0.5)
    without, known = tsl.forecast(surface, [END]), tsl.forecast(surface, [END], COSINE)
    assert "those of a cosine" in without.notes[0]
    assert known.notes[0].startswith("the plan of the learning rate: cosine, 0 at its end")
    low, high = (without.quantiles.sel(quantile=q).item() for q in (0.05, 0.95))
    assert low < known.mean.item() < high
    assert without.usable == {"loss": True}


def test_tokens_beyond_the_plan_are_named() -> None:
    made = tsl.forecast(log(COSINE, 0.9), [2 * END], COSINE)
    assert made.status["loss"].flags & ForecastFlag.BEYOND_PLAN
    assert "2e+10 tokens lie beyond the end of the plan of the learning rate, 1e+10" in str(made.status["loss"])
    assert tsl.forecast(log(COSINE, 0.9), [END], COSINE).status["loss"].ok


def test_a_log_that_begins_in_mid_run_is_no_warm_up_and_a_rate_raised_late_neither() -> None:
    late = log(COSINE, 0.4, rows=6, begin=0.3)
    assert of_run(late, None).warmup == 0
    assert tsl.forecast(late, [0.5 * END]).usable["loss"]
    raised = log(WSD, 0.7).assign_coords(lr=("tokens", np.where(np.arange(50) < 25, 5e-4, 1e-3)))
    assert of_run(raised, None).warmup <= float(raised.tokens[1])
    assert tsl.forecast(raised, [END]).usable["loss"]


@pytest.mark.parametrize(
    ("shape", "rises"), [("falls", False), ("diverges", True), ("overfits", True), ("spike", False)]
)
def test_a_loss_that_rises_has_a_status(shape: str, rises: bool) -> None:
    surface = log(None, 0.5)
    x = np.linspace(0, 1, 50)
    more = {"falls": 0 * x, "diverges": np.maximum(x - 0.7, 0) * 8, "overfits": np.maximum(x - 0.5, 0) * 0.6,
            "spike": 2.0 * (np.arange(50) == 40)}[shape]  # fmt: skip
    surface = surface.assign(loss=surface.loss + xr.DataArray(more, dims="tokens"))
    status = tsl.forecast(surface, [END]).status["loss"]
    assert bool(status.flags & ForecastFlag.LOSS_RISES) == rises


def test_one_row_of_two_thousand_does_not_decide() -> None:
    """Training losses of every step: all rows count, and a spike as no more than a row."""
    noisy = log(None, 0.8, rows=2000, noise=0.05)
    spiked = noisy.assign(loss=noisy.loss + xr.DataArray(1.0 * (np.arange(2000) == 1999), dims="tokens"))
    cut = noisy.isel(tokens=slice(-1))
    ends = [tsl.forecast(surface, [END]) for surface in (noisy, spiked, cut)]
    middles = [made.mean.item() for made in ends]
    assert np.ptp(middles) < 0.02
    assert abs(middles[0] - (3.0 + 20 * END**-0.15)) < 0.05
    for made in ends:
        assert (made.quantiles.sel(quantile=0.95) - made.quantiles.sel(quantile=0.05)).item() < 0.1


def test_when_a_loss_is_reached_and_when_it_is_not(tmp_path: Path, capsys: Any) -> None:
    surface = log(None, 0.5)
    truth = 3.0 + 20 * (0.75 * END) ** -0.15
    table = crossing(surface, truth, END).loc["loss"]
    assert table.low < 0.75 * END < table.high
    assert table.low < table.tokens < table.high
    assert crossing(surface, 2.5, END).loc["loss"].never == 1
    assert crossing(surface, 4.0, END).loc["loss"].never == 0
    tsl.save_surface(surface, tmp_path / "log.npz")
    out = str(tmp_path / "out.json")
    arguments = [str(tmp_path / "log.npz"), "--until-loss", f"{truth:.3f}", "--at", str(END), "--out", out]
    assert run_verb("forecast", arguments, debug=False) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("no learning rate is known: a constant one is assumed")
    assert f"loss: {float(f'{truth:.3f}'):g} nats at" in printed
    assert "recorded" not in printed
    with pytest.raises(ValueError, match="positive number of nats"):
        crossing(surface, -1, END)


def test_a_loss_is_reached_at_a_time_of_day_where_the_log_has_times(tmp_path: Path, capsys: Any) -> None:
    truth, noon = round(3.0 + 20 * (0.75 * END) ** -0.15, 3), 1_764_417_600  # 2025-11-29 12:00 UTC
    seen = log(None, 0.5)
    tokens = seen.tokens.values[::5].astype(float)
    # 10,000 tokens a second, but for a night without
    seconds = noon + tokens / 1e4 + 36_000 * (tokens > tokens[4])
    times = {"tokens": tokens.tolist(), "seconds": seconds.tolist(), "clock": "UTC"}
    surface = seen.assign_attrs(times=times)
    pace = recorded_pace(surface)
    assert pace is not None
    assert pace.tokens_per_second == pytest.approx(1e4)
    table = crossing(surface, truth, END).loc["loss"]
    for name, column in (("seconds", "tokens"), ("seconds_low", "low"), ("seconds_high", "high")):
        assert table[name] == pytest.approx(noon + 36_000 + table[column] / 1e4)
    assert recorded_pace(surface.isel(tokens=slice(6))) is None, "two times are one interval"
    tsl.save_surface(surface, tmp_path / "log.npz")
    arguments = [str(tmp_path / "log.npz"), "--until-loss", str(truth), "--at", str(END)]
    assert run_verb("forecast", arguments, debug=False) == 0
    when = datetime.datetime.fromtimestamp(table.seconds, datetime.UTC)
    printed = capsys.readouterr().out
    assert f"  {when:%Y-%m-%d %H}:" in printed
    assert "at the recorded 10,000 tokens a second, UTC" in printed
    with pytest.raises(ValueError, match="must have tokens, seconds and clock; import the log again"):
        recorded_pace(seen.assign_attrs(times={"tokens": [1.0]}))
