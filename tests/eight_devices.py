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
from training_material import at, interrupt_me, quiet, small_run

from tsl_jax import surface
from tsl_jax.models.build import ARCHITECTURES, build
from tsl_jax.models.config import ModelConfig
from tsl_jax.training import checkpoint, mesh
from tsl_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig, total_steps
from tsl_jax.training.optimizer import adamw, plan
from tsl_jax.training.reevaluate import reevaluate
from tsl_jax.training.step import TrainState, initial_state, make_step
from tsl_jax.training.train import train

MESHES = {"1,1,1": MeshConfig(1), "8,1,1": MeshConfig(), "2,4,1": MeshConfig(2, 4), "2,2,2": MeshConfig(0, 2, 2)}
STEPS, BATCH, T, V = 3, 16, 12, 64
SMALL = {"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "d_ff": 24, "n_experts": 4}


def model(architecture: str) -> ModelConfig:
    """Tiny, its parameters divisible by every mesh."""
    sizes = {name: SMALL[name] for name in ("d_model", "n_layers")} if architecture == "lstm" else dict(SMALL)
    sizes = {name: n for name, n in sizes.items() if name != "n_experts" or architecture == "moe"}
    tied = architecture != "gpt_neox"
    return ModelConfig(architecture=architecture, vocabulary=V, context=T, layers="scan", tied=tied, **sizes)


def stepped(architecture: str, devices: MeshConfig, accumulate: int = 1) -> tuple[list[float], TrainState]:
    """The losses of some steps, and the state after them."""
    config = TrainConfig(model(architecture), mesh=devices, batch_size=BATCH, context=T, accumulate=accumulate)
    on, schedule = mesh.make(config), OptimizerConfig(peak_lr=1e-2, warmup=0.0)
    optimizer = adamw(schedule, plan(schedule, STEPS, BATCH * T), BATCH * T)
    batches = np.random.default_rng(0).integers(0, V, (STEPS, BATCH, T + 1)).astype(np.int32)
    with mesh.traced_on(on):
        graphdef, params = build(config.model, 0, on)
        state = initial_state(params, optimizer, on)
        step = make_step(graphdef, optimizer, np.ones(T), STEPS, accumulate)
        state, metrics = step(state, mesh.put(batches, on))
    return [float(loss) for loss in metrics["loss"]], state


def moved(folder: Path) -> bool:
    """Whether a state that was saved on one mesh comes back bit for bit, and split, on another."""
    checkpoints = checkpoint.Checkpoints(folder, keep=1, model_hash="a")
    (_, saved), (_, like) = stepped("llama", MESHES["2,4,1"]), stepped("llama", MESHES["2,2,2"])
    checkpoints.save(saved)
    found = checkpoints.restore(like)
    checkpoints.close()
    assert found is not None
    jax.tree.map(np.testing.assert_array_equal, found, saved)
    same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), found, like)
    return all(jax.tree.leaves(same))


def run_of(config: TrainConfig, out: Path) -> dict[str, Any]:
    """The losses of its steps and of its last evaluation."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == total_steps(config)
    final = surface.load_surface(out).loss.isel(tokens=-1).values
    return {"steps": [line["loss"] for line in lines], "final": final.tolist()}


def runs(folder: Path, text: tuple[str, ...]) -> dict[str, Any]:
    """One run on one device; the same on eight, interrupted and continued on another mesh, and measured on a third."""
    config = replace(small_run(text, steps=20, evaluations=2), mesh=MESHES["1,1,1"], batch_size=8, tokens=20 * 128)
    train(config, folder / "one")
    on_first, on_second = replace(config, mesh=MESHES["2,2,2"]), replace(config, mesh=MESHES["2,4,1"])
    try:
        train(on_first, folder / "eight", progress=at("train", 16, interrupt_me))
    except KeyboardInterrupt:
        with warnings.catch_warnings(record=True) as told:
            train(on_second, folder / "eight", resume=True)
        assert any("mesh: {'data': 2, 'fsdp': 2" in str(one.message) for one in told)
    reevaluate(folder / "eight", folder / "again", devices=MESHES["8,1,1"], progress=quiet)
    again = surface.load_surface(folder / "again").loss.isel(tokens=-1).values.tolist()
    return {"one": run_of(config, folder / "one"), "eight": run_of(config, folder / "eight"), "again": again}


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    found: dict[str, Any] = {"losses": {}}
    for name in ARCHITECTURES:
        found["losses"][name] = {key: stepped(name, devices)[0] for key, devices in MESHES.items()}
    found["losses"]["llama"]["accumulated"] = stepped("llama", MESHES["2,4,1"], accumulate=2)[0]
    found["moved"] = moved(Path(sys.argv[1]) / "checkpoints")
    found["runs"] = runs(Path(sys.argv[1]), tuple(sys.argv[2:]))
    print(json.dumps(found))
