"""Fits of curves by the million, from a file to a table: restartable, in fixed memory, on any executor."""

from tsl_jax.curve_tables.job import fit_table

__all__ = ["fit_table"]
