"""Where weights over positions come from that are not a formula: a file with one a position, or a function, the rule.

Functions are named as text and found when a run begins, so that training need not know who offers rules. A run's
identity has the hash of the file, or of the function's own source file (what that imports is not followed).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Adaptive rules of the library, by name.
RULES = {
    "inverse_loss": "tsl_jax.position_weight_rules:inverse_loss",
    "learnable_excess": "tsl_jax.position_weight_rules:learnable_excess",
    "gradient_noise": "tsl_jax.position_weight_rules:gradient_noise",
}
RENAMED = {"tsl_jax.weighting": "tsl_jax.position_weight_rules"}  # modules that configurations of older runs name
FILES = (".npy", ".csv", ".json")
DIGITS = 16
_FUNCTION = re.compile(r"(.*\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")


def kind(source: str) -> str:
    """ "file", "rule", or "" for a text that names neither."""
    if source.endswith(FILES):
        return "file"
    return "rule" if _FUNCTION.fullmatch(source) else ""


def digest(kind: str, source: str) -> str:
    """The hash of the file, or of the source file of the function.

    Raises:
        ValueError: where it cannot be found or read.
    """
    path = Path(source) if kind == "file" else _source_file(source)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]
    except OSError as error:
        raise ValueError(f"training: position weights {source}: {path} cannot be read ({error.strerror})") from None


def verify(kind: str, source: str, expected: str) -> None:
    """Nothing, where the content is still the one that the run was told.

    Raises:
        ValueError: where it is not.
    """
    found = digest(kind, source)
    if found != expected:
        was = f"hash {found}, the run was told {expected}" if expected else "the run was told no hash of it"
        mend = "restore it, or begin another run" if expected else f"write position_weights: {source}"
        raise ValueError(f"training: position weights {source} are not those of this run ({was}); {mend}")


def load(kind: str, source: str) -> Callable[[Any], Any]:
    """The function of an adaptive rule: one of the library by its name, or the one that `source` names.

    Raises:
        ValueError: where there is no such function.
    """
    place, _, name = RULES.get(kind, source).rpartition(":")
    place = RENAMED.get(place, place)
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise ValueError(f"training: position weights {source}: {place} cannot be imported ({found})") from error
    rule = getattr(module, name, None)
    if not callable(rule):
        raise ValueError(f"training: position weights {source}: {place} has no function {name!r}")
    return rule


def read(source: str, context: int) -> np.ndarray:
    """One weight a position from a file, float64, mean one. CSV: numbers, in a row or a column, without a header.

    Raises:
        ValueError: where it does not give them.
    """
    import numpy as np

    from tsl_jax.training.position_weights import adaptive

    readers: dict[str, Callable[[Path], Any]] = {
        ".npy": lambda path: np.load(path, allow_pickle=False),
        ".csv": lambda path: np.loadtxt(path, delimiter=",").ravel(),
        ".json": lambda path: json.loads(path.read_text()),
    }
    try:
        raw = readers[Path(source).suffix](Path(source))
    except (OSError, ValueError) as error:
        raise ValueError(f"training: position weights {source} cannot be read: {error}") from None
    return adaptive.normalised(raw, f"position weights {source}", context)


def _source_file(source: str) -> Path:
    place = source.rpartition(":")[0]
    place = RENAMED.get(place, place)
    if place.endswith(".py"):
        return Path(place)
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not spec.has_location:
        known = ", ".join(RULES)
        mend = f"install it, name a file as ./file.py:function, or take one of {known}"
        raise ValueError(f"training: position weights {source}: there is no module {place}; {mend}")
    return Path(spec.origin)


def _module_of_file(path: Path) -> Any:
    name = f"position_weights_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
