"""How any law meets any data: `fit`, its result, and what it can say about errors. Knows nothing of surfaces."""

from tsl_jax.fitting.covariance import profile_interval
from tsl_jax.fitting.fit_law import fit
from tsl_jax.fitting.result import Fit
from tsl_jax.fitting.solver import CurveFits, PreparedFit, prepare, solve_curves
from tsl_jax.fitting.status import Status

__all__ = ["CurveFits", "Fit", "PreparedFit", "Status", "fit", "prepare", "profile_interval", "solve_curves"]
