"""Tables that take minutes to make, kept between calls so that an interrupted analysis goes on: runs/studies/KEY.json.

The key is made of the losses, of what was asked, and of the source of the library's law wing and of the experiments: a
change of any of them makes the table anew. What is kept is exactly what would be made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

import tsl_jax
from tsl_jax.atomic_write import write_atomically

FOLDER = Path("runs/studies")
ROOMS = ("laws", "fitting", "forecasting")


def cached(
    surfaces: Mapping[str, xr.Dataset], asked: str, make: Callable[[], dict[str, pd.DataFrame]], folder: Path = FOLDER
) -> dict[str, pd.DataFrame]:
    """The tables, name -> rows, of `make`, which is called only if they are not there.

    Args:
        surfaces: all that `make` reads. asked: what it does with them, and its source where that may change.
    """
    path = folder / f"{_key(surfaces, asked)}.json"
    if path.exists():
        found = json.loads(path.read_text())
        return {name: _table(one) for name, one in found.items()}
    made = make()
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        name: json.loads(one.to_json(orient="split", index=False, double_precision=15)) for name, one in made.items()
    }
    write_atomically(path, json.dumps(told))
    return made


def _table(found: Mapping[str, Any]) -> pd.DataFrame:
    """The table as it was: a column in which nothing is known has lost its type."""
    table = pd.DataFrame(found["data"], columns=found["columns"])
    return table.astype(dict.fromkeys(table.columns[table.isna().all()], float))


def _key(surfaces: Mapping[str, xr.Dataset], asked: str) -> str:
    digest = hashlib.sha256(asked.encode() + _sources().encode())
    for name, surface in surfaces.items():
        digest.update(f"{name} {surface.attrs.get('config_hash')} {surface.attrs.get('schedule')}".encode())
        digest.update(surface.tokens.values.tobytes() + surface.loss.values.tobytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _sources() -> str:
    """A digest of the law wing's source."""
    home, digest = Path(tsl_jax.__file__).parent, hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (home / room).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
