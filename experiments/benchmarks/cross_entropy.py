"""Cross-entropy by position: the library's, in chunks, beside the naive one: time and memory, in one run.

    python experiments/benchmarks/cross_entropy.py [--vocabularies 4096,32000,50304] [--cores 1] [--no-tune]

Hidden states (8, 1024, 256) in float32, random. Training is the position-weighted mean with its gradient to hidden
states and unembedding; evaluation the loss of every token. Memory is what XLA plans beside arguments and outputs (the
gradients are outputs). Naive and chunked take turns; times are medians. With the allocator that `tsl` sets, unless
--no-tune. `difference` is the largest of loss and gradients, relative to their norm. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", default="4096,32000,50304")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the hidden states")
    parser.add_argument(
        "--chunks", default="0", help="tokens of a chunk, several with commas (0: the library's choice)"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cores", type=int, default=0, help="cores to use (0: all)")
    parser.add_argument("--no-tune", action="store_true", help="leave glibc's allocator as it is")
    return parser.parse_args(arguments)


def main() -> None:
    given = options()
    if given.cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: given.cores]))
    if not given.no_tune:
        tune()
    run(given)


def tune() -> None:
    """Start once more with the allocator that `tsl` gives itself."""
    from tsl_jax.cli import TUNABLES

    if os.environ.get("GLIBC_TUNABLES") != TUNABLES:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": TUNABLES})


def run(given: argparse.Namespace) -> None:
    """Print the table."""
    import jax

    device, cores = jax.local_devices()[0].device_kind, len(os.sched_getaffinity(0))
    shape = f"({given.batch}, {given.context}, {given.width})"
    print(f"{device}, {cores} cores, jax {jax.__version__}, hidden states {shape} {given.dtype}\n")
    print(
        "| V | | chunk | naive, ms | chunks, ms | naive / chunks | naive, MB | chunks, MB | times less | difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for v in (int(vocabulary) for vocabulary in given.vocabularies.split(",")):
        data = problem(given, v)
        for chunk in (int(size) for size in given.chunks.split(",")):
            for what, naive, ours in programs(given, chunk):
                row(given, data, what, chunk, naive, ours)


def programs(given: argparse.Namespace, chunk: int) -> list[tuple[str, Any, Any]]:
    """(name, naive, chunked) as functions of hidden states, unembedding and targets."""
    import jax
    import jax.numpy as jnp

    from tsl_jax.training.objective import token_losses, weighted_loss

    weight = jnp.ones(given.context, jnp.float32)

    def naive(h: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
        logits = jnp.einsum("btd,vd->btv", h, w.astype(h.dtype), preferred_element_type=jnp.float32)
        at_target = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - at_target

    def training(loss: Callable[..., jax.Array]) -> Any:
        return jax.value_and_grad(loss, argnums=(0, 1))

    naive_mean = training(lambda h, w, y: jnp.mean(naive(h, w, y) * weight[None, :]))
    our_mean = training(lambda h, w, y: weighted_loss(h, w, y, weight, chunk))
    return [
        ("training", naive_mean, our_mean),
        ("evaluation", naive, lambda h, w, y: token_losses(h, w, y, chunk)),
    ]


def row(given: argparse.Namespace, data: tuple[Any, Any, Any], what: str, chunk: int, naive: Any, ours: Any) -> None:
    """Compile, compare, time and print one row."""
    import jax

    compiled = [jax.jit(program).lower(*data).compile() for program in (naive, ours)]
    memory = [program.memory_analysis().temp_size_in_bytes / 1e6 for program in compiled]
    apart = difference(*(program(*data) for program in compiled))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(given.repeats):
        for program, times in zip(compiled, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program(*data))
            times.append(time.perf_counter() - start)
    slow, fast = (1e3 * statistics.median(times) for times in seconds)
    print(
        f"| {len(data[1]):,} | {what} | {chunk or 'auto'} | {slow:,.1f} | {fast:,.1f} | {slow / fast:.2f} "
        f"| {memory[0]:,.0f} | {memory[1]:,.0f} | {memory[0] / memory[1]:.1f} | {apart:.1e} |",
        flush=True,
    )


def problem(given: argparse.Namespace, v: int) -> tuple[Any, Any, Any]:
    """Random hidden states of unit size, an unembedding that gives logits of unit size, and targets."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    h = rng.standard_normal((given.batch, given.context, given.width), np.float32)
    w = rng.standard_normal((v, given.width), np.float32) / np.float32(given.width**0.5)
    y = rng.integers(0, v, (given.batch, given.context), dtype=np.int32)
    return jax.device_put((h.astype(jax.numpy.dtype(given.dtype)), w, y))


def difference(one: Any, other: Any) -> float:
    """The largest |one - other| / |one| over the arrays of two results, by their norms."""
    import jax
    import numpy as np

    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    wide = ((np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in pairs)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in wide)


if __name__ == "__main__":
    main()
