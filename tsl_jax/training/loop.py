"""One run: text and a configuration become a folder with checkpoints and the loss surface.

At an evaluation the order is: measure, append to the surface, save the checkpoint. A run killed anywhere loses what
came after its last checkpoint and makes it again, bit for bit: the batch of a step is a pure function of seed and
step, the evaluation windows are fixed, and surface files that are there already are left as they are.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from tsl_jax import surface
from tsl_jax.atomic_write import LOCK, is_unused, locked
from tsl_jax.data import corpora
from tsl_jax.data.config import pooled_splits
from tsl_jax.data.preparation import DomainFiles
from tsl_jax.models.config import resolve
from tsl_jax.processes import ending_at_once, interruptible, interrupts_deferred
from tsl_jax.training import bad_losses, evaluation, hosts, mesh, run_dir
from tsl_jax.training.bad_losses import ADVICE, BadLossError
from tsl_jax.training.checkpoint import abstract_array
from tsl_jax.training.checks import check_evaluation_shares, check_noise_scale, check_shares, validate_config
from tsl_jax.training.config import TrainConfig, to_dict
from tsl_jax.training.resources import check_memory, rates
from tsl_jax.training.setup import Observe, Progress, TrainingRun, prepare
from tsl_jax.training.step import TrainState
from tsl_jax.training.timeline import RunTimeline, calls_between

K = TypeVar("K")
V = TypeVar("V")
DEPTH = 2  # batches made ahead: one more than is being waited for


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
        ValueError: for a configuration, text or folder that cannot work, or a bad loss (`training.bad_losses`).
        OSError: where something cannot be read or written.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, once the last whole step is in a checkpoint. (While the
            program is compiled, before the first step, SIGTERM and SIGHUP end the process: there is nothing to save.)
    """
    with interruptible():
        return _make(config, Path(out), resume, progress or (lambda *_: None), observe or (lambda _: None))


def _make(config: TrainConfig, out: Path, resume: bool, progress: Progress, observe: Observe) -> Path:
    """Check, take the folder, prepare and train."""
    timeline, domains = check_run(config, out, resume=resume)
    hosts.check_same("the configuration", to_dict(config))
    hosts.together()  # all have looked before one writes
    if domains is None:
        run_dir.record_missing(out, timeline)
        return out
    created = hosts.is_writer() and run_dir.make(out)
    with locked(out, "training") if hosts.is_writer() else nullcontext():
        try:
            # another process may have had the lock until now
            if hosts.from_writer(lambda: _is_complete(config, timeline, out, resume)):
                return out
            with ending_at_once(lambda: hosts.leaving(run_dir.how_to_resume(out))):
                run, state = prepare(config, timeline, domains, out, progress, observe)
            try:
                with interrupts_deferred() as interrupted:
                    _train_to_the_end(run, state, lambda: hosts.anywhere(interrupted()))
            except OSError as error:
                reason = str(error).removeprefix("training: ")
                advice = f"what was written before is whole; make room and {run_dir.how_to_resume(out)}"
                raise OSError(f"training: {out} stopped: {reason}; {advice}") from error
            finally:
                run.checkpoints.close()
        finally:
            if created and is_unused(out):
                (out / LOCK).unlink(missing_ok=True)
                out.rmdir()
    return out


