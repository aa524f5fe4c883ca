"""Shapes and costs of models: the formulas against the parameters that are really there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace

import jax
import pytest

from tsl_jax.models.build import abstract
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.cost import flops_per_token, n_params, n_params_active, n_params_embedding
from tsl_jax.models.presets import PRESETS
from tsl_jax.training.provenance import model_hash


def test_whatever_changes_the_function_changes_the_hash() -> None:
    changes = [{"architecture": name} for name in ("gpt_neox", "moe", "lstm", "universal")]
    changes += [{"dropout": 0.1}, {"architecture": "moe", "n_experts": 4}, {"architecture": "moe", "balance": 0.1}]
    changes += [{}, {"architecture": "gpt_neox", "rotary_share": 0.5}, {"context": 81}]
    models = [
        resolve(ModelConfig(**{"preset": "tiny", "vocabulary": 50, "context": 80} | change)) for change in changes
    ]
    hashes = [model_hash(asdict(model)) for model in models]
    assert len(set(hashes)) == len(models)
    assert model_hash(asdict(resolve(replace(models[1], experts="ragged")))) == hashes[1]


def test_context_changes_attention_alone() -> None:
    tiny = ModelConfig(preset="tiny", vocabulary=50, context=8)
    config, lstm = resolve(tiny), resolve(replace(tiny, architecture="lstm"))
    assert flops_per_token(config) - flops_per_token(config, context=4) == 6 * 2 * 32 * 4
    assert flops_per_token(lstm) == flops_per_token(lstm, context=4)


def named(name: str) -> float:
    name = name.removeprefix("tsl-")
    return float(name.split("-")[0][:-1]) * {"m": 1e6, "b": 1e9}[name.split("-")[0][-1]]


def test_presets_have_the_size_in_their_name() -> None:
    with_embeddings = {"124m": 50_257, "6.7b": 32_000}
    with_embeddings |= {name: 32_000 for name in PRESETS if name.startswith("tsl-")}
    for name in set(PRESETS) - {"tiny", "demo"}:
        config = ModelConfig(preset=name, vocabulary=with_embeddings.get(name, 1), tied=name != "6.7b")
        config = resolve(config, context=1)
        size = n_params_active(config) if name.endswith("moe") else n_params(config)
        size += n_params_embedding(config) if name in with_embeddings else 0
        assert size == pytest.approx(named(name), rel=0.02), name
        assert config.d_ff % 8 == 0


@pytest.mark.parametrize(("n_layers", "d_model", "n_heads"), [(1, 8, 1), (2, 128, 2), (6, 4288, 67), (48, 1600, 25)])
def test_kaplans_shapes_have_12_layers_width_squared_parameters(n_layers: int, d_model: int, n_heads: int) -> None:
    config = ModelConfig(preset=f"kaplan-{n_layers}x{d_model}", vocabulary=1, context=1)
    assert (resolve(config).architecture, resolve(config).n_heads) == ("gpt_neox", n_heads)
    blocks = jax.tree.leaves(abstract(config)[1]["blocks"])
    assert sum(leaf.size for leaf in blocks if leaf.ndim == 3) == 12 * n_layers * d_model**2
    if d_model > 100:
        for same in (config, replace(config, architecture="llama")):
            assert n_params(resolve(same)) == pytest.approx(12 * n_layers * d_model**2, rel=0.01)


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
        ({"preset": "kaplan-0x8"}, "or kaplan-LxD for L layers of width D"),
        ({"preset": "kaplan-1x7"}, "d_model / n_heads even, found d_model 7"),
        ({"architecture": "rnn"}, "architecture must be one of llama, gpt_neox"),
        ({"architecture": "lstm", "n_heads": 4}, "lstm has no n_heads, found 4; leave it out"),
        ({"n_experts": 4}, "llama has no n_experts, found 4"),
        ({"architecture": "moe", "n_experts": -1}, "n_experts must be at least 1"),
        ({"architecture": "moe", "n_experts": 4, "experts_per_token": 5}, "found 5 of 4"),
        ({"architecture": "moe", "experts_per_token": 1}, "give 2"),
        ({"dropout": 1.0}, "dropout is a share from 0 to 0.99, found 1.0"),
        ({"rotary_share": -0.1}, "rotary_share is a share"),
        ({"balance": -1.0}, "balance must not be negative"),
    ],
)
def test_what_is_no_model_is_refused_with_a_reason(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(replace(ModelConfig(vocabulary=5, context=5), **changes))


def test_the_configuration_loads_no_jax() -> None:
    code = "import sys, tsl_jax.models.config; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
