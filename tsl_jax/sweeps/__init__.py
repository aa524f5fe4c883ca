"""Many runs from one file: which they are (`sweep`), made once and kept (`pool`), one after another or side by side."""

from tsl_jax.sweeps.pool import Pool
from tsl_jax.sweeps.sweep import read_sweep

__all__ = ["Pool", "read_sweep"]
