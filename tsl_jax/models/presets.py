"""Shapes by name. A name is the number of parameters without embeddings, within 2 %; the shapes are our own except:

* "demo" and "tiny" are named for what they are for.
* "6.7b" (LLaMA's smallest, arXiv 2302.13971) and "124m" (layers and width of GPT-2 small) are shapes of others, whose
  names count the embeddings too: of 32,000 tokens, untied, and of 50,257, tied.
* "-moe" counts the parameters that a token meets: 2 experts of 8, each half as wide as the dense model's feed-forward.
* "-universal" counts its one block once, "-lstm" its cells and the projection.
* "kaplan-LxD", for any number of layers L and width D, is Kaplan et al.'s shape (arXiv 2001.08361, section 2.1):
  d_ff = 4 D, so that the matrices hold N = 12 L D^2 parameters, from 768 (kaplan-1x8) to 1.5e9 (kaplan-48x1600). It
  runs as GPT-NeoX, whose matrices have his shapes (its branches are parallel and its positions rotary); as LLaMA, with
  `--model.architecture llama`, three matrices of d_ff = 8/3 D take the place of two of 4 D: N again, but for rounding.

The sizes 9.8m to 6.7b are those of Temporal Scaling Law (arXiv 2404.17785), counted without embeddings. Its own models
are smaller where it matters, if its names count everything, as LLaMA's do. "tsl-" are the shapes for which that holds:
LLaMA blocks in the layers and widths of Pythia (arXiv 2304.01373) and of LLaMA 7B, d_ff = 4 d_model, untied, with a
vocabulary of 32,000 (the corpus must bring it) 9.77, 57.9, 468.2, 1,204.9 and 6,738 M parameters. Inferred by
arithmetic: the paper does not say.
"""

from __future__ import annotations

import re
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 32, "n_layers": 2, "n_heads": 2},
    "demo": {"d_model": 96, "n_layers": 2, "n_heads": 6},
    "1m": {"d_model": 128, "n_layers": 5, "n_heads": 4},
    "5m": {"d_model": 288, "n_layers": 5, "n_heads": 6},
    "9.8m": {"d_model": 320, "n_layers": 8, "n_heads": 5},
    "58m": {"d_model": 640, "n_layers": 12, "n_heads": 10},
    "122m": {"d_model": 800, "n_layers": 16, "n_heads": 10},
    "124m": {"d_model": 768, "n_layers": 12, "n_heads": 12},
    "468m": {"d_model": 1280, "n_layers": 24, "n_heads": 20},
    "1.2b": {"d_model": 2048, "n_layers": 24, "n_heads": 16},
    "6.7b": {"d_model": 4096, "n_layers": 32, "n_heads": 32, "d_ff": 11008},
    "tsl-9.8m": {"d_model": 128, "n_layers": 6, "n_heads": 4, "d_ff": 512, "tied": False},
    "tsl-58m": {"d_model": 512, "n_layers": 6, "n_heads": 8, "d_ff": 2048, "tied": False},
    "tsl-468m": {"d_model": 1024, "n_layers": 24, "n_heads": 16, "d_ff": 4096, "tied": False},
    "tsl-1.2b": {"d_model": 2048, "n_layers": 16, "n_heads": 8, "d_ff": 8192, "tied": False},
    "tsl-6.7b": {"d_model": 4096, "n_layers": 32, "n_heads": 32, "d_ff": 11008, "tied": False},
    "9.8m-neox": {"architecture": "gpt_neox", "d_model": 320, "n_layers": 8, "n_heads": 5},
    "58m-neox": {"architecture": "gpt_neox", "d_model": 640, "n_layers": 12, "n_heads": 10},
    "9.8m-moe": {"architecture": "moe", "d_model": 320, "n_layers": 8, "n_heads": 5},
    "58m-moe": {"architecture": "moe", "d_model": 640, "n_layers": 12, "n_heads": 10, "d_ff": 840},
    "1m-lstm": {"architecture": "lstm", "d_model": 240, "n_layers": 2},
    "9.8m-lstm": {"architecture": "lstm", "d_model": 760, "n_layers": 2},
    "1m-universal": {"architecture": "universal", "d_model": 288, "n_layers": 6, "n_heads": 6},
    "9.8m-universal": {"architecture": "universal", "d_model": 896, "n_layers": 6, "n_heads": 14},
}

_KAPLAN = re.compile(r"kaplan-([1-9]\d*)x([1-9]\d*)")
_HEAD = 64  # least width of a head in Kaplan's shapes; a narrower model has one head


def shape(name: str) -> dict[str, Any]:
    """Architecture and sizes of a preset, entries of `ModelConfig`.

    Raises:
        ValueError: for an unknown name.
    """
    if name in PRESETS:
        return PRESETS[name]
    match = _KAPLAN.fullmatch(name)
    if not match:
        known = f"{', '.join(PRESETS)}, or kaplan-LxD for L layers of width D"
        raise ValueError(f"models: preset {name!r} is unknown; choose one of {known}")
    n_layers, d_model = map(int, match.groups())
    heads = (n for n in range(d_model // _HEAD, 1, -1) if d_model % (2 * n) == 0)
    return {"architecture": "gpt_neox", "d_model": d_model, "n_layers": n_layers, "n_heads": next(heads, 1)}
