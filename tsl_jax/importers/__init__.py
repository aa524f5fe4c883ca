"""Losses and schedules from elsewhere: arrays, logs, tables and plans in files become loss surfaces and schedules.

read_log: any log of any trainer or tracker becomes surfaces, with an account of what was read
log_sources: which files are logs, of what format
log_rows: what a reader yields: columns, lines, findings
text_formats, line_scan: lines of text of fourteen trainers, as data, and the search that reads them
delimited_logs: CSV and its relatives
json_logs: JSON, an object a line or one document
event_logs: TensorBoard's event files and offline runs of Weights & Biases
log_stores: MLflow, trackio, SQLite, Parquet
log_roles, log_clock: which column is what, and how many tokens a step has
log_stitching, log_checks: restarts and runs; doubts about a curve
arrays: from_losses, a surface from arrays
table, columns: read_table, a surface of each run of a table of one's own, strictly
schedule_files: read_plans, a learning-rate schedule from YAML or JSON
"""

from tsl_jax.importers.arrays import from_losses
from tsl_jax.importers.read_log import LogImport, read_log
from tsl_jax.importers.schedule_files import read_plans
from tsl_jax.importers.table import read_table

__all__ = ["LogImport", "from_losses", "read_log", "read_plans", "read_table"]
