"""Draws and never fits: a page for people. Knows fits, and recognises forecasts by what they have."""

from tsl_jax.reporting.page import report

__all__ = ["report"]
