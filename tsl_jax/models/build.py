"""From a config to a graph definition and a plain tree of parameters, and from these to hidden states.

The model is split once; after that only pytrees are passed on, whose dispatch under `jax.jit` costs a quarter of
`nnx.jit`'s.
Parameters are nested dictionaries; every leaf under "blocks" has the layers as its first axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.decoder import Architecture, Decoder, Hidden, Tokens
from tsl_jax.models.gpt_neox import GPT_NEOX
from tsl_jax.models.llama import LLAMA, UNIVERSAL
from tsl_jax.models.lstm import LSTM
from tsl_jax.models.moe import MOE
from tsl_jax.models.sharding import platform_of, shardings

Params = dict[str, Any]
ARCHITECTURES: dict[str, Architecture] = {
    "llama": LLAMA,
    "gpt_neox": GPT_NEOX,
    "moe": MOE,
    "lstm": LSTM,
    "universal": UNIVERSAL,
}


def build(config: ModelConfig, seed: int, mesh: Mesh | None = None) -> tuple[nnx.GraphDef, Params]:
    """A freshly initialised model, the same for the same seed.

    Args:
        config: vocabulary and context must be known (see `config.resolve`); "auto" is decided by the mesh's platform.
        seed: of the initial parameters.
        mesh: of devices over which the parameters are made and kept, see `sharding`; None: one device.

    Returns:
        (graphdef, params): for `hidden` and `unembedding`.

    Raises:
        ValueError: where the config is not a model (see `config.resolve`).
    """
    platform = platform_of(mesh)
    decoder = _decoder(config, platform)

    def initial(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(decoder(nnx.Rngs(key))))

    # This program runs once: on CPU optimising it takes three times as long as it could save.
    options = {"xla_backend_optimization_level": 1} if platform == "cpu" else None
    graphdef, shapes = _abstract(decoder)
    placed = None if mesh is None else shardings(shapes, mesh)
    return graphdef, jax.jit(initial, compiler_options=options, out_shardings=placed)(jax.random.key(seed))


def abstract(config: ModelConfig, platform: str = "") -> tuple[nnx.GraphDef, Params]:
    """What `build` gives, with shapes and dtypes in place of parameters: nothing is computed.

    Args:
        config: as for `build`. platform: "cpu", "gpu" or "tpu", on which it will run; "" is this machine's.

    Raises:
        ValueError: where the config is not a model (see `config.resolve`).
    """
    return _abstract(_decoder(config, platform or platform_of(None)))


def _decoder(config: ModelConfig, platform: str) -> Callable[[nnx.Rngs], Decoder]:
    """The model for given random numbers, every choice of its config made."""
    config = for_platform(resolve(config), platform)
    return partial(Decoder, config, ARCHITECTURES[config.architecture])


def _abstract(decoder: Callable[[nnx.Rngs], Decoder]) -> tuple[nnx.GraphDef, Params]:
    model = nnx.eval_shape(lambda: decoder(nnx.Rngs(0)))
    return nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model))


def for_platform(config: ModelConfig, platform: str) -> ModelConfig:
    """The config with "auto" decided for a platform: "cpu", "gpu" or "tpu".

    On "cpu" layers are unrolled, attention goes in chunks, experts run dense, and the backward pass makes nothing
    again; elsewhere scan, fused and ragged, and all but products is made again. That takes .4 of the memory (124M
    parameters, 32 x 1,024 tokens on an H100: XLA plans 8.0 GB of temporaries against 20.7), and what is made again is
    elementwise but for the attention kernel, so that fewer bytes are moved. Not in an LSTM, whose positions would wait
    for each other once more. Fused attention is a library's kernel where there is one: cuDNN's on a GPU in bfloat16,
    splash attention on a TPU.
    """
    on_cpu = platform == "cpu"
    layers = ("unroll" if on_cpu else "scan") if config.layers == "auto" else config.layers
    attention = ("chunks" if on_cpu else "fused") if config.attention == "auto" else config.attention
    if attention == "fused":
        flash = {"gpu": "cudnn" if config.dtype == "bfloat16" else "fused", "tpu": "splash"}
        attention = flash.get(platform, "fused")
    experts = ("dense" if on_cpu else "ragged") if config.experts == "auto" else config.experts
    memory = "none" if on_cpu or config.architecture == "lstm" else "dots"
    remat = memory if config.remat == "auto" else config.remat
    return replace(config, layers=layers, attention=attention, experts=experts, remat=remat)


def hidden(graphdef: nnx.GraphDef, params: Params, tokens_BxT: Tokens) -> Hidden:
    """Hidden states (B, T, D) after the final norm, without dropout; position t sees tokens 0..t.

    Raises:
        ValueError: if T is longer than the model's context.
    """
    return hidden_and_auxiliary(graphdef, params, tokens_BxT)[0]


def hidden_and_auxiliary(
    graphdef: nnx.GraphDef, params: Params, tokens_BxT: Tokens, key: jax.Array | None = None
) -> tuple[Hidden, Float[Array, ""] | None]:
    """What training needs: hidden states, and the loss that the architecture adds to the objective, if it has one.

    Args:
        graphdef, params: from `build`. tokens_BxT: token ids.
        key: of dropout; None: no dropout.

    Raises:
        ValueError: if T is longer than the model's context.
    """
    return nnx.merge(graphdef, params)(tokens_BxT, key)


def unembedding(params: Params) -> Float[Array, "vocabulary d_model"]:
    """The matrix (V, D) whose product with a hidden state gives the logits."""
    return params["unembedding"] if "unembedding" in params else params["embedding"]
