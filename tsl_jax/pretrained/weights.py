"""Parameters from the tensors of a checkpoint, and back: every tensor is used, and every parameter is given.

Names are compared before anything is read. Arrays are float32 on the host, filled layer by layer, so that memory holds
the model once and one layer more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tsl_jax.models.build import Params, abstract
from tsl_jax.models.config import ModelConfig
from tsl_jax.pretrained import checkpoint_files
from tsl_jax.pretrained.architectures import BUFFERS, PretrainedArchitecture

SHARD_BYTES = 5 << 30  # of a file that is written, at most
NAMED = 6  # names that an error lists


def read_params(folder: Path, row: PretrainedArchitecture, config: ModelConfig) -> Params:
    """The parameters of a checkpoint as numpy arrays, in the tree that `models.build` makes.

    Args:
        folder: with the weights. row: its architecture. config: its model, from `description.model_config`.

    Raises:
        ValueError: naming tensors that are missing, not known, or of another shape.
    """
    _, shapes = abstract(config)
    with checkpoint_files.opened(folder) as files:
        there = files.shapes()
        # a checkpoint of the body alone has no prefix
        prefix = row.prefix if any(name.startswith(row.prefix) for name in there) else ""
        named = {path: list(_names(path, row, config, prefix)) for path, _ in _leaves(shapes)}
        wanted = {name for groups in named.values() for group in groups for name in group}
        missing = sorted(wanted - set(there))
        if missing:
            raise ValueError(f"pretrained: {folder} lacks {_some(missing)} of a {row.class_name}; is it whole?")
        extra = sorted(name for name in set(there) - wanted if not name.endswith(BUFFERS))
        if extra == [row.head] and config.tied:
            embedding = files.read(named["embedding"][0][0])
            if not np.array_equal(files.read(row.head), embedding):
                tied = "tie_word_embeddings says that it is the embedding"
                raise ValueError(f"pretrained: {row.head} of {folder} differs from the embedding, while {tied}")
            extra = []
        if extra:
            raise ValueError(f"pretrained: {folder} has tensors that a {row.class_name} does not know: {_some(extra)}")

        def fill(path: str, leaf: Any) -> np.ndarray:
            out, stacked = np.empty(leaf.shape, np.float32), path.startswith("blocks.")
            for layer, names in enumerate(named[path]):
                array = row.layout(path).read([files.read(name) for name in names], config)
                place = out[layer] if stacked else out
                if array.shape != place.shape:
                    problem = f"{', '.join(names[:3])} make {array.shape}, while config.json asks for {place.shape}"
                    raise ValueError(f"pretrained: {folder}: {problem}")
                place[...] = array
            return out

        return jax.tree.unflatten(jax.tree.structure(shapes), [fill(path, leaf) for path, leaf in _leaves(shapes)])


def write_params(folder: Path, params: Params, row: PretrainedArchitecture, config: ModelConfig) -> None:
    """The tensors of a model as safetensors that transformers reads: one file, or several with their index.

    Raises:
        OSError: where they cannot be written.
    """
    from safetensors.numpy import save_file

    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for path, leaf in _leaves(params):
        whole = np.asarray(leaf, np.float32)
        for layer, names in enumerate(_names(path, row, config, row.prefix)):
            array = whole[layer] if path.startswith("blocks.") else whole
            for name, tensor in zip(names, row.layout(path).write(array, config), strict=True):
                if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
                    shards.append({})
                    size = 0
                shards[-1][name] = np.ascontiguousarray(tensor)
                size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / checkpoint_files.WEIGHTS, metadata={"format": "pt"})
        return
    files = {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, start=1)}
    for file, shard in files.items():
        save_file(shard, folder / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {name: file for file, shard in files.items() for name in shard}
    values = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / checkpoint_files.INDEX).write_text(json.dumps(values, indent=1), "utf-8")


def _names(path: str, row: PretrainedArchitecture, config: ModelConfig, prefix: str) -> Iterator[list[str]]:
    """Their names for a leaf: a list for each layer, or one where it is outside the layers."""
    if path == "unembedding":
        yield [row.head]
        return
    rule = row.tensors[path]
    experts = range(config.n_experts) if any("{expert}" in name for name in rule.names) else range(1)
    for layer in range(config.n_layers if path.startswith("blocks.") else 1):
        yield [prefix + name.format(layer=layer, expert=expert) for expert in experts for name in rule.names]


def _leaves(tree: Params) -> list[tuple[str, Any]]:
    """Path and value of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(".".join(str(key.key) for key in path), leaf) for path, leaf in leaves]


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
