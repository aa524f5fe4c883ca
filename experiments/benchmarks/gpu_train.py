"""Training on one accelerator with the library's own step: tokens/s, model-FLOP utilisation, memory, numerics.

    PYTHONPATH=. python3 experiments/benchmarks/gpu_train.py --piece NAME

Pieces, each of a few minutes: `10m`, `124m`, `468m`, `1.2b` (speed of training and of evaluation at context 1,024 with
vocabularies of 32,000 and 50,304), `numerics` (bfloat16 against float32 activations over 200 steps), `cross-entropy`
(in chunks against naive: time, memory, difference), and `smoke` (all of it, tiny, on any device). Needs jax, flax,
optax and numpy. bfloat16 activations, float32 parameters and moments, fused attention, scanned layers, AdamW with
clipping; random tokens are put on the device one call ahead. Utilisation divides model FLOPs by --peak (989 TFLOP/s:
dense bfloat16 of an H100 or H200), causal attention counted as half a square, and as a whole one in brackets, as many
papers count it. Memory is what XLA plans for arguments and temporaries of the step, and the peak that the device
reports for the whole process. `--model NAME=VALUE` sets an entry of ModelConfig, such as its policy of
rematerialisation.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cross_entropy
import jax
import numpy as np

from tsl_jax.models.build import build
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.cost import flops_per_token, n_params
from tsl_jax.training.config import OptimizerConfig, value_of
from tsl_jax.training.evaluation import make_forward
from tsl_jax.training.optimizer import adamw, lr_plan
from tsl_jax.training.position_weights.weights import PositionWeights
from tsl_jax.training.step import initial_state, make_step


@dataclass(frozen=True)
class Size:
    """What is timed."""

    model: ModelConfig
    batch: int  # sequences in a step
    steps_per_call: int
    context: int = 1024
    vocabularies: tuple[int, ...] = (32_000, 50_304)


LOW = {"dtype": "bfloat16", "layers": "scan", "attention": "fused"}
SIZES = {
    "10m": Size(ModelConfig("9.8m", **LOW), batch=64, steps_per_call=8),
    "124m": Size(ModelConfig(d_model=768, n_layers=12, n_heads=12, **LOW), batch=32, steps_per_call=4),
    "468m": Size(ModelConfig("468m", **LOW), batch=16, steps_per_call=1),
    "1.2b": Size(ModelConfig("1.2b", **LOW), batch=16, steps_per_call=1),
}
SMOKE = Size(
    ModelConfig("tiny", dtype="bfloat16", layers="scan"), batch=2, steps_per_call=2, context=32, vocabularies=(64,)
)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--piece", required=True, choices=(*SIZES, "numerics", "cross-entropy", "smoke"))
    parser.add_argument("--batch", type=int, default=0, help="sequences in a step (0: by size)")
    parser.add_argument("--steps-per-call", type=int, default=0, help="steps in one dispatch (0: by size)")
    parser.add_argument("--calls", type=int, default=20, help="timed calls")
    parser.add_argument("--steps", type=int, default=200, help="steps of the numerics")
    parser.add_argument("--vocabularies", default="", help="with commas (default: 32000,50304)")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=VALUE", help="an entry of ModelConfig")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of the device")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    given = options(arguments)
    device = jax.local_devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, piece {given.piece}", flush=True)
    if given.piece == "numerics":
        numerics(as_told(SIZES["10m"], given), given.steps)
    elif given.piece == "cross-entropy":
        arguments = ["--batch=16", "--width=768", "--chunks=0,512,2048"]
        compare_cross_entropy([f"--vocabularies={given.vocabularies or '32000,50304'}", *arguments])
    elif given.piece == "smoke":
        speed(as_told(SMOKE, given), calls=2, peak=given.peak)
        numerics(as_told(SMOKE, given), steps=20)
        compare_cross_entropy(["--vocabularies=64", "--batch=2", "--context=8", "--width=16", "--repeats=2"])
    else:
        speed(as_told(SIZES[given.piece], given), given.calls, given.peak)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    print(f"\npeak memory of the process: {f'{peak / 1e9:.1f} GB' if peak else 'not told by this device'}")


def as_told(size: Size, given: argparse.Namespace) -> Size:
    """The size with what the command line changes."""
    hints = {name: type(value) for name, value in vars(size.model).items()}
    entries = dict(entry.split("=", 1) for entry in given.model)
    truth = {"true": True, "false": False}
    changes = {name: value_of(hints[name], name, truth.get(value, value)) for name, value in entries.items()}
    model = replace(size.model, **changes)
    vocabularies = tuple(int(v) for v in given.vocabularies.split(",")) if given.vocabularies else size.vocabularies
    batch, several = given.batch or size.batch, given.steps_per_call or size.steps_per_call
    return replace(size, model=model, batch=batch, steps_per_call=several, vocabularies=vocabularies)


def speed(size: Size, calls: int, peak: float) -> None:
    """Tokens/s of training and evaluation."""
    print(
        f"\nbatch {size.batch} x {size.context}, {size.steps_per_call} steps a call\n\n"
        "| parameters | V | training, tokens/s | ms a step | utilisation | step: arguments + temporaries, GB "
        "| compile, s | evaluation, tokens/s | evaluation / training |\n|---|---|---|---|---|---|---|---|---|"
    )
    for v in size.vocabularies:
        model = replace(size.model, vocabulary=v, context=size.context)
        step, state, planned, compiled = prepared(size, model)
        batches = prefetched(random_batches(size, v))
        seconds, state = train_time(step, state, batches, calls)
        rate = size.steps_per_call * size.batch * size.context / seconds
        causal, whole = (rate * flops / (peak * 1e12) for flops in flops_of(model))
        ms = 1e3 * seconds / size.steps_per_call
        scored = evaluation_rate(size, model, state.params, calls)
        print(
            f"| {n_params(resolve(model)) / 1e6:,.1f}M | {v:,} | {rate:,.0f} | {ms:,.1f} "
            f"| {causal:.3f} ({whole:.3f}) | {planned / 1e9:.1f} | {compiled:.1f} "
            f"| {scored:,.0f} | {scored / rate:.2f} |",
            flush=True,
        )


def prepared(size: Size, model: ModelConfig) -> tuple[Any, Any, int, float]:
    """The compiled step, the first state, bytes that the step needs, seconds of compilation."""
    graphdef, params = build(model, 0)
    tokens = size.batch * size.context
    optimizer = OptimizerConfig(peak_lr=1e-3)
    transformation = adamw(optimizer, lr_plan(optimizer, 1_000, tokens), tokens)
    weights = PositionWeights.uniform().values(size.context)
    several = {"steps_per_call": size.steps_per_call} if size.steps_per_call > 1 else {}
    step = make_step(graphdef, transformation, weights, **several)
    state = initial_state(params, transformation)
    start = time.perf_counter()
    compiled = step.lower(state, next(random_batches(size, model.vocabulary))).compile()
    seconds = time.perf_counter() - start
    needs = compiled.memory_analysis()
    return compiled, state, needs.argument_size_in_bytes + needs.temp_size_in_bytes, seconds


def random_batches(size: Size, vocabulary: int) -> Iterator[np.ndarray]:
    """Tokens of one call: (B, T + 1), or (k, B, T + 1) for k steps a call."""
    several = (size.steps_per_call,) if size.steps_per_call > 1 else ()
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, vocabulary, (*several, size.batch, size.context + 1), dtype=np.int32)


def prefetched(batches: Iterable[np.ndarray]) -> Iterator[jax.Array]:
    """The same on the device, each put there while the one before is worked on."""
    ahead = None
    for batch in batches:
        following = jax.device_put(batch)
        if ahead is not None:
            yield ahead
        ahead = following


def train_time(step: Any, state: Any, batches: Iterator[jax.Array], calls: int) -> tuple[float, Any]:
    """Median seconds of a call, in blocks that do not wait for each other's dispatch, and the last state."""
    blocks = []
    for block in range(6):  # the first warms up
        start = time.perf_counter()
        for batch in itertools.islice(batches, max(1, calls // 5)):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        if block:
            blocks.append((time.perf_counter() - start) / max(1, calls // 5))
    return statistics.median(blocks), state


def evaluation_rate(size: Size, model: ModelConfig, params: Any, calls: int) -> float:
    """Tokens/s of per-token losses."""
    forward = make_forward(build(model, 0)[0])
    tokens = next(prefetched(random_batches(replace(size, steps_per_call=1), model.vocabulary)))
    jax.block_until_ready(forward(params, tokens))
    start = time.perf_counter()
    jax.block_until_ready([forward(params, tokens) for _ in range(calls)])
    return calls * size.batch * size.context / (time.perf_counter() - start)


def flops_of(model: ModelConfig) -> tuple[float, float]:
    """Training FLOPs a token, masked attention not counted and counted."""
    known = resolve(model)
    return flops_per_token(known), flops_per_token(known) + 6 * known.n_layers * known.d_model * (known.context - 1)


def numerics(size: Size, steps: int) -> None:
    """Losses of the same run with bfloat16 and float32 activations; text in which there is something to learn."""
    v = size.vocabularies[0]
    size = replace(size, batch=min(size.batch, 8), steps_per_call=1)
    losses_by_precision = {}
    for name, dtype, precision in (
        ("float32, highest", "float32", "highest"),
        ("float32, default", "float32", "default"),  # tf32 on an accelerator, the same as highest on CPU
        ("bfloat16", "bfloat16", "default"),
    )[:: 2 if jax.devices()[0].platform == "cpu" else 1]:
        with jax.default_matmul_precision(precision):
            model = replace(size.model, vocabulary=v, context=size.context, dtype=dtype)
            step, state, _, _ = prepared(size, model)
            losses = []
            for batch in itertools.islice(prefetched(learnable(size, v)), steps):
                state, metrics = step(state, batch)
                losses.append(metrics["loss"])
            losses_by_precision[name] = np.asarray(jax.device_get(losses), np.float64)
    exact = losses_by_precision["float32, highest"]
    tail = max(1, steps // 4)
    fell = f"float32 fell from {exact[0]:.4f} to {exact[-1]:.4f}"
    print(f"\n{steps} steps of {size.batch} x {size.context} tokens; {fell}\n")
    print("| activations | largest difference | mean difference of the last quarter | last loss |\n|---|---|---|---|")
    for name, losses in losses_by_precision.items():
        apart = losses - exact
        print(f"| {name} | {abs(apart).max():.1e} | {apart[-tail:].mean():+.1e} | {losses[-1]:.4f} |")


def learnable(size: Size, vocabulary: int) -> Iterator[np.ndarray]:
    """Tokens of which half follow from the one before, the others by Zipf's law."""
    rng = np.random.default_rng(1)
    share = 1 / np.arange(1.0, vocabulary + 1)
    follows = rng.permutation(vocabulary)
    while True:
        tokens = rng.choice(vocabulary, (size.batch, size.context + 1), p=share / share.sum())
        bound = rng.random(tokens.shape) < 0.5
        for i in range(1, size.context + 1):
            tokens[:, i] = np.where(bound[:, i], follows[tokens[:, i - 1]], tokens[:, i])
        yield tokens.astype(np.int32)


def compare_cross_entropy(arguments: list[str]) -> None:
    """The table of cross_entropy.py for both dtypes."""
    for dtype, precision in (("bfloat16", "default"), ("float32", "highest")):
        print()
        with jax.default_matmul_precision(precision):
            cross_entropy.run(cross_entropy.options([*arguments, f"--dtype={dtype}"]))


if __name__ == "__main__":
    main()
