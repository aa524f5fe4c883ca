"""Losses and schedules from elsewhere: arrays, tables and plans in files become loss surfaces and schedules.

arrays: from_losses, a surface from arrays
table: read_table, a surface of each run of a CSV, JSONL or Parquet file
columns: named columns of such a file
schedule_files: read_plans, a learning-rate schedule from YAML or JSON
"""

from tsl_jax.importers.arrays import from_losses
from tsl_jax.importers.schedule_files import read_plans
from tsl_jax.importers.table import read_table

__all__ = ["from_losses", "read_plans", "read_table"]
