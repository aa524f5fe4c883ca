"""Benchmarks of the checkpoints of a run, or of the revisions of a published model, by lm-evaluation-harness.

Every pair of a checkpoint and a task that is measured is kept in a file of its own, OUT/finished/CHECKPOINT/TASK.json,
with a digest of all that decides about its numbers: the weights, the task with its examples, and the options. The same
call measures only what is not there, or was measured of something else.

OUT/results.json   rows, correlations, and how they were made        OUT/results.csv   the rows
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import pandas as pd
import xarray as xr
from jax.sharding import Mesh

from tsl_jax.atomic_write import locked, remove_temporary_files, write_atomically
from tsl_jax.data import tokenizer as run_tokenizer
from tsl_jax.models.build import Params, build
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.cost import n_params
from tsl_jax.models.sharding import shardings
from tsl_jax.pretrained import checkpoint_files, description, evaluation_text, harness, weights
from tsl_jax.pretrained.options import BenchmarkOptions, PretrainedOptions, label_revisions
from tsl_jax.pretrained.revisions import DOWNLOADS, commit_of, read_model_config
from tsl_jax.pretrained.zero_shot_table import benchmark_table, correlations
from tsl_jax.surface import load_surface
from tsl_jax.training import mesh, provenance, run_dir
from tsl_jax.training.checkpoint import MANIFEST, Checkpoints
from tsl_jax.training.checks import check_evaluation_shares
from tsl_jax.training.config import MeshConfig, from_dict
from tsl_jax.training.optimizer import run_optimizer
from tsl_jax.training.step import TrainState, initial_state
from tsl_jax.training.timeline import resolve_timeline

FINISHED, RESULTS, TABLE = "finished", "results.json", "results.csv"
FOLDER = "zero-shot"  # within a run, where nothing else is said

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BenchmarkCheckpoint:
    """One that is measured. Attributes: step and tokens seen, None where not known; identity: of its weights."""

    name: str
    step: int | None
    tokens: int | None
    identity: str


@dataclass(frozen=True)
class BenchmarkModel:
    """What is measured: a model, its tokenizer, and its checkpoints.

    Attributes:
        config: resolved. tokenizer: with the facts of it that decide about numbers. placed: mesh of its parameters.
        read: the parameters of a checkpoint; FileNotFoundError where it is gone meanwhile.
    """

    name: str
    config: ModelConfig
    tokenizer: harness.RequestTokenizer
    checkpoints: Sequence[BenchmarkCheckpoint]
    read: Callable[[BenchmarkCheckpoint], Params]
    placed: Mesh | None


@dataclass(frozen=True)
class BenchmarkResult:
    """What came out. Attributes: table: see `benchmark_table`; correlations: see there; folder: of the files."""

    table: pd.DataFrame
    correlations: pd.DataFrame
    folder: Path


def benchmark(
    where: str | Path,
    out: str | Path | None = None,
    options: BenchmarkOptions | None = None,
    *,
    hf: bool = False,
    pretrained: PretrainedOptions | None = None,
    surface: str | Path | None = None,
    devices: MeshConfig | None = None,
    made_by: Mapping[str, Any] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> BenchmarkResult:
    """Measure tasks on every checkpoint that a run has kept, or, with `hf`, on revisions of a published model.

    Args:
        where: folder of a run; with `hf` as in `evaluate_revisions`.
        out: folder of the results, begun where there is none; None: zero-shot in the folder of the run.
        options: which tasks. pretrained: context, batch and begin for either; the rest is of `hf`.
        surface: a loss surface whose mean losses stand beside the accuracies; None: that of the run.
        devices: another mesh; None: that of the run, or all. made_by: facts to keep with the results.

    Raises:
        ValueError: for what is no run or model, has no checkpoint or tokenizer, or tasks that cannot be had or do not
            fit the model; OSError: for what cannot be read, downloaded or written.
    """
    options, pretrained = options or BenchmarkOptions(), pretrained or PretrainedOptions()
    if options.limit < 0 or options.fewshot < 0 or not options.tasks:
        found = f"{options.limit}, {options.fewshot} and {len(options.tasks)} tasks"
        raise ValueError(f"benchmark: limit and fewshot are at least 0, of one task or more, found {found}")
    version = harness.check_installed()
    if out is None and hf:
        raise ValueError("benchmark: name a folder for the results of a published model, as out")
    folder = Path(where) / FOLDER if out is None else Path(out)
    run_dir.refuse(folder)
    losses = _losses(surface, None if hf else Path(where))
    opened = _of_revisions(str(where), pretrained, devices, folder) if hf else _of_run(Path(where), pretrained, devices)
    with opened as model:
        scorer = harness.RequestScorer(model.config, pretrained.context, pretrained.batch, model.placed)
        tasks = harness.load_tasks(
            options.tasks, options.include_path, options.fewshot, lambda n, of: progress("tasks", n, of)
        )
        asked = {name: harness.task_digest(task, options.limit) for name, task in tasks.items()}
        settings = {
            "limit": options.limit,
            "fewshot": options.fewshot,
            "context": scorer.context,
            "begin": model.tokenizer.begin,
            "tokenizer": hashlib.sha256(model.tokenizer.tokenizer.to_str().encode()).hexdigest(),
            "dtype": model.config.dtype,
            "lm_eval": version,
        }
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, "benchmark"):
            remove_temporary_files(folder)
            records = list(_measured(model, scorer, tasks, asked, settings, folder, options.limit, progress))
            table = benchmark_table(records, losses)
            together = correlations(table)
            facts = {"model": model.name, "n_params": n_params(model.config), "settings": settings}
            _write(folder, table, together, {"made_by": dict(made_by or {}), **facts})
    return BenchmarkResult(table, together, folder)


def _measured(
    model: BenchmarkModel,
    scorer: harness.RequestScorer,
    tasks: Mapping[str, Any],
    asked: Mapping[str, str],
    settings: Mapping[str, Any],
    folder: Path,
    limit: int,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """The record of every pair, read where it is finished, else measured and kept."""
    done, total = 0, len(model.checkpoints) * len(tasks)
    for checkpoint in model.checkpoints:
        params = None
        for name, task in tasks.items():
            file = finished_file(folder, checkpoint.name, name)
            digest = _digest({"weights": checkpoint.identity, "task": asked[name], **settings})
            record = read_finished(file, digest)
            if record is None:
                try:
                    params = model.read(checkpoint) if params is None else params
                except FileNotFoundError as error:
                    warnings.warn(f"{error}, by the training that goes on; it is not measured", stacklevel=2)
                    break

                def score(requests: list[harness.TokenRequest], params: Params = params) -> list[harness.Score]:
                    return scorer(params, requests, partial(progress, "requests"))

                adapter = harness.harness_model(model.tokenizer, score, scorer.context)
                made = harness.measure(adapter, name, task, limit)
                record = {"digest": digest, "task": name, **made, "requests": adapter.requests, "cut": adapter.cut}
                write_finished(file, record)
            done += 1
            progress("pairs", done, total)
            place = {"checkpoint": checkpoint.name, "step": checkpoint.step, "tokens": checkpoint.tokens}
            yield {**record, **place}  # labels are not measured: they may be others than at the last call


def finished_file(folder: Path, checkpoint: str, task: str) -> Path:
    """Where a pair is kept."""
    return folder / FINISHED / quote(checkpoint, safe=" ") / f"{quote(task, safe=' ')}.json"


def read_finished(file: Path, digest: str) -> dict[str, Any] | None:
    """The record of a pair, or None where there is none of the same weights, task and settings."""
    try:
        record = json.loads(file.read_text("utf-8"))
        same = record["digest"] == digest and {"task", "metrics", "examples", "requests", "cut"} <= set(record)
    except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged: it is measured again
        return None
    return record if same else None


def write_finished(file: Path, record: Mapping[str, Any]) -> None:
    """Keep the record of a pair, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(record, indent=1))


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, table: pd.DataFrame, together: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    rows, pairs = (
        json.loads(frame.to_json(orient="records", double_precision=15) or "[]") for frame in (table, together)
    )
    write_atomically(folder / RESULTS, json.dumps({**facts, "rows": rows, "correlations": pairs}, indent=1))
    write_atomically(folder / TABLE, table.to_csv(index=False, float_format="%.8g"))


