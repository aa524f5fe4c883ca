"""Scaling laws of runs: size, data, compute, batch and steps, from a table of runs to a budget's allocation.

accounting: parameters, FLOPs and PF-days by the field's rules, and how a batch trades steps for tokens
runs_table: runs as a table (n_params, tokens, loss, ...), from files and from run folders
ladder: a law fitted to a ladder of runs: intervals over runs, largest runs held out, distance of a prediction
batch: the critical batch size, from runs of several batch sizes that reach one loss
frontier: the best size of each budget without a law of the loss: isoFLOP parabolas, the least loss by compute
allocation: the best size, data, batch and steps for a budget of compute; cheap inference; hours of GPUs
design: which runs to train next, so that the loss at a target is known best
simulation: the loss curve of a run that is planned
"""

from tsl_jax.scaling.accounting import (
    PF_DAY,
    critical_batch,
    minimal_flops,
    minimal_steps,
    n_params_of_shape,
    overfitting,
    tokens_needed,
    training_flops,
)
from tsl_jax.scaling.allocation import Allocation, allocate
from tsl_jax.scaling.batch import BatchTrade, fit_batch_trade
from tsl_jax.scaling.design import next_runs
from tsl_jax.scaling.frontier import Frontier, fit_frontier, isoflop_minima
from tsl_jax.scaling.ladder import Ladder, fit_ladder
from tsl_jax.scaling.runs_table import read_runs, with_minimal
from tsl_jax.scaling.simulation import simulate

__all__ = [
    "PF_DAY",
    "Allocation",
    "BatchTrade",
    "Frontier",
    "Ladder",
    "allocate",
    "critical_batch",
    "fit_batch_trade",
    "fit_frontier",
    "fit_ladder",
    "isoflop_minima",
    "minimal_flops",
    "minimal_steps",
    "n_params_of_shape",
    "next_runs",
    "overfitting",
    "read_runs",
    "simulate",
    "tokens_needed",
    "training_flops",
    "with_minimal",
]
