"""One run: text and a configuration become a folder with checkpoints and the loss surface.

At an evaluation the order is: measure, append to the surface, save the checkpoint. A run killed anywhere loses what
came after its last checkpoint and makes it again, bit for bit: the batch of a step is a pure function of seed and
step, the evaluation windows are fixed, and surface files that are there already are left as they are.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from tsl_jax import surface
from tsl_jax.data import corpora
from tsl_jax.data.preparation import DomainFiles
from tsl_jax.training import evaluation, hosts, mesh, run_dir
from tsl_jax.training.checks import check_evaluation_shares, check_shares, validate_config
from tsl_jax.training.config import TrainConfig, to_dict
from tsl_jax.training.resources import rates
from tsl_jax.training.setup import Observe, Progress, TrainingRun, prepare
from tsl_jax.training.step import TrainState
from tsl_jax.training.timeline import RunTimeline, calls_between

K = TypeVar("K")
V = TypeVar("V")
DEPTH = 2  # batches made ahead: one more than is being waited for
ADVICE = "Lower peak_lr, or raise warmup or clip"


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
    timeline, domains = check_run(config, out, resume=resume)
    hosts.check_same("the configuration", to_dict(config))
    hosts.together()  # all have looked before one writes
    if domains is None:
        run_dir.record_missing(out, timeline)
        return out
    created = hosts.is_writer() and run_dir.make(out)
    try:
        run, state = prepare(config, timeline, domains, out, progress or (lambda *_: None), observe or (lambda _: None))
    except BaseException:
        if created and not any(out.iterdir()):
            out.rmdir()
        raise
    try:
        with interrupt_deferred() as interrupted:
            _train(run, state, lambda: hosts.anywhere(interrupted()))
    except OSError as error:
        reason = str(error).removeprefix("training: ")
        advice = f"what was written before is whole; make room and {run_dir.how_to_resume(out)}"
        raise OSError(f"training: {out} stopped: {reason}; {advice}") from error
    finally:
        run.checkpoints.close()
    return out


def check_run(config: TrainConfig, out: Path, *, resume: bool) -> tuple[RunTimeline, DomainFiles | None]:
    """The timeline of the run and the files of its text, or None where it is complete in `out`. Nothing is written.

    Raises:
        ValueError, OSError: for all that can be known to be wrong with configuration, folder and text before any work.
    """
    timeline = validate_config(config)
    if run_dir.is_complete(out, config, resume=resume):
        return timeline, None
    data, fsdp, _ = mesh.shape(config.mesh, len(jax.devices()))
    check_shares(timeline.batch_sizes, config.accumulate, data * fsdp)
    check_evaluation_shares(config.evaluation_batch, data * fsdp)
    return timeline, corpora.find(config.data)


def _train(run: TrainingRun, state: TrainState, interrupted: Callable[[], bool]) -> None:
    """From the state to the end of the run, from stop to stop."""
    timeline, step = run.timeline, int(state.step)
    with closing(made_ahead(run.batches, timeline.calls(step, run.per_call))) as batches:
        while True:
            if step in timeline.evaluations:
                _evaluate(run, state, step, interrupted)
                _save(run, state, step, complete=step == timeline.steps)
            if step == timeline.steps:
                return
            if run.weighting and step in timeline.weight_updates:
                with run.clock("evaluate"):
                    run.weighting.update(state.params, step)
            stop = timeline.next_stop(step, run.per_call)
            state = _advance(run, state, step, stop, batches)
            step = stop
            run.progress("train", step, timeline.steps)
            if interrupted():
                _save(run, state, step, complete=False)
                raise KeyboardInterrupt


def _advance(run: TrainingRun, state: TrainState, first: int, last: int, batches: Iterator[jax.Array]) -> TrainState:
    """Steps first + 1 .. last, and their lines in metrics.jsonl."""
    timeline, calls, seconds_before = run.timeline, [], run.clock.seconds["train"]
    weights = () if run.weighting is None else (run.weighting.now,)
    with run.clock("train"):
        for _ in calls_between(first, last, run.per_call):
            batch = next(batches)
            state, metrics = run.step_functions[batch.shape[:-1]](state, batch, *weights)
            calls.append(metrics)
        calls = jax.device_get(calls)  # once for all of them: the device need not wait for the host after each
    seconds = run.clock.seconds["train"] - seconds_before
    speed = rates(
        timeline.tokens_at(last) - timeline.tokens_at(first), seconds, run.record["flops_per_token"], run.peak_flops
    )
    # a call of one step gives scalars, a call of several arrays (steps,)
    values = {name: np.concatenate([np.ravel(metrics[name]) for metrics in calls]) for name in calls[0]}
    lines = []
    for i, step in enumerate(range(first + 1, last + 1)):
        numbers = {name: float(value[i]) for name, value in values.items()}
        line = {"step": step, "tokens": timeline.tokens_at(step), "loss": numbers.pop("loss")}
        line |= {"lr": timeline.learning_rate(step), "grad_norm": numbers.pop("grad_norm")}
        lines.append(line | numbers | speed)
    finite = np.isfinite(values["loss"]) & np.isfinite(values["grad_norm"])
    n_good = len(lines) if finite.all() else int(np.argmin(finite))
    run_dir.append_metrics(run.path, lines[:n_good])  # also before an error: they show how the run came to it
    for line in lines[:n_good]:
        run.observe(line)
    if n_good < len(lines):
        bad, kept = lines[n_good], run.checkpoints.steps()
        newest = f"the checkpoint of step {kept[-1]} in {run.checkpoints.folder} is good" if kept else ""
        found = f"loss {bad['loss']}, gradient norm {bad['grad_norm']} at step {bad['step']} ({bad['tokens']} tokens)"
        raise ValueError(f"training: {found}, learning rate {bad['lr']:.3g}; {newest or 'no checkpoint yet'}. {ADVICE}")
    return state


def _evaluate(run: TrainingRun, state: TrainState, step: int, interrupted: Callable[[], bool]) -> None:
    """Append this checkpoint to the surface, unless it is there; Ctrl-C gives it up, to be made again later."""
    tokens, folder = run.timeline.tokens_at(step), run.path / run_dir.SURFACE
    if hosts.from_writer(lambda: tokens in surface.checkpoints(folder)):
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

            losses = evaluation.window_losses(run.forward, state.params, windows.tokens, run.evaluation_batch, watch)
            if not np.isfinite(losses).all():
                window, position = np.argwhere(~np.isfinite(losses))[0]
                where = f"at step {step}, split {split}, window {window}, position {position + 1}"
                found = f"loss {losses[window, position]} {where}"
                raise ValueError(f"training: {found}; the checkpoints before are good. {ADVICE}")
            splits[split] = evaluation.reduce(losses, windows)
            # a step has the mean of its positions only, an evaluation their thirds too
            loss = splits[split]["loss_sum"] / splits[split]["count"]
            facts[f"{split}/loss"] = float(loss.mean())
            thirds = zip(("head", "middle", "tail"), np.array_split(loss, 3), strict=True)
            facts |= {f"{split}/{name}": float(part.mean()) for name, part in thirds if len(part)}
        append = hosts.writer_only(surface.append)
        append(folder, tokens=tokens, step=step, lr=run.timeline.learning_rate(step), splits=splits)
    run.observe(facts)


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


@contextmanager
def interrupt_deferred() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed; a second one interrupts at once.

    A step consumes the state it is given, so an exception between its call and the assignment of its result would lose
    both: the loop asks between steps. Outside the main thread no signal comes, and the answer is always no.
    """
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
