"""Which evaluation windows show the law best? Plain R2 of designs that are cut from one dense evaluation.

    tsl train --context 128 --batch-size 4 --evaluations 2 --out runs/windows
    python experiments/window_designs/designs.py runs/windows

The run's last checkpoint scores 128 stretches of held-out text with a window at each of 284 offsets, for six window
seeds that no run uses. Of each, 8 random halves of the stretches are drawn, the same for all designs and positions (so
draws of one seed overlap); the hyperbolic law is fitted to the mean of the windows that a design has in them.
Beside other work on 2 cores the two took 6 and 10 minutes; the second needs 5 minutes of CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import tsl_jax as tsl
from tsl_jax.data import corpora, windows
from tsl_jax.data.config import EvalConfig
from tsl_jax.models.build import build
from tsl_jax.models.config import ModelConfig
from tsl_jax.training import evaluation, provenance, run_dir
from tsl_jax.training.checkpoint import Checkpoints
from tsl_jax.training.config import from_dict
from tsl_jax.training.optimizer import run_optimizer
from tsl_jax.training.step import initial_state
from tsl_jax.training.timeline import resolve_timeline

DESIGNS = ((48, 4), (64, 4), (64, 3), (64, 2), (64, 1))  # windows in a stretch, and their stride
DENSE = EvalConfig(id_stretches=128, id_offsets=284, stride=1)  # holds every window of the designs
SEEDS = range(1, 7)
DRAWS = 8
ENOUGH = 0.93


def dense_losses(run: Path) -> np.ndarray:
    """Losses of the last checkpoint, (seed, stretch, offset, position) float32."""
    config, known = run_dir.read_config(run), run_dir.read_record(run)
    model = from_dict(ModelConfig, known["model"])
    graphdef, params = build(model, config.seed)
    like = initial_state(params, run_optimizer(config.optimizer, resolve_timeline(config)))
    checkpoints = Checkpoints(
        run / run_dir.CHECKPOINTS, keep=config.keep, model_hash=provenance.model_hash(known["model"])
    )
    state = checkpoints.read(checkpoints.steps()[-1], like)
    checkpoints.close()
    corpus = corpora.load(config.data, lambda *_: None)
    provenance.check_text(run, known["corpus"], corpus)
    forward = evaluation.make_forward(graphdef)
    losses_by_seed = []
    for seed in SEEDS:
        tokens = windows.for_splits(corpus, config.context, DENSE, seed)["id"].tokens
        losses = evaluation.window_losses(forward, state.params, tokens, config.evaluation_batch)
        losses_by_seed.append(losses.reshape(DENSE.id_stretches, DENSE.id_offsets, config.context))
        print(f"seed {seed}: mean loss {losses.mean():.4f}", flush=True)
    return np.stack(losses_by_seed)


def r2(dense: np.ndarray, halves: np.ndarray, offsets: np.ndarray, positions: int) -> np.ndarray:
    """R2 of the law over the first positions, for each half (seed, draw, stretch) of the stretches."""
    curves = [
        of_seed[half][:, offsets, :positions].mean((0, 1), dtype=float)
        for of_seed, drawn in zip(dense, halves, strict=True)
        for half in drawn
    ]
    return tsl.fit(tsl.laws.HYPERBOLIC, np.array(curves), x=np.arange(1.0, positions + 1)).r2.values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    dense = dense_losses(parser.parse_args().run)
    rng = np.random.default_rng(0)
    stretches = dense.shape[1]
    halves = np.array([[rng.permutation(stretches)[: stretches // 2] for _ in range(DRAWS)] for _ in SEEDS])
    print(f"| windows | stride | positions | median R2 | minimum | share over {ENOUGH} |")
    print("|---|---|---|---|---|---|")
    for positions in (dense.shape[-1] // 2, dense.shape[-1]):
        for count, stride in DESIGNS:
            r2s = r2(dense, halves, windows.offset_rule(count, stride), positions)
            print(
                f"| {halves.shape[-1]} x {count} | {stride} | {positions} | {np.median(r2s):.3f} | {r2s.min():.3f} "
                f"| {np.mean(r2s > ENOUGH):.2f} |"
            )


if __name__ == "__main__":
    main()
