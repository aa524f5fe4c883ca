"""From text to a corpus: token streams of domains, each with a training and a held-out part, prepared once and then
mapped.

The order of work keeps the two parts apart: documents are split first; those that repeat others of their part leave,
and so do held-out documents that are near-copies of training text (of any domain, so what is held out does not depend
on the weights); the tokenizer is trained on training text of the domains that are trained on; then everything is
encoded. A stream is its documents one after the other, each closed by the end-of-text token.

What is prepared is kept in the cache, or with `build` in a folder of the user's, from which runs take the domains and
the shares they want: the same tokens of each, whatever the mixture.
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

from tsl_jax.data import cache, hub, preparation, text_files
from tsl_jax.data.config import (
    DataConfig,
    DomainSource,
    Mixture,
    domain_sources,
    pooled_splits,
    select_domains,
    validate_data_config,
)
from tsl_jax.data.installed import catalogue
from tsl_jax.data.preparation import DomainFiles

FORMAT = 2  # of prepared corpora; raise it when what is made from the same text changes
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


def load(
    config: DataConfig, progress: Progress = lambda stage, done, total: None, domains: DomainFiles | None = None
) -> Corpus:
    """The corpus of a configuration, from the cache where it has been prepared before.

    Args:
        progress: called with a stage ("read", "deduplicate", "tokenizer", "tokens"), what is done and what there is.
        domains: what `find` gave for this configuration, where it was asked before.

    Raises:
        ValueError: for entries, weights or text that cannot be used, a domain without held-out text among them.
        OSError: for files that are missing or unreadable, or a cache that cannot be written.
    """
    if config.corpus:
        return _open(*_built(config))
    domains = find(config) if domains is None else domains
    key = _key(config, domains)
    folder = cache.root() / key
    manifest = cache.read(folder)
    if manifest is None:
        manifest = cache.make(folder, lambda temporary: _prepare(temporary, config, domains, key, progress))
    _warn_of_few(manifest["record"])
    return _open(folder, manifest, tuple(source for source, _ in domains))


def build(config: DataConfig, out: Path, progress: Progress = lambda stage, done, total: None) -> dict[str, Any]:
    """Prepare a corpus in a folder of its own, which `config.corpus` names afterwards; its manifest.

    The folder appears when it is whole. Where it is there already and holds the same, nothing is done.

    Raises:
        ValueError, OSError: as `load`; FileExistsError for a folder that holds something else.
    """
    domains = find(config)
    key = _key(config, domains)
    if out.exists():
        manifest = cache.read(out)
        if manifest is None or manifest["record"]["hash"] != key:
            raise FileExistsError(f"data: {out} is there and holds something else; remove it, or name another folder")
        return manifest
    manifest = cache.make(out, lambda temporary: _prepare(temporary, config, domains, key, progress))
    _warn_of_few(manifest["record"])
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `build` made; every file of it is verified.

    Raises:
        ValueError: if it is none, or is damaged.
    """
    manifest = cache.read(folder)
    if manifest is None:
        remedy = "check the path, or make it with tsl corpora build"
        raise ValueError(f"data: {folder} holds no whole corpus (its {cache.MANIFEST} or a file it names); {remedy}")
    return manifest


def vocabulary_size(config: DataConfig) -> int:
    """The vocabulary of a corpus that was built, or the one that is asked for."""
    return read_manifest(Path(config.corpus).expanduser())["vocabulary"] if config.corpus else config.vocabulary


def configured_domains(config: DataConfig) -> tuple[DomainSource, ...]:
    """The domains that `text` names, or of a corpus that was built those that it selects.

    Raises:
        ValueError: for entries or weights that cannot be used, or a corpus that is damaged.
    """
    return _built(config)[2] if config.corpus else domain_sources(config)


def _built(config: DataConfig) -> tuple[Path, dict[str, Any], tuple[DomainSource, ...]]:
    """Folder and manifest of a corpus that was built, and the domains of it that the configuration selects."""
    validate_data_config(config)
    folder = Path(config.corpus).expanduser()
    manifest = read_manifest(folder)
    return folder, manifest, select_domains(config, tuple(manifest["record"]["tokens"]))


def find(config: DataConfig) -> DomainFiles:
    """The files of every domain, which are not opened yet; none of a corpus that was built.

    Raises:
        ValueError, OSError: for what `load` would find wrong before it reads any text.
    """
    if config.corpus:
        return [(source, []) for source in _built(config)[2]]
    sources = validate_data_config(config)
    for source in sources:
        for name in source.installed:
            catalogue.find(name, config.packages)
        for entry in source.hub:
            hub.validate_entry(entry)
    domains = [(source, text_files.find(source.globs) if source.globs else []) for source in sources]
    _is_pretokenised(domains)
    if config.tokenizer:
        _tokenizer_file(config)
    return domains