def _losses(surface: str | Path | None, run: Path | None) -> xr.DataArray | None:
    """Mean losses over (split, tokens) of a surface; None where none is named and the run has none."""
    if surface is None and (run is None or not (run / run_dir.SURFACE).is_dir()):
        return None
    loaded: Any = load_surface(run if surface is None else surface)  # pyright: ignore[reportArgumentType]
    return loaded.loss.mean("position")


@contextmanager
def _of_run(run: Path, options: PretrainedOptions, devices: MeshConfig | None) -> Iterator[BenchmarkModel]:
    """The checkpoints that a run has kept."""
    config, record = run_dir.read_config(run), run_dir.read_record(run)
    if not isinstance(record.get("model"), dict):
        raise ValueError(f"training: {run} has no whole {run_dir.RECORD} yet; wait for its first evaluation")
    file, end = run / run_dir.TOKENIZER, config.data.end_of_text
    if not file.exists():
        raise ValueError(f"benchmark: {run} keeps no tokenizer, its text was pretokenised: no task can be read")
    tokenizer = run_tokenizer.load(file, end)
    placed = _mesh(devices or config.mesh, options.batch)
    model, model_hash = resolve(from_dict(ModelConfig, record["model"])), provenance.model_hash(record["model"])
    timeline = resolve_timeline(config)
    stored = Checkpoints(run / run_dir.CHECKPOINTS, keep=config.keep, model_hash=model_hash, read_only=True)
    try:
        steps = stored.steps()
        if not steps:
            raise ValueError(f"training: {run} has no checkpoint yet; wait for its first evaluation")

        @cache
        def like() -> TrainState:  # made where something is left to measure
            return initial_state(
                build(model, config.seed, placed)[1], run_optimizer(config.optimizer, timeline), placed
            )

        before = tokenizer.token_to_id(end)
        begin = before if options.begin == "yes" else None  # training begins no window with it
        yield BenchmarkModel(
            str(run.resolve().name),
            model,
            harness.RequestTokenizer(tokenizer, begin, before),
            [
                BenchmarkCheckpoint(f"step{step}", step, timeline.tokens_at(step), _weights_of(stored.folder, step))
                for step in steps
            ],
            lambda checkpoint: stored.read(checkpoint.step or 0, like()).params,
            placed,
        )
    finally:
        stored.close()


