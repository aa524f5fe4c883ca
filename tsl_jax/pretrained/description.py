"""From config.json to a model of ours, and back.

Entries that change the function and are not implemented are refused by name. Entries that are not known here, and on,
are refused too: a later version of transformers may have given them a meaning. Whoever knows better names them.

A sliding window of W tokens changes nothing up to a context of W, so the model's longest context is cut to it.
"""

from __future__ import annotations

import re
from typing import Any

from tsl_jax.models.config import ModelConfig, head_dim, resolve, rotary_dim
from tsl_jax.pretrained.architectures import ARCHITECTURES, PretrainedArchitecture

# Entries without a part in the logits of given weights: names, tokens, training, generation, caches.
NO_PART = re.compile(
    r"_.*|architectures|model_type|transformers_version|(torch_)?dtype|.*_token_id|.*_token_ids|initializer_.*|.*dropout.*"
    r"|.*_pdrop|use_cache|use_return_dict|return_dict.*|output_.*|torchscript|pretraining_tp|router_aux_loss_coef"
    r"|router_jitter_noise|summary_.*|n_ctx|task_specific_params|id2label|label2id|num_labels|problem_type|is_decoder"
    r"|reorder_and_upcast_attn|chunk_size_feed_forward|gradient_checkpointing|use_bfloat16|finetuning_task|name_or_path"
    r"|max_length|min_length|do_sample|early_stopping|num_beams.*|temperature|top_k|top_p|typical_p|repetition_penalty"
    r"|length_penalty|.*no_repeat_ngram_size|bad_words_ids|num_return_sequences|diversity_penalty|remove_invalid_values"
    r"|exponential_decay_length_penalty|suppress_tokens|begin_suppress_tokens|forced_.*|tokenizer_class|prefix|pad_.*"
)
ROTARY = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
_KIND = ("rope_type", "type")
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def architecture_of(values: dict[str, Any]) -> PretrainedArchitecture:
    """The row of a config.json.

    Raises:
        ValueError: for a `model_type` that is not known, or code of its own.
    """
    kind = values.get("model_type")
    callable_instead = "for others give tsl.evaluate a function from tokens to logits"
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"pretrained: model_type must be one of {known}, found {kind!r}; {callable_instead}")
    if values.get("auto_map"):
        raise ValueError(f"pretrained: the checkpoint brings code of its own, which is not run; {callable_instead}")
    if values.get("quantization_config"):
        raise ValueError("pretrained: quantised weights are not read; give the checkpoint they were made from")
    return ARCHITECTURES[kind]


def model_config(values: dict[str, Any], ignore: tuple[str, ...] = (), dtype: str = "float32") -> ModelConfig:
    """The model that a config.json describes, resolved.

    Args:
        values: of the file. ignore: entries of it that are known not to change the function. dtype: of activations.

    Raises:
        ValueError: for an architecture, or an entry of it, that is not implemented, and for sizes that make no model.
    """
    row = architecture_of(values)
    entries = {**row.defaults, **{name: value for name, value in values.items() if value is not None}}
    options: dict[str, Any] = {"preset": "", "architecture": row.architecture, "dtype": dtype, **row.options}
    for name, choices in row.choices.items():
        value = entries.get(name, next(iter(choices)))
        means = next((means for choice, means in choices.items() if choice == value), None)
        if means is None:
            allowed = " or ".join(map(repr, choices))
            raise ValueError(f"pretrained: {name} {value!r} of config.json is not implemented; it may be {allowed}")
        options |= means
    for ours, theirs in row.sizes.items():
        if theirs in entries:
            options[ours] = entries[theirs]
    options |= _rotary(entries, row)
    known = {*row.sizes.values(), *row.choices, *row.extra, *ROTARY, "auto_map", "quantization_config", *ignore}
    unknown = sorted(n for n, value in values.items() if value and n not in known and not NO_PART.fullmatch(n))
    if unknown:
        remedy = "if it changes no logits give --ignore with its name"
        raise ValueError(
            f"pretrained: entry {unknown[0]} ({values[unknown[0]]!r}) of config.json is not known; {remedy}"
        )
    window = _sliding_window(entries, row)
    if window:
        options["context"] = min(options["context"], window)
    try:
        if options.get("d_head", 0) * options["n_heads"] == options["d_model"]:
            options["d_head"] = 0
        config = resolve(ModelConfig(**options))
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"pretrained: config.json lacks a size, or one is no number ({error}); download it again"
        ) from None
    _check_rotary_share(config, entries)
    return config


