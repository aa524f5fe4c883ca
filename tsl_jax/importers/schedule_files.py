"""Learning-rate plans in files, in YAML or JSON: what a run followed, or one that it might follow.

- {from_tokens: 0, kind: constant, peak: 3e-4, warmup_tokens: 1e8, total_tokens: 1e10}
- {from_tokens: 8e9, kind: cosine, peak: 3e-4, total_tokens: 1e10, final_ratio: 0.1}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsl_jax.schedules import Schedule

# YAML 1.1 wants 3.0e-4; without the point it reads text.
_SCIENTIFIC = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+")


def read_plans(path: str | Path) -> Schedule:
    """The learning-rate plan of a file: one plan, or a list of plans, each from its `from_tokens` on.

    Args:
        path: a .json file, or YAML; a plan's entries are those that `Schedule.from_plan` reads, and no others.

    Raises:
        ValueError: naming the file and its first mistake. OSError: if the file cannot be read.
    """
    return schedule_of(load(path), str(path))


def load(path: str | Path) -> Any:
    """The values of a .json or YAML file, with numbers such as 3e-4 that YAML takes for text.

    Raises:
        ValueError: for a file that is neither, or names an entry twice. OSError: if it cannot be read.
    """
    from tsl_jax.yaml_files import read_yaml

    path = Path(path)
    kind = "JSON" if path.suffix == ".json" else "YAML"
    try:
        if kind == "JSON":
            return _numbers(json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats))
        return _numbers(read_yaml(path))
    except RecursionError:
        raise ValueError(f"{path}: nested too deep; write the plan as in surface.json, under schedule") from None
    except ValueError as error:
        reason = str(error).removeprefix("not YAML (").removesuffix(")")
        raise ValueError(f"{path}: not {kind} ({reason}); write the plan as in surface.json, under schedule") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The entries of a JSON object; of two with one name a dict would keep the last in silence."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is given twice")
    return dict(pairs)


def schedule_of(values: Any, where: str) -> Schedule:
    """The schedule of a plan as a file has it.

    Args:
        where: what to call the file.

    Raises:
        ValueError: for an entry that no plan has, and for all that `Schedule.from_plan` refuses.
    """
    from tsl_jax.schedules import PLAN_KEYS, Schedule  # late: it brings jax

    plans = values if isinstance(values, list) else [values]
    unknown = [key for plan in plans if isinstance(plan, Mapping) for key in plan if key not in PLAN_KEYS]
    if unknown:
        raise ValueError(f"{where}: a plan has no {unknown[0]!r}; it has {', '.join(PLAN_KEYS)}")
    try:
        return Schedule.from_plan(values)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).removeprefix('schedule: ')}") from None


def _numbers(value: Any) -> Any:
    """The value with text that is a number with a power of ten as that number."""
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value