def _weights_of(checkpoints: Path, step: int) -> str:
    """The digest of a checkpoint's manifest, which holds those of its files; its place where it has none."""
    try:
        return hashlib.sha256((checkpoints / str(step) / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return f"{checkpoints}/{step}"


@contextmanager
def _of_revisions(
    name: str, options: PretrainedOptions, devices: MeshConfig | None, out: Path
) -> Iterator[BenchmarkModel]:
    """Revisions of a published model; its weights are read, or downloaded, when they are needed."""
    placed = _mesh(devices or MeshConfig(), options.batch)
    names = checkpoint_files.revisions(name, options.revision)
    places = _places(name, names, options)
    local = checkpoint_files.is_local(name)
    folders = {revision: checkpoint_files.description(name, revision) for revision in names}
    config = read_model_config(folders[names[0]], options)
    facts = evaluation_text.tokenizer_facts(folders[names[0]], options.end_of_text, options.begin)
    tokenizer = evaluation_text.read_tokenizer(facts.file)
    if facts.before < 0:
        raise ValueError(f"pretrained: {facts.file} has no token {facts.end_of_text!r}; give another --end-of-text")

    def read(checkpoint: BenchmarkCheckpoint) -> Params:
        revision = checkpoint.name
        keep_in = out / DOWNLOADS / revision if options.discard and not local else None
        folder = checkpoint_files.whole(name, revision, keep_in)
        if read_model_config(folder, options) != config:
            raise ValueError(
                f"pretrained: revision {revision} of {name} is another model than {names[0]}; leave it out"
            )
        row = description.architecture_of(checkpoint_files.read_json(folder / checkpoint_files.CONFIG))
        params = weights.read_params(folder, row, config)
        if keep_in is not None:
            shutil.rmtree(keep_in)
        return jax.device_put(params, None if placed is None else shardings(params, placed))

    def identity(revision: str) -> str:
        folder = folders[revision]
        if not local:
            return f"{name} {commit_of(folder) or revision}"
        files = [folder / checkpoint_files.CONFIG, *checkpoint_files.weight_files(folder)]
        return " ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)

    yield BenchmarkModel(
        Path(name).expanduser().resolve().name if local else name,
        config,
        harness.RequestTokenizer(tokenizer, facts.begin, facts.before),
        [BenchmarkCheckpoint(revision, *places[revision], identity(revision)) for revision in names],
        read,
        placed,
    )


def _places(name: str, names: list[str], options: PretrainedOptions) -> dict[str, tuple[int | None, int | None]]:
    """Step and tokens of every revision; of a single one they need not be known."""
    try:
        places = label_revisions(name, names, options.tokens, options.tokens_per_step)
    except ValueError:
        if len(names) > 1 or options.tokens:
            raise
        return {names[0]: (None, None)}
    return {revision: (None if step < 0 else step, tokens) for revision, (step, tokens) in places.items()}


def _mesh(layout: MeshConfig, batch: int) -> Mesh | None:
    data, fsdp, _ = mesh.shape(layout, len(jax.devices()))
    check_evaluation_shares(batch, data * fsdp)
    return mesh.make(layout)
