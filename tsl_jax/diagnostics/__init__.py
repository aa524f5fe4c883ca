"""What a fit and its data can be asked: which law holds, how much context is used, errors by resampling, noise."""

from tsl_jax.diagnostics.bootstrapping import Bootstrap, bootstrap
from tsl_jax.diagnostics.context_length import effective_context, effective_context_resampled
from tsl_jax.diagnostics.model_comparison import cox_test, extrapolated, gls_fit, held_out, lack_of_fit, reference
from tsl_jax.diagnostics.noise import log_bins, noise_ceiling, stationary
from tsl_jax.diagnostics.parameter_table import align_params

__all__ = [
    "Bootstrap",
    "align_params",
    "bootstrap",
    "cox_test",
    "effective_context",
    "effective_context_resampled",
    "extrapolated",
    "gls_fit",
    "held_out",
    "lack_of_fit",
    "log_bins",
    "noise_ceiling",
    "reference",
    "stationary",
]
