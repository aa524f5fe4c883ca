"""A sweep file: which runs there are, as differences from a base; and what runs cost before they begin.

    name: small-{optimizer.schedule}@{seed}     of each run; {ENTRY} is its value of a grid entry, {variant} its variant
    base: small.yaml                            a configuration of `tsl train`, beside this file; or a mapping
    set: {tokens: 3e6}                          entries that replace those of the base
    grid:                                       every combination of these is a run
      optimizer.schedule: [cosine, wsd]
      seed: [0, 1, 2]
    variants:                                   each of these once for every combination
      llama: {}
      lstm: {model.architecture: lstm, model.d_model: 114}

A file is one such mapping or a list of them. Entries are written as on the command line of `tsl train`, with dots;
`text` is `data.text`, a list. Files that they name are found from the folder in which the sweep is called.
"""

from __future__ import annotations

import re
import reprlib
import subprocess
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tsl_jax.data.config import pooled_splits
from tsl_jax.data.corpora import configured_domains, vocabulary_size
from tsl_jax.models.config import resolve
from tsl_jax.models.cost import flops_per_token
from tsl_jax.processes import environment, python
from tsl_jax.training.checks import validate_config
from tsl_jax.training.config import TrainConfig, config_hash, from_dict
from tsl_jax.yaml_files import read_yaml

ENTRIES = ("name", "base", "set", "grid", "variants")
LONGEST = 200  # characters of a name: a file's may have 255, and ours add to it
UTILISATION = 0.35  # of the machine's matrix products, assumed: small models reach .3 to .55 on a CPU
START_UP = 8.0  # seconds of a run: imports, text, compiling with a warm cache


def read_sweep(file: Path | str) -> dict[str, TrainConfig]:
    """The runs of a sweep file, name -> configuration, in the order of the file; no code that it names is run.

    Raises:
        ValueError: for what is not YAML, an unknown entry, a name that two runs have or that cannot be a file's, two
            names of one run, or a configuration that cannot work. OSError: for a file that cannot be read.
    """
    file, content = Path(file), _yaml(Path(file))
    runs: dict[str, TrainConfig] = {}
    hashes: dict[str, str] = {}
    for part in content if isinstance(content, list) else [content]:
        for name, values in _runs(part, file):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@+-]*", name) or len(name) > LONGEST:
                expected = f"up to {LONGEST} of A-Z a-z 0-9 _ . @ + -, a letter or digit first"
                raise ValueError(f"sweep: {file}: the name {name!r} cannot name a file; expected {expected}")
            if name.casefold() in map(str.casefold, runs):  # also where files' names have no case
                raise ValueError(
                    f"sweep: {file}: the name {name!r} is there twice; put what differs into it, as {{seed}}"
                )
            try:
                runs[name] = from_dict(TrainConfig, values)
                validate_config(runs[name], run_code=False)
            except ValueError as error:
                raise ValueError(f"sweep: {file}: run {name}: {error}") from None
            first = hashes.setdefault(config_hash(runs[name]), name)
            if first != name:
                raise ValueError(f"sweep: {file}: {first} and {name} are the same run; leave one out")
    if not runs:
        raise ValueError(f"sweep: {file} names no run; see tsl sweep --help")
    return runs


def _yaml(file: Path) -> Any:
    try:
        return read_yaml(file)
    except ValueError as error:
        raise ValueError(f"sweep: {file}: {error}") from None


def _runs(part: Any, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and nested entries of every run of one mapping."""
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        raise ValueError(
            f"sweep: {file}: expected a mapping with a name, such as run-{{seed}}, found {reprlib.repr(part)}"
        )
    if unknown := [entry for entry in part if entry not in ENTRIES]:
        raise ValueError(f"sweep: {file}: {unknown[0]!r} is not an entry; expected some of {', '.join(ENTRIES)}")

    def mapping(value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value or {}, dict):
            raise ValueError(
                f"sweep: {file}: {what} must be a mapping of entries to values, found {reprlib.repr(value)}"
            )
        return {str(name): inner for name, inner in (value or {}).items()}

    base = part.get("base")
    base = mapping(_yaml(file.parent / base) if isinstance(base, str) else base, "base")
    always, grid, variants = (mapping(part.get(entry), entry) for entry in ("set", "grid", "variants"))
    for variant, own in (variants or {"": {}}).items():
        own = mapping(own, f"variant {variant}")
        if twice := sorted(own.keys() & grid.keys()):
            raise ValueError(f"sweep: {file}: {twice[0]} is in the grid and in variant {variant}; leave one out")
        for chosen in product(*(values if isinstance(values, list) else [values] for values in grid.values())):
            point = dict(zip(grid, chosen, strict=True))
            places = {**point, "variant": variant}
            for place in re.findall(r"\{([A-Za-z0-9_.]+)\}", part["name"]):
                if place not in places:
                    raise ValueError(f"sweep: {file}: name has {{{place}}}; it may have {', '.join(places)}")
            name = re.sub(r"\{([A-Za-z0-9_.]+)\}", lambda place, places=places: str(places[place[1]]), part["name"])
            yield name, _replaced(base, {**always, **own, **point}, file)


def _replaced(base: Mapping[str, Any], entries: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The base with entries in their places; a dot leads into a mapping, `text` is short for data.text."""
    values = deepcopy(dict(base))
    if "text" in values:  # at its place before the entries that replace it
        entries = {"data.text": values.pop("text"), **entries}
    for entry, value in entries.items():
        *path, last = ("data.text" if entry == "text" else entry).split(".")
        inner = values
        for name in path:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(
                    f"sweep: {file}: {entry} leads into {name}, which is {reprlib.repr(inner)}; replace it as a whole"
                )
        inner[last] = value
    return values


@dataclass(frozen=True)
class Cost:
    """Of one run or many.

    Attributes:
        runs: how many. tokens: trained on. evaluated: tokens scored on the evaluation windows.
        training, evaluation: FLOPs.
    """

    runs: int = 0
    tokens: int = 0
    evaluated: int = 0
    training: float = 0.0
    evaluation: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def seconds(self, rate: float) -> float:
        """A guess, where matrix products reach `rate` FLOPs a second (`machine_rate`)."""
        return (self.training + self.evaluation) / (UTILISATION * rate) + START_UP * self.runs

    def __str__(self) -> str:
        trained = f"{self.tokens:.3g} tokens in {self.training:.2g} FLOPs"
        return f"{self.runs} runs: {trained} of training, {self.evaluated:.3g} in {self.evaluation:.2g} of evaluation"


def cost(config: TrainConfig) -> Cost:
    """Of one run; a forward pass is a third of a training step. Text that is all trained on is evaluated on one split.

    Raises:
        ValueError: where its vocabulary is that of a corpus which is not built yet.
    """
    vocabulary = config.model.vocabulary or vocabulary_size(config.data)
    flops = flops_per_token(resolve(config.model, vocabulary=vocabulary, context=config.context), config.context)
    windows = config.evaluation.windows(pooled_splits(configured_domains(config.data)))
    evaluated = config.evaluations * windows * config.context
    return Cost(1, config.tokens, evaluated, float(flops) * config.tokens, flops / 3 * evaluated)


def machine_rate(dtype: str) -> float:
    """`training.resources.matrix_rate` by a process of its own: a device that it took would be missing to the runs.

    Raises:
        OSError: where it cannot be measured.
    """
    program = f"from tsl_jax.training.resources import matrix_rate; print(matrix_rate({dtype!r}))"
    done = subprocess.run([*python("-c"), program], capture_output=True, text=True, env=environment())
    if done.returncode:
        raise OSError(f"the speed of this machine could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout.split()[-1])
