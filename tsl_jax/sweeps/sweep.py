"""A sweep file: which runs there are, as differences from a base. Every combination becomes a run with a name.

    name: small-{optimizer.schedule}@{seed}     of each run; {ENTRY} is its value of a grid entry, {variant} its variant
    base: small.yaml                            a configuration of `tsl train`, beside this file; or a mapping
    set: {tokens: 3e6}                          entries that replace those of the base
    grid:                                       every combination of these
      optimizer.schedule: [cosine, wsd]
      seed: [0, 1, 2]
    variants:                                   each of these once for every combination
      llama: {}
      lstm: {model.architecture: lstm, model.d_model: 114}

A file is one such mapping or a list of them. Entries are written as on the command line of `tsl train`, with dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

from tsl_jax.training.checks import check
from tsl_jax.training.config import TrainConfig, config_hash, from_dict

ENTRIES = ("name", "base", "set", "grid", "variants")
LONGEST = 200  # characters of a name: a file's may have 255, and ours add to it
_PLACE = re.compile(r"\{([A-Za-z0-9_.]+)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]*")


def read_sweep(file: Path | str) -> dict[str, TrainConfig]:
    """The runs of a sweep file, name -> configuration, in the order of the file.

    Raises:
        ValueError: for what is not YAML, an unknown entry, a name that two runs have or that cannot be a file's, two
            names of one run, or a configuration that cannot work. OSError: for a file that cannot be read.
    """
    file = Path(file)
    found = _yaml(file)
    runs: dict[str, TrainConfig] = {}
    for part in found if isinstance(found, list) else [found]:
        for name, values in _expanded(part, file):
            _check_name(name, runs, file)
            runs[name] = _config(values, f"{file}: run {name}")
    if not runs:
        raise ValueError(f"sweep: {file} names no run; see tsl sweep --help")
    _check_different(runs, file)
    return runs


def _check_name(name: str, others: Iterable[str], file: Path) -> None:
    """It can be a file's, and is no other run's, also where files' names have no case."""
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        expected = f"up to {LONGEST} of A-Z a-z 0-9 _ . @ + -, a letter or digit first"
        raise ValueError(f"sweep: {file}: the name {name!r} cannot name a file; expected {expected}")
    if name.casefold() in {other.casefold() for other in others}:
        raise ValueError(f"sweep: {file}: the name {name!r} is there twice; put what differs into it, as {{seed}}")


def _check_different(runs: Mapping[str, TrainConfig], file: Path) -> None:
    """No two names are one run."""
    names: dict[str, str] = {}
    for name, config in runs.items():
        first = names.setdefault(config_hash(config), name)
        if first != name:
            raise ValueError(f"sweep: {file}: {first} and {name} are the same run; leave one out")


def _yaml(file: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"sweep: {file} is not YAML ({error})") from None


def _expanded(part: Any, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and nested entries of every run of one mapping."""
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        raise ValueError(f"sweep: {file}: expected a mapping with a name, such as run-{{seed}}, found {part!r}")
    strange = [entry for entry in part if entry not in ENTRIES]
    if strange:
        raise ValueError(f"sweep: {file}: {strange[0]!r} is not an entry; expected some of {', '.join(ENTRIES)}")
    base = part.get("base")
    base = _mapping(_yaml(file.parent / base) if isinstance(base, str) else base, "base", file)
    always, variants = (_mapping(part.get(entry), entry, file) for entry in ("set", "variants"))
    grid = {
        entry: values if isinstance(values, list) else [values]
        for entry, values in _mapping(part.get("grid"), "grid", file).items()
    }
    for variant, own in (variants or {"": {}}).items():
        own = _mapping(own, f"variant {variant}", file)
        twice = sorted(own.keys() & grid.keys())
        if twice:
            raise ValueError(f"sweep: {file}: {twice[0]} is in the grid and in variant {variant}; leave one out")
        for chosen in product(*grid.values()):
            point = dict(zip(grid, chosen, strict=True))
            values = _with(base, {**always, **own, **point}, file)
            yield _named(part["name"], {**point, "variant": variant}, file), values


def _mapping(value: Any, what: str, file: Path) -> dict[str, Any]:
    """A mapping of names; an entry that is empty is one of none."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"sweep: {file}: {what} must be a mapping of entries to values, found {value!r}")
    return {str(name): inner for name, inner in value.items()}


def _named(template: str, point: Mapping[str, Any], file: Path) -> str:
    def value(place: re.Match[str]) -> str:
        if place[1] not in point:
            raise ValueError(f"sweep: {file}: name has {place[0]}; it may have {', '.join(point)}")
        return str(point[place[1]])

    return _PLACE.sub(value, template)


def _with(base: Mapping[str, Any], entries: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The base with entries in their places; a dot leads into a mapping."""
    values = deepcopy(dict(base))
    for entry, value in entries.items():
        *path, last = entry.split(".")
        inner = values
        for name in path:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(f"sweep: {file}: {entry} leads into {name}, which is {inner!r}; replace it as a whole")
        inner[last] = value
    return values


def _config(values: dict[str, Any], where: str) -> TrainConfig:
    try:
        config = from_dict(TrainConfig, values)
        check(config)
    except ValueError as error:
        raise ValueError(f"sweep: {where}: {error}") from None
    return config
