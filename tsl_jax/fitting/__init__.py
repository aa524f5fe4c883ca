"""How any law meets any data: `fit`, its result, and what it can say about errors. Knows nothing of surfaces."""

from tsl_jax.fitting.compare import extrapolated, held_out, lack_of_fit, likely, reference, versus
from tsl_jax.fitting.context import context_use, context_use_resampled
from tsl_jax.fitting.curves import Curves, Plan, prepare, solve_curves
from tsl_jax.fitting.fit import fit
from tsl_jax.fitting.noise import log_bins, stationary
from tsl_jax.fitting.resample import Bootstrap, bootstrap
from tsl_jax.fitting.result import Fit
from tsl_jax.fitting.status import Status
from tsl_jax.fitting.table import fit_table
from tsl_jax.fitting.together import together
from tsl_jax.fitting.uncertainty import noise_ceiling, profile_interval

__all__ = [
    "Bootstrap",
    "Curves",
    "Fit",
    "Plan",
    "Status",
    "bootstrap",
    "context_use",
    "context_use_resampled",
    "extrapolated",
    "fit",
    "fit_table",
    "held_out",
    "lack_of_fit",
    "likely",
    "log_bins",
    "noise_ceiling",
    "prepare",
    "profile_interval",
    "reference",
    "solve_curves",
    "stationary",
    "together",
    "versus",
]
