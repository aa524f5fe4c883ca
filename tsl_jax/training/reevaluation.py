"""The kept checkpoints of a run, measured again: on other text, or on other windows.

The result is a loss surface in a folder of its own, with the run's facts; the run is left as it is. Other text is
tokenised by the run's tokenizer, and nine tenths of its documents are scored (`data` keeps its split).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import jax

from tsl_jax import surface
from tsl_jax.atomic_write import locked, remove_temporary_files
from tsl_jax.data import corpora, windows
from tsl_jax.data.config import DataConfig, EvalConfig, validate_eval_config
from tsl_jax.models.build import build
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.sharding import platform_of
from tsl_jax.training import evaluation, mesh, provenance, run_dir
from tsl_jax.training.checkpoint import Checkpoints
from tsl_jax.training.checks import check_evaluation_shares
from tsl_jax.training.config import MeshConfig, from_dict
from tsl_jax.training.optimizer import run_optimizer
from tsl_jax.training.setup import Progress, begin_surface
from tsl_jax.training.step import initial_state
from tsl_jax.training.timeline import resolve_timeline

SCORED = 0.9  # share of other text that is scored


def reevaluate(
    run: Path,
    out: Path,
    *,
    text: tuple[str, ...] = (),
    windows_config: EvalConfig | None = None,
    devices: MeshConfig | None = None,
    progress: Progress,
) -> Path:
    """Measure every kept checkpoint of `run`, passing over those that `out` holds already; the folder `out`.

    Args:
        run: folder of a run. out: folder of the new surface.
        text: other text, as in `DataConfig.text`, each domain a split of its name, on windows like those of "ood";
            empty: the run's own, and its splits.
        windows_config: other windows; None: the run's own. devices: another mesh; None: that of the run.
        progress: as for `train`.

    Raises:
        FileNotFoundError: no run there. ValueError: no checkpoint, text that holds no window, text that is no longer
            the run's own, an `out` that belongs to a run, or a mesh that does not fit the devices.
    """
    config, record = run_dir.read_config(run), run_dir.read_record(run)
    if not isinstance(record.get("model"), dict):
        raise ValueError(f"training: {run} has no whole {run_dir.RECORD} yet; wait for its first evaluation")
    run_dir.refuse(out)
    layout = devices or config.mesh
    data, fsdp, _ = mesh.shape(layout, len(jax.devices()))
    check_evaluation_shares(config.evaluation_batch, data * fsdp)
    timeline = resolve_timeline(config)
    model, model_hash = resolve(from_dict(ModelConfig, record["model"])), provenance.model_hash(record["model"])
    checkpoints = Checkpoints(run / run_dir.CHECKPOINTS, keep=config.keep, model_hash=model_hash, read_only=True)
    try:
        steps = checkpoints.steps()
        if not steps:
            raise ValueError(f"training: {run} has no checkpoint yet; wait for its first evaluation")
        corpus = corpora.load(_data(config.data, run, text), progress)
        provenance.check_vocabulary(corpus, model)
        if text:  # a split a domain, by its name: how the run would have split them is another matter
            corpus = replace(corpus, splits={name: (name,) for name in corpus.domains})
        else:
            provenance.check_text(run, record["corpus"], corpus)
            provenance.check_tokenizer(run, corpus, config.data.end_of_text)
        windows_config = windows_config or config.evaluation
        validate_eval_config(windows_config)
        sets = windows.for_splits(corpus, config.context, windows_config)
        here = {"corpus": corpus.record, "environment": provenance.environment()}
        begin_surface(out, {**record, **here}, timeline, sets)

        placed = mesh.make(layout)
        graphdef, params = build(model, config.seed, placed)
        like = initial_state(params, run_optimizer(config.optimizer, timeline), placed)
        forward = evaluation.make_forward(graphdef, platform_of(placed))
        evaluation_sets = {split: evaluation.prepare(part) for split, part in sets.items()}
        with locked(out, "training"):
            remove_temporary_files(out)
            for done, step in enumerate(steps, start=1):
                tokens = timeline.tokens_at(step)
                if tokens not in surface.checkpoints(out):
                    try:
                        params, splits = checkpoints.read(step, like).params, {}
                    except FileNotFoundError as error:
                        warnings.warn(f"{error}, by the training that goes on; it is not measured", stacklevel=2)
                        continue
                    for split, part in evaluation_sets.items():
                        with mesh.traced_on(placed):
                            losses = evaluation.window_losses(forward, params, part.tokens, config.evaluation_batch)
                        splits[split] = evaluation.reduce(losses, part)
                    surface.append(out, tokens=tokens, step=step, lr=timeline.learning_rate(step), splits=splits)
                progress("evaluate", done, len(steps))
    finally:
        checkpoints.close()
    return out


def _data(config: DataConfig, run: Path, text: tuple[str, ...]) -> DataConfig:
    """The run's text, or other text under the run's tokenizer."""
    if not text:
        return config
    tokenizer = run / run_dir.TOKENIZER
    if not tokenizer.exists():
        raise ValueError(f"training: {run} keeps no tokenizer, its text was pretokenised; give its own kind of text")
    return replace(config, text=text, corpus="", tokenizer=str(tokenizer), heldout=SCORED)