def check_run(config: TrainConfig, out: Path, *, resume: bool) -> tuple[RunTimeline, DomainFiles | None]:
    """The timeline of the run and the files of its text, or None where it is complete in `out`. Nothing is written.

    Raises:
        ValueError, OSError: for all that can be known to be wrong with configuration, folder and text before any work.
    """
    timeline = validate_config(config)
    if _is_complete(config, timeline, out, resume):
        return timeline, None
    sizes = mesh.shape(config.mesh, len(jax.devices()))
    check_noise_scale(config, sizes[0])
    check_shares(timeline.batch_sizes, config.accumulate, sizes[0] * sizes[1])
    check_evaluation_shares(config.evaluation_batch, sizes[0] * sizes[1])
    domains = corpora.find(config.data)
    vocabulary = 1 if config.data.corpus else config.data.vocabulary  # of a corpus it is read with the text
    model = resolve(config.model, vocabulary=vocabulary, context=config.context)
    windows = config.evaluation.windows(pooled_splits(corpora.configured_domains(config.data)))
    check_memory(model, max(timeline.batch_sizes) // config.accumulate, windows, sizes)
    return timeline, domains


def _is_complete(config: TrainConfig, timeline: RunTimeline, out: Path, resume: bool) -> bool:
    """Whether there is nothing left to do; a lost evaluation of the last step can be made again."""
    return run_dir.is_complete(out, config, resume=resume) and not run_dir.end_can_be_measured_again(out, timeline)


def _train_to_the_end(run: TrainingRun, state: TrainState, interrupted: Callable[[], bool]) -> None:
    """From the state to the end of the run, with the rollbacks on the way that the configuration wants."""
    like = jax.tree.map(abstract_array, state)  # a step consumes the state itself
    if run.roll_back and not int(state.step):
        run.checkpoints.save(state)  # there is one to go back to from the first step on
    while True:
        try:
            return _train(run, state, interrupted)
        except BadLossError as error:
            run, state = bad_losses.rolled_back(run, like, error)


def _train(run: TrainingRun, state: TrainState, interrupted: Callable[[], bool]) -> None:
    """From the state to the end of the run, from stop to stop."""
    timeline, step = run.timeline, int(state.step)
    with closing(made_ahead(run.data.batches, timeline.calls(step, run.programs.per_call))) as batches:
        while True:
            if interrupted():  # also what was lost on the way here: the state is that of a checkpoint, or the first
                _save(run, state, step, complete=False)
                raise KeyboardInterrupt
            if step in timeline.evaluations:
                _evaluate(run, state, step, interrupted)
                _save(run, state, step, complete=step == timeline.steps)
            if step == timeline.steps:
                return
            if run.weighting and step in timeline.weight_updates:
                with run.clock("evaluate"):
                    run.weighting.update(state.params, step)
            stop = timeline.next_stop(step, run.programs.per_call)
            state = _advance(run, state, step, stop, batches)
            step = stop
            run.progress("train", step, timeline.steps)


def _advance(run: TrainingRun, state: TrainState, first: int, last: int, batches: Iterator[jax.Array]) -> TrainState:
    """Steps first + 1 .. last, and their lines in metrics.jsonl."""
    timeline, calls, seconds_before = run.timeline, [], run.clock.seconds["train"]
    if timeline.comparable_since(first) == first:
        run.losses.begin()
    weights = () if run.weighting is None else (run.weighting.now,)
    with run.clock("train"):
        for _ in calls_between(first, last, run.programs.per_call):
            batch = next(batches)
            state, metrics = run.programs.steps[batch.shape[:-1]](state, batch, *weights)
            calls.append(metrics)
        calls = jax.device_get(calls)  # once for all of them: the device need not wait for the host after each
    seconds = run.clock.seconds["train"] - seconds_before
    speed = rates(
        timeline.tokens_at(last) - timeline.tokens_at(first), seconds, run.record["flops_per_token"], run.peak_flops
    )
    # a call of one step gives scalars, a call of several arrays (steps,)
    values = {name: np.concatenate([np.ravel(metrics[name]) for metrics in calls]) for name in calls[0]}
    lines, problem = [], ""
    for i, step in enumerate(range(first + 1, last + 1)):
        numbers = {name: float(value[i]) for name, value in values.items()}
        line = {"step": step, "tokens": timeline.tokens_at(step), "loss": numbers.pop("loss")}
        line |= {"lr": timeline.learning_rate(step), "grad_norm": numbers.pop("grad_norm")}
        if problem := run.losses.problem(line["loss"], line["grad_norm"]):
            break
        line |= numbers
        lines.append(line | (run.noise.add(line) if run.noise else {}) | speed)
    run_dir.append_metrics(run.path, lines)  # also before an error: they show how the run came to it
    for good in lines:
        run.observe(good)
    if problem:
        raise bad_losses.error_at(run, line, problem)
    return state


def _evaluate(run: TrainingRun, state: TrainState, step: int, interrupted: Callable[[], bool]) -> None:
    """Append this checkpoint to the surface, unless it is there; Ctrl-C gives it up, to be made again later."""
    tokens, folder = run.timeline.tokens_at(step), run.path / run_dir.SURFACE
    if hosts.from_writer(lambda: _is_measured(folder, tokens)):
        return
    facts: dict[str, float] = {"step": step}
    with run.clock("evaluate"):
        splits = {}
        for split, windows in run.evaluation_sets.items():

            def watch(done: int, total: int, split: str = split) -> None:
                run.progress(f"evaluate {split}", done, total)
                if interrupted():
                    _save(run, state, step, complete=False)
                    raise KeyboardInterrupt

            forward, size = run.programs.forward, run.evaluation_batch
            losses = evaluation.window_losses(forward, state.params, windows.tokens, size, watch)
            if not np.isfinite(losses).all():
                window, position = np.argwhere(~np.isfinite(losses))[0]
                where = f"at step {step}, split {split}, window {window}, position {position + 1}"
                found = f"loss {losses[window, position]} {where}"
                message = f"training: {found}; the checkpoints before are good. {ADVICE}"
                raise BadLossError(message, found, step)
            splits[split] = evaluation.reduce(losses, windows)
            # a step has the mean of its positions only, an evaluation their thirds too
            loss = splits[split]["loss_sum"] / splits[split]["count"]
            facts[f"{split}/loss"] = float(loss.mean())
            thirds = zip(("head", "middle", "tail"), np.array_split(loss, 3), strict=True)
            facts |= {f"{split}/{name}": float(part.mean()) for name, part in thirds if len(part)}
        append = hosts.writer_only(surface.append)
        append(folder, tokens=tokens, step=step, lr=run.timeline.learning_rate(step), splits=splits)
    run.observe(facts)


def _is_measured(folder: Path, tokens: int) -> bool:
    """Whether the surface has this checkpoint; a damaged one is removed."""
    measured = surface.checkpoints(folder)
    damage = surface.damage(folder, tokens) if tokens in measured else ""
    if damage:
        warnings.warn(f"training: {damage}; it is measured again", stacklevel=6)
        measured[tokens].unlink()
    return tokens in measured and not damage


def _save(run: TrainingRun, state: TrainState, step: int, *, complete: bool) -> None:
    """The checkpoint, and after it the record with the times until now."""
    with run.clock("checkpoint"):
        run_dir.sync_metrics(run.path)
        run.checkpoints.save(state)
    speed = run.timeline.tokens_at(step) / max(run.clock.seconds["train"], 1e-9)
    facts = {
        "step": step,
        "complete": complete,
        "seconds": {stage: round(seconds, 3) for stage, seconds in run.clock.seconds.items()},
        "tokens_per_second": round(speed, 1),
        run_dir.MISSING: run_dir.missing_checkpoints(run.path, run.timeline, step),
    }
    if run.weighting:
        facts["probes"] = {"weights": run.weighting.summary()}
    run_dir.write_record(run.path, {**run.record, **facts})
    hosts.together()


def made_ahead(make: Callable[[K], V], keys: Iterable[K], depth: int = DEPTH) -> Generator[V, None, None]:
    """make(key) for every key in order, made by one thread while the caller works.

    Close it (`contextlib.closing`) to end the thread before the last key.

    Raises:
        Exception: what `make` raises, where its value would have come.
    """
    rest = iter(keys)
    pending: deque[Future[V]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            while True:
                pending.extend(pool.submit(make, key) for key in islice(rest, depth - len(pending)))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
