"""Evaluations that a run's surface should have and has not: files that were lost are not measured again, as the
parameters of their steps are gone. They are named in a warning and in the record, so that no gap goes unseen.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from tsl_jax import surface
from tsl_jax.training import run_dir
from tsl_jax.training.config import TrainConfig, batch_tokens, phases, planned_steps, step_at, tokens_at, total_steps
from tsl_jax.training.timeline import evaluation_steps

MISSING = "missing_checkpoints"  # entry of the record: tokens seen


def planned(config: TrainConfig) -> list[int]:
    """Steps after which the run is evaluated."""
    total = planned_steps(config)
    steps = evaluation_steps(total, phases(config.optimizer, total)[0], config.evaluations)
    if not config.changes:
        return steps
    # where batches change, at the same tokens as without, as nearly as whole steps allow
    near = {step_at(config, step * batch_tokens(config)) for step in steps[:-1]}
    return sorted({step for step in near if step < total_steps(config)} | {total_steps(config)})


def missing(config: TrainConfig, run: Path, before: int) -> list[int]:
    """Tokens of the planned evaluations before a step that are not on disk."""
    known = surface.checkpoints(run / run_dir.SURFACE)
    tokens = (tokens_at(config, step) for step in planned(config) if step < before)
    return [t for t in tokens if t not in known]


def warn(run: Path, lost: list[int]) -> None:
    """Say which are missing, if any."""
    if lost:
        found = f"the surface of {run} has no checkpoint at {', '.join(map(str, lost))} tokens"
        warnings.warn(
            f"training: {found}, and it cannot be measured again; restore a copy, or do without", stacklevel=3
        )


def tell(config: TrainConfig, run: Path) -> None:
    """Warn of what a complete run lacks, and keep it in the record."""
    lost, record = missing(config, run, total_steps(config) + 1), run_dir.read_record(run)
    if lost != record.get(MISSING, []):
        run_dir.write_record(run, {**record, MISSING: lost})
    warn(run, lost)
