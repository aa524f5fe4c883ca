"""Tables that take minutes to make, kept between calls so that an interrupted analysis goes on: runs/studies/KEY.json.

The key is made of the losses, of what was asked, and of the source of the library's laws, fits and forecasts: a change
of any of them makes the table anew. What is kept is exactly what would be made.
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
PACKAGES = ("laws", "fitting", "forecasting")


def cached(
    surfaces: Mapping[str, xr.Dataset], asked: str, make: Callable[[], dict[str, pd.DataFrame]], folder: Path = FOLDER
) -> dict[str, pd.DataFrame]:
    """The tables, name -> rows, of `make`, which is called only if they are not there.

    Args:
        surfaces: all that `make` reads. asked: what it does with them, and its source where that may change.
    """
    path = folder / f"{_key(surfaces, asked)}.json"
    if path.exists():
        stored = json.loads(path.read_text())
        return {name: _table(table) for name, table in stored.items()}
    made = make()
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        name: json.loads(table.to_json(orient="split", index=False, double_precision=15))
        for name, table in made.items()
    }
    write_atomically(path, json.dumps(content))
    return made


def _table(stored: Mapping[str, Any]) -> pd.DataFrame:
    """The table as it was: a column in which every value is missing has lost its type."""
    table = pd.DataFrame(stored["data"], columns=stored["columns"])
    return table.astype(dict.fromkeys(table.columns[table.isna().all()], float))


def _key(surfaces: Mapping[str, xr.Dataset], asked: str) -> str:
    digest = hashlib.sha256(asked.encode() + _sources().encode())
    for name, surface in surfaces.items():
        digest.update(f"{name} {surface.attrs.get('config_hash')} {surface.attrs.get('schedule')}".encode())
        digest.update(surface.tokens.values.tobytes() + surface.loss.values.tobytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _sources() -> str:
    """A digest of the laws and forecasts's source."""
    home, digest = Path(tsl_jax.__file__).parent, hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (home / package).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
