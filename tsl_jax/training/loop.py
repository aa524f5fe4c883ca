"""One run: text and a configuration become a folder with checkpoints and the loss surface.

At an evaluation the order is: measure, append to the surface, save the checkpoint. A run killed anywhere loses what
came after its last checkpoint and makes it again, bit for bit: the batch of a step is a pure function of seed and
step, the evaluation windows are fixed, and surface files that are there already are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tsl_jax import surface
from tsl_jax.data import corpora
from tsl_jax.training import evaluation, holes, interrupt, mesh, run_dir
from tsl_jax.training.calls import all_calls, calls, next_stop
from tsl_jax.training.checks import check
from tsl_jax.training.config import TrainConfig, tokens_at, total_steps
from tsl_jax.training.prefetch import ahead
from tsl_jax.training.setup import Observe, Progress, Run, prepare
from tsl_jax.training.step import TrainState


def train(
    config: TrainConfig,
    out: Path | str,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> Path:
    """Train, measuring the loss surface along the way; the folder of the run once it is complete.

    Args:
        config: see `TrainConfig`.
        out: folder of the run; one that is complete with this configuration is left as it is.
        resume: continue an unfinished run in `out`, or begin one where there is none. On the same machine, versions,
            visible cores and flags the result equals the uninterrupted run bit for bit; it warns where these differ.
        progress: called with a stage, the work done and all of it.
        observe: called with numbers by name: after each step with its line of metrics.jsonl, after each evaluation
            with "step" and, for every split, the mean loss of all positions ("id/loss") and of their first, second and
            last third ("id/head", "id/middle", "id/tail").

    Raises:
        ValueError: for a configuration, text or folder that cannot work, or a loss that is not finite.
        OSError: where something cannot be read or written.
        KeyboardInterrupt: after Ctrl-C, once the last whole step is in a checkpoint.
    """
    out = Path(out)
    if checked(config, out, resume=resume):
        holes.tell(config, out)
        return out
    new = run_dir.make(out)
    try:
        run, state = prepare(config, out, progress or (lambda *_: None), observe or (lambda _: None))
    except BaseException:
        if new and not any(out.iterdir()):
            out.rmdir()
        raise
    try:
        with interrupt.deferred() as stopped:
            _loop(run, state, stopped)
    except OSError as error:
        found = str(error).removeprefix("training: ")
        mend = f"what was written before is whole; make room and {run_dir.how_to_resume(out)}"
        raise OSError(f"training: {out} stopped: {found}; {mend}") from error
    finally:
        run.checkpoints.close()
    return out


def checked(config: TrainConfig, out: Path, *, resume: bool) -> bool:
    """Whether the run in `out` is complete already. Nothing is written.

    Raises:
        ValueError, OSError: for all that can be known to be wrong with configuration, folder and text before any work.
    """
    check(config)
    if run_dir.is_complete(out, config, resume=resume):
        return True
    mesh.shape(config, len(jax.local_devices()))
    corpora.find(config.data)
    return False


def _loop(run: Run, state: TrainState, stopped: Callable[[], bool]) -> None:
    total, step = total_steps(run.config), int(state.step)
    last = max(run.evaluations)
    with closing(ahead(run.batches, all_calls(step, run.stops, run.per_call))) as batches:
        while True:
            if step in run.evaluations:
                _measure(run, state, step, stopped)
                _save(run, state, step, complete=step == last)
            if step == total:
                return
            if run.weighting and step in run.weighting.steps:
                with run.clock("evaluate"):
                    run.weighting.update(state.params, step)
            state, step = _advance(run, state, step, next_stop(step, run.stops, run.per_call), batches)
            run.progress("train", step, total)
            if stopped():
                _save(run, state, step, complete=False)
                raise KeyboardInterrupt


def _advance(
    run: Run, state: TrainState, first: int, last: int, batches: Iterator[jax.Array]
) -> tuple[TrainState, int]:
    """Steps first + 1 .. last; their losses are looked at together, so that the device need not wait for each."""
    pending, before = [], run.clock.seconds["train"]
    with run.clock("train"):
        for _ in calls(first, last, run.per_call):
            batch = next(batches)
            state, metrics = run.steps[batch.shape[:-1]](state, batch, *run.weights)
            pending.append(metrics)
        pending = jax.device_get(pending)
    rates = run.rates(first, last, run.clock.seconds["train"] - before)
    lines = [_line(run, first + i, values) | rates for i, values in enumerate(_by_step(pending), start=1)]
    good = [line for line in lines if math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])]
    if len(good) < len(lines):
        raise ValueError(_not_finite(run, next(line for line in lines if line not in good)))
    run_dir.append_metrics(run.path, lines)
    for line in lines:
        run.observe(line)
    return state, last


def _by_step(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of each step, from those of calls of one step (scalars) or of several (an array)."""
    values = {name: np.concatenate([np.ravel(call[name]) for call in metrics]) for name in metrics[0]}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _line(run: Run, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
    tokens = tokens_at(run.config, step)
    lr = float(run.schedule.rate(tokens, np))
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    line = {"step": step, "tokens": tokens, "loss": loss, "lr": lr, "grad_norm": norm}
    return line | {name: float(value) for name, value in metrics.items() if name not in line}


def _not_finite(run: Run, line: dict[str, Any]) -> str:
    kept = run.checkpoints.steps()
    where = f"the checkpoint of step {kept[-1]} in {run.checkpoints.folder} is good" if kept else "no checkpoint yet"
    found = f"loss {line['loss']}, gradient norm {line['grad_norm']} at step {line['step']} ({line['tokens']} tokens)"
    return f"training: {found}, learning rate {line['lr']:.3g}; {where}. Lower peak_lr, or raise warmup or clip"


def _measure(run: Run, state: TrainState, step: int, stopped: Callable[[], bool]) -> None:
    """Append this checkpoint to the surface, unless it is there."""
    tokens = tokens_at(run.config, step)
    if tokens in surface.checkpoints(run.path / run_dir.SURFACE):
        return
    with run.clock("evaluate"):
        splits = {}
        for split, windows in run.sets.items():
            losses = _scored(run, state, step, split, windows, stopped)
            splits[split] = evaluation.reduce(losses, windows)
        lr = float(run.schedule.rate(tokens, np))
        surface.append(run.path / run_dir.SURFACE, tokens=tokens, step=step, lr=lr, splits=splits)
    run.observe({"step": step, **_by_thirds(splits)})


def _by_thirds(splits: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The mean loss of each split, of all positions and of each third: an evaluation has them, a step only its sum."""
    said = {}
    for split, arrays in splits.items():
        loss = arrays["loss_sum"] / arrays["count"]
        said[f"{split}/loss"] = float(loss.mean())
        thirds = zip(("head", "middle", "tail"), np.array_split(loss, 3), strict=True)
        said |= {f"{split}/{name}": float(part.mean()) for name, part in thirds if len(part)}
    return said


def _scored(
    run: Run,
    state: TrainState,
    step: int,
    split: str,
    windows: evaluation.EvaluationSet,
    stopped: Callable[[], bool],
) -> np.ndarray:
    """Losses of one split; Ctrl-C gives this evaluation up, and the run makes it again when it continues."""

    def watch(done: int, total: int) -> None:
        run.progress(f"evaluate {split}", done, total)
        if stopped():
            _save(run, state, step, complete=False)
            raise KeyboardInterrupt

    losses = evaluation.window_losses(run.forward, state.params, windows.tokens, run.config.evaluation_batch, watch)
    if not np.isfinite(losses).all():
        window, position = np.argwhere(~np.isfinite(losses))[0]
        found = (
            f"loss {losses[window, position]} at step {step}, split {split}, window {window}, position {position + 1}"
        )
        raise ValueError(f"training: {found}; the checkpoints before are good. Lower peak_lr, or raise warmup or clip")
    return losses


def _save(run: Run, state: TrainState, step: int, *, complete: bool) -> None:
    """The checkpoint, and after it the record with the times until now."""
    with run.clock("checkpoint"):
        run_dir.sync_metrics(run.path)
        run.checkpoints.save(state)
    seconds = {stage: round(value, 3) for stage, value in run.clock.seconds.items()}
    speed = tokens_at(run.config, step) / max(run.clock.seconds["train"], 1e-9)
    facts = {"step": step, "complete": complete, "seconds": seconds, "tokens_per_second": round(speed, 1)}
    lost = {holes.MISSING: holes.missing(run.config, run.path, step)}
    probes = {"probes": {"weights": run.weighting.summary()}} if run.weighting else {}
    run_dir.write_record(run.path, {**run.record, **facts, **lost, **probes})
