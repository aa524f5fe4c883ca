"""The true continuation among four: how well runs tell it, at their last checkpoint.

    python -m experiments.position_weighting.downstream runs/pool        writes downstream.csv beside this file

An item is a window of held-out text of a domain that was trained on: all but its last CONTINUATION tokens are the
context, the four choices are its own last tokens and those of three windows of other documents of the domain. The
choice of the highest log likelihood is taken; chance is a quarter. The items are the same for all runs, a third of them
of each domain.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from tsl_jax.atomic_write import write_atomically
from tsl_jax.data import corpora, windows
from tsl_jax.data.config import EvalConfig
from tsl_jax.models.build import build
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.sharding import platform_of
from tsl_jax.training import evaluation, provenance, run_dir
from tsl_jax.training.checkpoint import Checkpoints
from tsl_jax.training.config import TrainConfig, from_dict
from tsl_jax.training.optimizer import run_optimizer
from tsl_jax.training.step import initial_state
from tsl_jax.training.timeline import resolve_timeline

KEPT = Path(__file__).with_name("downstream.csv")
RUNS = "larger-weights-*"
CHOICES, CONTINUATION = 4, 32  # how many, and tokens of each
ITEMS = 667  # of each domain, at most
SEED = 1


def items(parts: dict[str, windows.Windows], seed: int = SEED) -> np.ndarray:
    """(item, CHOICES, context + 1) tokens, the true continuation first.

    Raises:
        ValueError: where the windows of a domain are of fewer documents than there are choices.
    """
    rng, made = np.random.default_rng(seed), []
    for name, part in parts.items():
        if part.n_clusters < CHOICES:
            raise ValueError(f"downstream: {name} has windows of {part.n_clusters} documents, {CHOICES} are needed")
        choices = np.repeat(part.tokens[:, None], CHOICES, axis=1)
        for item, document in enumerate(part.cluster):
            others = rng.choice(np.flatnonzero(part.cluster != document), CHOICES - 1, replace=False)
            choices[item, 1:, -CONTINUATION:] = part.tokens[others, -CONTINUATION:]
        made.append(choices)
    return np.concatenate(made)


def scores(losses: np.ndarray) -> dict[str, float]:
    """Accuracy, and the loss of a token of the true continuation, of losses (item, CHOICES, position) in nats."""
    total = losses[:, :, -CONTINUATION:].sum(axis=2)
    return {
        "accuracy": float((total[:, 0] < total[:, 1:].min(axis=1)).mean()),
        "continuation_loss": float(total[:, 0].mean() / CONTINUATION),
    }


def text_of(config: TrainConfig) -> np.ndarray:
    """The items of a run's text, of the domains that it was trained on."""
    corpus = corpora.load(config.data, lambda stage, done, total: None)
    asked = replace(EvalConfig(), by_domain=True, ood_stretches=ITEMS, ood_offsets=1)
    of_splits = windows.for_splits(corpus, config.context, asked, seed=SEED)
    return items({name: of_splits[name] for name in corpus.domains if corpus.mixture[name] > 0})


def measured(runs: list[Path]) -> Iterator[dict[str, float | str]]:
    """A row a run: its name, and `scores` at its last checkpoint; runs of one model, text and plan."""
    config = run_dir.read_config(runs[0])
    tokens = text_of(config)
    flat = tokens.reshape(-1, tokens.shape[-1])
    model = run_dir.read_record(runs[0])["model"]
    graphdef, params = build(resolve(from_dict(ModelConfig, model)), config.seed, None)
    like = initial_state(params, run_optimizer(config.optimizer, resolve_timeline(config)), None)
    forward = evaluation.make_forward(graphdef, platform_of(None))
    for run in runs:
        model_hash = provenance.model_hash(run_dir.read_record(run)["model"])
        checkpoints = Checkpoints(run / run_dir.CHECKPOINTS, keep=config.keep, model_hash=model_hash, read_only=True)
        try:
            params = checkpoints.read(checkpoints.steps()[-1], like).params
        finally:
            checkpoints.close()
        losses = evaluation.window_losses(forward, params, flat, config.evaluation_batch)
        yield {"run": run.name, "items": len(tokens), **scores(losses.reshape(*tokens.shape[:2], -1))}


def main() -> None:
    """The command: a row is written as its run is measured, and runs that have one are passed over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path, help="folder of the runs")
    rows = pd.read_csv(KEPT).to_dict("records") if KEPT.exists() else []
    pool, known = parser.parse_args().pool, {row["run"] for row in rows}
    runs = sorted(run for run in pool.glob(RUNS) if (run / run_dir.RECORD).exists() and run.name not in known)
    if not runs:
        parser.error(f"{pool} has no run {RUNS} that is not measured yet; tsl reproduce position_weighting makes them")
    try:
        for row in measured(runs):
            rows.append(row)
            table = pd.DataFrame(rows).sort_values("run")
            write_atomically(KEPT, table.to_csv(index=False, float_format="%.6g"))
            print(row, flush=True)
    except (ValueError, OSError) as error:  # a run without a checkpoint, text that is not there
        parser.error(str(error))


if __name__ == "__main__":
    main()
