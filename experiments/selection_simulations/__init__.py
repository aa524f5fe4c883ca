"""Simulated tables of runs whose truth is known, put through `tsl_jax.selection`."""
