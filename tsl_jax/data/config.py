"""The configuration of the text: which it is, how it is split and tokenised, and on which windows losses are measured.

Standard library only, so that `tsl train --help` loads no numpy. An entry of `text` is

    [NAME=]WHERE[@WEIGHT]        code@0.7     books=~/books/**/*.txt@0.3     'tales/*.jsonl'     hf:NAME@train#body

NAME is a domain ("text" if left out), WHERE a glob, a folder, an installed domain (its name alone, or
`installed:NAME`; see installed/catalogue.py) or a Hugging Face dataset (see hub.py), WEIGHT the domain's share of the
training batches. Shares sum to one; where none is written all domains have the same. A domain of weight 0 is not
trained on: it is the out-of-distribution split.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tsl_jax.data import hub
from tsl_jax.data.installed import catalogue

MOST = 1 << 24  # tokens of a vocabulary, windows of a split
DEFAULT_TEXT = ("installed:code@1", "installed:docs@0")

_ENTRY = re.compile(
    r"(?:(?P<name>[A-Za-z0-9_.-]+)=)?(?P<where>.+?)(?:@(?P<weight>[-+]?[0-9.]+(?:[eE][-+]?\d+)?))?", re.DOTALL
)


@dataclass(frozen=True)
class DataConfig:
    """Text, its split and its tokens. What is prepared is cached by all of this and by the text itself."""

    text: tuple[str, ...] = ()  # "[name=]glob[@weight]", what --text is too, which wins; empty: the standard library
    corpus: str = ""  # a folder of `tsl corpora build`: text names domains in it (all if empty), the rest stands there
    packages: str = ""  # a folder with unpacked Debian and npm packages, whose text is installed too
    field: str = "text"  # name of the field of a .jsonl line, or column of a .parquet file, that holds its text
    heldout: float = 0.0  # share of text never trained on; 0: a fifth of installed text, a tenth of a user's text
    vocabulary: int = 2048  # size of the byte-level BPE that is trained on the training text
    tokenizer: str = ""  # a tokenizer.json to use instead of training one
    end_of_text: str = "<|endoftext|>"  # the token between documents
    max_bytes: int = 1 << 30  # text of a domain beyond this is left out, with a warning; pretokenise larger text
    token_type: str = "uint16"  # of pretokenised .bin files: uint16 or uint32
    end_token: int = -1  # token between documents in pretokenised text; -1: not known


@dataclass(frozen=True)
class EvalConfig:
    """The evaluation windows of each split: excerpts (options say stretches) x offsets. Their seed is always 0."""

    design: str = "overlapping"  # or "random": as many windows, anywhere
    id_stretches: int = 64  # excerpts of held-out text of the training domains
    id_offsets: int = 64  # overlapping windows in each
    ood_stretches: int = 64  # the same of domains that are not trained on
    ood_offsets: int = 8
    stride: int = 3  # tokens from one window to the next, and one more every second time
    by_domain: bool = False  # each domain is a split of its name as well, on windows that no mixture changes (ood_*)

    def splits(self, pooled: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """The domains of each split: of the `pooled_splits`, and with `by_domain` of one for each domain.

        Raises:
            ValueError: for a domain of the name of another split.
        """
        if not self.by_domain:
            return dict(pooled)
        names = [name for part in pooled.values() for name in part]
        if taken := [name for name in names if pooled.get(name, (name,)) != (name,)]:
            raise ValueError(f"data: with evaluation by_domain a split has the name {taken[0]!r}; rename that domain")
        return {**pooled, **{name: (name,) for name in names}}

    def windows(self, pooled: Mapping[str, tuple[str, ...]]) -> int:
        """Windows of an evaluation."""
        of_id, other = self.id_stretches * self.id_offsets, self.ood_stretches * self.ood_offsets
        return sum(of_id if split == "id" else other for split in self.splits(pooled))


@dataclass(frozen=True)
class DomainSource:
    """Where the text of one domain comes from, and its share of the training batches."""

    name: str
    where: tuple[str, ...]  # of any of the three kinds below
    weight: float

    @property
    def installed(self) -> tuple[str, ...]:
        """Names of installed domains."""
        return tuple(w.removeprefix(catalogue.PREFIX) for w in self.where if w.startswith(catalogue.PREFIX))

    @property
    def hub(self) -> tuple[str, ...]:
        """Entries of Hugging Face datasets."""
        return tuple(where for where in self.where if where.startswith(hub.PREFIX))

    @property
    def globs(self) -> tuple[str, ...]:
        """Files and folders of the user."""
        return tuple(where for where in self.where if not where.startswith((catalogue.PREFIX, hub.PREFIX)))


def pooled_splits(sources: Iterable[DomainSource]) -> dict[str, tuple[str, ...]]:
    """id: the domains that are trained on; ood: those of weight 0, where there are any."""
    sources = list(sources)
    other = tuple(source.name for source in sources if source.weight == 0)
    return {"id": tuple(source.name for source in sources if source.weight > 0)} | ({"ood": other} if other else {})


@dataclass(frozen=True)
class Mixture:
    """Domain and weight, in order; the weights sum to one.

    Raises:
        ValueError: for weights that are not shares, or a domain named twice.
    """

    shares: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.shares]
        if len(set(names)) != len(names):
            raise ValueError(f"data: a mixture names each domain once, found {names}")
        validate_weights(dict(self.shares))

    def __getitem__(self, name: str) -> float:
        """The weight of a domain; 0 for one that is not in the mixture."""
        return dict(self.shares).get(name, 0.0)


def validate_data_config(config: DataConfig) -> tuple[DomainSource, ...]:
    """The domains that `text` names (none of a corpus that is built: they are known once it is opened).

    Raises:
        ValueError: for what is wrong whatever the text may be, naming the entry and what to give instead.
    """
    if not 0 <= config.heldout < 1:
        raise ValueError(f"data: heldout is a share of the text, at least 0 and below 1, found {config.heldout}")
    if config.vocabulary < 257:
        problem = f"vocabulary must be at least 257 (256 bytes and {config.end_of_text}), found {config.vocabulary}"
        raise ValueError(f"data: {problem}")
    if config.vocabulary > MOST or not -1 <= config.end_token < 1 << 32:
        found = f"vocabulary {config.vocabulary} and end_token {config.end_token}"
        raise ValueError(
            f"data: expected a vocabulary of at most {MOST:,} and a token from 0 (-1: none), found {found}"
        )
    if config.token_type not in ("uint16", "uint32"):
        raise ValueError(f"data: token_type must be uint16 or uint32, found {config.token_type!r}")
    if not 1 <= config.max_bytes < 1 << 62:
        raise ValueError(f"data: max_bytes must be positive and below 2^62, found {config.max_bytes}")
    if not config.end_of_text:
        raise ValueError("data: end_of_text is empty; name the token that stands between documents")
    return () if config.corpus else domain_sources(config)


def validate_eval_config(config: EvalConfig) -> None:
    """Refuse windows that cannot be drawn from any text.

    Raises:
        ValueError: naming the entry, what was found, and what to give instead.
    """
    if config.design not in ("overlapping", "random"):
        raise ValueError(f"data: evaluation design must be overlapping or random, found {config.design!r}")
    for name in ("id_stretches", "id_offsets", "ood_stretches", "ood_offsets", "stride"):
        if getattr(config, name) < 1:
            raise ValueError(f"data: evaluation {name} must be at least 1, found {getattr(config, name)}")
        if getattr(config, name) > MOST:
            raise ValueError(f"data: evaluation {name} must be at most {MOST:,}, found {getattr(config, name):,}")
    for split in ("id", "ood"):
        windows = getattr(config, f"{split}_stretches") * getattr(config, f"{split}_offsets")
        if windows > MOST:
            problem = f"{windows:,} windows of split {split}, of at most {MOST:,}"
            raise ValueError(f"data: evaluation asks for {problem}; lower its stretches or offsets")


def domain_sources(config: DataConfig) -> tuple[DomainSource, ...]:
    """The domains in the order of their first entry; entries of one name are one domain.

    Raises:
        ValueError: for an entry that cannot be read, or weights that are not shares.
    """
    entries = []
    for entry in config.text or DEFAULT_TEXT:
        name, where, weight = _split_entry(entry)
        if where.startswith(catalogue.OLD_PREFIX):
            where = catalogue.PREFIX + where.removeprefix(catalogue.OLD_PREFIX)
        if name is None and where in catalogue.TABLE:
            if os.path.exists(where):
                shadowed = f"{where!r} means the installed domain, not the file or folder of that name here"
                warnings.warn(f"data: {shadowed}; write ./{where} for that", stacklevel=2)
            where = catalogue.PREFIX + where
        default = "text"
        if where.startswith(catalogue.PREFIX):  # an installed domain gives its own name
            default = where.removeprefix(catalogue.PREFIX)
            if default not in catalogue.TABLE:
                expected = ", ".join(catalogue.TABLE)
                raise ValueError(f"data: there is no installed domain {default!r}; there are {expected}")
        entries.append((name or default, where, weight))
    return _merge_entries(entries)


def select_domains(config: DataConfig, names: tuple[str, ...]) -> tuple[DomainSource, ...]:
    """The domains of a corpus that was built, of which `text` has names and weights.

    Raises:
        ValueError: for a name that is not one of `names`, or weights that are not shares.
    """
    entries = [_split_entry(entry) for entry in config.text or names]
    for name, domain, _ in entries:
        if name or domain not in names:
            unknown = f"{name}={domain}" if name else domain
            raise ValueError(f"data: {config.corpus} has no domain {unknown!r}; it has {', '.join(names)}")
    return _merge_entries([(domain, domain, weight) for _, domain, weight in entries])


def _split_entry(entry: str) -> tuple[str | None, str, float | None]:
    """Name, place and weight as they are written."""
    match = _ENTRY.fullmatch(entry.strip())
    if not match:
        raise ValueError(
            f"data: text entry {entry!r} is not of the form name=glob@weight; name and weight may be left out"
        )
    weight = match["weight"]
    try:
        return match["name"], match["where"], None if weight is None else float(weight)
    except ValueError:
        raise ValueError(f"data: text entry {entry!r} ends in @{weight}, which is not a number") from None


def _merge_entries(entries: list[tuple[str, str, float | None]]) -> tuple[DomainSource, ...]:
    """One domain for the entries (name, place, weight) of a name; equal weights where none is written."""
    where: dict[str, list[str]] = {}
    weights: dict[str, float] = {}
    for name, place, weight in entries:
        where.setdefault(name, []).append(place)
        if weight is not None and weights.setdefault(name, weight) != weight:
            raise ValueError(f"data: domain {name!r} has the weights {weights[name]} and {weight}; give it one")
    if not weights:
        weights = {name: 1 / len(where) for name in where}
    else:
        missing = next((name for name in where if name not in weights), None)
        if missing is not None:
            remark = mistyped_weight(where[missing][-1])
            problem = f"domain {missing!r} has no weight while others have one{remark}"
            raise ValueError(f"data: {problem}; write {missing}=...@WEIGHT")
        validate_weights(weights)
    return tuple(DomainSource(name, tuple(places), weights[name]) for name, places in where.items())


def mistyped_weight(where: str) -> str:
    """A remark on a path that ends in @ and what may be meant for a weight; empty for others."""
    _, at, end = where.rpartition("@")
    return f"; {end!r} after the @ is not a number, so it is no weight" if at and not set(end) & set("/\\*?[") else ""


def validate_weights(weights: dict[str, float]) -> None:
    """Weights are shares: none negative, their sum one.

    Raises:
        ValueError: saying which weight, or what the sum is.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"data: the weight of {name!r} is a share of the training batches, 0 or more, found {weight}"
            )
    total = math.fsum(weights.values())
    if abs(total - 1) > 1e-6:
        listed = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        raise ValueError(f"data: the weights of the domains must sum to one, found {total:g} ({listed})")
