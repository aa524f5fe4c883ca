"""Fits of any law to any data: `fit`, its result, and the errors of its estimates. Independent of surfaces.

fit_law: the verb `fit`, from labelled arrays to a labelled result. problem: what it is asked for, read and checked.
result: `Fit`: parameters, errors, reports, predictions.
status: how the fit of a curve ended, and whether its covariates identify the law's terms.
solver: the pure function beneath, with its implicit derivative. batching: any number of curves in blocks.
varpro: variable projection for laws with one shape. levenberg_marquardt: for all others, and for any residual.
lowrank_basis, lowrank_search: variable projection for curves by the million, in a compressed space;
lowrank_weighted_tables, lowrank_weighted: the same where each curve has weights of its own.
covariance: standard errors and profile intervals.
bounds: coefficients within limits or fixed, covariates that do not vary. robust: losses that bear outliers.
"""

from tsl_jax.fitting.covariance import profile_interval
from tsl_jax.fitting.fit_law import fit
from tsl_jax.fitting.result import Fit
from tsl_jax.fitting.solver import CurveFits, PreparedFit, prepare, solve_curves, solve_weighted
from tsl_jax.fitting.status import Status

__all__ = [
    "CurveFits",
    "Fit",
    "PreparedFit",
    "Status",
    "fit",
    "prepare",
    "profile_interval",
    "solve_curves",
    "solve_weighted",
]
