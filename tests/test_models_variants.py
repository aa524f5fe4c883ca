"""Options that published models need: their parameters, rules, costs and refusals; what they compute is tested against
transformers in test_pretrained."""

from __future__ import annotations

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsl_jax.models.build import abstract, hidden
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.cost import flops_per_token, n_params, n_params_embedding
from tsl_jax.models.layers import rotary_table
from tsl_jax.models.sharding import RULES
from tsl_jax.training.config import TrainConfig, config_hash, from_dict, to_dict
from tsl_jax.training.objective import token_losses

SMALL = ModelConfig(preset="tiny", vocabulary=50, context=40, n_heads=4, n_kv_heads=2)
VARIANTS = {
    "head size": replace(SMALL, d_head=10),
    "biases of q, k, v": replace(SMALL, attention_bias="qkv"),
    "all biases": replace(SMALL, attention_bias="all", architecture="moe"),
    "norms by head": replace(SMALL, qk_norm="head", d_head=6, architecture="universal"),
    "norms over all heads": replace(SMALL, qk_norm="all", norm_after=True),
    "learned positions": replace(SMALL, architecture="gpt_neox", positions="learned", parallel=False, gelu="exact"),
}
QUICK = {"xla_backend_optimization_level": 0}  # compiling is what takes the time here
each_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def test_a_run_without_the_options_keeps_the_hash_that_it_had_before_them() -> None:
    assert config_hash(TrainConfig()) == "2bc459cef835"
    assert config_hash(TrainConfig(model=ModelConfig(preset="9.8m-neox"), seed=3)) == "b9a9fbe82f1b"
    hashes = {config_hash(TrainConfig(model=config)) for config in VARIANTS.values()}
    assert len(hashes) == len(VARIANTS)
    scaled = TrainConfig(model=replace(SMALL, rope_scaling=(8.0, 1.0, 4.0, 16.0)))
    assert config_hash(from_dict(TrainConfig, to_dict(scaled))) == config_hash(scaled)


def test_a_record_from_before_the_options_is_the_same_model() -> None:
    values = asdict(resolve(SMALL))
    for name in ("d_head", "qk_norm", "attention_bias", "norm_after", "gelu", "parallel", "positions", "rope_scaling"):
        del values[name]
    assert resolve(from_dict(ModelConfig, values)) == resolve(SMALL)


@each_variant
def test_parameters_are_counted_and_have_rules(config: ModelConfig) -> None:
    _, params = abstract(config)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert {path[-1].key for path, _ in leaves} <= set(RULES)
    outside = sum(params[part].size for part in ("embedding", "unembedding", "place") if part in params)
    count = sum(leaf.size for _, leaf in leaves)
    assert (n_params(resolve(config)), n_params_embedding(resolve(config))) == (count - outside, outside)


def test_attention_costs_by_the_width_of_its_heads() -> None:
    wide, narrow = (resolve(replace(SMALL, d_head=d_head)) for d_head in (16, 8))
    assert flops_per_token(narrow) == flops_per_token(resolve(SMALL))
    matrices = 6 * 2 * 32 * 8 * (4 + 2 * 2 + 4)  # eight more dimensions in q, k, v and out of two layers
    assert flops_per_token(wide) - flops_per_token(narrow) == matrices + 6 * 2 * 4 * 8 * 41


@pytest.mark.parametrize("name", ["all biases", "norms over all heads", "learned positions"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    config = replace(VARIANTS[name], n_layers=1, layers="scan")
    graphdef, shapes = abstract(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)
    x = rng.integers(0, 50, (1, 40)).astype(np.int32)
    compiled = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(hidden(graphdef, params, x)))), compiler_options=QUICK)
    for path, leaf in jax.tree_util.tree_leaves_with_path(compiled(params)):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_scaled_rotations_slow_down_long_waves_alone() -> None:
    plain, linear = rotary_table(8, 16, 1e4), rotary_table(8, 16, 1e4, (4.0,))
    np.testing.assert_allclose(linear[1][4], plain[1][1], rtol=1e-6)
    angle = np.arctan2(*reversed(rotary_table(2, 16, 1e4, (4.0, 1.0, 2.0, 100.0))))[1]
    share = angle / np.arctan2(*reversed(rotary_table(2, 16, 1e4)))[1]
    wave = 2 * np.pi * 1e4 ** (np.arange(8) / 8)
    assert (np.abs(share[wave < 50] - 1) < 1e-5).all()
    assert (np.abs(share[wave > 100] - 0.25) < 1e-5).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gelu": "exact"}, "llama has no option gelu, found 'exact'; leave it out, or take gpt_neox"),
        ({"architecture": "moe", "norm_after": True}, "moe has no option norm_after"),
        ({"architecture": "gpt_neox", "positions": "sinus"}, "positions must be one of"),
        ({"d_head": 7}, "d_head even, found 7"),
        ({"rope_scaling": (1.0, 2.0)}, "no number, a factor, or factor, low and high"),
        ({"rope_scaling": (8.0, 4.0, 1.0, 64.0)}, "low frequency factor 4 is not below the high one, 1"),
        ({"preset": "", "d_model": 32, "n_heads": 4}, "n_layers must be at least 1"),
    ],
)
def test_what_is_no_model_is_refused_with_a_reason(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(replace(SMALL, **changes))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_no_token_loss_is_negative_however_sure_the_model_is(scale: float) -> None:
    rng = np.random.default_rng(0)
    h, w = (scale * jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 64, 64), (64, 64)))
    best = jnp.argmax(h @ w.T, axis=-1).astype(jnp.int32)
    losses = np.asarray(token_losses(h * 3, w, best))
    assert losses.min() >= 0
    assert losses.min() < 1e-6, "some token is sure"
