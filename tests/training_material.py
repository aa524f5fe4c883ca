"""Something to train on: made-up words in two domains, a configuration of seconds, and ways to disturb a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tsl_jax.data.config import DataConfig, EvalConfig
from tsl_jax.models.config import ModelConfig
from tsl_jax.training.config import TrainConfig

STEPS, EVALUATIONS = 40, 6


def write_words(folder: Path, seed: int = 0) -> tuple[str, ...]:
    """Text of two domains; `list` is not trained on."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 7))) for _ in range(120)]
    for domain in ("tale", "list"):
        (folder / domain).mkdir(parents=True)
        for i in range(24):
            (folder / domain / f"{i}.txt").write_text(" ".join(rng.choice(words, 300)))
    return f"tale={folder}/tale/*.txt@1", f"list={folder}/list/*.txt@0"


@contextmanager
def in_other_order(domain: Path) -> Iterator[None]:
    """The same documents, the last first; put back afterwards."""
    files = sorted(domain.iterdir())
    texts = [file.read_text() for file in files]
    try:
        for file, text in zip(files, reversed(texts), strict=True):
            file.write_text(text)
        yield
    finally:
        for file, text in zip(files, texts, strict=True):
            file.write_text(text)


def small_run(text: tuple[str, ...], steps: int = STEPS, evaluations: int = EVALUATIONS) -> TrainConfig:
    """A run of seconds."""
    return TrainConfig(
        data=DataConfig(text=text, heldout=0.3, vocabulary=300),
        model=ModelConfig(preset="tiny", layers="scan"),
        evaluation=EvalConfig(id_stretches=4, id_offsets=5, ood_stretches=3, ood_offsets=4),
        tokens=steps * 64,
        context=16,
        batch_size=4,
        evaluations=evaluations,
        evaluation_batch=8,
    )


def at(stage: str, done: int, act: Callable[[], None]) -> Callable[[str, int, int], None]:
    """A progress function that does something once, at one moment of a run."""
    left = [act]

    def progress(seen: str, now: int, total: int) -> None:
        if left and (seen, now) == (stage, done):
            left.pop()()

    return progress


def interrupt_me() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def quiet(stage: str, done: int, total: int) -> None:
    """A progress function that tells nobody."""
