"""The preparation of a corpus: read, split, take out near-copies, train the tokenizer, encode, write.

Each function here fills a folder with the streams of all domains and returns what its manifest shall say: the
vocabulary and the record of the text. Text passes through files: what memory holds is a hash for every 64 characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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

Found = list[tuple[DomainSource, list[Path]]]  # a user's files; installed text and datasets the source names
Progress = Callable[[str, int, int], None]


@dataclass
class Texts:
    """The documents of a domain."""

    parts: dict[str, DocumentStore]
    repeats: dict[str, int]  # documents of a part that left because they repeat others in it


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
    with TemporaryDirectory(prefix="text-", dir=folder, ignore_cleanup_errors=True) as scratch:
        texts = _read(Path(scratch), config, found, progress)
        shared = _leave_near_copies(texts, progress)
        encoder, seen = _tokenizer(folder, config, found, texts, progress)
        record = _empty_record(shared, f"{deduplicate.CHARACTERS} characters")
        record["repeats_removed"] = {name: one.repeats for name, one in texts.items()}
        record["tokenizer_characters"] = seen
        record["sources"] = {source.name: _sources(source, files) for source, files in found}
        _encode(folder, Path(scratch), config, texts, encoder, record, progress)
    return {"vocabulary": tokenizer.vocabulary(encoder), "record": record}


def _sources(source: DomainSource, files: list[Path]) -> list[str]:
    """What a domain is made of; files are only counted, so that a folder can be moved."""
    return [*source.installed, *source.hub, *([f"{len(files)} files"] if files else [])]


def _leave_near_copies(texts: dict[str, Texts], progress: Progress) -> dict[str, Shared]:
    """Take the held-out documents out that are near-copies of training text of any domain."""
    train = (deduplicate.characters(text) for one in texts.values() for text in one.parts["train"])
    held = {name: map(deduplicate.characters, one.parts["heldout"]) for name, one in texts.items()}
    shared = _shared(train, held, deduplicate.CHARACTERS, progress)
    for name, one in texts.items():
        one.parts["heldout"].keep(shared[name].kept)
    return shared


def _encode(
    folder: Path,
    scratch: Path,
    config: DataConfig,
    texts: dict[str, Texts],
    encoder: Any,
    record: dict[str, Any],
    progress: Progress,
) -> None:
    """Write the token streams of all parts, and count them in the record."""
    done, total = 0, sum(len(store) for one in texts.values() for store in one.parts.values())
    raw = scratch / "tokens"
    for number, (name, one) in enumerate(texts.items()):
        for part, store in one.parts.items():
            with cache.writing(folder), raw.open("wb") as file:
                tell = _after(progress, done, total)
                ends = tokenizer.encode(encoder, store, config.end_of_text, file, tell)
            size = int(ends[-1])
            kind = tokenizer.kind(encoder)
            stream = np.memmap(raw, kind, "r", shape=(size,)) if size else np.empty(0, kind)
            _write(folder, number, part, stream, ends[:-1])
            _count(record, name, part, store.bytes(), ends[:-1], stream)
            del stream
            done += len(store)


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


def _read(scratch: Path, config: DataConfig, found: Found, progress: Progress) -> dict[str, Texts]:
    """The documents of all domains, split, without those that repeat others of their part."""
    texts: dict[str, Texts] = {}
    for number, (source, files) in enumerate(found):
        progress("read", number, len(found))
        parts = {part: DocumentStore(scratch / f"{number}.{part}") for part in PARTS}
        samples: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
        for document, share in _documents(config, source, files):
            part = PARTS[is_held_out(document, share)]
            with cache.writing(scratch.parent):
                parts[part].add(document)
            samples[part].append(deduplicate.sample(document.text))
        repeats = {part: deduplicate.repeats(samples[part]) for part in PARTS}
        for part, store in parts.items():
            with cache.writing(scratch.parent):
                store.close()
            store.keep(~repeats[part])
        _need_both(source, *(len(store) for store in parts.values()))
        texts[source.name] = Texts(parts, {part: int(leave.sum()) for part, leave in repeats.items()})
    progress("read", len(found), len(found))
    return texts


def _documents(config: DataConfig, source: DomainSource, files: list[Path]) -> Iterator[tuple[Document, float]]:
    """The documents of a domain, each with the share that is held out of its kind of text."""
    for name in source.installed:
        row = catalogue.TABLE[name]
        for document in row.documents(catalogue.find(name, config.packages)):
            yield document, config.heldout or INSTALLED_HELDOUT
    own = [*files, *source.hub]
    if own:
        for document in text_files.documents(source.name, own, config.field, config.end_of_text, config.max_bytes):
            yield document, config.heldout or USER_HELDOUT


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
    train: Iterable[np.ndarray], held: Mapping[str, Iterable[np.ndarray]], block: int, progress: Progress
) -> dict[str, Shared]:
    """What held-out documents share with the training text of all domains, by domain.

    Raises:
        ValueError: if all held-out documents of a domain are near-copies.
    """
    progress("deduplicate", 0, 1)
    numbers = dict.fromkeys(held, 0)
    blocks, shared = deduplicate.shared_blocks(train, _counted(held, numbers), block)
    leave = deduplicate.near_copies(blocks, shared)
    result: dict[str, Shared] = {}
    start = 0
    for name, number in numbers.items():
        own = slice(start, start + number)
        kept = ~leave[own]
        if not kept.any():
            found = f"all {number} held-out documents of domain {name!r} are near-copies of training text"
            raise ValueError(f"data: {found}; does another domain hold the same files? Give it text of its own")
        rates = deduplicate.rate(blocks[own], shared[own]), deduplicate.rate(blocks[own][kept], shared[own][kept])
        result[name] = Shared(kept, *rates)
        start = own.stop
    progress("deduplicate", 1, 1)
    return result


def _counted(held: Mapping[str, Iterable[np.ndarray]], numbers: dict[str, int]) -> Iterator[np.ndarray]:
    """The documents of all domains; how many each has is in `numbers` afterwards."""
    for name, documents in held.items():
        for one in documents:
            numbers[name] += 1
            yield one


def _tokenizer(
    folder: Path, config: DataConfig, found: Found, texts: dict[str, Texts], progress: Progress
) -> tuple[Any, dict[str, int]]:
    """The tokenizer the user names, or one trained on what is trained on, and the characters it saw of each domain."""
    progress("tokenizer", 0, 1)
    seen: dict[str, int] = {}
    if config.tokenizer:
        encoder = tokenizer.load(Path(config.tokenizer).expanduser(), config.end_of_text)
    else:
        trained = {source.name: texts[source.name].parts["train"] for source, _ in found if source.weight > 0}
        encoder, seen = tokenizer.train(trained, config.vocabulary, config.end_of_text)
    _save(folder, encoder)
    progress("tokenizer", 1, 1)
    return encoder, seen


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


def _after(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    """Progress over all streams from the progress in one."""
    return lambda done: progress("tokens", before + done, total)
