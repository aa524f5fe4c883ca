"""The byte-level BPE of a run, trained on its training text alone (HF tokenizers), or one that the user names.

It is neutral between domains: its merges are learned from as much text of each.

Bytes are the alphabet, so every text has tokens and no unknown ones. The end-of-text token is special: no text is ever
encoded as it, not even one that spells it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from tsl_jax.data.documents import DocumentStore

SAMPLE = 8_000_000  # bytes of training text the merges are learned from
_BATCH = 1 << 20  # characters encoded at a time


def train(texts: dict[str, DocumentStore], size: int, end_of_text: str) -> tuple[Any, dict[str, int]]:
    """A tokenizer of `size` tokens (fewer if the text has not as many merges), and the characters it saw by domain.

    Of more than 8 MB a sample is taken: whole documents, by a hash of their keys, so that the same text gives the same
    merges. Each domain gives as much as the smallest has; one that has next to nothing (less than a quarter of what an
    even sample would take) gives what it has and is not waited for.

    Args:
        texts: the training part of each domain.
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
    even = SAMPLE // len(texts)
    share = min(even, max(even // 4, min(store.bytes() for store in texts.values())))
    seen = dict.fromkeys(texts, 0)

    def sample() -> Iterator[str]:
        for name, store in texts.items():
            for text in store.sample(share):
                seen[name] += len(text)
                yield text

    tokenizer.train_from_iterator(sample(), trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer, seen


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
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        problem = f"{file} has no token {end_of_text!r}; its special tokens are {special}"
        raise ValueError(f"data: {problem}; name the one between documents as data.end_of_text")
    tokenizer.encode_special_tokens = True
    return tokenizer


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return 1 + max(tokenizer.get_vocab().values())


def token_dtype(tokenizer: Any) -> type:
    """The smallest integer type that holds every token id."""
    return np.uint16 if vocabulary_size(tokenizer) <= 1 << 16 else np.uint32


def encode(
    tokenizer: Any, texts: Iterable[str], end_of_text: str, file: IO[bytes], progress: Callable[[int], None]
) -> np.ndarray:
    """Write the texts as one stream of token ids, each closed by the end-of-text token.

    Args:
        file: gets the ids as raw numbers of `token_dtype`. progress: called with the texts done after each batch.

    Returns:
        Where each text starts and, last, where the stream ends, (document + 1,) int64.
    """
    dtype = token_dtype(tokenizer)
    end = tokenizer.token_to_id(end_of_text)
    ends = [0]
    for batch in _batches(texts):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            file.write(np.array([*encoding.ids, end], dtype).tobytes())
            ends.append(ends[-1] + len(encoding.ids) + 1)
        progress(len(ends) - 1)
    return np.array(ends, np.int64)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in batches of about one size."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
