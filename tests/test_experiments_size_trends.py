"""Trends with the size of a model: planted ones are found, and none where there is none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import tsl_jax as tsl
from experiments.forecast_evidence import size_trends
from experiments.forecast_evidence.curves import Curve
from experiments.forecast_evidence.rate_response import EXCESS, UNIT, columns
from tsl_jax.forecasting import lr_history
from tsl_jax.laws import Schedule


def test_a_slope_on_size_is_that_of_the_families_together():
    sizes = np.array([1e7, 3e7, 1e8, 1e7, 3e7, 1e8, 1e9])
    family = ["a"] * 3 + ["b"] * 3 + ["c"]  # one size alone says nothing of a slope
    level = np.array([1.0] * 3 + [5.0] * 3 + [1e3])
    noise = np.exp(1e-3 * np.random.default_rng(0).standard_normal(7))
    table = pd.DataFrame({"family": family, "n_params": sizes, "alpha": level * sizes**0.1 * noise})
    found = size_trends.slope(table, "alpha")
    assert found["slope"] == pytest.approx(0.1, abs=2e-3)
    assert found["low"] < 0.1 < found["high"]
    assert found["sizes"] == 6


def test_the_exponent_and_the_gain_of_a_planted_law_are_found():
    plan = {"kind": "cosine", "peak": 1e-3, "warmup_tokens": 10**8, "total_tokens": 10**10, "final_ratio": 0.0}
    runs = []
    for share in (0.3, 1.0):
        tokens = np.linspace(2e8, share * 1e10, 60).round()
        own = {**plan, "total_tokens": int(share * 1e10)}
        surface = tsl.from_losses(np.ones((60, 1)), tokens=tokens.astype(int), position=[1], split="a", schedule=own)
        rate = lr_history.of_run(surface, Schedule.from_plan(own))
        design = columns(np.log([0.45, 20.0, 1.0]), dict(rate.covariates(tokens, UNIT)), EXCESS["proportion"])
        loss = design @ [2.5, 0.8, 0.2]
        surface = tsl.from_losses(loss[:, None], tokens=tokens.astype(int), position=[1], split="a", schedule=own)
        runs.append(Curve("public", "a", "run", surface))
    found = size_trends.fitted(runs)
    ends = [float(run.surface.loss[0, -1, 0]) for run in runs]
    assert found["alpha"] == pytest.approx(0.45, rel=0.05)
    assert found["gain"] == pytest.approx(0.2 / np.mean(ends), rel=0.1)
    assert found["rmse"] < 1e-3


def test_a_folder_without_curves_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["size_trends", "--curves", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        size_trends.main()
    assert ended.value.code == 2
    assert f"no public curves in {tmp_path}" in capsys.readouterr().err
