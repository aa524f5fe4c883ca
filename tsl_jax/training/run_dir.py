"""The folder of a run: who may write into it, its config, its record and its metrics.

RUN/config.yaml      the configuration of the run
RUN/record.json      what it was made with and how long each stage took; "complete" once the last step is done
RUN/metrics.jsonl    one line a step: step, tokens, loss, lr, grad_norm (and auxiliary, a loss the model adds),
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
from tsl_jax.atomic_write import write_atomically
from tsl_jax.training.config import EXECUTION_FIELDS, TrainConfig, config_hash, from_dict, to_dict

if TYPE_CHECKING:
    from tsl_jax.training.timeline import RunTimeline

CONFIG, RECORD, METRICS, TOKENIZER = "config.yaml", "record.json", "metrics.jsonl", "tokenizer.json"
SURFACE, CHECKPOINTS = "surface", "checkpoints"
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
            names = [name for name in new if new[name] != old.get(name)]
            differences = ", ".join(f"{name} {new[name]!r}, there {old.get(name)!r}" for name in names)
            conflict = f"{run} holds a run with another configuration ({differences})"
            raise ValueError(f"training: {conflict}; leave these options out to continue it, or use a new folder")
        if read_record(run).get("complete"):
            return True
        if not resume:
            raise ValueError(f"training: {run} holds an unfinished run; {how_to_resume(run)}, or use a new folder")
    elif not resume and run.exists() and any(run.iterdir()):
        raise ValueError(f"training: {run} is not empty and holds no run; use a new folder")
    return False


def how_to_resume(run: Path) -> str:
    """The command, for messages; another sentence where there is nothing to continue."""
    if not (run / CONFIG).exists():
        return "nothing was written yet, the same command begins anew"
    return f"go on with: tsl train --out {shlex.quote(str(run))} --resume"


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
    import yaml

    try:
        return from_dict(TrainConfig, yaml.safe_load((run / CONFIG).read_text()))
    except FileNotFoundError:
        raise FileNotFoundError(f"training: no {CONFIG} in {run}; name the folder of a run") from None
    except yaml.YAMLError as error:
        raise ValueError(f"training: {run / CONFIG} is damaged ({error}); restore it from a copy") from None


def write_config(run: Path, config: TrainConfig) -> None:
    """Keep the configuration, with its hash as a comment."""
    import yaml

    text = f"# configuration {config_hash(config)}\n{yaml.safe_dump(to_dict(config), sort_keys=False)}"
    write_atomically(run / CONFIG, text)


def read_record(run: Path) -> dict[str, Any]:
    """The record of the run; empty where none is written yet."""
    try:
        return json.loads((run / RECORD).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"training: {run / RECORD} is damaged ({error}); restore it from a copy") from None


def write_record(run: Path, record: Mapping[str, Any]) -> None:
    """Replace the record."""
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(run / RECORD, text)


def truncate_metrics(run: Path, step: int) -> None:
    """Forget the lines after `step`, and a last line that a kill cut short: those steps are made again."""
    path = run / METRICS
    if path.exists():
        text = path.read_text()
        lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
        try:
            # by their step, not by their number: lines of earlier steps may have been lost with the file
            retained = [line for line in lines if json.loads(line)["step"] <= step]
        except ValueError as error:
            raise ValueError(f"training: {path} is damaged ({error}); restore it from a copy, or remove it") from None
        write_atomically(path, "".join(retained))


def append_metrics(run: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add a line for each step."""
    with open(run / METRICS, "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


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


def record_missing(run: Path, timeline: RunTimeline) -> None:
    """Warn of what a complete run lacks, and keep it in the record."""
    missing, record = missing_checkpoints(run, timeline, timeline.steps + 1), read_record(run)
    if missing != record.get(MISSING, []):
        write_record(run, {**record, MISSING: missing})
    warn_of_missing(run, missing)


def sync_metrics(run: Path) -> None:
    """The lines so far are on disk once this returns: a checkpoint must not be there without the steps before it."""
    with open(run / METRICS, "a") as file:
        os.fsync(file.fileno())
