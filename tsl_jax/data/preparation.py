"""The preparation of a corpus: read, split, take out near-copies, train the tokenizer, encode, write.

`prepare_text` and `prepare_tokens` fill a folder with the streams of all domains and return what its manifest says: the
vocabulary and the record of the text. Text passes through files: what memory holds is a hash for every 64 characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tsl_jax.data import cache, deduplicate, text_files, token_files, tokenizer
from tsl_jax.data.config import DataConfig, DomainSource
from tsl_jax.data.documents import Document, DocumentStore, is_held_out
from tsl_jax.data.installed import catalogue

PARTS = ("train", "heldout")
TOKENIZER = "tokenizer.json"
INSTALLED_HELDOUT = 0.2  # few documents: 64 of each domain shall be held out that are long enough to evaluate on
USER_HELDOUT = 0.1

DomainFiles = list[tuple[DomainSource, list[Path]]]  # a user's files; installed text and datasets the source names
Progress = Callable[[str, int, int], None]


@dataclass
class DomainTexts:
    """The documents of a domain."""

    parts: dict[str, DocumentStore]
    repeats: dict[str, int]  # documents of a part that were left out because they repeat others in it


@dataclass(frozen=True)
class Overlap:
    """What the held-out documents of a domain have in common with training text."""

    kept: np.ndarray  # (document,) bool: not a near-copy
    before: float  # share of blocks that are shared, of all documents
    after: float  # of the kept ones


def file_name(number: int, part: str, kind: str) -> str:
    """Name of the file of a domain's stream ("tokens") or of its document starts ("documents")."""
    return f"{number}.{part}.{kind}.npy"


def prepare_text(folder: Path, config: DataConfig, domains: DomainFiles, progress: Progress) -> dict[str, Any]:
    """Prepare a corpus of text."""
    with TemporaryDirectory(prefix="text-", dir=folder, ignore_cleanup_errors=True) as scratch:
        texts = _read(Path(scratch), config, domains, progress)
        train = (deduplicate.characters(text) for domain in texts.values() for text in domain.parts["train"])
        heldout = {name: map(deduplicate.characters, domain.parts["heldout"]) for name, domain in texts.items()}
        overlaps = _overlaps(train, heldout, deduplicate.CHARACTERS, progress)
        for name, domain in texts.items():
            domain.parts["heldout"].keep(overlaps[name].kept)

        progress("tokenizer", 0, 1)
        encoder, seen = _given_tokenizer(folder, config), {}
        if encoder is None:  # trained on what is trained on, so that nothing held out decides about a token
            trained = {source.name: texts[source.name].parts["train"] for source, _ in domains if source.weight > 0}
            encoder, seen = tokenizer.train(trained, config.vocabulary, config.end_of_text)
            _save_tokenizer(folder, encoder)
        progress("tokenizer", 1, 1)

        record = _empty_record(overlaps, f"{deduplicate.CHARACTERS} characters")
        record["repeats_removed"] = {name: domain.repeats for name, domain in texts.items()}
        record["tokenizer_characters"] = seen
        record["sources"] = {  # a user's files are only counted, so that a folder can be moved
            source.name: [*source.installed, *source.hub, *([f"{len(files)} files"] if files else [])]
            for source, files in domains
        }
        done, total = 0, sum(len(store) for domain in texts.values() for store in domain.parts.values())
        raw, dtype = Path(scratch) / "tokens", tokenizer.token_dtype(encoder)
        for number, (name, domain) in enumerate(texts.items()):
            for part, store in domain.parts.items():

                def report(n: int, done: int = done) -> None:
                    progress("tokens", done + n, total)

                with cache.writing(folder), raw.open("wb") as file:
                    ends = tokenizer.encode(encoder, store, config.end_of_text, file, report)
                size = int(ends[-1])
                stream = np.memmap(raw, dtype, "r", shape=(size,)) if size else np.empty(0, dtype)
                _write(folder, number, part, stream, ends[:-1])
                _count(record, name, part, store.bytes(), ends[:-1], stream)
                del stream  # the next one is written to the same file
                done += len(store)
    return {"vocabulary": tokenizer.vocabulary_size(encoder), "record": record}


def prepare_tokens(folder: Path, config: DataConfig, domains: DomainFiles, progress: Progress) -> dict[str, Any]:
    """Prepare a corpus of token ids."""
    train, heldout = {}, {}
    for source, files in domains:
        stream = token_files.join(token_files.read(files, config.token_type), source.name)
        cut = token_files.cut(stream, config.heldout or USER_HELDOUT, config.end_token)
        _need_both(source, cut, len(stream) - cut)
        train[source.name] = stream[:cut]
        heldout[source.name] = token_files.documents(stream[cut:], config.end_token)
    overlaps = _overlaps(train.values(), heldout, deduplicate.TOKENS, progress)
    record = _empty_record(overlaps, f"{deduplicate.TOKENS} tokens")
    encoder = _given_tokenizer(folder, config)
    vocabulary = 0 if encoder is None else tokenizer.vocabulary_size(encoder)
    for number, name in enumerate(train):
        documents = [document for document, keep in zip(heldout[name], overlaps[name].kept, strict=True) if keep]
        ends = np.cumsum(np.array([len(document) for document in documents], np.int64))
        streams = {
            "train": (train[name], token_files.starts(train[name], config.end_token)),
            "heldout": (np.concatenate(documents), np.append(0, ends[:-1])),
        }
        for part, (stream, starts) in streams.items():
            _write(folder, number, part, stream, starts)
            _count(record, name, part, stream.nbytes, starts, stream)
            vocabulary = max(vocabulary, int(stream.max()) + 1)
        progress("tokens", number + 1, len(train))
    return {"vocabulary": vocabulary, "record": record}


