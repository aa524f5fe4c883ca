"""The folder of a run: who may write into it, its config, its record and its metrics.

RUN/config.yaml      the configuration of the run
RUN/record.json      what it was made with and how long each stage took; "complete" once the last step is done
RUN/metrics.jsonl    one line a step: step, tokens, loss, lr, grad_norm (and auxiliary, a loss the model adds),
                     grad_square, grad_variance, noise_scale (if asked for, see `noise_scale`; by layer NAME/GROUP too),
                     tokens_per_second, utilisation (where the peak of the devices is known)
RUN/weights.jsonl    one line an update of adaptive position weights, see `position_weights.updates`; the loss in
                     metrics.jsonl is the mean that the weights make of positions, the surface is not weighted
RUN/tokenizer.json   RUN/surface/   RUN/checkpoints/
"""

from __future__ import annotations

import json
import os
import shlex
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsl_jax import surface
from tsl_jax.atomic_write import append_text, is_unused, remove_temporary_files, write_atomically
from tsl_jax.training import hosts
from tsl_jax.training.config import EXECUTION_FIELDS, TrainConfig, config_hash, from_dict, to_dict

if TYPE_CHECKING:
    from tsl_jax.training.timeline import RunTimeline

CONFIG, RECORD, METRICS, TOKENIZER = "config.yaml", "record.json", "metrics.jsonl", "tokenizer.json"
SURFACE, CHECKPOINTS = "surface", "checkpoints"
ROLLBACKS = "rollbacks"  # entry of the record: what was skipped after bad losses
STOPPED = "stopped"  # entry of the record: the bad loss that ended the run, until it comes past it
MISSING = "missing_checkpoints"  # entry of the record: tokens of evaluations that the surface lacks


def is_complete(run: Path, config: TrainConfig, *, resume: bool) -> bool:
    """Whether the run is complete already; otherwise `run` is, or may become, a folder that this training writes into.

    Raises:
        ValueError: if the folder holds another run, or an unfinished one while `resume` is false.
    """
    if (run / CONFIG).exists():
        stored = read_config(run)
        if config_hash(stored) != config_hash(config):
            new, old = (
                _flat({name: value for name, value in to_dict(c).items() if name not in EXECUTION_FIELDS})
                for c in (config, stored)
            )
            names = [name for name in {**new, **old} if new.get(name) != old.get(name)]
            differences = ", ".join(f"{name} {new.get(name)!r}, there {old.get(name)!r}" for name in names)
            conflict = f"{run} holds a run with another configuration ({differences})"
            raise ValueError(f"training: {conflict}; leave these options out to continue it, or use a new folder")
        if read_record(run).get("complete"):
            return True
        if not resume:
            raise ValueError(f"training: {run} holds an unfinished run; {how_to_resume(run)}, or use a new folder")
    elif not is_unused(run):
        raise ValueError(f"training: {run} is there and holds no run; use a new folder, or an empty one")
    return False


def how_to_resume(run: Path) -> str:
    """The command, for messages; another sentence where there is nothing to continue."""
    if not (run / CONFIG).exists():
        return "nothing was written yet, the same command begins anew"
    try:
        rule = read_config(run).position_weights
    except (OSError, ValueError):
        rule = None
    again = f" --position-weights {shlex.quote(rule.source)}" if rule is not None and rule.runs_code else ""
    return f"go on with: tsl train --out {shlex.quote(str(run))} --resume{again}"


def refuse(out: Path) -> None:
    """Nothing, where a surface in `out` would not hide that of a run.

    Raises:
        ValueError: if it is the folder of a run, or of its surface.
    """
    place = out.resolve()
    owner = place.parent if place.name == SURFACE else place
    if (owner / CONFIG).exists():
        raise ValueError(f"training: {out} belongs to a run, which has a surface of its own; name a new folder as out")


def make(run: Path) -> bool:
    """Make the folder; whether it was not there before.

    Raises:
        OSError: if it cannot be made or written.
    """
    new = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    if not os.access(run, os.W_OK):
        raise OSError(f"training: {run} is not writable; choose another folder")
    return new


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested names joined by dots, as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return flat


def read_config(run: Path) -> TrainConfig:
    """The configuration a run was started with.

    Raises:
        FileNotFoundError: where there is no run. ValueError: where the file is damaged.
    """
    from tsl_jax.yaml_files import read_yaml

    try:
        return from_dict(TrainConfig, read_yaml(run / CONFIG))
    except FileNotFoundError:
        raise FileNotFoundError(f"training: no {CONFIG} in {run}; name the folder of a run") from None
    except ValueError as error:
        raise ValueError(f"training: {run / CONFIG} is damaged ({error}); restore it from a copy") from None


@hosts.writer_only
def write_config(run: Path, config: TrainConfig) -> None:
    """Keep the configuration, with its hash as a comment."""
    import yaml

    text = f"# configuration {config_hash(config)}\n{yaml.safe_dump(to_dict(config), sort_keys=False)}"
    write_atomically(run / CONFIG, text)


