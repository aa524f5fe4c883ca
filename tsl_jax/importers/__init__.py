"""Losses and schedules from elsewhere: arrays, logs, tables and plans in files become loss surfaces and schedules.

log_import: read_log, any log of any trainer or tracker becomes surfaces, with an account of what was read
log_sources: which files are logs, of what format
log_rows: what a reader yields: columns, lines, findings
text_formats, line_scan, byte_search, decimal_scan: lines of text of fourteen trainers, as data, and how they are read
delimited_logs: CSV and its relatives
json_logs: JSON, an object a line or one document
event_logs: TensorBoard's event files and offline runs of Weights & Biases
log_stores: MLflow, trackio, SQLite, Parquet
log_roles, log_clock: which column is what, and how many tokens a step has
model_size, log_times: how many parameters the model has, and when rows were written, where a log says it
log_stitching, log_checks: restarts and runs; doubts about a curve
position_losses: PositionLosses, losses by position from any trainer
arrays: from_losses, a surface from arrays
table, columns: read_table, a surface of each run of a table of one's own, strictly
schedule_files: read_plans, a learning-rate schedule from YAML or JSON

The names are loaded when first used: a trainer that only writes `PositionLosses` needs numpy alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers, which cannot read the table
    from tsl_jax.importers.arrays import from_losses as from_losses
    from tsl_jax.importers.log_import import LogImport as LogImport
    from tsl_jax.importers.log_import import read_log as read_log
    from tsl_jax.importers.position_losses import PositionLosses as PositionLosses
    from tsl_jax.importers.schedule_files import read_plans as read_plans
    from tsl_jax.importers.table import read_table as read_table

_MODULES = {
    "LogImport": "log_import",
    "PositionLosses": "position_losses",
    "from_losses": "arrays",
    "read_log": "log_import",
    "read_plans": "schedule_files",
    "read_table": "table",
}
__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tsl_jax.importers' has no attribute {name!r}")
    return getattr(import_module(f"tsl_jax.importers.{_MODULES[name]}"), name)
