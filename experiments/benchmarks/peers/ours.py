"""The library's own step, as `tsl train` runs it: a row of train_throughput.py."""

from __future__ import annotations

from typing import Any

import timing

from tsl_jax.models.build import build
from tsl_jax.models.config import ModelConfig
from tsl_jax.training.config import OptimizerConfig
from tsl_jax.training.optimizer import adamw, lr_plan
from tsl_jax.training.position_weights.weights import PositionWeights
from tsl_jax.training.step import initial_state, make_step


def model(shape: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        vocabulary=shape["vocabulary"],
        context=shape["context"],
        d_model=shape["d"],
        n_layers=shape["layers"],
        n_heads=shape["heads"],
        d_ff=shape["ff"],
        dtype="bfloat16" if "bfloat16" in shape["variant"] else "float32",
    )


def main() -> None:
    shape = timing.given()
    graphdef, params = build(model(shape), 0)
    optimizer = OptimizerConfig(peak_lr=1e-3)
    tokens = shape["batch"] * shape["context"]
    transformation = adamw(optimizer, lr_plan(optimizer, 10_000, tokens), tokens)
    weights = PositionWeights.uniform().values(shape["context"])
    step = make_step(graphdef, transformation, weights)
    state = initial_state(params, transformation)

    def advance(batch: Any) -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    timing.measure(shape, advance, lambda metrics: float(metrics["loss"]))


if __name__ == "__main__":
    main()
