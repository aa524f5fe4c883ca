"""Many runs from one file, each made once and found again by its configuration.

sweep: which runs a sweep file names, and what they cost
pool: runs that are kept, and made where they are not
archive: many kept runs in one file
distribute: runs as processes, one after another or side by side
"""

from tsl_jax.sweeps.archive import read_archive, write_archive
from tsl_jax.sweeps.pool import Pool
from tsl_jax.sweeps.sweep import read_sweep

__all__ = ["Pool", "read_archive", "read_sweep", "write_archive"]
