"""Shapes and costs of models: the formulas against the parameters that are really there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import jax
import pytest

from tsl_jax.models.build import build
from tsl_jax.models.config import (
    PRESETS,
    ModelConfig,
    flops_per_token,
    flops_per_token_6n,
    n_params,
    n_params_embedding,
    resolve,
)

SHAPES = [
    ModelConfig(preset="tiny", vocabulary=50, context=8),
    ModelConfig(preset="tiny", vocabulary=50, context=8, tied=False),
    ModelConfig(vocabulary=70, context=8, d_model=48, n_layers=3, n_heads=6, n_kv_heads=2, d_ff=56),
]


@pytest.mark.parametrize("config", SHAPES)
def test_parameter_count_equals_the_formula(config: ModelConfig) -> None:
    _, params = build(config, 0)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    outside = sum(params[name].size for name in ("embedding", "unembedding") if name in params)
    assert (n_params(config), n_params_embedding(config)) == (count - outside, outside)


def test_flops_count_every_product_with_a_matrix() -> None:
    config = resolve(ModelConfig(preset="tiny", vocabulary=50, context=8))
    norms = (2 * config.n_layers + 1) * config.d_model
    without_attention = 6 * (n_params(config) - norms + n_params_embedding(config))
    pairs = sum(range(1, 9)) / 8  # visible keys a query, on average
    attention = 3 * config.n_layers * 2 * 2 * config.d_model * pairs
    assert flops_per_token(config) == without_attention + attention
    assert flops_per_token(config, context=4) < flops_per_token(config)
    assert flops_per_token_6n(config) == 6 * n_params(config)


def test_presets_have_the_size_in_their_name() -> None:
    for name, scale in (("9.8m", 1e6), ("58m", 1e6), ("468m", 1e6), ("1.2b", 1e9), ("6.7b", 1e9)):
        assert n_params(ModelConfig(preset=name)) == pytest.approx(float(name[:-1]) * scale, rel=0.04)
    assert all(resolve(ModelConfig(preset=name), vocabulary=1, context=1).d_ff % 8 == 0 for name in PRESETS)


def test_sizes_given_replace_those_of_the_preset() -> None:
    config = resolve(ModelConfig(preset="6.7b", d_model=256), vocabulary=9, context=7)
    assert (config.d_model, config.n_layers, config.d_ff) == (256, 32, 688)
    assert (config.vocabulary, config.context, config.n_kv_heads) == (9, 7, 32)
    assert resolve(replace(config, vocabulary=11), vocabulary=9).vocabulary == 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "huge"}, "preset 'huge' is unknown; choose one of tiny"),
        ({"d_model": 96, "n_heads": 5}, "d_model / n_heads even"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads must divide n_heads, found 4 and 3"),
        ({"n_layers": -1}, "n_layers must be at least 1, found -1"),
        ({"vocabulary": 0}, "vocabulary must be at least 1"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"layers": "loop"}, "layers must be one of"),
    ],
)
def test_what_is_no_model_is_refused_with_a_reason(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(replace(ModelConfig(vocabulary=5, context=5), **changes))


def test_the_configuration_loads_no_jax() -> None:
    code = "import sys, tsl_jax.models.config; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
