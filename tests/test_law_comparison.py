"""Several laws on the same curves: the true one predicts best, the table says so, and both figures can be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

import tsl_jax as tsl
from tsl_jax.diagnostics import compare_laws, law_comparison
from tsl_jax.laws import CHINCHILLA, HYPERBOLIC, POSITION_EXPONENTIAL, POSITION_LOG

X = np.arange(1.0, 65.0)
RUNS = 4


def hyperbola(x: Any, p: Any, q: Any, r: Any) -> Any:
    return p / (1 + q * x) + r


@pytest.fixture(scope="module")
def loss() -> xr.DataArray:
    random = np.random.default_rng(0)
    rates = np.exp(random.uniform(np.log(0.1), np.log(0.8), (RUNS, 1)))
    y = 1.5 / (1 + rates * X) + 3 + 0.01 * random.standard_normal((RUNS, len(X)))
    return xr.DataArray(y, {"run": list("abcd"), "position": X}, ("run", "position"), name="loss")


@pytest.fixture(scope="module")
def comparison(loss: xr.DataArray) -> Any:
    return compare_laws(loss, [POSITION_EXPONENTIAL, "position_log", hyperbola], over="position")


def test_the_true_law_predicts_best(comparison: Any) -> None:
    table = comparison.to_dataframe()
    assert comparison.best == "hyperbola" == table.index[0]
    assert table.loc["hyperbola", "wins"] == 1
    assert table.loc["hyperbola", "aic"] == 0
    assert table.loc["hyperbola", "weight"] > 0.99
    assert (table["parameters"] == 3).all()
    assert 0.008 < table.loc["hyperbola", "held_out"] < 0.013, "the noise"
    np.testing.assert_allclose(comparison.weight.sum("law"), 1)
    log, true = comparison.fits["position_log"], comparison.fits["hyperbola"]
    more = (log.aic - true.aic).where(log.usable).median()
    assert table.loc["position_log", "aic"] == pytest.approx(float(more))


def test_the_held_out_error_is_that_of_points_that_were_left_out(comparison: Any, loss: xr.DataArray) -> None:
    errors = tsl.diagnostics.held_out(comparison.fits["hyperbola"].law, loss.values, X)
    expected = np.sqrt(np.nanmean(errors**2, axis=(1, 2)))
    np.testing.assert_allclose(comparison.held_out.sel(law="hyperbola"), expected, rtol=1e-5)


def test_missing_points_are_neither_fitted_nor_predicted(loss: xr.DataArray) -> None:
    weights = xr.ones_like(loss)
    weights[0, 10:20] = 0
    holed = loss.where(weights > 0)
    wild = loss.where(weights > 0, 1e6)
    with_holes, with_wild = (
        compare_laws(y, [hyperbola], over="position", weights=weights).held_out for y in (holed, wild)
    )
    np.testing.assert_allclose(with_holes, with_wild, rtol=1e-6)
    assert bool((with_holes < 0.02).all())


def test_the_report_names_the_best_law_and_both_figures_are_drawn(comparison: Any) -> None:
    text = comparison.report()
    assert "hyperbola has the smallest median held-out error; " in text.splitlines()[-1]
    assert "4 curves over position 1..64" in text
    assert "<table" in comparison._repr_html_()
    figure = comparison.plot()
    assert len(figure.axes) == 3
    assert figure.axes[2].get_yticklabels()[0].get_text() == "hyperbola (3)"
    assert comparison.plot(curve=2).axes[0].get_title(loc="left") == "run c: data and laws"
    with pytest.raises(ValueError, match="curves are counted from 0 to 3, found 4"):
        comparison.plot(curve=4)


@pytest.mark.parametrize("by", ["quantile", "worst", "best"])
def test_a_few_curves_of_a_fit_are_drawn(comparison: Any, by: str) -> None:
    fit = comparison.fits["hyperbola"]
    figure = fit.plot(curves=2, by=by)
    titles = [panel.get_title(loc="left") for panel in figure.axes[:2]]
    r2 = [float(title.rsplit(" ", 1)[1]) for title in titles]
    order = np.sort(fit.r2.values)
    expected = {"quantile": order[[0, -1]], "worst": order[:2], "best": order[::-1][:2]}[by]
    np.testing.assert_allclose(r2, expected, atol=1e-4)
    assert figure.axes[0].get_ylabel() == "loss"
    assert figure._repr_png_().startswith(b"\x89PNG"), "a notebook shows it"


def test_requests_that_make_no_sense_are_refused(loss: xr.DataArray, comparison: Any) -> None:
    with pytest.raises(ValueError, match="'hyper' is unknown; expected one of hyperbolic"):
        compare_laws(loss, ["hyper"], over="position")
    with pytest.raises(ValueError, match="two laws are called 'hyperbolic'; rename one"):
        compare_laws(loss, [HYPERBOLIC, "hyperbolic"], over="position")
    with pytest.raises(ValueError, match="laws must be a list of laws, names or functions"):
        compare_laws(loss, "hyperbolic", over="position")
    with pytest.raises(ValueError, match=r"name the laws, .* found over=None"):
        compare_laws(loss.values, x=X)
    with pytest.raises(ValueError, match="blocks must be 3 or more, found 2"):
        compare_laws(loss, [HYPERBOLIC], over="position", blocks=2)
    fit = comparison.fits["hyperbola"]
    with pytest.raises(ValueError, match=r"by must be one of .*, found 'all'"):
        fit.plot(by="all")
    points = {"n_params": np.geomspace(1e6, 1e9, 24), "tokens": np.geomspace(1e10, 1e8, 24)}
    joint = tsl.fit(CHINCHILLA, np.linspace(4, 3, 24), x=points)
    with pytest.raises(ValueError, match="plots are of one covariate"):
        joint.plot()


def test_all_laws_of_a_dimension_are_the_default() -> None:
    names = tuple(law_comparison._laws(None, "position", None))
    assert names == ("hyperbolic", "position_power", "position_exponential", POSITION_LOG.name)
