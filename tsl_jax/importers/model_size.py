"""How many parameters the model of a log has, where the log states it, and what its count counts.

Scaling laws read parameters without embeddings (Kaplan et al., arXiv 2001.08361, section 2.1), and few logs state that
number. What a log states is taken, and what it counts is said; a number that the user gives wins.

Sources: get_num_params of nanoGPT, report_theoretical_memory and setup_model of Megatron-LM, OLMo's and OLMo-core's
train scripts, nanotron's and torchtitan's trainers, litgpt's pretrain, nanochat's base_train.py, MaxText's logs,
transformers' Trainer (total_flos = 6 N D of its floating_point_ops, embeddings left out) and its callback for W&B.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tsl_jax.importers.log_rows import LogRows, number_of

WITHOUT, WITH = "n_params", "n_params_with_embeddings"  # names of facts of a log: without embeddings, and with them
COUNTS_EMBEDDINGS = "with embeddings"  # the attribute n_params_is of a surface whose number counts them

_NUMBER = rb"([\d,]+(?:\.\d+)? ?[KMBG]?)\b"
# As the facts of a LineFormat; of several patterns of one the first that is there.
STATED: tuple[tuple[str, bytes, bytes], ...] = (
    (WITHOUT, b"n-embedding param", rb"[Nn]on-embedding parameters: *" + _NUMBER),
    (
        "billions_without",
        b"in billions",
        rb"Number of parameters in transformer (?:layers|block) in billions: *([\d.]+)",
    ),
    ("billions_with", b"in billions", rb"Total number of parameters in billions: *([\d.]+)"),
    ("billions_with", b" billion", rb"[Nn]umber (?:of )?(?:model )?param(?:eter)?s: *([\d.]+) billion"),
    (WITH, b"arameters: ", rb"\b[Tt]otal (?:number of )?[Pp]arameters: *" + _NUMBER),
    (WITH, b"umber of parameters: ", rb"(?m)^[Nn]umber of parameters: *" + _NUMBER),
    (WITH, b"total parameters", rb"size: ([\d,]+) total parameters"),
    (WITH, b"trainable parameters", rb"Number of trainable parameters = ([\d,]+)"),
    (
        "rank_parameters",
        b"model parallel rank (0, 0)",
        rb"number of parameters on \(tensor, pipeline\) model parallel rank \(0, 0\): *(\d+)",
    ),
    ("tensor_parallel", b"tensor_model_parallel_size", rb"tensor_model_parallel_size \.+ (\d+)"),
    ("pipeline_parallel", b"pipeline_model_parallel_size", rb"pipeline_model_parallel_size \.+ (\d+)"),
)
_CONFIG_WITHOUT = {"n_params", "non_embedding_params", "num_params_non_embedding", "n_params_non_embedding"}
_CONFIG_WITH = {"num_params", "num_parameters", "n_parameters", "total_params", "model/num_parameters", "params"}


def of_column(values: np.ndarray) -> dict[str, int]:
    """The attribute n_params of a run whose rows hold one number of parameters (row,); empty of several or none."""
    known = values[np.isfinite(values)]
    return {"n_params": int(known[0])} if len(known) and (known == known[0]).all() else {}


def of_config(config: Mapping[str, Any]) -> dict[str, float]:
    """The facts in the configuration of a tracker's run; its keys are compared in lower case."""
    facts: dict[str, float] = {}
    for name, entry in config.items():
        value = number_of(entry.get("value", entry) if isinstance(entry, Mapping) else entry)
        fact = WITHOUT if name.lower() in _CONFIG_WITHOUT else WITH if name.lower() in _CONFIG_WITH else ""
        if fact and value is not None and 1 <= value < 1e15:
            facts.setdefault(fact, value)
    return facts


def of_flops(total_flops: float | None, tokens: float | None) -> dict[str, float]:
    """The fact in a Trainer's state: total_flos / (6 D), exact where both count the same tokens."""
    if total_flops is None or tokens is None or not total_flops > 0 or not tokens > 0:
        return {}
    return {WITHOUT: round(total_flops / (6 * tokens))}


def size_of(log: LogRows, given: float | None) -> dict[str, Any]:
    """The attributes n_params and n_params_is of the runs of a log; empty where nothing says how many there are.

    Args:
        given: without embeddings, by the user.
    """
    if given is not None:
        return {"n_params": int(given)}
    known = log.known
    billions = {WITHOUT: known.get("billions_without"), WITH: known.get("billions_with")}
    stated = {fact: known.get(fact) or (value and value * 1e9) for fact, value in billions.items()}
    if stated[WITH] is None and known.get("tensor_parallel") == known.get("pipeline_parallel") == 1:
        stated[WITH] = known.get("rank_parameters")  # with more ranks it is a part of the model
    without, everything = stated[WITHOUT], stated[WITH]
    if without:
        found = f"the log says that the model has {without:,.0f} parameters without embeddings"
        log.note("n_params", found, 0, warning=False)
        return {"n_params": int(without)}
    if not everything:
        return {}
    which = "embeddings of tokens" if log.format.startswith("nanoGPT") else "embeddings"
    found = f"the log says that the model has {everything:,.0f} parameters, {which} counted"
    log.note("n_params", f"{found}; scaling laws read them without, --n-params N gives that number", 0, warning=False)
    return {"n_params": int(everything), "n_params_is": COUNTS_EMBEDDINGS}


def as_number(text: str | float | None) -> float | None:
    """The number of parameters that `124e6`, `124M` or 124_000_000 says; None for the name of a column.

    Raises:
        ValueError: for a number that is no count.
    """
    value = number_of(text.replace("_", "") if isinstance(text, str) and re.fullmatch(r"[\d_]+", text) else text)
    if value is None or value != value:
        return None
    if not 1 <= value < 1e15:
        raise ValueError(f"import: n_params must be a number of parameters from 1, or a column, found {text!r}")
    return value
