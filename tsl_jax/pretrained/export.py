"""A model of ours as a checkpoint that transformers reads: config.json, safetensors, and the tokenizer of its run.

The folder appears when it is whole. Weights are float32.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from tsl_jax.models.build import Params, build
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.pretrained import checkpoint_files, description, weights
from tsl_jax.pretrained.architectures import ARCHITECTURES
from tsl_jax.training import provenance, run_dir
from tsl_jax.training.checkpoint import Checkpoints
from tsl_jax.training.config import from_dict
from tsl_jax.training.optimizer import run_optimizer
from tsl_jax.training.step import initial_state
from tsl_jax.training.timeline import resolve_timeline


def export_model(
    params: Params, config: ModelConfig, out: str | Path, *, tokenizer: Path | None = None, end_of_text: str = ""
) -> Path:
    """Write parameters as a checkpoint of transformers; the folder `out`.

    Args:
        params: as `models.build` makes them. config: of the model, every size given.
        out: a new folder. tokenizer: a tokenizer.json that goes with it; end_of_text: its token between documents.

    Raises:
        ValueError: where transformers has no such architecture. FileExistsError: if `out` is there. OSError: if it
            cannot be written; nothing is left behind then.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"pretrained: {out} is there; name a new folder")
    kind, values = description.describe(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out.parent))
    try:
        weights.write_params(temporary, params, ARCHITECTURES[kind], config)
        if tokenizer is not None:
            shutil.copyfile(tokenizer, temporary / checkpoint_files.TOKENIZER)
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end_of_text, "add_bos_token": False}
            settings["model_max_length"] = config.context
            (temporary / checkpoint_files.TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=1), "utf-8")
        (temporary / checkpoint_files.CONFIG).write_text(json.dumps(values, indent=1), "utf-8")
        temporary.chmod(0o755)  # a temporary folder is for its owner alone
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def export_run(run: Path, out: Path, step: int | None = None) -> Path:
    """Write a checkpoint that a run has kept; the folder `out`.

    Args:
        run: folder of a run. out: a new folder. step: of the checkpoint; None: the newest.

    Raises:
        FileNotFoundError: no run there. ValueError: no such checkpoint, or see `export_model`.
    """
    config, record = run_dir.read_config(run), run_dir.read_record(run)
    model = resolve(from_dict(ModelConfig, record["model"]))
    description.describe(model)  # before any work
    model_hash = provenance.model_hash(record["model"])
    checkpoints = Checkpoints(run / run_dir.CHECKPOINTS, keep=config.keep, model_hash=model_hash)
    try:
        steps = checkpoints.steps()
        if not steps:
            raise ValueError(f"training: {run} has no checkpoint yet; wait for its first evaluation")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise ValueError(
                f"training: {run} keeps the steps {', '.join(map(str, steps))}, not {step}; name one of them"
            )
        _, params = build(model, config.seed)
        like = initial_state(params, run_optimizer(config.optimizer, resolve_timeline(config)))
        params = checkpoints.read(step, like).params
    finally:
        checkpoints.close()
    file = run / run_dir.TOKENIZER
    end_of_text = config.data.end_of_text
    return export_model(params, model, out, tokenizer=file if file.exists() else None, end_of_text=end_of_text)
