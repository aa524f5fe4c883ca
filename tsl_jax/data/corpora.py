"""From text to a corpus: token streams of domains, each with a training and a held-out part, prepared once and then
mapped.

The order of work keeps the two parts apart: documents are split first; held-out documents that are near-copies of
training text leave (of any domain, so what is held out does not depend on the weights); the tokenizer is trained on
training text of the domains that are trained on; then everything is encoded. A stream is its documents one after the
other, each closed by the end-of-text token.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np

from tsl_jax.data import cache, prepare, stdlib, text_files
from tsl_jax.data.config import STDLIB, DataConfig, DomainSource, check, sources
from tsl_jax.data.mixture import Mixture

FORMAT = 1  # of prepared corpora; raise it when what is made from the same text changes
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Part:
    """A stream of tokens and where its documents start."""

    tokens: np.ndarray  # (token,) uint16 or uint32, memory-mapped
    documents: np.ndarray  # (document,) int64, the first is 0


@dataclass(frozen=True)
class Domain:
    """One kind of text."""

    train: Part
    heldout: Part


@dataclass(frozen=True)
class Corpus:
    """All that training and evaluation need of the text."""

    domains: dict[str, Domain]
    mixture: Mixture  # shares of the domains in training
    splits: dict[str, tuple[str, ...]]  # "id": domains that are trained on; "ood": those that are not, if any
    vocabulary: int
    tokenizer_file: Path | None  # None for pretokenised text
    # JSON: hash; bytes, tokens, documents and checksums of the tokens by domain and part; shared-block rates; versions
    record: dict[str, Any]


def load(config: DataConfig, progress: Progress = lambda stage, done, total: None) -> Corpus:
    """The corpus of a configuration, from the cache where it has been prepared before.

    Args:
        progress: called with a stage ("read", "deduplicate", "tokenizer", "tokens"), what is done and what there is.

    Raises:
        ValueError: for entries, weights or text that cannot be used, a domain without held-out text among them.
        OSError: for files that are missing or unreadable, or a cache that cannot be written.
    """
    found = find(config)
    tokens = _pretokenised(found)
    key = cache.key(_settings(config, found), _named_files(config, found))
    folder = cache.root() / key
    manifest = cache.read(folder)
    if manifest is None:
        write = prepare.tokens if tokens else prepare.text
        manifest = cache.make(folder, lambda temporary: write(temporary, config, found, progress))
    _warn_of_few(manifest["record"])
    return _open(folder, manifest, key, [source for source, _ in found])


def find(config: DataConfig) -> list[tuple[DomainSource, list[Path]]]:
    """The files of every domain, which are not opened yet.

    Raises:
        ValueError, OSError: for what `load` would find wrong before it reads any text.
    """
    check(config)
    found = [(source, _find(source)) for source in sources(config)]
    _pretokenised(found)
    if config.tokenizer:
        _tokenizer_file(config)
    return found


def _find(source: DomainSource) -> list[Path]:
    """The files of a domain, apart from the standard library."""
    patterns = tuple(where for where in source.where if where not in STDLIB)
    return text_files.find(patterns) if patterns else []


def _pretokenised(found: list[tuple[DomainSource, list[Path]]]) -> bool:
    """Whether the corpus is token ids; text and ids cannot be told apart later, so they do not mix."""
    text = [str(file) for _, files in found for file in files if file.suffix not in text_files.TOKEN_FILES]
    text += [where for source, _ in found for where in source.where if where in STDLIB]
    ids = [str(file) for _, files in found for file in files if file.suffix in text_files.TOKEN_FILES]
    if text and ids:
        raise ValueError(f"data: {ids[0]} is pretokenised and {text[0]} is text; a corpus is one or the other")
    return bool(ids)


def _settings(config: DataConfig, found: list[tuple[DomainSource, list[Path]]]) -> dict[str, Any]:
    """What, beside the bytes of the text, decides about the prepared corpus."""
    values = {name: value for name, value in asdict(config).items() if name not in ("text", "tokenizer")}
    domains = [
        # Of the weights only this decides: which domains the tokenizer is trained on.
        [source.name, source.weight > 0, [where for where in source.where if where in STDLIB], len(files)]
        for source, files in found
    ]
    versions = {"python": python_version(), "tokenizers": version("tokenizers")}
    return {"format": FORMAT, "config": values, "domains": domains, "versions": versions}


def _named_files(config: DataConfig, found: list[tuple[DomainSource, list[Path]]]) -> list[tuple[str, Path]]:
    """Everything that is read; a user's files go by their suffix, so that a folder can be moved."""
    named = [(file.suffix, file) for _, files in found for file in files]
    if any(where in STDLIB for source, _ in found for where in source.where):
        root = stdlib.folder()
        named += [(name, root / name) for name in stdlib.files(root)]
    if config.tokenizer:
        named.append(("tokenizer", _tokenizer_file(config)))
    return named


def _tokenizer_file(config: DataConfig) -> Path:
    file = Path(config.tokenizer).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"data: there is no tokenizer {file}; name a tokenizer.json, or leave it out to train one"
        )
    return file


def _warn_of_few(record: dict[str, Any]) -> None:
    """Say which domains lost more than half of their held-out documents as near-copies."""
    for name, removed in record["near_copies_removed"].items():
        left = record["documents"][name]["heldout"]
        if removed > left:
            found = f"{removed} of the {left + removed} held-out documents of domain {name!r} are near-copies of"
            mend = f"only {left} are left to measure on; give it text that repeats itself less, or raise data.heldout"
            warnings.warn(f"data: {found} training text and were removed, {mend}", stacklevel=3)


def _open(folder: Path, manifest: dict[str, Any], key: str, found: list[DomainSource]) -> Corpus:
    """Map a prepared corpus."""
    domains = {
        source.name: Domain(*(_part(folder, number, part) for part in prepare.PARTS))
        for number, source in enumerate(found)
    }
    trained = tuple(source.name for source in found if source.weight > 0)
    other = tuple(source.name for source in found if source.weight == 0)
    mixture = Mixture(tuple((source.name, source.weight) for source in found if source.weight > 0))
    checksums = {
        source.name: {part: manifest["files"][prepare.file_name(number, part, "tokens")] for part in prepare.PARTS}
        for number, source in enumerate(found)
    }
    weights = {source.name: source.weight for source in found}
    record = {"hash": key, "weights": weights, **manifest["record"], "checksums": checksums}
    file = folder / prepare.TOKENIZER
    return Corpus(
        domains=domains,
        mixture=mixture,
        splits={"id": trained} | ({"ood": other} if other else {}),
        vocabulary=manifest["vocabulary"],
        tokenizer_file=file if file.exists() else None,
        record=json.loads(json.dumps(record)),
    )


def _part(folder: Path, number: int, part: str) -> Part:
    tokens, documents = (folder / prepare.file_name(number, part, kind) for kind in ("tokens", "documents"))
    return Part(np.load(tokens, mmap_mode="r"), np.load(documents))
