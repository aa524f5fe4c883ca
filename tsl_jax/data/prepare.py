"""The preparation of a corpus: read, split, take out near-copies, train the tokenizer, encode, write.

Each function here fills a folder with the streams of all domains and returns what its manifest shall say: the
vocabulary and the record of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np

from tsl_jax.data import cache, deduplicate, stdlib, text_files, token_files, tokenizer
from tsl_jax.data.config import STDLIB, DataConfig, DomainSource
from tsl_jax.data.documents import Document, split

PARTS = ("train", "heldout")
TOKENIZER = "tokenizer.json"
STDLIB_HELDOUT = 0.2  # its documents are few: 64 of each domain shall be held out that are long enough to evaluate on
USER_HELDOUT = 0.1

Found = list[tuple[DomainSource, list[Path]]]
Progress = Callable[[str, int, int], None]
Texts = dict[str, dict[str, list[Document]]]  # by domain and part


@dataclass(frozen=True)
class Shared:
    """What the held-out documents of a domain have in common with training text."""

    kept: np.ndarray  # (document,) bool: not a near-copy
    before: float  # share of blocks that are shared, of all documents
    after: float  # of the kept ones


def file_name(number: int, part: str, kind: str) -> str:
    """Name of the file of a domain's stream ("tokens") or of its document starts ("documents")."""
    return f"{number}.{part}.{kind}.npy"


def text(folder: Path, config: DataConfig, found: Found, progress: Progress) -> dict[str, Any]:
    """Prepare a corpus of text."""
    texts = _read(config, found, progress)
    train = (deduplicate.characters(one.text) for parts in texts.values() for one in parts["train"])
    held = {name: [deduplicate.characters(one.text) for one in parts["heldout"]] for name, parts in texts.items()}
    shared = _shared(train, held, deduplicate.CHARACTERS, progress)
    for name, parts in texts.items():
        parts["heldout"] = [one for one, keep in zip(parts["heldout"], shared[name].kept, strict=True) if keep]
    encoder = _tokenizer(folder, config, found, texts, progress)
    record = _empty_record(shared, f"{deduplicate.CHARACTERS} characters")
    done, total = 0, sum(len(documents) for parts in texts.values() for documents in parts.values())
    for number, (name, parts) in enumerate(texts.items()):
        for part, documents in parts.items():
            tell = _after(progress, done, total)
            stream, starts = tokenizer.encode(encoder, documents, config.end_of_text, tell)
            _write(folder, number, part, stream, starts)
            _count(record, name, part, sum(map(_size, documents)), starts, stream)
            done += len(documents)
    return {"vocabulary": tokenizer.vocabulary(encoder), "record": record}


def tokens(folder: Path, config: DataConfig, found: Found, progress: Progress) -> dict[str, Any]:
    """Prepare a corpus of token ids."""
    parts = {source.name: _cut(config, source, files) for source, files in found}
    held = {name: token_files.documents(one["heldout"], config.end_token) for name, one in parts.items()}
    shared = _shared((one["train"] for one in parts.values()), held, deduplicate.TOKENS, progress)
    record = _empty_record(shared, f"{deduplicate.TOKENS} tokens")
    vocabulary = _given_vocabulary(folder, config)
    for number, (name, one) in enumerate(parts.items()):
        kept = [document for document, keep in zip(held[name], shared[name].kept, strict=True) if keep]
        ends = np.cumsum(np.array([len(document) for document in kept], np.int64))
        streams = {"train": one["train"], "heldout": np.concatenate(kept)}
        starts = {"train": token_files.starts(one["train"], config.end_token), "heldout": np.append(0, ends[:-1])}
        for part, stream in streams.items():
            _write(folder, number, part, stream, starts[part])
            _count(record, name, part, stream.nbytes, starts[part], stream)
            vocabulary = max(vocabulary, int(stream.max()) + 1)
        progress("tokens", number + 1, len(parts))
    return {"vocabulary": vocabulary, "record": record}


def _read(config: DataConfig, found: Found, progress: Progress) -> Texts:
    """The documents of all domains, split."""
    texts: Texts = {}
    library: dict[str, list[Document]] = {}
    for number, (source, files) in enumerate(found):
        progress("read", number, len(found))
        train: list[Document] = []
        held: list[Document] = []
        for where in (where for where in source.where if where in STDLIB):
            library = library or stdlib.documents(stdlib.folder())
            for side, more in zip((train, held), split(library[where], config.heldout or STDLIB_HELDOUT), strict=True):
                side += more
        if files:
            own = text_files.documents(source.name, files, config.field, config.end_of_text, config.max_bytes)
            for side, more in zip((train, held), split(own, config.heldout or USER_HELDOUT), strict=True):
                side += more
        _need_both(source, len(train), len(held))
        texts[source.name] = {"train": train, "heldout": held}
    progress("read", len(found), len(found))
    return texts


