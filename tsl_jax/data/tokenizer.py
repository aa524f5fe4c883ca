"""The byte-level BPE of a run, trained on its training text alone (HF tokenizers), or one that the user names.

Bytes are the alphabet, so every text has tokens and no unknown ones. The end-of-text token is special: no text is ever
encoded as it, not even one that spells it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tsl_jax.data.documents import Document, place

SAMPLE = 8_000_000  # characters of training text the merges are learned from
_BATCH = 1 << 20  # characters encoded at a time


def train(texts: list[list[Document]], size: int, end_of_text: str) -> Any:
    """A tokenizer of `size` tokens (fewer if the text has not as many merges) for the training documents.

    More than 8 MB are sampled: whole documents, by a hash of their keys, so that the same text gives the same merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[end_of_text],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(texts), trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load(file: Path, end_of_text: str) -> Any:
    """The tokenizer of a `tokenizer.json`.

    Raises:
        ValueError: if it is something else, or has no such end-of-text token.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer: Any = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"data: {file} is not a tokenizer.json ({error}); write it with Tokenizer.save") from None
    if tokenizer.token_to_id(end_of_text) is None:
        special = [one.content for one in tokenizer.get_added_tokens_decoder().values()]
        found = f"{file} has no token {end_of_text!r}; its special tokens are {special}"
        raise ValueError(f"data: {found}; name the one between documents as data.end_of_text")
    tokenizer.encode_special_tokens = True
    return tokenizer


def vocabulary(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return 1 + max(tokenizer.get_vocab().values())


def encode(
    tokenizer: Any, documents: list[Document], end_of_text: str, progress: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """The documents as one stream, each closed by the end-of-text token, and where each starts (int64).

    Args:
        progress: called with the documents done after each batch.
    """
    kind = np.uint16 if vocabulary(tokenizer) <= 1 << 16 else np.uint32
    end = tokenizer.token_to_id(end_of_text)
    streams = [np.empty(0, kind)]
    lengths: list[int] = []
    for batch in _batches(documents):
        encoded = tokenizer.encode_batch_fast([one.text for one in batch], add_special_tokens=False)
        streams += [np.array([*one.ids, end], kind) for one in encoded]
        lengths += [len(one.ids) + 1 for one in encoded]
        progress(len(lengths))
    ends = np.cumsum(np.array(lengths, np.int64))
    return np.concatenate(streams), ends - np.array(lengths, np.int64)


def _sample(texts: list[list[Document]]) -> Iterator[str]:
    size = sum(len(one.text) for documents in texts for one in documents)
    share = SAMPLE / max(size, 1)
    for documents in texts:
        yield from (one.text for one in documents if share >= 1 or place("sample " + one.key) < share)


def _batches(documents: list[Document]) -> Iterator[list[Document]]:
    """Documents in batches of about one size of text."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