def _read(scratch: Path, config: DataConfig, domains: DomainFiles, progress: Progress) -> dict[str, DomainTexts]:
    """The documents of all domains, split, without those that repeat others of their part."""
    texts: dict[str, DomainTexts] = {}
    for number, (source, files) in enumerate(domains):
        progress("read", number, len(domains))
        parts = {part: DocumentStore(scratch / f"{number}.{part}") for part in PARTS}
        samples: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
        try:
            for document, share in _documents(config, source, files):
                part = PARTS[is_held_out(document, share)]
                with cache.writing(scratch.parent):
                    parts[part].add(document)
                samples[part].append(deduplicate.sample(document.text))
        except BaseException:  # text that cannot be read; the files are of no use any more
            for store in parts.values():
                with suppress(OSError):
                    store.close()
            raise
        repeats = {part: deduplicate.repeats(samples[part]) for part in PARTS}
        for part, store in parts.items():
            with cache.writing(scratch.parent):
                store.close()
            store.keep(~repeats[part])
        _need_both(source, *(len(store) for store in parts.values()))
        texts[source.name] = DomainTexts(parts, {part: int(repeated.sum()) for part, repeated in repeats.items()})
    progress("read", len(domains), len(domains))
    return texts


def _documents(config: DataConfig, source: DomainSource, files: list[Path]) -> Iterator[tuple[Document, float]]:
    """The documents of a domain, each with the share that is held out of its kind of text."""
    for name in source.installed:
        for document in catalogue.TABLE[name].documents(catalogue.find(name, config.packages)):
            yield document, config.heldout or INSTALLED_HELDOUT
    own = [*files, *source.hub]
    if own:
        for document in text_files.documents(source.name, own, config.field, config.end_of_text, config.max_bytes):
            yield document, config.heldout or USER_HELDOUT


def _need_both(source: DomainSource, train: int, heldout: int) -> None:
    counts = f"domain {source.name!r} has {train} documents or tokens for training and {heldout} held out"
    if not heldout:
        raise ValueError(f"data: {counts}; give it more text, or raise data.heldout")
    if not train and source.weight > 0:
        raise ValueError(f"data: {counts}; give it more text, or lower data.heldout")


def _overlaps(
    train: Iterable[np.ndarray], heldout: Mapping[str, Iterable[np.ndarray]], block: int, progress: Progress
) -> dict[str, Overlap]:
    """What held-out documents share with the training text of all domains, by domain.

    Raises:
        ValueError: if all held-out documents of a domain are near-copies.
    """
    progress("deduplicate", 0, 1)
    counts = dict.fromkeys(heldout, 0)

    def counted() -> Iterator[np.ndarray]:  # the documents are read once, and how many there are is known afterwards
        for name, documents in heldout.items():
            for document in documents:
                counts[name] += 1
                yield document

    blocks, shared = deduplicate.shared_blocks(train, counted(), block)
    is_copy = deduplicate.near_copies(blocks, shared)
    overlaps: dict[str, Overlap] = {}
    start = 0
    for name, count in counts.items():
        own = slice(start, start + count)
        unique = ~is_copy[own]
        if not unique.any():
            problem = f"all {count} held-out documents of domain {name!r} are near-copies of training text"
            raise ValueError(f"data: {problem}; does another domain hold the same files? Give it text of its own")
        rates = deduplicate.rate(blocks[own], shared[own]), deduplicate.rate(blocks[own][unique], shared[own][unique])
        overlaps[name] = Overlap(unique, *rates)
        start = own.stop
    progress("deduplicate", 1, 1)
    return overlaps


def _given_tokenizer(folder: Path, config: DataConfig) -> Any:
    """The tokenizer the user names, which is saved in the folder; else None."""
    if not config.tokenizer:
        return None
    encoder = tokenizer.load(Path(config.tokenizer).expanduser(), config.end_of_text)
    _save_tokenizer(folder, encoder)
    return encoder


def _save_tokenizer(folder: Path, encoder: Any) -> None:
    with cache.writing(folder):
        (folder / TOKENIZER).write_text(encoder.to_str(pretty=True), "utf-8")


def _write(folder: Path, number: int, part: str, stream: np.ndarray, starts: np.ndarray) -> None:
    with cache.writing(folder):
        np.save(folder / file_name(number, part, "tokens"), stream)
        np.save(folder / file_name(number, part, "documents"), starts)


def _empty_record(overlaps: dict[str, Overlap], block: str) -> dict[str, Any]:
    """The record of a corpus before anything is counted."""
    return {
        "bytes": {},
        "documents": {},
        "tokens": {},
        "shared_block": block,
        "shared_block_rate": {name: overlap.after for name, overlap in overlaps.items()},
        "shared_block_rate_before": {name: overlap.before for name, overlap in overlaps.items()},
        "near_copies_removed": {name: int((~overlap.kept).sum()) for name, overlap in overlaps.items()},
        "near_copy_bound": deduplicate.BOUND,
        "python": python_version(),
        "tokenizers": version("tokenizers"),
    }


def _count(record: dict[str, Any], name: str, part: str, size: int, starts: np.ndarray, stream: np.ndarray) -> None:
    for entry, number in (("bytes", size), ("documents", len(starts)), ("tokens", len(stream))):
        record[entry].setdefault(name, {})[part] = number
