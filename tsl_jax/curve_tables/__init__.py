"""Fits of curves by the million, from a file to a table: restartable, in fixed memory, on any executor.

job: fit_table and write_fit: a request, checked before any work, becomes a table
sources: a file of curves by its suffix; the .npy matrix
long_table: rows curve,x,y[,weight] of Parquet or CSV, read and checked in chunks
columns: which column of a table plays which role, and whether its cells are what they should be
curve_blocks: rows become arrays (curve, point) that are fitted together
worker: one shard, from its task to its result
executors: shards in this process, on an executor, on a Ray cluster
shards: what a shard and its result are, and the folder of finished ones
comparison: several laws on every curve, a row a curve and law
writer: the table from the results of all shards
"""

from tsl_jax.curve_tables.comparison import compare_table, read_comparison
from tsl_jax.curve_tables.executors import RayExecutor, ShardsFailed
from tsl_jax.curve_tables.job import TableSummary, check_output, check_request, fit_table, write_fit
from tsl_jax.curve_tables.sources import open_source

__all__ = [
    "RayExecutor",
    "ShardsFailed",
    "TableSummary",
    "check_output",
    "check_request",
    "compare_table",
    "fit_table",
    "open_source",
    "read_comparison",
    "write_fit",
]
