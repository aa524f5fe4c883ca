"""Architectures of transformers as data: how an entry of config.json and a tensor become ours, and back.

A row of `ARCHITECTURES` says what of our models serves a `model_type`, which of our options are on, the names of sizes,
and the values that other entries may have. An entry that would change the function and is not implemented is refused.
Tensors are named by the path of our leaf; {layer} and {expert} count from 0. Layouts:

    linear     (out, in) -> (in, out)                 torch's Linear; GPT-2's Conv1D is (in, out) already
    joined     several of these, side by side along our last axis: queries, keys, values; gate and up
    neox_qkv   rows (head, q|k|v, width of a head) -> q, k, v of all heads, side by side
    experts    joined, stacked over experts

Checked against transformers 5.24 (float32, logits within 1e-4, losses within 1e-5), see tests/test_pretrained.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tsl_jax.models.config import ModelConfig, head_dim

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class TensorLayout:
    """From the tensors of one layer to our array, and back."""

    read: Callable[[Arrays, ModelConfig], np.ndarray]
    write: Callable[[np.ndarray, ModelConfig], Arrays]


@dataclass(frozen=True)
class TensorRule:
    """Their names for one leaf of ours, and the layout; names may have {layer} and {expert}."""

    names: tuple[str, ...]
    layout: TensorLayout


@dataclass(frozen=True)
class PretrainedArchitecture:
    """What of our models serves a `model_type`.

    Attributes:
        class_name: of transformers, for config.json.
        architecture: ours; options: entries of `ModelConfig` that are always so.
        sizes: our entry -> their key. defaults: what transformers takes where a key is missing.
        choices: their key -> the values that it may have, each with the options of ours that it means.
        prefix: of the tensors of the body, which some checkpoints leave out.
        tensors: path of our leaf -> rule, the names without prefix.
        head: their name of the unembedding.
    """

    class_name: str
    architecture: str
    options: dict[str, Any]
    sizes: dict[str, str]
    defaults: dict[str, Any]
    choices: dict[str, dict[Any, dict[str, Any]]]
    prefix: str
    tensors: dict[str, TensorRule]
    head: str = "lm_head.weight"
    extra: tuple[str, ...] = ()  # further keys that are read

    def layout(self, path: str) -> TensorLayout:
        """Of a leaf of ours."""
        return SAME if path == "unembedding" else self.tensors[path].layout


def _split_joined(sizes: Callable[[ModelConfig], list[int]]) -> Callable[[np.ndarray, ModelConfig], Arrays]:
    return lambda w, config: [part.T for part in np.split(w, np.cumsum(sizes(config))[:-1], axis=-1)]


def _qkv_sizes(config: ModelConfig) -> list[int]:
    h = head_dim(config)
    return [config.n_heads * h, config.n_kv_heads * h, config.n_kv_heads * h]


def _read_neox(parts: Arrays, config: ModelConfig) -> np.ndarray:
    H, h = config.n_heads, head_dim(config)
    by_head = parts[0].reshape(H, 3, h, *parts[0].shape[1:])
    return np.moveaxis(by_head, 1, 0).reshape(parts[0].shape).T  # rows (q|k|v, head, width); of a bias .T is itself


def _write_neox(w: np.ndarray, config: ModelConfig) -> Arrays:
    H, h = config.n_heads, head_dim(config)
    by_kind = w.T.reshape(3, H, h, *w.T.shape[1:])
    return [np.moveaxis(by_kind, 1, 0).reshape(w.T.shape)]


def _read_experts(parts: Arrays, config: ModelConfig) -> np.ndarray:
    each = len(parts) // config.n_experts
    groups = [parts[i : i + each] for i in range(0, len(parts), each)]
    return np.stack([np.concatenate([part.T for part in group], axis=-1) for group in groups])


def _write_experts(w: np.ndarray, config: ModelConfig, n: int) -> Arrays:
    return [part.T for expert in w for part in np.split(expert, n, axis=-1)]


def _joined(parts: Arrays, config: ModelConfig) -> np.ndarray:
    return np.concatenate([part.T for part in parts], axis=-1)


SAME = TensorLayout(lambda parts, config: parts[0], lambda w, config: [w])
LINEAR = TensorLayout(lambda parts, config: parts[0].T, lambda w, config: [w.T])
QKV = TensorLayout(_joined, _split_joined(_qkv_sizes))
GATE_UP = TensorLayout(_joined, _split_joined(lambda config: [config.d_ff, config.d_ff]))
NEOX_QKV = TensorLayout(_read_neox, _write_neox)
EXPERTS_GATE_UP = TensorLayout(_read_experts, lambda w, config: _write_experts(w, config, 2))
EXPERTS_DOWN = TensorLayout(_read_experts, lambda w, config: _write_experts(w, config, 1))


def _llama_tensors(attention_norm: str, mlp_norm: str, moe: bool = False) -> dict[str, TensorRule]:
    """The names of LLaMA and its relatives."""
    layer, attention = "layers.{layer}.", "layers.{layer}.self_attn."
    expert = "layers.{layer}.block_sparse_moe.experts.{expert}."
    qkv = [attention + f"{kind}_proj" for kind in "qkv"]
    mlp = {
        "blocks.mlp.router": TensorRule((layer + "block_sparse_moe.gate.weight",), LINEAR),
        "blocks.mlp.gate_up": TensorRule((expert + "w1.weight", expert + "w3.weight"), EXPERTS_GATE_UP),
        "blocks.mlp.down": TensorRule((expert + "w2.weight",), EXPERTS_DOWN),
    }
    if not moe:
        mlp = {
            "blocks.mlp.gate_up": TensorRule((layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight"), GATE_UP),
            "blocks.mlp.down": TensorRule((layer + "mlp.down_proj.weight",), LINEAR),
        }
    return {
        "embedding": TensorRule(("embed_tokens.weight",), SAME),
        "final_norm.scale": TensorRule(("norm.weight",), SAME),
        "blocks.attention_norm.scale": TensorRule((layer + attention_norm + ".weight",), SAME),
        "blocks.mlp_norm.scale": TensorRule((layer + mlp_norm + ".weight",), SAME),
        "blocks.attention.qkv": TensorRule(tuple(name + ".weight" for name in qkv), QKV),
        "blocks.attention.qkv_bias": TensorRule(tuple(name + ".bias" for name in qkv), QKV),
        "blocks.attention.out": TensorRule((attention + "o_proj.weight",), LINEAR),
        "blocks.attention.out_bias": TensorRule((attention + "o_proj.bias",), SAME),
        "blocks.attention.q_norm.scale": TensorRule((attention + "q_norm.weight",), SAME),
        "blocks.attention.k_norm.scale": TensorRule((attention + "k_norm.weight",), SAME),
        **mlp,
    }


def _with_biases(names: Mapping[str, tuple[str, str, TensorLayout]]) -> dict[str, TensorRule]:
    """Weight and bias of layers that have both: our weight -> (our bias, their name, layout of the weight)."""
    rules = {}
    for weight, (bias, name, layout) in names.items():
        rules[weight] = TensorRule((name + ".weight",), layout)
        rules[bias] = TensorRule((name + ".bias",), layout if layout is NEOX_QKV else SAME)
    return rules


def _neox_tensors(
    layer: str, names: Mapping[str, str], qkv: TensorLayout, linear: TensorLayout
) -> dict[str, TensorRule]:
    """The names of architectures with LayerNorm and biases everywhere, by ours."""
    rows = {"final_norm.scale": ("final_norm.bias", names["final_norm"], SAME)}
    for ours in ("attention_norm", "mlp_norm"):
        rows[f"blocks.{ours}.scale"] = (f"blocks.{ours}.bias", layer + names[ours], SAME)
    for ours, layout in (("attention.qkv", qkv), ("attention.out", linear), ("mlp.up", linear), ("mlp.down", linear)):
        rows[f"blocks.{ours}"] = (f"blocks.{ours}_bias", layer + names[ours], layout)
    return _with_biases(rows)


_SIZES = {
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_ff": "intermediate_size",
    "d_head": "head_dim",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
_ON: dict[str, Any] = {}
_SILU = {"hidden_act": {"silu": _ON, "swish": _ON}}
_BIAS = {"attention_bias": {False: _ON, True: {"attention_bias": "all"}}}
_TANH, _EXACT = {"gelu": "tanh"}, {"gelu": "exact"}
_GELU = {"gelu": _EXACT, "gelu_python": _EXACT, "gelu_new": _TANH, "gelu_fast": _TANH, "gelu_pytorch_tanh": _TANH}
_LLAMA_DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
_LLAMA_NAMES = _llama_tensors("input_layernorm", "post_attention_layernorm")


def _llama(class_name: str, options: dict[str, Any] | None = None, **changes: Any) -> PretrainedArchitecture:
    """A relative of LLaMA."""
    row: dict[str, Any] = {
        "architecture": "llama",
        "sizes": _SIZES,
        "defaults": _LLAMA_DEFAULTS,
        "choices": _SILU | {"mlp_bias": {False: _ON}},
        "prefix": "model.",
        "tensors": _LLAMA_NAMES,
    }
    return PretrainedArchitecture(class_name=class_name, options=options or {}, **(row | changes))


ARCHITECTURES = {
    "llama": _llama("LlamaForCausalLM", choices=_SILU | _BIAS | {"mlp_bias": {False: _ON}}),
    "mistral": _llama("MistralForCausalLM", extra=("sliding_window",)),
    "qwen2": _llama(
        "Qwen2ForCausalLM",
        {"attention_bias": "qkv"},
        extra=("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    ),
    "qwen3": _llama(
        "Qwen3ForCausalLM",
        {"qk_norm": "head"},
        defaults=_LLAMA_DEFAULTS | {"head_dim": 128},
        choices=_SILU | _BIAS,
        extra=("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    ),
    "olmo2": _llama(
        "Olmo2ForCausalLM",
        {"qk_norm": "all", "norm_after": True},
        defaults=_LLAMA_DEFAULTS | {"rms_norm_eps": 1e-5},
        choices=_SILU | _BIAS,
        tensors=_llama_tensors("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    "mixtral": _llama(
        "MixtralForCausalLM",
        architecture="moe",
        sizes=_SIZES | {"n_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"},
        defaults=_LLAMA_DEFAULTS | {"rms_norm_eps": 1e-5, "rope_theta": 1e6},
        choices=_SILU,
        tensors=_llama_tensors("input_layernorm", "post_attention_layernorm", moe=True),
        extra=("sliding_window",),
    ),
    "gpt_neox": PretrainedArchitecture(
        class_name="GPTNeoXForCausalLM",
        architecture="gpt_neox",
        options={},
        sizes={
            **{ours: theirs for ours, theirs in _SIZES.items() if ours not in ("n_kv_heads", "d_head")},
            "norm_eps": "layer_norm_eps",
        },
        defaults={
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.25,
            "tie_word_embeddings": False,
            "use_parallel_residual": True,
            "attention_bias": True,
        },
        choices={
            "hidden_act": _GELU,
            "use_parallel_residual": {True: {"parallel": True}, False: {"parallel": False}},
            "attention_bias": {True: _ON},
        },
        prefix="gpt_neox.",
        tensors={
            "embedding": TensorRule(("embed_in.weight",), SAME),
            **_neox_tensors(
                "layers.{layer}.",
                {
                    "final_norm": "final_layer_norm",
                    "attention_norm": "input_layernorm",
                    "mlp_norm": "post_attention_layernorm",
                    "attention.qkv": "attention.query_key_value",
                    "attention.out": "attention.dense",
                    "mlp.up": "mlp.dense_h_to_4h",
                    "mlp.down": "mlp.dense_4h_to_h",
                },
                NEOX_QKV,
                LINEAR,
            ),
        },
        head="embed_out.weight",
        extra=("rotary_pct", "rotary_emb_base"),
    ),
    "gpt2": PretrainedArchitecture(
        class_name="GPT2LMHeadModel",
        architecture="gpt_neox",
        options={"parallel": False, "positions": "learned"},
        sizes={
            "vocabulary": "vocab_size",
            "context": "n_positions",
            "d_model": "n_embd",
            "n_layers": "n_layer",
            "n_heads": "n_head",
            "d_ff": "n_inner",
            "norm_eps": "layer_norm_epsilon",
            "tied": "tie_word_embeddings",
        },
        defaults={
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        choices={
            "activation_function": _GELU,
            "scale_attn_weights": {True: _ON},
            "scale_attn_by_inverse_layer_idx": {False: _ON},
            "add_cross_attention": {False: _ON},
        },
        prefix="transformer.",
        tensors={
            "embedding": TensorRule(("wte.weight",), SAME),
            "place": TensorRule(("wpe.weight",), SAME),
            **_neox_tensors(
                "h.{layer}.",
                {
                    "final_norm": "ln_f",
                    "attention_norm": "ln_1",
                    "mlp_norm": "ln_2",
                    "attention.qkv": "attn.c_attn",
                    "attention.out": "attn.c_proj",
                    "mlp.up": "mlp.c_fc",
                    "mlp.down": "mlp.c_proj",
                },
                SAME,
                SAME,
            ),
        },
    ),
}

# Tensors that hold no parameters: masks, and the frequencies of the rotation.
BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