def describe(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """`model_type` and config.json of a resolved model of ours.

    Raises:
        ValueError: where transformers has no such architecture.
    """
    for kind, row in ARCHITECTURES.items():
        values = {theirs: getattr(config, ours) for ours, theirs in row.sizes.items()}
        if "d_head" in row.sizes and config.n_heads:
            values[row.sizes["d_head"]] = head_dim(config)
        if "sliding_window" in row.extra:
            values["sliding_window"] = None
        for name, choices in row.choices.items():  # of the values that mean options of this model the first
            fits = {v: m for v, m in choices.items() if all(getattr(config, n) == x for n, x in m.items())}
            values[name] = max(fits, key=lambda value, fits=fits: len(fits[value]), default=None)
        values |= {"model_type": kind, "architectures": [row.class_name], "torch_dtype": "float32"}
        if config.n_heads and config.positions == "rotary":
            values |= _rope_values(config)
        try:
            same = model_config(values, dtype=config.dtype)
        except ValueError:
            continue
        if _function(same) == _function(config):
            return kind, values
    options = "an LSTM, a Universal Transformer, fewer key/value heads in gpt_neox and some mixed options are its own"
    raise ValueError(f"pretrained: transformers has no architecture like this {config.architecture} model; {options}")


def _function(config: ModelConfig) -> dict[str, Any]:
    """What of a model decides about its logits."""
    other = ("preset", "balance", "dropout", "dtype", "layers", "attention", "remat", "experts", "rotary_share")
    values = {name: value for name, value in vars(config).items() if name not in other}
    rotary = config.n_heads > 0 and config.positions == "rotary"
    turned = (rotary_dim(config), config.rope_base) if rotary else (0, 0)
    return values | {"d_head": head_dim(config) if config.n_heads else 0, "rotary": turned, "rope_base": 0}


def _rotary(entries: dict[str, Any], row: PretrainedArchitecture) -> dict[str, Any]:
    """Base, share and scaling of the rotation, in either spelling: `rope_parameters`, or entries beside each other."""
    if "rope_theta" not in row.defaults:
        return {}
    spellings = [entries[name] for name in ("rope_scaling", "rope_parameters") if entries.get(name)]
    kinds = {spelling.get("rope_type", spelling.get("type", "default")) for spelling in spellings} or {"default"}
    scaling = {name: value for spelling in spellings for name, value in spelling.items() if name not in _KIND}
    base = scaling.pop("rope_theta", entries.get("rotary_emb_base", entries["rope_theta"]))
    share = scaling.pop("partial_rotary_factor", entries.get("rotary_pct", entries.get("partial_rotary_factor", 1.0)))
    result: dict[str, Any] = {"rope_base": float(base)}
    if row.architecture == "gpt_neox":
        result["rotary_share"] = float(share)
    elif share != 1.0:
        raise ValueError(f"pretrained: partial_rotary_factor {share} is not implemented for {row.class_name}")
    if kinds == {"linear"} and set(scaling) == {"factor"}:
        return result | {"rope_scaling": (float(scaling["factor"]),)}
    if kinds == {"llama3"} and set(scaling) == set(LLAMA3):
        return result | {"rope_scaling": tuple(float(scaling[name]) for name in LLAMA3)}
    if kinds == {"default"}:
        return result
    found = f"{' '.join(sorted(map(str, kinds)))} with {', '.join(scaling) or 'nothing'}"
    raise ValueError(f"pretrained: rope_scaling may be linear (factor) or llama3 ({', '.join(LLAMA3)}), found {found}")


def _rope_values(config: ModelConfig) -> dict[str, Any]:
    """The entries of config.json for the rotation, in the spelling that all versions read."""
    values: dict[str, Any] = {"rope_theta": config.rope_base}
    if config.architecture == "gpt_neox":
        values |= {"rotary_emb_base": config.rope_base, "rotary_pct": rotary_dim(config) / head_dim(config)}
    if len(config.rope_scaling) == 1:
        values["rope_scaling"] = {"rope_type": "linear", "factor": config.rope_scaling[0]}
    elif config.rope_scaling:
        scaling = dict(zip(LLAMA3, config.rope_scaling, strict=True))
        original = {LLAMA3[3]: int(scaling[LLAMA3[3]])}
        values["rope_scaling"] = {"rope_type": "llama3", **scaling, **original}
    return values


def _sliding_window(entries: dict[str, Any], row: PretrainedArchitecture) -> int:
    """Tokens that a layer sees at most; 0: all."""
    kinds = entries.get("layer_types", [])
    slides = entries.get("use_sliding_window", "use_sliding_window" not in row.extra)
    if "sliding_window" not in row.extra or not slides or (kinds and set(kinds) == {"full_attention"}):
        return 0
    return int(entries.get("sliding_window", 0))


def _check_rotary_share(config: ModelConfig, entries: dict[str, Any]) -> None:
    """Nothing, where our rotation turns as many dimensions as theirs, int(width of a head x share)."""
    if config.architecture != "gpt_neox" or config.positions != "rotary":
        return
    theirs = int(head_dim(config) * config.rotary_share)
    if theirs != rotary_dim(config):
        found = f"{config.rotary_share:g} of {head_dim(config)} is {theirs}"
        raise ValueError(f"pretrained: the rotary share of each head must be an even number of dimensions, {found}")
