"""Run in a process of its own, with eight virtual devices: the same models and the same run on several meshes.

Prints one line of JSON. Its stderr holds what XLA complains of.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from training_material import at, interrupt_me, quiet, small_run

from tsl_jax import surface
from tsl_jax.models import sharding
from tsl_jax.models.build import ARCHITECTURES, abstract
from tsl_jax.models.config import ModelConfig
from tsl_jax.training import checkpoint, mesh
from tsl_jax.training.config import MeshConfig, TrainConfig
from tsl_jax.training.loop import train
from tsl_jax.training.position_weights import updates
from tsl_jax.training.position_weights.weights import PositionWeights
from tsl_jax.training.reevaluation import reevaluate
from tsl_jax.training.step import TrainState, initial_state, make_step
from tsl_jax.training.timeline import resolve_timeline

MESHES = {"1,1,1": MeshConfig(1), "8,1,1": MeshConfig(), "2,4,1": MeshConfig(2, 4), "2,2,2": MeshConfig(0, 2, 2)}
STEPS, BATCH, T, V = 3, 16, 12, 64
SMALL = {"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24}


def model(architecture: str) -> ModelConfig:
    """Tiny, its parameters divisible by every mesh."""
    sizes = {"d_model": 16} if architecture == "lstm" else SMALL
    sizes = {**sizes, "n_experts": 4} if architecture == "moe" else sizes
    tied = architecture != "gpt_neox"
    return ModelConfig(architecture=architecture, vocabulary=V, context=T, n_layers=1, tied=tied, **sizes)


def stepped(architecture: str, devices: MeshConfig, accumulate: int = 1) -> tuple[list[float], TrainState]:
    """The losses of some steps, and the state after them; from parameters that need no program of their own."""
    config = TrainConfig(model(architecture), mesh=devices, batch_size=BATCH, context=T, accumulate=accumulate)
    rng, on, optimizer = np.random.default_rng(0), mesh.make(devices), optax.sgd(2.0, momentum=0.9)
    batch = rng.integers(0, V, (BATCH, T + 1)).astype(np.int32)
    graphdef, shapes = abstract(config.model)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes)
    params = jax.device_put(params, None if on is None else sharding.shardings(params, on))
    losses = []
    with mesh.traced_on(on):
        state = initial_state(params, optimizer, on)
        step = make_step(graphdef, optimizer, np.ones(T), 1, accumulate)
        step = step.lower(state, mesh.put(batch, on)).compile()
        for _ in range(STEPS):
            state, metrics = step(state, mesh.put(batch, on))
            losses.append(float(metrics["loss"]))
    return losses, state


def moved(folder: Path, saved: TrainState, like: TrainState) -> bool:
    """Whether a state that was saved on one mesh comes back bit for bit, and split, on another."""
    checkpoints = checkpoint.Checkpoints(folder, keep=1, model_hash="a")
    checkpoints.save(saved)
    restored = checkpoints.restore(like)
    checkpoints.close()
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), restored, like)
    return all(jax.tree.leaves(same))


def run_of(config: TrainConfig, out: Path) -> dict[str, Any]:
    """The losses of its steps and of its last evaluation."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == resolve_timeline(config).steps
    final = surface.load_surface(out).loss.isel(tokens=-1).values
    return {"steps": [line["loss"] for line in lines], "final": final.tolist()}


def runs(folder: Path, text: tuple[str, ...]) -> dict[str, Any]:
    """One run on one device; the same begun on eight, continued on one, and measured again on eight."""
    config = replace(small_run(text, steps=20, evaluations=2), mesh=MESHES["1,1,1"], batch_size=8, tokens=20 * 128)
    train(config, folder / "one")
    try:
        train(replace(config, mesh=MESHES["2,2,2"]), folder / "eight", progress=at("train", 16, interrupt_me))
    except KeyboardInterrupt:
        with warnings.catch_warnings(record=True) as caught:
            train(config, folder / "eight", resume=True)
        assert any("mesh: {'data': 2, 'fsdp': 2, 'tensor': 2}, now None" in str(warning.message) for warning in caught)
    reevaluate(folder / "eight", folder / "again", devices=MESHES["2,2,2"], progress=quiet)
    again = surface.load_surface(folder / "again").loss.isel(tokens=-1).values.tolist()
    return {"one": run_of(config, folder / "one"), "eight": run_of(config, folder / "eight"), "again": again}


def weighted(folder: Path, text: tuple[str, ...]) -> dict[str, Any]:
    """The last weights, and the losses, of a run that is weighted by its gradient noise, on one device and on eight."""
    config = replace(small_run(text, steps=8, evaluations=2), batch_size=8, tokens=8 * 128, weight_updates=2)
    config = replace(config, position_weights=PositionWeights("gradient_noise"))
    results = {}
    for key in ("1,1,1", "8,1,1"):
        out = train(replace(config, mesh=MESHES[key]), folder / f"weighted {key}")
        results[key] = {**run_of(config, out), "weights": updates.read_lines(out)[-1]["weights"]}
    return results


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    printed: dict[str, Any] = {"losses": {}}
    for name in ARCHITECTURES:
        chosen = MESHES if name == "llama" else {key: MESHES[key] for key in ("1,1,1", "2,2,2")}
        results = {key: stepped(name, devices, 2 if key == "8,1,1" else 1) for key, devices in chosen.items()}
        printed["losses"][name] = {key: losses for key, (losses, _) in results.items()}
        if name == "llama":
            printed["moved"] = moved(Path(sys.argv[1]) / "checkpoints", results["2,4,1"][1], results["2,2,2"][1])
    printed["runs"] = runs(Path(sys.argv[1]), tuple(sys.argv[2:]))
    printed["weighted"] = weighted(Path(sys.argv[1]), tuple(sys.argv[2:]))
    print(json.dumps(printed))
