"""The kept checkpoints of a run, measured again: on other text, or on other windows.

The result is a loss surface in a folder of its own, with the run's facts; the run is left as it is. Other text is
tokenised by the run's tokenizer, and nine tenths of its documents are scored (the data room keeps its split).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tsl_jax import surface
from tsl_jax.data import corpora, windows
from tsl_jax.data.config import DataConfig, EvalConfig
from tsl_jax.models.build import build
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.schedules import Schedule
from tsl_jax.training import evaluation, mesh, provenance, run_dir
from tsl_jax.training import text_identity as run_text
from tsl_jax.training.checkpoint import Checkpoints
from tsl_jax.training.config import MeshConfig, TrainConfig, from_dict, tokens_at
from tsl_jax.training.optimizer import run_lr_plan, run_optimizer
from tsl_jax.training.setup import Progress
from tsl_jax.training.step import initial_state

SCORED = 0.9  # share of other text that is scored


def reevaluate(
    run: Path,
    out: Path,
    *,
    text: tuple[str, ...] = (),
    evaluation: EvalConfig | None = None,
    devices: MeshConfig | None = None,
    progress: Progress,
) -> Path:
    """Measure every kept checkpoint of `run`, passing over those that `out` holds already; the folder `out`.

    Args:
        run: folder of a run. out: folder of the new surface.
        text: other text, as in `DataConfig.text`, each domain a split of its name, on windows like those of "ood";
            empty: the run's own, and its splits.
        evaluation: other windows; None: the run's own. devices: another mesh; None: that of the run.
        progress: as for `train`.

    Raises:
        FileNotFoundError: no run there. ValueError: no checkpoint, text that holds no window, text that is no longer
            the run's own, an `out` that belongs to a run, or a mesh that does not fit the devices.
    """
    config, known = run_dir.read_config(run), run_dir.read_record(run)
    config = replace(config, mesh=devices or config.mesh)
    _need_own_folder(run, out)
    mesh.shape(config, len(jax.local_devices()))
    model = resolve(from_dict(ModelConfig, known["model"]))
    model_hash = provenance.model_hash(known["model"])
    checkpoints = Checkpoints(run / run_dir.CHECKPOINTS, keep=config.keep, model_hash=model_hash)
    try:
        if not checkpoints.steps():
            raise ValueError(f"training: {run} has no checkpoint yet; wait for its first evaluation")
        corpus = corpora.load(_data(config, run, text), progress)
        run_text.check_vocabulary(corpus, model)
        if text:  # a split a domain, by its name: how the run would have split them is another matter
            corpus = replace(corpus, splits={name: (name,) for name in corpus.domains})
        else:
            run_text.check(run, known["corpus"], corpus)
            run_text.check_tokenizer(run, corpus, config.data.end_of_text)
        sets = windows.for_splits(corpus, config.context, evaluation or config.evaluation)
        lr_plan = run_lr_plan(config)
        _begin(out, known, lr_plan, sets, corpus.record)
        _measure(config, model, Schedule.from_plan(lr_plan), checkpoints, sets, out, progress)
    finally:
        checkpoints.close()
    return out


def _need_own_folder(run: Path, out: Path) -> None:
    """A surface in a run's folder would hide the run's own."""
    place = out.resolve()
    owner = place.parent if place.name == run_dir.SURFACE else place
    if owner == run.resolve() or (owner / run_dir.CONFIG).exists():
        raise ValueError(f"training: {out} belongs to a run, which has a surface of its own; name a new folder as out")


def _data(config: TrainConfig, run: Path, text: tuple[str, ...]) -> DataConfig:
    if not text:
        return config.data
    tokenizer = run / run_dir.TOKENIZER
    if not tokenizer.exists():
        raise ValueError(f"training: {run} keeps no tokenizer, its text was pretokenised; give its own kind of text")
    return replace(config.data, text=text, corpus="", tokenizer=str(tokenizer), heldout=SCORED)


def _begin(
    out: Path,
    known: dict[str, Any],
    lr_plan: dict[str, Any] | list[dict[str, Any]],
    sets: dict[str, windows.Windows],
    corpus: dict[str, Any],
) -> None:
    """The header of the new surface: the run's facts, with these windows and this text."""
    shared = ("run", "config_hash", "model", "n_params", "n_params_embedding", "batch_tokens", "seed", "changes")
    environment = provenance.environment()
    attrs = {name: known[name] for name in shared if name in known} | {
        "schedule": lr_plan,
        "windows": {split: one.design for split, one in sets.items()},
        "document_boundary": windows.DOCUMENT_BOUNDARY,
        "corpus": corpus,
        "versions": environment["versions"],
        "git_commit": environment["git_commit"],
    }
    clusters = {split: one.n_clusters for split, one in sets.items()}
    context = next(iter(sets.values())).tokens.shape[1] - 1
    surface.create(out, clusters=clusters, context=context, attrs=attrs)


def _measure(
    config: TrainConfig,
    model: ModelConfig,
    schedule: Schedule,
    checkpoints: Checkpoints,
    sets: dict[str, windows.Windows],
    out: Path,
    progress: Progress,
) -> None:
    devices = mesh.make(config)
    graphdef, params = build(model, config.seed, devices)
    like = initial_state(params, run_optimizer(config), devices)
    forward = evaluation.make_forward(graphdef)
    prepared = {split: evaluation.prepare(one) for split, one in sets.items()}
    steps = checkpoints.steps()
    for done, step in enumerate(steps, start=1):
        tokens = tokens_at(config, step)
        if tokens not in surface.checkpoints(out):
            state = checkpoints.read(step, like)
            splits = {}
            for split, one in prepared.items():
                with mesh.traced_on(devices):
                    losses = evaluation.window_losses(forward, state.params, one.tokens, config.evaluation_batch)
                splits[split] = evaluation.reduce(losses, one)
            lr = float(schedule.rate(tokens, np))
            surface.append(out, tokens=tokens, step=step, lr=lr, splits=splits)
        progress("evaluate", done, len(steps))
