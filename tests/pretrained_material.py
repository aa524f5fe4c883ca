"""A published model of our own making: text, a tokenizer, and revisions in the format of transformers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from training_material import write_words

from tsl_jax.data.config import EvalConfig
from tsl_jax.models.build import Params, abstract
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.pretrained.export import export_model

END = "<|endoftext|>"
WINDOWS = EvalConfig(ood_stretches=4, ood_offsets=3)
PYTHIA = resolve(
    ModelConfig(
        preset="",
        architecture="gpt_neox",
        vocabulary=300,
        context=24,
        d_model=16,
        n_layers=1,
        n_heads=2,
        tied=False,
        gelu="exact",
        norm_eps=1e-5,
    )
)


def text(folder: Path) -> tuple[str, ...]:
    """Two domains of made-up words, without weights."""
    return tuple(entry.partition("@")[0] for entry in write_words(folder))


def tokenizer(folder: Path, of: Path) -> Path:
    """A byte-level BPE of 280 tokens trained on the text in `of`."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator((file.read_text() for file in sorted(of.rglob("*.txt"))), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def parameters(config: ModelConfig, seed: int) -> Params:
    """Random ones, no branch silent."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), abstract(config)[1])


def revisions(folder: Path, of: Path, steps: Iterable[int], config: ModelConfig = PYTHIA) -> Path:
    """Checkpoints folder/step0, folder/step2, ... with a tokenizer of the text in `of`."""
    file = tokenizer(folder / "tokenizer", of)
    for step in steps:
        export_model(parameters(config, step), config, folder / f"step{step}", tokenizer=file, end_of_text=END)
    return folder
