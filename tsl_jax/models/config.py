"""Shapes of models, and what they cost: parameters and training FLOPs, embeddings apart. Standard library only.

With d = d_model, h = head dimension, H query heads, K key/value heads, f = d_ff, L layers, V tokens and T positions:

    n_params    = L (d h (H + 2 K) + H h d + 3 d f + 2 d) + d
    embeddings  = V d  (tied)  or  2 V d  (untied)
    FLOPs/token = 6 (L (d h (H + 2 K) + H h d + 3 d f) + V d) + 6 L H h (T + 1)

The last term is causal attention: two products of 2 H h FLOPs per visible key, (T + 1) / 2 keys on average, times three
for forward and backward. Kaplan et al. (arXiv 2001.08361, section 2.1) count 6 N. The sizes named after those of
Temporal Scaling Law (arXiv 2404.17785) have that many parameters without embeddings; their exact shapes are our own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ModelConfig:
    """A LLaMA-style decoder. Zeros are filled in by `resolve`, from the preset or from the run."""

    preset: str = "demo"  # a name in PRESETS
    vocabulary: int = 0  # 0: that of the corpus
    context: int = 0  # longest context the model accepts; 0: that of the training
    d_model: int = 0  # 0, here and below: that of the preset
    n_layers: int = 0
    n_heads: int = 0
    n_kv_heads: int = 0  # fewer than n_heads: grouped-query attention; 0: n_heads
    d_ff: int = 0  # 0: 8/3 d_model, rounded up to a multiple of 8
    tied: bool = True  # the unembedding is the embedding; --model.no-tied gives it parameters of its own
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    dtype: str = "float32"  # of activations: float32 or bfloat16; parameters stay float32
    layers: str = "auto"  # "unroll", "scan", or by platform: unrolled on CPU, scanned elsewhere
    attention: str = "auto"  # "chunks", "fused" (jax.nn.dot_product_attention), or by platform: chunks on CPU
    remat: str = "auto"  # kept for the backward pass: all ("none"), products ("dots"), each layer's input ("full")


PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 32, "n_layers": 2, "n_heads": 2},
    "demo": {"d_model": 96, "n_layers": 2, "n_heads": 6},
    "9.8m": {"d_model": 320, "n_layers": 8, "n_heads": 5},
    "58m": {"d_model": 640, "n_layers": 12, "n_heads": 10},
    "468m": {"d_model": 1280, "n_layers": 24, "n_heads": 20},
    "1.2b": {"d_model": 2048, "n_layers": 24, "n_heads": 16},
    "6.7b": {"d_model": 4096, "n_layers": 32, "n_heads": 32, "d_ff": 11008},
}

_CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "layers": ("auto", "unroll", "scan"),
    "attention": ("auto", "chunks", "fused"),
    "remat": ("auto", "none", "dots", "full"),
}


def resolve(config: ModelConfig, *, vocabulary: int = 0, context: int = 0) -> ModelConfig:
    """The same model with every number filled in.

    Args:
        config: as the user wrote it.
        vocabulary, context: of the corpus and of the training, taken where the config says 0.

    Raises:
        ValueError: for an unknown preset, a size that is missing, negative or does not divide, an unknown choice.
    """
    if config.preset not in PRESETS:
        raise ValueError(f"models: preset {config.preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    preset = PRESETS[config.preset]
    d_model = config.d_model or preset["d_model"]
    n_heads = config.n_heads or preset["n_heads"]
    # The preset's feed-forward width belongs to the preset's d_model.
    d_ff = config.d_ff or (preset.get("d_ff", 0) if d_model == preset["d_model"] else 0)
    return _checked(
        replace(
            config,
            vocabulary=config.vocabulary or vocabulary,
            context=config.context or context,
            d_model=d_model,
            n_layers=config.n_layers or preset["n_layers"],
            n_heads=n_heads,
            n_kv_heads=config.n_kv_heads or n_heads,
            d_ff=d_ff or -(-8 * d_model // 24) * 8,
        )
    )


def _checked(config: ModelConfig) -> ModelConfig:
    for name in ("vocabulary", "context", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff"):
        value = getattr(config, name)
        if value < 1:
            raise ValueError(f"models: {name} must be at least 1, found {value}; give it in the model's config")
    if config.d_model % (2 * config.n_heads):
        found = f"d_model {config.d_model} and n_heads {config.n_heads}"
        raise ValueError(f"models: rotary heads need d_model / n_heads even, found {found}; change one of them")
    if config.n_heads % config.n_kv_heads:
        found = f"{config.n_heads} and {config.n_kv_heads}"
        raise ValueError(f"models: n_kv_heads must divide n_heads, found {found}; change one of them")
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"models: {name} must be one of {choices}, found {getattr(config, name)!r}")
    return config


def head_dim(config: ModelConfig) -> int:
    """Width of one attention head."""
    return config.d_model // config.n_heads


def _n_matrix(config: ModelConfig) -> int:
    """Parameters in the matrices of all layers: those that a token is multiplied with."""
    d, h = config.d_model, head_dim(config)
    attention = d * h * (config.n_heads + 2 * config.n_kv_heads) + config.n_heads * h * d
    return config.n_layers * (attention + 3 * d * config.d_ff)


def n_params(config: ModelConfig) -> int:
    """Parameters without embeddings, norms included (N of the scaling laws)."""
    config = resolve(config, vocabulary=1, context=1)
    return _n_matrix(config) + (2 * config.n_layers + 1) * config.d_model


def n_params_embedding(config: ModelConfig) -> int:
    """Parameters of the embedding, and of the unembedding where it is not tied."""
    config = resolve(config, context=1)
    return (1 if config.tied else 2) * config.vocabulary * config.d_model


def flops_per_token(config: ModelConfig, context: int = 0) -> int:
    """Training FLOPs a token, forward and backward: all matrices, the unembedding and causal attention counted."""
    config = resolve(config)
    attention = 6 * config.n_layers * config.n_heads * head_dim(config) * ((context or config.context) + 1)
    return 6 * (_n_matrix(config) + config.vocabulary * config.d_model) + attention


def flops_per_token_6n(config: ModelConfig) -> int:
    """The estimate 6 N of Kaplan et al., for comparison with published compute."""
    return 6 * n_params(config)
