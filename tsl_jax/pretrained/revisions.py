"""The loss surface of a published model over its revisions: each downloaded, read, measured, and kept.

The model is compiled once; parameters of one revision after the other go through it. While one is measured the next is
downloaded. Each checkpoint is on disk when it is done, so a second call passes over it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import jax
import numpy as np

from tsl_jax import surface
from tsl_jax.data.config import EvalConfig
from tsl_jax.data.windows import DOCUMENT_BOUNDARY, Windows
from tsl_jax.models.build import abstract
from tsl_jax.models.config import ModelConfig
from tsl_jax.models.cost import n_params, n_params_embedding
from tsl_jax.models.sharding import platform_of, shardings
from tsl_jax.pretrained import checkpoint_files, description, evaluation_text, weights
from tsl_jax.pretrained.options import PretrainedOptions, label_revisions
from tsl_jax.training import evaluation, mesh, provenance, run_dir
from tsl_jax.training.checks import check_evaluation_shares
from tsl_jax.training.config import MeshConfig

LONGEST = 2048  # positions of a window, where nothing is said and the model would take more
DOWNLOADS = "downloads"  # folder within that of the surface

Progress = Callable[[str, int, int], None]


def evaluate_revisions(
    name: str,
    out: Path,
    *,
    text: tuple[str, ...],
    options: PretrainedOptions | None = None,
    windows_config: EvalConfig | None = None,
    devices: MeshConfig | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Measure revisions of a model, passing over those that `out` holds already; the folder `out`.

    Args:
        name: folder of a checkpoint, or of folders that are its revisions; or OWNER/NAME on the hub.
        out: folder of the surface. text: as in `DataConfig.text`, each domain a split.
        options: which revisions, and how. windows_config: None: as in training. devices: None: all.

    Raises:
        ValueError: for a model that is not implemented, tensors that are missing or unknown, tokens that are not known,
            text or windows that do not fit. OSError: for what cannot be downloaded, read or written.
    """
    options = options or PretrainedOptions()
    if not text:
        raise ValueError("pretrained: no text to measure on; give --text")
    if options.batch < 1 or options.context < 0:
        found = f"{options.batch} and {options.context}"
        raise ValueError(f"pretrained: batch must be at least 1 and context at least 0, found {found}")
    run_dir.refuse(out)
    layout = devices or MeshConfig()
    data, fsdp, _ = mesh.shape(layout, len(jax.local_devices()))
    check_evaluation_shares(options.batch, data * fsdp)
    names = checkpoint_files.revisions(name, options.revision)
    places = label_revisions(name, names, options.tokens, options.tokens_per_step)

    folder = checkpoint_files.description(name, names[0])
    config = read_model_config(folder, options)
    context = options.context or min(config.context, LONGEST)
    if context > config.context:
        limit = "longest context, or sliding window beyond which attention would differ"
        raise ValueError(f"pretrained: {context} positions, the model's {limit}, is {config.context}; lower --context")
    facts = evaluation_text.tokenizer_facts(folder, options.end_of_text, options.begin)
    corpus = evaluation_text.load_text(text, facts, options.field, progress)
    sets = evaluation_text.windows_of(corpus, context, windows_config, facts.begin)
    highest = max(int(part.tokens.max()) for part in sets.values())
    if highest >= config.vocabulary:
        sizes = f"the text has token {highest}, the model {config.vocabulary} tokens"
        raise ValueError(f"pretrained: {sizes}; is the tokenizer that of the model?")
    _begin_surface(out, name, config, context, sets, corpus.record)

    placed = mesh.make(layout)
    platform = platform_of(placed)
    graphdef, _ = abstract(config, platform)
    forward = evaluation.make_forward(graphdef, platform)
    prepared = {split: evaluation.prepare(part) for split, part in sets.items()}
    pending = [revision for revision in names if places[revision][1] not in surface.checkpoints(out)]
    progress("revisions", len(names) - len(pending), len(names))

    def fetch(revision: str) -> Path:
        keep_in = out / DOWNLOADS / revision if options.discard and not checkpoint_files.is_local(name) else None
        return checkpoint_files.whole(name, revision, keep_in)

    def measure(revision: str, folder: Path) -> dict[str, dict[str, np.ndarray]]:
        """The arrays of every split; nothing else of the checkpoint outlives the call."""
        if read_model_config(folder, options) != config:
            raise ValueError(
                f"pretrained: revision {revision} of {name} is another model than {names[0]}; leave it out"
            )
        row = description.architecture_of(checkpoint_files.read_json(folder / checkpoint_files.CONFIG))
        params = weights.read_params(folder, row, config)
        params = jax.device_put(params, None if placed is None else shardings(params, placed))
        splits = {}
        for split, part in prepared.items():
            # float32 is meant: GPUs would otherwise multiply with 10 bits of mantissa
            precise = "highest" if options.dtype == "float32" else None
            with mesh.traced_on(placed), jax.default_matmul_precision(precise):  # pyright: ignore[reportArgumentType]
                losses = evaluation.window_losses(
                    forward, params, part.tokens, options.batch, lambda n, of, s=split: progress(f"evaluate {s}", n, of)
                )
            if not np.isfinite(losses).all():
                raise ValueError(f"pretrained: revision {revision} of {name} gives losses that are not finite")
            splits[split] = evaluation.reduce(losses, part)
        return splits

    for done, (revision, folder) in enumerate(fetched_ahead(pending, fetch), start=len(names) - len(pending) + 1):
        step, tokens = places[revision]
        surface.append(out, tokens=tokens, step=step, lr=float("nan"), splits=measure(revision, folder))
        note = {"tokens": tokens, "step": step, "commit": commit_of(folder)}
        surface.annotate(out, revisions={revision: note})
        if options.discard and folder.is_relative_to(out):
            shutil.rmtree(folder)
        progress("revisions", done, len(names))
    return out


