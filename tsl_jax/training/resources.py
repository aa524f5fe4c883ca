"""What training needs and what devices give: memory of a step by formula, rates of matrix products, and their use.

With n parameters (embeddings included), B sequences of T tokens, L layers, b bytes of the activations' dtype:

    state        16 n                  parameters, gradients and AdamW's two moments, float32
    activations  b B T L w             kept for the backward pass, nothing recomputed
    loss         4 V c                 a chunk of c tokens' logits, float32 (`objective.chunk_tokens`)

    w = 15 d + 5 f  (llama, universal);   14 d + 3 f  (gpt_neox);   15 d + 6 f E  (moe, E experts that a token is
    multiplied with: all where they run dense);   20 d  (lstm)

and attention scores in w: 5/8 H T where queries go in chunks, 3 H T where attention is fused without a kernel, none in
cuDNN's kernel for bfloat16 and in splash attention. The numbers in w are read off what XLA allots on CPU in float32:
the sum is within 5 % of that for presets from demo to 9.8m with a vocabulary of 4,096 to 32,000. Where layers are
recomputed (`ModelConfig.remat`, by itself off CPU) it is an upper bound. XLA computes bfloat16 in float32 on CPU, where
activations take up to twice as much.

    utilisation = FLOPs a token x tokens/s / (devices x peak),   FLOPs of the model alone, without what is made again

Source of the measure: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), appendix B. Peaks are those of dense bfloat16
products in the makers' data sheets; of other devices the utilisation is not known.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tsl_jax.models.config import ModelConfig
from tsl_jax.models.cost import flops_per_token, n_params, n_params_embedding
from tsl_jax.training.objective import chunk_tokens

GIB = 1 << 30
WINDOW_BYTES = 24  # of a position of an evaluation window, at least: its token, its target's number, its losses
BYTES = {"float32": 4, "bfloat16": 2}
SCORES = {"chunks": 5 / 8, "fused": 3.0}  # attention -> arrays of T x T kept for each head; kernels keep none
# The beginning of a device's name -> FLOP/s. Cards for a PCIe slot are slower under nearly the same name.
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12}


def memory(config: ModelConfig, batch_size: int, platform: str) -> dict[str, int]:
    """Bytes of a training step: "state", "activations" and "loss".

    Args:
        config: resolved, with choices for the platform (`build.for_platform`). batch_size: B, of the model's context.
        platform: "cpu", "gpu" or "tpu".
    """
    tokens = batch_size * config.context
    return {
        "state": 16 * (n_params(config) + n_params_embedding(config)),
        "activations": BYTES[config.dtype] * tokens * config.n_layers * _kept(config),
        "loss": 4 * config.vocabulary * min(tokens, chunk_tokens(config.vocabulary, platform)),
    }


def check_memory(config: ModelConfig, batch_size: int, windows: int, mesh: tuple[int, int, int]) -> None:
    """Nothing, where a run is not known to need more memory than there is, before any of it is taken.

    Args:
        config: resolved. batch_size: sequences taken at once, over all devices. windows: of all splits of an
            evaluation. mesh: devices along (data, fsdp, tensor).

    Raises:
        ValueError: with what is needed and what there is.
    """
    import jax

    from tsl_jax.models.build import for_platform

    platform = jax.default_backend()
    model = for_platform(config, platform)
    data, fsdp, tensor = mesh
    parts = memory(model, -(-batch_size // (data * fsdp)), platform)
    needed = {"parameters and their optimizer": parts["state"] // (fsdp * tensor)}
    if model.remat == "none" and model.dtype == "float32":  # elsewhere the formula is no lower bound
        needed["activations"] = (parts["activations"] + parts["loss"]) // tensor
    if platform == "cpu":  # its devices share the machine's memory
        needed = {name: size * data * fsdp * tensor for name, size in needed.items()}
        needed["evaluation windows"] = WINDOW_BYTES * windows * model.context
    total, there = sum(needed.values()), _memory_here(platform)
    if there and total > there:
        listed = ", ".join(f"{name} {size / GIB:,.1f}" for name, size in needed.items())
        place = "machine" if platform == "cpu" else "device"
        found = f"this run needs {total / GIB:,.1f} GiB ({listed}), this {place} has"
        fix = "take a smaller model, batch or context, more accumulate, or fewer windows"
        raise ValueError(f"training: {found} {there / GIB:,.1f}; {fix}")


def _memory_here(platform: str) -> int:
    """Bytes of this machine, within its control group, or of its first device; 0: not known."""
    if platform != "cpu":
        import jax

        return int((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0))
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(Path(file).read_text()))
    return min(limits)


def _kept(config: ModelConfig) -> int:
    """w: numbers kept for each token and layer."""
    d, f = config.d_model, config.d_ff
    if config.architecture == "lstm":
        return 20 * d
    scores = config.n_heads * int(SCORES.get(config.attention, 0.0) * config.context)
    if config.architecture == "gpt_neox":
        return 14 * d + 3 * f + scores
    if config.architecture == "moe":
        return 15 * d + 6 * f * experts_computed(config) + scores
    return 15 * d + 5 * f + scores


def experts_computed(config: ModelConfig) -> int:
    """Experts that a token is multiplied with: all of them where they run dense."""
    return config.n_experts if config.experts == "dense" else config.experts_per_token


def flops_computed(config: ModelConfig) -> int:
    """Training FLOPs a token as they are computed here: dense experts count, used or not."""
    if config.architecture != "moe":
        return flops_per_token(config)
    unused = experts_computed(config) - config.experts_per_token
    return flops_per_token(config) + 6 * config.n_layers * unused * 3 * config.d_model * config.d_ff


def matrix_rate(dtype: str, size: int = 0) -> float:
    """FLOPs a second of the product of two square matrices on this machine's first device, the best of five.

    Args:
        dtype: float32 or bfloat16. size: rows; 0: 2048 on CPU, 8192 elsewhere.
    """
    import jax
    import jax.numpy as jnp

    n = size or (2048 if jax.devices()[0].platform == "cpu" else 8192)
    x = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def peak_flops(devices: Iterable[Any]) -> float | None:
    """FLOP/s of these devices of jax together, or None where one of them is not known."""
    total = 0.0
    for device in devices:
        kind = device.device_kind
        peak = next((value for name, value in PEAKS.items() if kind.startswith(name) and "NVL" not in kind), None)
        if peak is None:
            return None
        total += peak
    return total


def rates(tokens: int, seconds: float, flops_per_token: int, peak: float | None) -> dict[str, float]:
    """How fast some steps were: tokens_per_second, and utilisation where the peak of all devices is known."""
    per_second = tokens / max(seconds, 1e-9)
    speed = {"tokens_per_second": round(per_second, 1)}
    return speed if peak is None else speed | {"utilisation": round(flops_per_token * per_second / peak, 4)}
