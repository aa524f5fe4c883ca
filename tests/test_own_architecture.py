"""docs/own-architecture.md: an architecture that is registered but lacks one of the files is told which one.

`missing` says for an architecture what each file lacks, in the order of the page. Of the registered ones nothing is;
of a new one, from which a file at a time is taken away, that file alone is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import test_lowering
import test_models_architectures
from flax import nnx

from tsl_jax.models import cost, llama
from tsl_jax.models.build import ARCHITECTURES, abstract
from tsl_jax.models.config import SIZES, VARIANTS, ModelConfig, resolve
from tsl_jax.models.decoder import Architecture
from tsl_jax.models.presets import PRESETS
from tsl_jax.models.sharding import RULES
from tsl_jax.pretrained.architectures import ARCHITECTURES as PUBLISHED
from tsl_jax.training import resources

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own-architecture.md").read_text()
# Architectures of which no checkpoint in the format of transformers is read or written, and that are of no preset.
UNPUBLISHED = {"lstm", "universal"}
WITHOUT_PRESET: set[str] = set()


def missing(name: str) -> list[str]:
    """FILE: what it lacks, in the order of the page."""
    lacks: list[str] = []

    def need(fact: bool, file: str, what: str) -> None:
        if not fact:
            lacks.append(f"{file}: {what}")

    need(name in SIZES, "tsl_jax/models/config.py", f"SIZES[{name!r}], the sizes it reads")
    need(name in VARIANTS, "tsl_jax/models/config.py", f"VARIANTS[{name!r}], the options it reads, () for none")
    if name in SIZES and name in VARIANTS:
        config = resolve(ModelConfig(preset="tiny", architecture=name, vocabulary=50, context=40, layers="unroll"))
        leaves = jax.tree_util.tree_leaves_with_path(abstract(config)[1])
        names = {str(path[-1].key) for path, _ in leaves}
        need(names <= set(RULES), "tsl_jax/models/sharding.py", f"RULES of {sorted(names - set(RULES))}")
        count = sum(leaf.size for _, leaf in leaves)
        formula = cost.n_params(config) + cost.n_params_embedding(config)
        need(formula == count, "tsl_jax/models/cost.py", f"the module has {count} parameters, the formulas {formula}")
        bytes_of_step = sum(resources.memory(config, 1, "cpu").values())
        need(bytes_of_step > 16 * count, "tsl_jax/training/resources.py", "memory of a step beyond parameters")
    preset = any(preset.get("architecture", "llama") == name for preset in PRESETS.values())
    need(preset or name in WITHOUT_PRESET, "tsl_jax/models/presets.py", "a preset, or WITHOUT_PRESET in this test")
    read = any(row.architecture == name for row in PUBLISHED.values())
    file = "tsl_jax/pretrained/architectures.py"
    need(read or name in UNPUBLISHED, file, "a row of ARCHITECTURES, or UNPUBLISHED in this test")
    file = "tests/test_models_architectures.py"
    need(name in test_models_architectures.GOLDEN, file, "GOLDEN, its loss after 20 steps")
    need(name in test_models_architectures.INITIAL, file, "INITIAL, its first parameters")
    need(name in test_lowering.MODELS, "tests/test_lowering.py", "MODELS, its programs for GPUs and TPUs")
    row = f"| `{name}` |"
    need(row in (ROOT / "docs" / "models.md").read_text(), "docs/models.md", f"a row {row} ... of the architectures")
    return lacks


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_file_of_an_architecture_is_forgotten(name):
    lacks = missing(name)
    assert not lacks, "\n".join([f"{name} lacks, in the order of docs/own-architecture.md:", *lacks])


class GatedBlock(llama.Block):
    """LLaMA's block with a parameter of its own, whose name has no rule yet."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.gate_of_mine = nnx.Param(jnp.ones(config.d_model))


# What each file is given for the new architecture "mine"; it has no row in docs/models.md, which is always named.
GIVEN: dict[str, Callable[[pytest.MonkeyPatch], Any]] = {
    "tsl_jax/models/config.py": lambda patch: (
        patch.setitem(SIZES, "mine", SIZES["llama"]),
        patch.setitem(VARIANTS, "mine", VARIANTS["llama"]),
    ),
    "tsl_jax/models/sharding.py": lambda patch: patch.setitem(RULES, "gate_of_mine", RULES["scale"]),
    "tsl_jax/models/cost.py": lambda patch: patch.setattr(cost, "n_params", _with_gate(cost.n_params)),
    "tsl_jax/models/presets.py": lambda patch: patch.setitem(PRESETS, "1m-mine", {"architecture": "mine"}),
    "tsl_jax/pretrained/architectures.py": lambda patch: patch.setattr(
        f"{__name__}.UNPUBLISHED", {*UNPUBLISHED, "mine"}
    ),
    "tests/test_models_architectures.py": lambda patch: (
        patch.setitem(test_models_architectures.GOLDEN, "mine", 2.4),
        patch.setitem(test_models_architectures.INITIAL, "mine", ""),
    ),
    "tests/test_lowering.py": lambda patch: patch.setitem(test_lowering.MODELS, "mine", ModelConfig()),
}


def _with_gate(n_params: Callable[[ModelConfig], int]) -> Callable[[ModelConfig], int]:
    def counted(config: ModelConfig) -> int:
        return n_params(config) + (config.n_layers * config.d_model if config.architecture == "mine" else 0)

    return counted


@pytest.mark.parametrize("forgotten", [*GIVEN, "docs/models.md"])
def test_the_file_that_was_forgotten_is_named(monkeypatch, forgotten):
    monkeypatch.setitem(ARCHITECTURES, "mine", Architecture(GatedBlock))
    for file, give in GIVEN.items():
        if file != forgotten:
            give(monkeypatch)
    files = {line.partition(":")[0] for line in missing("mine")}
    assert files == {forgotten, "docs/models.md"}


def test_the_page_names_each_of_these_files():
    named = set(re.findall(r"`((?:tsl_jax|tests|docs)/[\w/]+\.(?:py|md))`", PAGE))
    assert {*GIVEN, "tsl_jax/models/build.py", "tsl_jax/training/resources.py", "docs/models.md"} <= named
    assert all((ROOT / file).is_file() for file in named if "NAME" not in file)
