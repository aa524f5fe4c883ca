"""What a run needs before its first step: corpus, windows, model, compiled programs, and the state to go on from."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tsl_jax import surface
from tsl_jax.atomic_write import write_atomically
from tsl_jax.data import batches, corpora, windows
from tsl_jax.data.config import Mixture
from tsl_jax.data.preparation import DomainFiles
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.cost import flops_per_token, n_params, n_params_embedding
from tsl_jax.training import evaluation, hosts, mesh, noise_scale, provenance, resources, run_dir
from tsl_jax.training.bad_losses import LossRule, judge_after
from tsl_jax.training.checkpoint import Checkpoints
from tsl_jax.training.config import TrainConfig, config_hash, from_dict
from tsl_jax.training.position_weights.updates import AdaptiveWeights
from tsl_jax.training.programs import Programs, compile_programs
from tsl_jax.training.step import TrainState
from tsl_jax.training.timeline import RunTimeline

Progress = Callable[[str, int, int], None]
Observe = Callable[[Mapping[str, Any]], None]
STAGES = ("prepare", "compile", "train", "evaluate", "checkpoint")
# What the header of a surface has of the record of its run.
HEADER_FACTS = (
    "run", "config_hash", "model", "n_params", "n_params_embedding", "batch_tokens", "seed", "corpus", "changes",
)  # fmt: skip


class Clock:
    """Seconds spent in each stage, over all processes that worked on the run."""

    def __init__(self, seconds: Mapping[str, float]):
        """Go on from the seconds of earlier processes."""
        self.seconds = {stage: float(seconds.get(stage, 0.0)) for stage in STAGES}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time inside the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


@dataclass(frozen=True)
class TrainingRun:
    """Everything that does not change from step to step."""

    path: Path
    timeline: RunTimeline
    data: DataOrder
    programs: Programs
    evaluation_sets: dict[str, evaluation.EvaluationSet]  # by split
    evaluation_batch: int
    weighting: AdaptiveWeights | None  # None: position weights are constants of the steps
    peak_flops: float | None  # FLOP/s of all devices, where known
    checkpoints: Checkpoints
    clock: Clock
    progress: Progress
    observe: Observe
    record: dict[str, Any]  # record.json, all but the times
    losses: LossRule
    roll_back: bool  # after a bad loss, rather than stop
    noise: noise_scale.NoiseAverages | None  # None: the gradient noise scale is not logged


class DataOrder:
    """The batches of a run in their order: pure functions of seed and step."""

    def __init__(
        self, timeline: RunTimeline, corpus: corpora.Corpus, seed: int, devices: Mesh | None, unique_tokens: int = 0
    ):
        """The order of a timeline, for these devices."""
        self._corpus, self._seed, self._devices, self._unique_tokens = corpus, seed, devices, unique_tokens
        self.follow(timeline)

    def follow(self, timeline: RunTimeline) -> None:
        """Take the order of another timeline from here on, as after a rollback."""
        starts = [(s.sequence, Mixture(s.mixture) if s.mixture else self._corpus.mixture) for s in timeline.segments]
        mixtures = [(0, starts[0][1]), *(after for before, after in pairwise(starts) if after[1] != before[1])]
        self._sequences = batches.sequences(self._corpus, mixtures, timeline.context, self._seed, self._unique_tokens)
        self._timeline = timeline

    def batch(self, step: int, begin: int = 0, after: int = 0) -> np.ndarray:
        """The batch of a step, (sequences, context + 1), by the steps done before it; or some of its rows."""
        rows = (after or self._timeline.segment_at(step).batch_size) - begin
        return self._sequences(self._timeline.first_sequence(step) + begin, rows)

    def batches(self, call: tuple[int, int]) -> jax.Array:
        """What a call takes, by the steps done before it and after it."""
        first, last = call
        several = last > first + 1

        def rows(begin: int, after: int) -> np.ndarray:
            made = [self.batch(step, begin, after) for step in range(first, last)]
            return np.stack(made) if several else made[0]

        shape = (self._timeline.segment_at(first).batch_size, self._timeline.context + 1)
        return mesh.put_rows((last - first, *shape) if several else shape, rows, self._devices)


def prepare(
    config: TrainConfig, timeline: RunTimeline, domains: DomainFiles, path: Path, progress: Progress, observe: Observe
) -> tuple[TrainingRun, TrainState]:
    """The run and the state it goes on from: the newest checkpoint in `path`, or the beginning.

    Raises:
        ValueError: for text, a model or a checkpoint that does not fit the configuration. OSError: unreadable text.
    """
    earlier = hosts.from_writer(lambda: run_dir.read_record(path))
    is_new = hosts.from_writer(lambda: not (path / run_dir.CONFIG).exists())
    clock = Clock(earlier.get("seconds", {}))
    with clock("prepare"):
        corpus = _load_text(config, domains, progress)
        model = resolve(config.model, vocabulary=corpus.vocabulary, context=config.context)
        provenance.check_vocabulary(corpus, model)
        sets = windows.for_splits(corpus, config.context, config.evaluation)
        devices = mesh.make(config.mesh)
        record = _record(config, timeline, model, corpus, path, earlier, devices)
        record["stretches"] = {
            split: {"asked": part.requested, "found": part.design["stretches"]} for split, part in sets.items()
        }
        if earlier:
            _check_continued(path, model, corpus, earlier, record["environment"])
        planned, timeline = timeline, _after_rollbacks(timeline, record.get(run_dir.ROLLBACKS, []))
        data = DataOrder(timeline, corpus, config.seed, devices, config.unique_tokens)
        history = provenance.history(earlier, record["environment"], earlier.get("step", 0))
        model_hash = provenance.model_hash(record["model"])

        @hosts.writer_only
        def write_files() -> None:
            run_dir.write_config(path, config)
            run_dir.write_record(path, {**earlier, **record, "seconds": earlier.get("seconds", {}), **history})
            if corpus.tokenizer_file:
                write_atomically(path / run_dir.TOKENIZER, corpus.tokenizer_file.read_bytes())
            begin_surface(path / run_dir.SURFACE, record, timeline, sets)

        if is_new:
            write_files()
        elif (path / run_dir.SURFACE / surface.HEADER).exists():  # nothing is written before all is known to fit
            begin_surface(path / run_dir.SURFACE, record, timeline, sets)
        evaluation_sets = {split: evaluation.prepare(part) for split, part in sets.items()}
    with clock("compile"):
        progress("compile", 0, 1)
        programs, state = compile_programs(config, planned, model, devices)
        progress("compile", 1, 1)
        hosts.together()  # a collective would wait less long for those whose cache holds no program
    with clock("checkpoint"):
        roll_back = config.on_nonfinite == "rollback"
        checkpoints = Checkpoints(
            path / run_dir.CHECKPOINTS,
            keep=config.keep,
            model_hash=model_hash,
            planned=(0, *timeline.evaluations) if roll_back else (),
        )
        state = checkpoints.restore(state) or state
        done = int(state.step)
        lines = run_dir.metrics_until(path, done)
        weighting = None
        if config.position_weights.adaptive:
            weighting = AdaptiveWeights(
                config.position_weights, timeline, path, config.evaluation_batch, data.batch,
                programs.forward, programs.noise, devices,
            )  # fmt: skip
            weighting.resume(done)
        if not is_new:
            write_files()
        run_dir.remove_leftovers(path)
        run_dir.write_metrics(path, lines, done)
        if record.get(run_dir.ROLLBACKS):
            run_dir.forget_after(path, timeline, done)
    run_dir.warn_of_missing(path, run_dir.missing_checkpoints(path, timeline, done))
    run_dir.warn_of_damaged(path, timeline.tokens_at(done))
    run = TrainingRun(
        path=path,
        timeline=timeline,
        data=data,
        programs=programs,
        evaluation_sets=evaluation_sets,
        evaluation_batch=config.evaluation_batch,
        weighting=weighting,
        peak_flops=resources.peak_flops(jax.devices()[:1] if devices is None else devices.devices.flat),
        checkpoints=checkpoints,
        clock=clock,
        progress=progress,
        observe=observe,
        record=record | provenance.history(earlier, record["environment"], done),
        losses=LossRule(config.spike_sigmas),
        roll_back=roll_back,
        noise=None if config.noise_scale == "off" else noise_scale.resumed(path, done),
    )
    judge_after(run, done)
    return run, state


def _load_text(config: TrainConfig, domains: DomainFiles, progress: Progress) -> corpora.Corpus:
    """The prepared text, the same in every process."""
    if not hosts.is_writer():
        hosts.together()  # the writer has made the prepared text, which the others find in the cache they share
    corpus = corpora.load(config.data, progress, domains)
    if hosts.is_writer():
        hosts.together()
    hosts.check_same("the text", corpus.record)
    return corpus


def _after_rollbacks(timeline: RunTimeline, rollbacks: list[dict[str, Any]]) -> RunTimeline:
    """The timeline without the sequences that earlier rollbacks passed over."""
    for rollback in rollbacks:
        first, after = rollback["skipped_sequences"]
        timeline = timeline.skipping(rollback["after_step"], after - first)
    return timeline


def _record(
    config: TrainConfig,
    timeline: RunTimeline,
    model: ModelConfig,
    corpus: corpora.Corpus,
    path: Path,
    earlier: Mapping[str, Any],
    devices: Mesh | None,
) -> dict[str, Any]:
    """The entries of record.json about the run, all but times.

    A run that was moved keeps its name; one that an earlier version began keeps its hash and the entries of its model.
    """
    return {
        "run": earlier.get("run", path.name),
        "config_hash": earlier.get("config_hash", config_hash(config)),
        "model": earlier.get("model", asdict(model)),
        "n_params": n_params(model),
        "n_params_embedding": n_params_embedding(model),
        "flops_per_token": flops_per_token(model, config.context),
        "batch_tokens": timeline.batch_tokens,
        "total_tokens": timeline.total_tokens,
        "seed": config.seed,
        "corpus": corpus.record | earlier.get("corpus", {}),  # as it was prepared when the run was begun
        "environment": provenance.environment() | ({} if devices is None else {"mesh": dict(devices.shape)}),
        "complete": False,
    } | {
        name: value
        for name, value in (("changes", list(config.changes)), (run_dir.ROLLBACKS, earlier.get(run_dir.ROLLBACKS)))
        if value
    }


def _check_continued(
    path: Path, model: ModelConfig, corpus: corpora.Corpus, earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse another text or model than the run was begun with; warn where bits may differ."""
    for sentence in provenance.differences(earlier["environment"], now):
        warnings.warn(f"training: {path} was begun under other conditions, bits may differ: {sentence}", stacklevel=3)
    provenance.check_text(path, earlier["corpus"], corpus)
    begun_with = resolve(from_dict(ModelConfig, earlier["model"]))
    if begun_with != model:
        raise ValueError(f"training: {path} was begun with {begun_with}, found {model}; train anew in a new folder")


@hosts.writer_only
def begin_surface(
    folder: Path, record: Mapping[str, Any], timeline: RunTimeline, sets: Mapping[str, windows.Windows]
) -> None:
    """Write the header of a surface: facts of the run, and the windows that it is measured on.

    Args:
        record: of the run, with the "corpus" that the windows are of and the "environment" that measures them.
        sets: windows by split.

    Raises:
        ValueError: where `folder` holds the surface of another run.
    """
    attrs = {name: record[name] for name in HEADER_FACTS if name in record} | {
        "schedule": timeline.lr_plan,
        "windows": {split: part.design for split, part in sets.items()},
        "document_boundary": windows.DOCUMENT_BOUNDARY,
        "versions": record["environment"]["versions"],
        "git_commit": record["environment"]["git_commit"],
    }
    clusters = {split: part.n_clusters for split, part in sets.items()}
    surface.create(folder, clusters=clusters, context=timeline.context, attrs=attrs)
