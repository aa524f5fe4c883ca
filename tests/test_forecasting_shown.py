"""What a forecast shows: every split and token count asked for, its intervals, and what speaks against it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from tsl_jax.forecasting import Forecast
from tsl_jax.forecasting.result import NOTHING, ForecastFlag, ForecastStatus

AT = np.array([3e6, 1e6, 2e6])  # as they were asked for, in no order


@pytest.fixture
def forecast() -> Forecast:
    coordinates = {"split": ["id", "ood"], "tokens": AT}
    mean = xr.DataArray([[3.0, 3.4, 3.2], [4.0, 4.4, np.nan]], coordinates, ("split", "tokens"))
    levels = xr.DataArray([0.05, 0.25, 0.5, 0.75, 0.95], dims="quantile")
    levels = levels.assign_coords(quantile=levels.values)
    status = {"id": ForecastStatus(NOTHING), "ood": ForecastStatus(ForecastFlag.BELOW_ZERO, ("<is> below zero",))}
    quantiles = mean + 0.2 * (levels - 0.5)
    return Forecast("plain", 5e5, mean, None, status, quantiles=quantiles, intervals={"id": "model-based"})


def test_the_table_has_every_split_and_token_count_in_order(forecast: Forecast) -> None:
    table = forecast.to_dataframe()
    assert table["tokens"].tolist() == [1e6, 2e6, 3e6] * 2
    assert table["split"].tolist() == ["id"] * 3 + ["ood"] * 3
    np.testing.assert_allclose(table["mean"], [3.4, 3.2, 3.0, 4.4, np.nan, 4.0])
    np.testing.assert_allclose(table["high90"] - table["low90"], 0.18 + 0 * table["mean"])
    np.testing.assert_allclose(table["high50"] - table["low50"], 0.1 + 0 * table["mean"])
    assert table["status"].tolist() == ["ok"] * 3 + ["<is> below zero"] * 3
    assert forecast.usable == {"id": True, "ood": False}


def test_the_report_says_all_and_is_escaped_in_notebooks(forecast: Forecast) -> None:
    text = forecast.report()
    assert text.splitlines()[0] == "plain: mean loss in nats/token, from the checkpoints up to 5e+05 tokens"
    assert "2e+06" in text
    assert "3.2000" in text
    assert "ood: <is> below zero" in text
    assert "id: intervals model-based" in text
    assert "&lt;is&gt; below zero" in forecast._repr_html_()


def test_the_fan_is_drawn_over_what_was_observed(forecast: Forecast) -> None:
    observed = xr.DataArray(np.linspace(5, 3.5, 5), {"tokens": np.linspace(1e4, 1e6, 5)}, ("tokens",))
    figure = forecast.plot(observed)
    (panel,) = figure.axes
    x, y = panel.lines[1].get_data()
    np.testing.assert_allclose(x, np.sort(AT))
    np.testing.assert_allclose(y, [3.4, 3.2, 3.0])
    assert len(panel.collections) == 2, "two intervals"
    assert panel.get_ylabel().startswith("mean loss, id")
    assert "ood" in forecast.plot(split="ood").axes[0].get_ylabel()
    with pytest.raises(ValueError, match=r"has the splits \['id', 'ood'\], found 'train'"):
        forecast.plot(split="train")
