"""Training, evaluation and fits are lowered for a GPU and a TPU, which this machine need not have.

Lowering makes the program that a device's compiler gets. `test_compile_ahead.py` compiles, where a compiler is.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tsl_jax import laws
from tsl_jax.fitting import solver
from tsl_jax.models.attention import _splash, causal_attention
from tsl_jax.models.build import abstract
from tsl_jax.models.config import ModelConfig
from tsl_jax.training.evaluation import make_forward
from tsl_jax.training.step import TrainState, make_step

T, B = 1024, 2
PLATFORMS = {"gpu": "cuda", "tpu": "tpu"}  # of jax's devices -> of its compilers
KERNELS = {"gpu": "__cudnn$fmhaSoftmax", "tpu": "tpu_custom_call"}
SHAPES = {"d_model": 128, "n_layers": 2}
HEADS = {"n_heads": 2, "d_ff": 256}
MODELS = {
    "llama": ModelConfig(architecture="llama", **SHAPES, **HEADS, n_kv_heads=1),
    "gpt_neox": ModelConfig(architecture="gpt_neox", **SHAPES, **HEADS),
    "moe": ModelConfig(architecture="moe", **SHAPES, **HEADS),
    "lstm": ModelConfig(architecture="lstm", **SHAPES),
    "universal": ModelConfig(architecture="universal", **SHAPES, **HEADS),
}
each_platform = pytest.mark.parametrize("platform", PLATFORMS)


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax asks for cuDNN's version where it writes the call; a machine without cuDNN is given one."""
    module = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(module, "cuda_versions", SimpleNamespace(cudnn_get_version=lambda: 91000))


def lowered(function: Any, platform: str, *arguments: Any) -> str:
    """The program for a platform, as text."""
    return function.trace(*arguments).lower(lowering_platforms=(PLATFORMS[platform],)).as_text()


def model(name: str, platform: str) -> tuple[Any, Any]:
    config = ModelConfig(**{**vars(MODELS[name]), "dtype": "bfloat16", "vocabulary": 512, "context": T})
    return abstract(config, platform)


@each_platform
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("cudnn")
def test_training_and_evaluation_are_lowered_with_the_kernels_of_the_platform(name: str, platform: str) -> None:
    graphdef, params = model(name, platform)
    optimizer = optax.adamw(1e-3)
    state = TrainState(params, jax.eval_shape(optimizer.init, params), jax.ShapeDtypeStruct((), jnp.int32))
    batch = jax.ShapeDtypeStruct((B, T + 1), jnp.int32)
    step = lowered(make_step(graphdef, optimizer, np.ones(T), platform=platform), platform, state, batch)
    forward = lowered(make_forward(graphdef, platform), platform, params, batch)
    for text in (step, forward):
        assert (KERNELS[platform] in text) == (name != "lstm")
        assert "f64" not in text
        # what is as large as all scores of attention would be
        assert not re.search(rf"tensor<(\d+x)*{T}x{T}x(f32|bf16)>", text)


@each_platform
def test_fits_are_lowered(platform: str) -> None:
    x = np.arange(1.0, 65.0)
    for law in (laws.HYPERBOLIC, laws.POWER):
        prepared = solver.prepare(law, x, np.ones(64), dtype="float32")
        assert "stablehlo" in lowered(jax.jit(solver.solve_curves), platform, prepared, np.ones((8, 64), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_kernel_for_tpu_equals_attention_in_chunks(kv_heads: int) -> None:
    """The kernel runs by jax's interpreter here."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (1, 128, heads, 16)) for key, heads in zip(keys, (2, kv_heads, kv_heads), strict=True)
    )
    ours, pull = jax.vjp(lambda q, k, v: _splash(q, k, v, interpret=True), q, k, v)
    expected, expected_pull = jax.vjp(lambda q, k, v: causal_attention(q, k, v, "chunks"), q, k, v)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    for got, want in zip(pull(ours), expected_pull(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-4)


def test_shapes_that_are_not_the_kernels_take_the_general_way() -> None:
    q = jax.random.normal(jax.random.key(0), (1, 100, 2, 6))
    expected = causal_attention(q, q, q, "chunks")
    for kind in ("splash", "cudnn", "fused"):
        np.testing.assert_allclose(causal_attention(q, q, q, kind), expected, atol=2e-5)
