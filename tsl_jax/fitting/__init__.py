"""How any law meets any data: `fit`, its result, and what it can say about errors. Knows nothing of surfaces."""

from tsl_jax.fitting.fit import fit
from tsl_jax.fitting.result import Fit, Status
from tsl_jax.fitting.uncertainty import noise_ceiling

__all__ = ["Fit", "Status", "fit", "noise_ceiling"]
