"""What a fit gives back: ranges, weights, reports, predictions on the right coordinates."""

import doctest
from types import MappingProxyType

import numpy as np
import pytest
import xarray as xr

import tsl_jax as tsl
from tsl_jax import Status, laws
from tsl_jax.fitting import result

POSITION = np.arange(1.0, 33.0)


def curves(count: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return 1.5 / (1 + 0.2 * POSITION) + 3 + 0.01 * rng.standard_normal((count, len(POSITION)))


def test_a_fit_holds_the_weights_it_was_made_with_unless_all_are_equal():
    y = curves()
    assert tsl.fit(laws.HYPERBOLIC, y, x=POSITION).weights is None
    assert tsl.fit(laws.HYPERBOLIC, y, x=POSITION, weights=np.full(32, 3.0)).weights is None
    shared = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, weights=POSITION).weights
    np.testing.assert_array_equal(shared, POSITION)
    own = np.random.default_rng(1).uniform(1, 2, y.shape)
    weights = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, weights=own).weights
    assert weights.dims == ("curve", "position")
    np.testing.assert_array_equal(weights, own)


def test_usable_curves_are_those_that_converged_or_are_weakly_identified():
    y = np.stack([curves(1)[0], np.full(32, 4.0), np.full(32, np.nan)])
    fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION)
    assert fit.usable.values.tolist() == [True, False, False]
    assert fit.usable.dims == fit.status.dims


def test_the_example_of_the_report_is_what_it_prints():
    tests = doctest.DocTestFinder().find(result.Fit.report, "report", globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test)
    assert runner.summarize().failed == 0
    assert runner.tries > 0


def test_the_report_of_many_curves_counts_each_status_and_names_ranges():
    y = np.concatenate([curves(), np.full((1, 32), 4.0)])
    text = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, weights=POSITION).report()
    assert "of 4 curves 3 converged, 1 flat" in text
    assert "over position 1..32, 32 points, weighted" in text
    assert [line.split()[0] for line in text.splitlines()[-4:]] == ["a0", "a1", "a2", "R2"]


def test_the_table_for_notebooks_is_escaped():
    law = laws.Law(**{**vars(laws.HYPERBOLIC), "formula": "a0/(1 + a1 i) <b>&"})
    page = tsl.fit(law, curves(), x=POSITION)._repr_html_()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page


def test_any_mapping_holds_covariates():
    n_params, tokens = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 4)))
    x = {"n_params": n_params, "tokens": tokens}
    loss = 1.7 + 400 * n_params**-0.34 + 410 * tokens**-0.28
    usual = tsl.fit(laws.CHINCHILLA, loss, x=x)
    frozen = tsl.fit(laws.CHINCHILLA, loss, x=MappingProxyType(x))
    np.testing.assert_array_equal(usual.params, frozen.params)
    np.testing.assert_array_equal(usual.predict(), frozen.predict(MappingProxyType(x)))
    assert frozen.range == usual.range
    tsl.fitting.prepare(laws.CHINCHILLA, MappingProxyType(x), dtype="float32")


def test_predictions_stand_at_the_covariate_by_its_own_name():
    """Over steps, a law of tokens reads the coordinate tokens: what it predicts is not labelled as steps."""
    tokens = np.geomspace(1e6, 1e9, 20)
    loss = xr.DataArray(60 * tokens**-0.3 + 2, {"step": np.arange(20), "tokens": ("step", tokens)}, ("step",))
    fit = tsl.fit(laws.POWER, loss, over="step")
    predicted = fit.predict()
    assert "step" not in predicted.coords
    np.testing.assert_array_equal(predicted.tokens, tokens)
    assert float(abs(loss - predicted).max()) < 1e-6
    compute = xr.DataArray(loss.values, {"compute": tokens}, ("compute",))
    named = tsl.fit(laws.POWER, compute, over="compute", x=compute["compute"])
    assert list(named.range) == ["compute"]


def test_what_failed_is_named_with_its_count():
    fit = tsl.fit(laws.HYPERBOLIC, np.stack([curves(1)[0], np.full(32, 4.0)]), x=POSITION)
    with pytest.raises(ValueError, match=r"1 converged, 1 flat\. flat: the data are constant"):
        fit.raise_if_failed()
    assert fit.message().values[1] == Status.FLAT.message()
