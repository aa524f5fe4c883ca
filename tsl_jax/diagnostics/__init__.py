"""Questions to a fit and its data: which law holds, how much context is used, errors by resampling, and the noise.

noise: covariance of a loss curve from few clusters, bins even in log position, the R2 that noise allows
model_comparison: gls_fit, lack_of_fit, cox_test by likelihood; held_out and extrapolated by prediction
law_comparison: compare_laws, several laws on the same curves by AIC, BIC and held-out error, as a table and a figure;
                align_params, parameters of several fits side by side, if they are comparable
run_comparison: compare_runs, groups of runs against the first, with intervals, tokens to match, by position
context_length: effective_context, i90 = 9/a1 of the hyperbolic law
bootstrapping: bootstrap over clusters (documents)
"""

from tsl_jax.diagnostics.bootstrapping import Bootstrap, bootstrap
from tsl_jax.diagnostics.context_length import effective_context, effective_context_resampled
from tsl_jax.diagnostics.law_comparison import LawComparison, align_params, compare_laws
from tsl_jax.diagnostics.model_comparison import (
    CoxTest,
    GlsFit,
    cox_test,
    extrapolated,
    gls_fit,
    held_out,
    lack_of_fit,
    reference_chi2,
)
from tsl_jax.diagnostics.noise import expected_r2, log_bins, stationary_covariance, surface_expected_r2
from tsl_jax.diagnostics.run_comparison import RunComparison, compare_runs

__all__ = [
    "Bootstrap",
    "CoxTest",
    "GlsFit",
    "LawComparison",
    "RunComparison",
    "align_params",
    "bootstrap",
    "compare_laws",
    "compare_runs",
    "cox_test",
    "effective_context",
    "effective_context_resampled",
    "expected_r2",
    "extrapolated",
    "gls_fit",
    "held_out",
    "lack_of_fit",
    "log_bins",
    "reference_chi2",
    "stationary_covariance",
    "surface_expected_r2",
]
