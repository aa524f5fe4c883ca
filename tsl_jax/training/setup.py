"""What a run needs before its first step: corpus, windows, model, compiled programs, and the state to go on from."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tsl_jax import surface
from tsl_jax.data import batches, corpora, windows
from tsl_jax.data.config import Mixture
from tsl_jax.models.build import build
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.cost import flops_per_token, n_params, n_params_embedding
from tsl_jax.schedules import Schedule
from tsl_jax.training import evaluation, holes, interventions, mesh, provenance, run_dir, text_identity, throughput
from tsl_jax.training.calls import steps_per_call
from tsl_jax.training.checkpoint import Checkpoints
from tsl_jax.training.config import (
    TrainConfig,
    batch_tokens,
    config_hash,
    from_dict,
    run_stretches,
    tokens_at,
    total_steps,
)
from tsl_jax.training.optimizer import run_lr_plan, run_optimizer
from tsl_jax.training.position_weights import gradient_noise, sources
from tsl_jax.training.position_weights.adaptive import wants_noise
from tsl_jax.training.position_weights.updates import AdaptiveWeights
from tsl_jax.training.step import StepFunction, TrainState, initial_state, make_step

Progress = Callable[[str, int, int], None]
Observe = Callable[[Mapping[str, Any]], None]
STAGES = ("prepare", "compile", "train", "evaluate", "checkpoint")


class Clock:
    """Seconds spent in each stage, over all processes that worked on the run."""

    def __init__(self, seconds: dict[str, float]):
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
class Run:
    """Everything that does not change from step to step."""

    config: TrainConfig
    path: Path
    schedule: Schedule  # of the learning rate
    evaluations: frozenset[int]  # steps
    batch_of: Callable[[int], np.ndarray]
    sets: dict[str, evaluation.EvaluationSet]  # by split
    mesh: Mesh | None  # None: one device
    steps: dict[tuple[int, ...], StepFunction]  # by what a call takes: (sequences,), or (steps, sequences)
    per_call: int  # steps of a call, where so many are left
    forward: evaluation.Forward
    weighting: AdaptiveWeights | None  # None: weights are constants of the steps
    checkpoints: Checkpoints
    clock: Clock
    progress: Progress
    observe: Observe
    record: dict[str, Any]  # record.json, all but the times

    @property
    def stops(self) -> frozenset[int]:
        """Steps after which the host has work to do."""
        changed = frozenset(one.step for one in run_stretches(self.config)[1:])
        return self.evaluations | changed | (frozenset() if self.weighting is None else self.weighting.steps)

    @property
    def weights(self) -> tuple[jax.Array, ...]:
        """What a step takes beside state and batch."""
        return () if self.weighting is None else (self.weighting.now,)

    def batches(self, steps: tuple[int, int]) -> jax.Array:
        """What a call takes that goes from one number of steps done to another, on its devices."""
        first, last = steps
        batch = self.batch_of(first) if last == first + 1 else np.stack([self.batch_of(s) for s in range(first, last)])
        return mesh.put(batch, self.mesh)

    def rates(self, first: int, last: int, seconds: float) -> dict[str, float]:
        """See `throughput.rates`."""
        devices = jax.devices()[:1] if self.mesh is None else self.mesh.devices.flat
        peaks = [throughput.peak(device.device_kind) for device in devices]
        peak = None if None in peaks else sum(filter(None, peaks))
        tokens = tokens_at(self.config, last) - tokens_at(self.config, first)
        return throughput.rates(tokens, seconds, self.record["flops_per_token"], peak)


def prepare(config: TrainConfig, path: Path, progress: Progress, observe: Observe) -> tuple[Run, TrainState]:
    """The run and the state it goes on from: the newest checkpoint in `path`, or the beginning.

    Raises:
        ValueError: for text, a model or a checkpoint that does not fit the configuration. OSError: unreadable text.
    """
    known = run_dir.read_record(path)
    clock = Clock(known.get("seconds", {}))
    with clock("prepare"):
        corpus = corpora.load(config.data, progress)
        model = resolve(config.model, vocabulary=corpus.vocabulary, context=config.context)
        text_identity.check_vocabulary(corpus, model)
        sets_of_windows = windows.for_splits(corpus, config.context, config.evaluation)
        batch_of = _batches(config, corpus)
        lr_plan = run_lr_plan(config)
        devices = mesh.make(config)
        facts = _facts(config, model, corpus, path, known, devices)
        facts["stretches"] = {
            split: {"asked": one.requested, "found": one.design["stretches"]} for split, one in sets_of_windows.items()
        }
        _begin(config, model, path, corpus, facts, known, sets_of_windows, lr_plan)
        sets = {split: evaluation.prepare(one) for split, one in sets_of_windows.items()}
    with clock("compile"):
        progress("compile", 0, 1)
        per_call = steps_per_call(config, facts["flops_per_token"], 1 if devices is None else devices.size)
        steps, forward, noise, state = _compiled(config, model, devices, per_call)
        progress("compile", 1, 1)
    with clock("checkpoint"):
        model_hash = provenance.model_hash(facts["model"])
        checkpoints = Checkpoints(path / run_dir.CHECKPOINTS, keep=config.keep, model_hash=model_hash)
        state = checkpoints.restore(state) or state
        run_dir.truncate_metrics(path, int(state.step))
        weighting = None
        if config.position_weights.adaptive:
            weighting = AdaptiveWeights(config, path, batch_of, forward, noise, devices)
            weighting.resume(int(state.step))
    facts |= provenance.history(known, facts["environment"], int(state.step))
    holes.warn(path, holes.missing(config, path, int(state.step)))
    return Run(
        config=config,
        path=path,
        schedule=Schedule.from_plan(lr_plan),
        evaluations=frozenset(holes.planned(config)),
        batch_of=batch_of,
        sets=sets,
        mesh=devices,
        steps=steps,
        per_call=per_call,
        forward=forward,
        weighting=weighting,
        checkpoints=checkpoints,
        clock=clock,
        progress=progress,
        observe=observe,
        record=facts,
    ), state


def _batches(config: TrainConfig, corpus: corpora.Corpus) -> Callable[[int], np.ndarray]:
    """The batch of a step, by the steps done before it."""
    found = run_stretches(config)
    mixtures = [(0, corpus.mixture)]
    for one in found:
        mixture = Mixture(one.mixture) if one.mixture else corpus.mixture
        mixtures += [(one.sequence, mixture)] if mixture != mixtures[-1][1] else []
    sequences = batches.sequences(corpus, mixtures, config.context, config.seed)

    def batch_of(step: int) -> np.ndarray:
        one = interventions.at_step(found, step)
        return sequences(one.sequence + (step - one.step) * one.batch_size, one.batch_size)

    return batch_of


def _facts(
    config: TrainConfig,
    model: ModelConfig,
    corpus: corpora.Corpus,
    path: Path,
    known: dict[str, Any],
    devices: Mesh | None,
) -> dict[str, Any]:
    """What record.json says of the run, all but times.

    A run that was moved keeps its name; one that an earlier version began keeps its hash and the entries of its model.
    """
    return {
        "run": known.get("run", path.name),
        "config_hash": known.get("config_hash", config_hash(config)),
        "model": known.get("model", asdict(model)),
        "n_params": n_params(model),
        "n_params_embedding": n_params_embedding(model),
        "flops_per_token": flops_per_token(model, config.context),
        "batch_tokens": batch_tokens(config),
        "total_tokens": tokens_at(config, total_steps(config)),
        "seed": config.seed,
        "corpus": corpus.record | known.get("corpus", {}),  # as it was prepared when the run was begun
        "environment": provenance.environment() | ({} if devices is None else {"mesh": dict(devices.shape)}),
        "complete": False,
    } | ({"changes": list(config.changes)} if config.changes else {})


def _begin(
    config: TrainConfig,
    model: ModelConfig,
    path: Path,
    corpus: corpora.Corpus,
    facts: dict[str, Any],
    known: dict[str, Any],
    sets: dict[str, windows.Windows],
    lr_plan: dict[str, Any] | list[dict[str, Any]],
) -> None:
    """Write what the folder says from the start; warn where a continued run meets other conditions."""
    if known:
        for sentence in provenance.differences(known["environment"], facts["environment"]):
            warnings.warn(
                f"training: {path} was begun under other conditions, bits may differ: {sentence}", stacklevel=3
            )
        text_identity.check(path, known["corpus"], corpus)
        begun_with = resolve(from_dict(ModelConfig, known["model"]))
        if begun_with != model:
            raise ValueError(f"training: {path} was begun with {begun_with}, found {model}; train anew in a new folder")
    run_dir.write_config(path, config)
    earlier = {
        "seconds": known.get("seconds", {}),
        **provenance.history(known, facts["environment"], known.get("step", 0)),
    }
    run_dir.write_record(path, {**facts, **earlier})
    if corpus.tokenizer_file:
        shutil.copyfile(corpus.tokenizer_file, path / run_dir.TOKENIZER)
    shared = (
        "run",
        "config_hash",
        "model",
        "n_params",
        "n_params_embedding",
        "batch_tokens",
        "seed",
        "corpus",
        "changes",
    )
    attrs = {name: facts[name] for name in shared if name in facts} | {
        "schedule": lr_plan,
        "windows": {split: one.design for split, one in sets.items()},
        "document_boundary": next(iter(sets.values())).design["document_boundary"],
        "versions": facts["environment"]["versions"],
        "git_commit": facts["environment"]["git_commit"],
    }
    clusters = {split: one.n_clusters for split, one in sets.items()}
    surface.create(path / run_dir.SURFACE, clusters=clusters, context=config.context, attrs=attrs)


def _compiled(
    config: TrainConfig, model: ModelConfig, devices: Mesh | None, per_call: int
) -> tuple[dict[tuple[int, ...], StepFunction], evaluation.Forward, gradient_noise.Noise | None, TrainState]:
    """The programs of the run, compiled ahead so that their time is known, and the first state."""
    optimizer = run_optimizer(config)
    told, T = config.position_weights, config.context
    weights = None if told.adaptive else told.values(T)
    more = [jax.ShapeDtypeStruct((T,), np.float32, sharding=mesh.everywhere(devices))] if told.adaptive else []

    def batch(*shape: int) -> jax.ShapeDtypeStruct:
        placed = mesh.batch_sharding(devices, stacked=len(shape) > 1)
        return jax.ShapeDtypeStruct((*shape, config.context + 1), np.int32, sharding=placed)

    with mesh.traced_on(devices):
        graphdef, params = build(model, config.seed, devices)
        state = initial_state(params, optimizer, devices)
        steps = {}
        for n in sorted({1, per_call}):
            step = make_step(graphdef, optimizer, weights, n, config.accumulate, config.seed)
            for size in sorted({one.batch_size for one in run_stretches(config)}):
                shape = (size,) if n == 1 else (n, size)
                steps[shape] = step.lower(state, batch(*shape), *more).compile()
        forward = evaluation.make_forward(graphdef).lower(params, batch(config.evaluation_batch)).compile()
        noise = None
        if told.adaptive and wants_noise(sources.load_rule(told.kind, told.source)):
            noise = gradient_noise.compiled_noise(graphdef, params, config, devices)
    return steps, forward, noise, state
