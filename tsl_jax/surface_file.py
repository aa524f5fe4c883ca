"""One file of a surface: arrays with their checksum, on disk whole or not at all, and verified when read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tsl_jax.durable import write_durably


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> None:
    """Write arrays and their checksum."""
    checked: dict[str, Any] = {**arrays, "digest": np.array(_digest(arrays))}
    write_durably(path, lambda file: (np.savez_compressed if compress else np.savez)(file, **checked))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file.

    Raises:
        ValueError: if it is damaged or something else. OSError: if it cannot be read.
    """
    data = path.read_bytes()
    if data.startswith(b"\x93NUMPY"):
        raise ValueError(f"surface: {path} is a single array; make a surface of it with from_losses")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        digest = arrays.pop("digest", None)
        if digest is not None and str(digest) != _digest(arrays):
            raise ValueError("its checksum does not match")
    except Exception as error:  # damage shows as whatever the layer that meets it raises
        mend = "restore it from a copy, or delete it: that checkpoint is lost"
        raise ValueError(f"surface: {path} is damaged ({error}); {mend}") from None
    if digest is None:
        raise ValueError(f"surface: {path} has no checksum: no file of a surface, or damaged; name a run's folder")
    return arrays


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {value.dtype.str} {value.shape}".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()