def _is_pretokenised(domains: DomainFiles) -> bool:
    """Whether the corpus is token ids; text and ids cannot be distinguished later, so they do not mix."""
    files = [file for _, files in domains for file in files]
    text = [str(file) for file in files if file.suffix not in text_files.TOKEN_FILES]
    text += [where for source, _ in domains for where in (*source.installed, *source.hub)]
    ids = [str(file) for file in files if file.suffix in text_files.TOKEN_FILES]
    if text and ids:
        raise ValueError(f"data: {ids[0]} is pretokenised and {text[0]} is text; a corpus is one or the other")
    return bool(ids)


def _tokenizer_file(config: DataConfig) -> Path:
    file = Path(config.tokenizer).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"data: there is no tokenizer {file}; name a tokenizer.json, or leave it out to train one"
        )
    return file


def _key(config: DataConfig, domains: DomainFiles) -> str:
    """The hash of all that decides about the prepared corpus: settings, versions, and the bytes that are read."""
    places = ("text", "tokenizer", "corpus", "packages")  # what they name counts, not where it lies
    settings = {
        "format": FORMAT,
        "config": {name: value for name, value in asdict(config).items() if name not in places},
        "domains": [
            # Of a weight only this decides: whether the tokenizer is trained on the domain.
            [source.name, source.weight > 0, source.installed, [hub.fingerprint(w) for w in source.hub], len(files)]
            for source, files in domains
        ],
        "versions": {"python": python_version(), "tokenizers": version("tokenizers")},
    }
    # a user's files go by their suffix, so that a folder can be moved; of the others the last parts name the version
    files = [(file.suffix, file) for _, files in domains for file in files]
    installed = dict.fromkeys(name for source, _ in domains for name in source.installed)
    shared = dict.fromkeys(file for name in installed for file in catalogue.find(name, config.packages))
    files += [("/".join(file.parts[-3:]), file) for file in shared]
    if config.tokenizer:
        files.append(("tokenizer", _tokenizer_file(config)))
    return cache.key(settings, files)


def _prepare(folder: Path, config: DataConfig, domains: DomainFiles, key: str, progress: Progress) -> dict[str, Any]:
    write = preparation.prepare_tokens if _is_pretokenised(domains) else preparation.prepare_text
    manifest = write(folder, config, domains, progress)
    return {**manifest, "record": {"hash": key, **manifest["record"]}}


def _warn_of_few(record: dict[str, Any]) -> None:
    """Warn of the domains that lost more than half of their held-out documents as near-copies."""
    for name, removed in record["near_copies_removed"].items():
        left = record["documents"][name]["heldout"]
        if removed > left:
            problem = f"{removed} of the {left + removed} held-out documents of domain {name!r} are near-copies of"
            remedy = f"only {left} are left to measure on; give it text that repeats itself less, or raise data.heldout"
            warnings.warn(f"data: {problem} training text and were removed, {remedy}", stacklevel=3)


def _open(folder: Path, manifest: dict[str, Any], sources: tuple[DomainSource, ...]) -> Corpus:
    """Map a prepared corpus; of all its domains those that are asked for, with their weights and checksums."""
    number = {name: number for number, name in enumerate(manifest["record"]["tokens"])}
    domains, checksums = {}, {}
    for source in sources:
        parts, checksums[source.name] = {}, {}
        for part in preparation.PARTS:
            tokens, documents = (
                preparation.file_name(number[source.name], part, kind) for kind in ("tokens", "documents")
            )
            parts[part] = Part(np.load(folder / tokens, mmap_mode="r"), np.load(folder / documents))
            checksums[source.name][part] = manifest["files"][tokens]
        domains[source.name] = Domain(**parts)
    record = {"hash": manifest["record"]["hash"], "weights": {source.name: source.weight for source in sources}}
    for entry, value in manifest["record"].items():
        by_domain = isinstance(value, dict) and set(value) == set(number)
        record[entry] = {source.name: value[source.name] for source in sources} if by_domain else value
    tokenizer_file = folder / preparation.TOKENIZER
    return Corpus(
        domains=domains,
        mixture=Mixture(tuple((source.name, source.weight) for source in sources if source.weight > 0)),
        splits=pooled_splits(sources),
        vocabulary=manifest["vocabulary"],
        tokenizer_file=tokenizer_file if tokenizer_file.exists() else None,
        record=json.loads(json.dumps({**record, "checksums": checksums})),  # a copy of its own
    )
