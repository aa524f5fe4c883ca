"""Whether text is that which a run was begun with: the same documents, and the same token ids for them.

Versions of Python and of the tokenizer library do not count, nor does the hash in the cache, which holds them: where
another version makes the same tokens the run goes on (`record.differences` tells of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsl_jax.data import tokenizer
from tsl_jax.data.corpora import Corpus
from tsl_jax.models.config import ModelConfig
from tsl_jax.training import run_dir

COUNTS = ("bytes", "documents", "tokens")
VERSIONS = ("python", "tokenizers")


def check(run: Path, known: Mapping[str, Any], corpus: Corpus) -> None:
    """Nothing, where the text is that of the run.

    Args:
        run: its folder. known: what its record says of its corpus. corpus: the text as it is now.

    Raises:
        ValueError: naming what differs.
    """
    # a record from before there were checksums has only the hash of everything the text was prepared from
    compared = (*COUNTS, "checksums" if "checksums" in known else "hash")
    differ = [name for name in compared if known.get(name) != corpus.record[name]]
    if differ:
        then_now = [(name, known.get(name), corpus.record[name]) for name in VERSIONS]
        versions = [f"prepared with {name} {then}, now {now}" for name, then, now in then_now if then != now]
        _refuse(run, "; ".join([f"{', '.join(differ)} differ", *versions]))


def check_tokenizer(run: Path, corpus: Corpus, end_of_text: str) -> None:
    """Nothing, where the corpus has the tokenizer that the run keeps, or there is none to compare.

    Raises:
        ValueError: where they differ, or one is damaged.
    """
    kept, found = run / run_dir.TOKENIZER, corpus.tokenizer_file
    if found is None or not kept.exists() or kept.read_bytes() == found.read_bytes():
        return
    # two versions of the library may write one tokenizer in two ways
    if tokenizer.load(kept, end_of_text).to_str() != tokenizer.load(found, end_of_text).to_str():
        _refuse(run, f"its tokenizer is not that of {kept}")


def check_vocabulary(corpus: Corpus, model: ModelConfig) -> None:
    """Nothing, where the model knows every token.

    Raises:
        ValueError: for a model with a smaller vocabulary.
    """
    if model.vocabulary < corpus.vocabulary:
        found = f"the corpus has {corpus.vocabulary} tokens, the model {model.vocabulary}"
        raise ValueError(f"training: {found}; raise model.vocabulary, or leave it 0")


def _refuse(run: Path, reason: str) -> None:
    found = f"the text has changed since {run} was begun ({reason})"
    raise ValueError(f"training: {found}; restore it, or train anew in a new folder")
