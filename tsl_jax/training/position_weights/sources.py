"""Where weights over positions come from that are not a formula: a file with one a position, or a function, the rule.

A function is named by a text and imported when a run begins, so that training need not import the modules of rules. A
run's identity has the hash of the file, or of the function's own source file (what that imports is not followed).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsl_jax import user_code

# Adaptive rules of the library, by name.
RULES = {
    "inverse_loss": "tsl_jax.position_weight_rules:inverse_loss",
    "learnable_excess": "tsl_jax.position_weight_rules:learnable_excess",
    "gradient_noise": "tsl_jax.position_weight_rules:gradient_noise",
}
RENAMED = {"tsl_jax.weighting": "tsl_jax.position_weight_rules"}  # modules that configurations of older runs name
FILES = (".npy", ".csv", ".json")
DIGITS = 16  # of a hash


def kind(source: str) -> str:
    """ "file", "rule", or "" for a text that names neither."""
    if source.endswith(FILES):
        return "file"
    return "rule" if user_code.is_named(source) else ""


def sha256(kind: str, source: str) -> str:
    """The hash of the file, or of the source file of the function; nothing is imported, no parent package either.

    Raises:
        ValueError: where it cannot be found or read.
    """
    module = "" if kind == "file" else _module(source)
    if kind == "file" or module.endswith(".py"):
        path = Path(module or source)
    else:
        found = _source_file(module)
        if found is None:
            fix = f"install it, name a file as ./file.py:function, or take one of {', '.join(RULES)}"
            raise ValueError(f"training: position weights {source}: there is no module {module}; {fix}")
        path = found
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]
    except OSError as error:
        raise ValueError(f"training: position weights {source}: {path} cannot be read ({error.strerror})") from None


def _source_file(module: str) -> Path | None:
    """The source file of a module; `importlib.util.find_spec` would import, and so run, the packages that hold it."""
    first, *inner = module.split(".")
    specs = (finder.find_spec(first, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    spec = next((spec for spec in specs if spec is not None), None)
    if spec is None:
        return None
    if not inner and spec.origin and spec.has_location:
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        place = Path(folder).joinpath(*inner)
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if inner and file.is_file():
                return file
    return None


def is_of_others(kind: str, source: str) -> bool:
    """Whether weights of this kind run Python that is not the library's own."""
    return kind == "rule" and _module(source) not in {_module(own) for own in RULES.values()}


def verify(kind: str, source: str, expected: str) -> None:
    """Nothing, where the content is still the one that the run began with.

    Raises:
        ValueError: where it is not.
    """
    digest = sha256(kind, source)
    if digest != expected:
        was = f"hash {digest}, the run began with {expected}" if expected else "the run has no hash of it"
        fix = "restore it, or begin another run" if expected else f"write position_weights: {source}"
        raise ValueError(f"training: position weights {source} are not those of this run ({was}); {fix}")


def load_rule(kind: str, source: str) -> Callable[[Any], Any]:
    """The function of an adaptive rule: one of the library by its name, or the one that `source` names.

    Raises:
        ValueError: where there is no such function.
    """
    source = RULES.get(kind, source)
    name, module = source.rpartition(":")[2], _module(source)
    try:
        rule = user_code.load(module, name)
    except ValueError as error:
        raise ValueError(f"training: position weights {source}: {error}") from error
    if not callable(rule):
        raise ValueError(f"training: position weights {source}: {module} has no function {name!r}")
    return rule


def read_file(source: str) -> Any:
    """What a file holds, meant to be one weight a position; CSV: numbers in a row or a column, without a header.

    Raises:
        ValueError: where it cannot be read.
    """
    import numpy as np

    readers: dict[str, Callable[[Path], Any]] = {
        ".npy": lambda path: np.load(path, allow_pickle=False),
        ".csv": lambda path: np.loadtxt(path, delimiter=",").ravel(),
        ".json": lambda path: json.loads(path.read_text()),
    }
    try:
        return readers[Path(source).suffix](Path(source))
    except Exception as error:  # damage shows as whatever the layer that meets it raises
        reason = "it holds Python objects" if "pickle" in str(error) else f"{error!s:.200}"
        raise ValueError(f"training: position weights {source} cannot be read: {reason}") from None


def _module(source: str) -> str:
    """The module, or .py file, of "module:function", under its name of today."""
    module = source.rpartition(":")[0]
    return RENAMED.get(module, module)