def fetched_ahead(items: list[str], fetch: Callable[[str], Path]) -> Iterator[tuple[str, Path]]:
    """Each item with what `fetch` gives; the next one is fetched while the consumer works on this one.

    In threads that do not keep the process alive: an interrupt need not wait for a download.
    """
    futures = [Future() for _ in items]

    def run(i: int) -> None:
        try:
            futures[i].set_result(fetch(items[i]))
        except BaseException as error:  # met by the consumer
            futures[i].set_exception(error)

    for i, item in enumerate(items):
        if i == 0:
            run(0)
        result = futures[i].result()
        if i + 1 < len(items):
            Thread(target=run, args=(i + 1,), daemon=True).start()
        yield item, result


def read_model_config(folder: Path, options: PretrainedOptions) -> ModelConfig:
    """The model of a checkpoint; see `description.model_config`."""
    values = checkpoint_files.read_json(folder / checkpoint_files.CONFIG)
    return description.model_config(values, options.ignore, options.dtype)


def _begin_surface(
    out: Path,
    name: str,
    config: ModelConfig,
    context: int,
    sets: Mapping[str, Windows],
    corpus: Mapping[str, Any],
) -> None:
    """Write the header: facts of the model, and the windows it is measured on."""
    environment = provenance.environment()
    attrs = {
        "run": Path(name).expanduser().resolve().name if checkpoint_files.is_local(name) else name,
        "model": asdict(config),
        "n_params": n_params(config),
        "n_params_embedding": n_params_embedding(config),
        "corpus": corpus,
        "windows": {split: part.design for split, part in sets.items()},
        "document_boundary": DOCUMENT_BOUNDARY,
        "versions": environment["versions"],
        "git_commit": environment["git_commit"],
        "revisions": {},
    }
    clusters = {split: part.n_clusters for split, part in sets.items()}
    surface.create(out, clusters=clusters, context=context, attrs=attrs)


def commit_of(folder: Path) -> str | None:
    """The commit that the hub's cache keeps a download under."""
    return folder.name if folder.parent.name == "snapshots" else None
