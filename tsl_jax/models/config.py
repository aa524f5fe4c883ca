"""The configuration of a model: its architecture, shape and dtypes. Standard library only.

A size that is 0 is filled in by `resolve`: from the preset (`presets`), from the run, or by the rule beside it. Sizes
that an architecture does not have stay 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tsl_jax.models.presets import shape


@dataclass(frozen=True)
class ModelConfig:
    """A model. Zeros are filled in by `resolve`, from the preset or from the run."""

    preset: str = "demo"  # a name in PRESETS, or kaplan-LxD; see `tsl models`; "": every size is given below
    architecture: str = ""  # llama, gpt_neox, moe, lstm or universal; "": that of the preset, which is llama for most
    vocabulary: int = 0  # 0: that of the corpus
    context: int = 0  # longest context the model accepts; 0: that of the training
    d_model: int = 0  # 0, here and below: that of the preset
    n_layers: int = 0
    n_heads: int = 0
    n_kv_heads: int = 0  # fewer than n_heads: grouped-query attention; 0: n_heads
    d_ff: int = 0  # 0: 8/3 d_model (moe: over experts_per_token), rounded up to a multiple of 8; gpt_neox: 4 d_model
    n_experts: int = 0  # moe only; 0: 8
    experts_per_token: int = 0  # moe only; 0: 2
    balance: float = 0.01  # moe: weight in the objective of the loss that keeps experts equally busy
    rotary_share: float = 0.25  # gpt_neox: share of each head that carries the position
    d_head: int = 0  # width of a head; 0: d_model / n_heads
    qk_norm: str = "none"  # llama, moe: RMS norm of queries and keys: by "head" (Qwen3), or all heads at once, "all"
    attention_bias: str = "none"  # llama, moe: biases of "qkv" (Qwen2), or of "all" four projections
    norm_after: bool = False  # llama: norms at the end of the branches, not at their beginning (OLMo 2)
    gelu: str = "tanh"  # gpt_neox: its tanh form, or "exact": x Phi(x) (Pythia)
    parallel: bool = True  # gpt_neox: both branches start from the same x; False: one after the other (GPT-2)
    positions: str = "rotary"  # gpt_neox: or "learned", a vector a position that is added to the embedding (GPT-2)
    rope_scaling: tuple[float, ...] = ()  # see `layers.rotary_table`: a factor, or LLaMA 3's four numbers
    tied: bool = True  # the unembedding is the embedding; --model.no-tied, and tsl- presets, give it its own parameters
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    dropout: float = 0.0  # share of embeddings and of branch outputs set to zero, in training only
    dtype: str = "float32"  # of activations: float32 or bfloat16; parameters stay float32
    layers: str = "auto"  # "unroll", "scan", or by platform: unrolled on CPU, scanned elsewhere
    attention: str = "auto"  # "chunks", "fused", a kernel by name ("cudnn", "splash"), or by platform: chunks on CPU
    remat: str = "auto"  # kept for the backward pass: all ("none"), products ("dots"), each layer's input ("full")
    experts: str = "auto"  # "dense" (all experts see all tokens), "ragged" (sorted), or by platform: dense on CPU


_ALWAYS = ("vocabulary", "context", "d_model", "n_layers")
_ATTENTION = (*_ALWAYS, "n_heads", "n_kv_heads", "d_ff")
SIZES = {
    "llama": _ATTENTION,
    "gpt_neox": _ATTENTION,
    "moe": (*_ATTENTION, "n_experts", "experts_per_token"),
    "lstm": _ALWAYS,
    "universal": _ATTENTION,
}
_ALL_SIZES = SIZES["moe"]

# Beyond these no machine goes.
LARGEST = dict.fromkeys(_ALL_SIZES, 1 << 24) | {"n_layers": 10_000, "n_experts": 1 << 16, "experts_per_token": 1 << 16}
# Options by architecture that came after the first runs (see `without_default_variants`).
_ROTARY = ("d_head", "rope_scaling")
_LLAMA = (*_ROTARY, "qk_norm", "attention_bias")
VARIANTS = {
    "llama": (*_LLAMA, "norm_after"),
    "gpt_neox": (*_ROTARY, "gelu", "parallel", "positions"),
    "moe": _LLAMA,
    "lstm": (),
    "universal": (*_LLAMA, "norm_after"),
}
_ALL_VARIANTS = (*VARIANTS["llama"], *VARIANTS["gpt_neox"])

_CHOICES = {
    "qk_norm": ("none", "head", "all"),
    "attention_bias": ("none", "qkv", "all"),
    "gelu": ("tanh", "exact"),
    "positions": ("rotary", "learned"),
    "dtype": ("float32", "bfloat16"),
    "layers": ("auto", "unroll", "scan"),
    "attention": ("auto", "chunks", "fused", "cudnn", "splash"),
    "remat": ("auto", "none", "dots", "full"),
    "experts": ("auto", "dense", "ragged"),
}


def resolve(config: ModelConfig, *, vocabulary: int = 0, context: int = 0) -> ModelConfig:
    """The same model with every number filled in.

    Args:
        config: as the user wrote it.
        vocabulary, context: of the corpus and of the training, taken where the config says 0.

    Raises:
        ValueError: for an unknown preset or architecture, a size that is missing, negative, does not divide or does
            not belong to the architecture, an unknown choice.
    """
    preset = shape(config.preset) if config.preset else {"d_model": 0, "n_layers": 0}
    architecture = config.architecture or preset.get("architecture", "llama")
    if architecture not in SIZES:
        raise ValueError(f"models: architecture must be one of {', '.join(SIZES)}, found {architecture!r}")
    d_model = config.d_model or preset["d_model"]
    n_heads = config.n_heads or preset.get("n_heads", 1)
    n_experts, experts_per_token = config.n_experts or 8, config.experts_per_token or min(2, config.n_experts or 2)
    # The preset's feed-forward width belongs to the preset's d_model and architecture.
    same = d_model == preset["d_model"] and architecture == preset.get("architecture", "llama")
    d_ff = config.d_ff or (preset.get("d_ff", 0) if same else 0)
    filled = {
        "vocabulary": config.vocabulary or vocabulary,
        "context": config.context or context,
        "d_model": d_model,
        "n_layers": config.n_layers or preset["n_layers"],
        "n_heads": n_heads,
        "n_kv_heads": config.n_kv_heads or n_heads,
        "d_ff": d_ff or _feed_forward(architecture, d_model, experts_per_token),
        "n_experts": n_experts,
        "experts_per_token": experts_per_token,
    }
    sizes = {name: filled[name] for name in SIZES[architecture]}
    tied = config.tied and preset.get("tied", True)
    return _validate(replace(config, architecture=architecture, tied=tied, **sizes))


def _feed_forward(architecture: str, d_model: int, experts_per_token: int) -> int:
    """The width at which the feed-forward matrices that a token meets hold 8 d_model^2 parameters."""
    if architecture == "gpt_neox":
        return 4 * d_model
    share = experts_per_token if architecture == "moe" else 1
    return -(-8 * d_model // (24 * max(share, 1))) * 8


def _validate(config: ModelConfig) -> ModelConfig:
    """The config itself, where its numbers make a model."""
    sizes = SIZES[config.architecture]
    for name in _ALL_SIZES:
        value = getattr(config, name)
        if name in sizes and value < 1:
            raise ValueError(f"models: {name} must be at least 1, found {value}; give it in the model's config")
        if value > LARGEST[name]:
            raise ValueError(f"models: {name} must be at most {LARGEST[name]:,}, found {value:,}; lower it")
        if name not in sizes and value:
            raise ValueError(f"models: {config.architecture} has no {name}, found {value}; leave it out")
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"models: {name} must be one of {choices}, found {getattr(config, name)!r}")
    for name, most in (("dropout", 0.99), ("rotary_share", 1.0)):
        if not 0 <= getattr(config, name) <= most:
            raise ValueError(f"models: {name} is a share from 0 to {most}, found {getattr(config, name)}")
    _validate_variants(config)
    if not 0 <= config.balance < float("inf"):
        raise ValueError(f"models: balance must not be negative, nor infinite, found {config.balance}")
    if not 1 < config.rope_base < float("inf"):
        raise ValueError(f"models: rope_base must be above 1 and finite, found {config.rope_base}")
    if not 0 < config.norm_eps < 1:
        raise ValueError(f"models: norm_eps must be above 0 and below 1, found {config.norm_eps}")
    if "n_heads" in sizes and not config.d_head and config.d_model % (2 * config.n_heads):
        found = f"d_model {config.d_model} and n_heads {config.n_heads}"
        raise ValueError(f"models: rotary heads need d_model / n_heads even, found {found}; change one of them")
    if "n_heads" in sizes and config.n_heads % config.n_kv_heads:
        found = f"{config.n_heads} and {config.n_kv_heads}"
        raise ValueError(f"models: n_kv_heads must divide n_heads, found {found}; change one of them")
    chosen, n = config.experts_per_token, config.n_experts  # both 0 where there are no experts
    if chosen > n:
        raise ValueError(f"models: experts_per_token must be at most n_experts, found {chosen} of {n}; lower it")
    if chosen == 1 and n > 1:
        # The softmax over one expert is 1 whatever its score, so that the router would get no gradient.
        found = f"found experts_per_token 1 of {n}, whose share is always 1; give 2"
        raise ValueError(f"models: the router learns by how a token's experts share, {found}")
    return config


def _validate_variants(config: ModelConfig) -> None:
    """Nothing, where the options of VARIANTS belong to the architecture and are in range."""
    for name in _ALL_VARIANTS:
        value = getattr(config, name)
        if value != getattr(ModelConfig, name) and name not in VARIANTS[config.architecture]:
            have = ", ".join(which for which, names in VARIANTS.items() if name in names)
            problem = f"{config.architecture} has no option {name}, found {value!r}"
            raise ValueError(f"models: {problem}; leave it out, or take {have}")
    if config.d_head < 0 or config.d_head % 2:
        raise ValueError(f"models: rotary heads need d_head even, found {config.d_head}; change it")
    scaling = config.rope_scaling
    if len(scaling) not in (0, 1, 4) or min(scaling, default=1) <= 0:
        expected = "no number, a factor, or factor, low and high frequency factor and original context, all positive"
        raise ValueError(f"models: rope_scaling must be {expected}, found {scaling}")
    if len(scaling) == 4 and scaling[1] >= scaling[2]:
        problem = f"the low frequency factor {scaling[1]:g} is not below the high one, {scaling[2]:g}"
        raise ValueError(f"models: rope_scaling: {problem}; exchange them")


def without_default_variants(values: dict[str, Any]) -> dict[str, Any]:
    """The JSON values of a model without those options of VARIANTS that are at their default.

    What names a model or a run is made of these, so that runs from before there were such options keep their names.
    """
    default = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(ModelConfig()).items()}
    return {name: value for name, value in values.items() if name not in _ALL_VARIANTS or value != default[name]}


def head_dim(config: ModelConfig) -> int:
    """Width of one attention head."""
    return config.d_head or config.d_model // config.n_heads


def rotary_dim(config: ModelConfig) -> int:
    """How much of a head carries the position: all of it, or `rotary_share` in GPT-NeoX; even, and at least 2."""
    h = head_dim(config)
    return max(2, 2 * round(config.rotary_share * h / 2)) if config.architecture == "gpt_neox" else h