def _cut(config: DataConfig, source: DomainSource, files: list[Path]) -> dict[str, np.ndarray]:
    """The two parts of a domain of token ids."""
    stream = token_files.join(token_files.read(files, config.token_type), source.name)
    at = token_files.cut(stream, config.heldout or USER_HELDOUT, config.end_token)
    _need_both(source, at, len(stream) - at)
    return {"train": stream[:at], "heldout": stream[at:]}


def _need_both(source: DomainSource, train: int, heldout: int) -> None:
    found = f"domain {source.name!r} has {train} documents or tokens for training and {heldout} held out"
    if not heldout:
        raise ValueError(f"data: {found}; give it more text, or raise data.heldout")
    if not train and source.weight > 0:
        raise ValueError(f"data: {found}; give it more text, or lower data.heldout")


def _shared(
    train: Iterable[np.ndarray], held: dict[str, list[np.ndarray]], block: int, progress: Progress
) -> dict[str, Shared]:
    """What held-out documents share with the training text of all domains, by domain.

    Raises:
        ValueError: if all held-out documents of a domain are near-copies.
    """
    progress("deduplicate", 0, 1)
    blocks, shared = deduplicate.shared_blocks(train, [one for documents in held.values() for one in documents], block)
    leave = deduplicate.near_copies(blocks, shared)
    result: dict[str, Shared] = {}
    start = 0
    for name, documents in held.items():
        own = slice(start, start + len(documents))
        kept = ~leave[own]
        if not kept.any():
            found = f"all {len(documents)} held-out documents of domain {name!r} are near-copies of training text"
            raise ValueError(f"data: {found}; does another domain hold the same files? Give it text of its own")
        rates = deduplicate.rate(blocks[own], shared[own]), deduplicate.rate(blocks[own][kept], shared[own][kept])
        result[name] = Shared(kept, *rates)
        start = own.stop
    progress("deduplicate", 1, 1)
    return result


def _tokenizer(folder: Path, config: DataConfig, found: Found, texts: Texts, progress: Progress) -> Any:
    """The tokenizer the user names, or one trained on what is trained on; saved in the folder."""
    progress("tokenizer", 0, 1)
    if config.tokenizer:
        encoder = tokenizer.load(Path(config.tokenizer).expanduser(), config.end_of_text)
    else:
        trained = [texts[source.name]["train"] for source, _ in found if source.weight > 0]
        encoder = tokenizer.train(trained, config.vocabulary, config.end_of_text)
    _save(folder, encoder)
    progress("tokenizer", 1, 1)
    return encoder


def _given_vocabulary(folder: Path, config: DataConfig) -> int:
    """Of pretokenised text whose tokenizer the user names, which is saved in the folder; else 0."""
    if not config.tokenizer:
        return 0
    encoder = tokenizer.load(Path(config.tokenizer).expanduser(), config.end_of_text)
    _save(folder, encoder)
    return tokenizer.vocabulary(encoder)


def _save(folder: Path, encoder: Any) -> None:
    with cache.writing(folder):
        (folder / TOKENIZER).write_text(encoder.to_str(pretty=True), "utf-8")


def _write(folder: Path, number: int, part: str, stream: np.ndarray, starts: np.ndarray) -> None:
    with cache.writing(folder):
        np.save(folder / file_name(number, part, "tokens"), stream)
        np.save(folder / file_name(number, part, "documents"), starts)


def _empty_record(shared: dict[str, Shared], block: str) -> dict[str, Any]:
    """The record of a corpus before anything is counted."""
    return {
        "bytes": {},
        "documents": {},
        "tokens": {},
        "shared_block": block,
        "shared_block_rate": {name: one.after for name, one in shared.items()},
        "shared_block_rate_before": {name: one.before for name, one in shared.items()},
        "near_copies_removed": {name: int((~one.kept).sum()) for name, one in shared.items()},
        "near_copy_bound": deduplicate.BOUND,
        "python": python_version(),
        "tokenizers": version("tokenizers"),
    }


def _count(record: dict[str, Any], name: str, part: str, size: int, starts: np.ndarray, stream: np.ndarray) -> None:
    for what, number in (("bytes", size), ("documents", len(starts)), ("tokens", len(stream))):
        record[what].setdefault(name, {})[part] = number


def _size(document: Document) -> int:
    return len(document.text.encode("utf-8", "surrogatepass"))


def _after(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    """Progress over all streams from the progress in one."""
    return lambda done: progress("tokens", before + done, total)