def read_record(run: Path) -> dict[str, Any]:
    """The record of the run; empty where none is written yet."""
    try:
        record = json.loads((run / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"expected a mapping, found {type(record).__name__}")
        return record
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"training: {run / RECORD} is damaged ({error}); restore it from a copy") from None


@hosts.writer_only
def write_record(run: Path, record: Mapping[str, Any]) -> None:
    """Replace the record."""
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(run / RECORD, text)


def metrics_until(run: Path, step: int) -> list[str]:
    """The lines of metrics.jsonl of the first `step` steps, without a last one that a kill cut short.

    Raises:
        ValueError: for a line that is damaged.
    """
    path = run / METRICS
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
        # by their step, not by their number: lines of earlier steps may have been lost with the file
        return [line for line in lines if json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{path} is damaged ({type(error).__name__}: {error})"
        raise ValueError(f"training: {problem}; restore it from a copy, or remove it") from None


@hosts.writer_only
def write_metrics(run: Path, lines: list[str], step: int) -> None:
    """Keep these lines of the first `step` steps; the others are made again. A warning says how many are lost."""
    lost = step - len({json.loads(line)["step"] for line in lines})
    if lost > 0:
        gap = f"{run / METRICS} lacks {lost} of the {step} steps that are done"
        warnings.warn(f"training: {gap}, which are not made again; restore a copy, or do without", stacklevel=3)
    if lines or (run / METRICS).exists():
        write_atomically(run / METRICS, "".join(lines))


@hosts.writer_only
def forget_after(run: Path, timeline: RunTimeline, step: int) -> None:
    """Drop what was written of the steps after `step`, which are made of other data now."""
    write_metrics(run, metrics_until(run, step), step)
    for tokens, path in surface.checkpoints(run / SURFACE).items():
        if tokens > timeline.tokens_at(step):
            path.unlink()


@hosts.writer_only
def append_metrics(run: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add a line for each step."""
    append_text(run / METRICS, "".join(json.dumps(line) + "\n" for line in lines))


def missing_checkpoints(run: Path, timeline: RunTimeline, before: int) -> list[int]:
    """Tokens of the evaluations that were to be made before step `before` and have no file in the surface.

    They are not measured again, as the parameters of their steps are gone: a warning and the record name them, so that
    no gap goes unseen.
    """
    measured = surface.checkpoints(run / SURFACE)
    tokens = (timeline.tokens_at(step) for step in timeline.evaluations if step < before)
    return [t for t in tokens if t not in measured]


def warn_of_missing(run: Path, missing: list[int]) -> None:
    """Warn of checkpoints of the surface that are missing, if any."""
    if missing:
        gap = f"the surface of {run} has no checkpoint at {', '.join(map(str, missing))} tokens"
        warnings.warn(f"training: {gap}, and it cannot be measured again; restore a copy, or do without", stacklevel=3)


@hosts.writer_only
def warn_of_damaged(run: Path, tokens: int) -> None:
    """Warn of files of the surface before so many tokens that are damaged, as no one can load it with them.

    Those of later tokens are measured again on the way.
    """
    for at in surface.checkpoints(run / SURFACE):
        if at < tokens and (found := surface.damage(run / SURFACE, at)):
            advice = "no one can load the surface with it, nor measure it again; restore a copy, or delete it"
            warnings.warn(f"training: {found}; {advice}", stacklevel=3)


@hosts.writer_only
def remove_leftovers(run: Path) -> None:
    """Remove what killed writes have left; the caller holds the lock."""
    for folder in (run, run / SURFACE):
        remove_temporary_files(folder)


def end_can_be_measured_again(run: Path, timeline: RunTimeline) -> bool:
    """Whether the surface lacks the end of a run, or has it damaged, while the checkpoint of it is there."""
    tokens, folder = timeline.tokens_at(timeline.steps), run / SURFACE
    lost = tokens not in surface.checkpoints(folder) or surface.damage(folder, tokens)
    return bool(lost) and (run / CHECKPOINTS / str(timeline.steps)).is_dir()


def record_missing(run: Path, timeline: RunTimeline) -> None:
    """Warn of what a complete run lacks or has damaged, and keep in the record what it lacks."""
    missing, record = missing_checkpoints(run, timeline, timeline.steps + 1), read_record(run)
    if missing != record.get(MISSING, []):
        write_record(run, {**record, MISSING: missing})
    warn_of_missing(run, missing)
    warn_of_damaged(run, timeline.tokens_at(timeline.steps) + 1)


@hosts.writer_only
def sync_metrics(run: Path) -> None:
    """The lines so far are on disk once this returns: a checkpoint must not be there without the steps before it."""
    append_text(run / METRICS, "", synced=True)
