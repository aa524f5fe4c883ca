"""The files of a surface, header and arrays with their checksums: on disk whole or not at all, verified when read.

A checkpoint holds the sums that training measured; a saved surface any dataset, with a header that names its
variables, coordinates and attributes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from tsl_jax.atomic_write import write_atomically

SCHEMA = 1
HEADER = "surface.json"
CHECKSUM = "sha256"  # entry of the header, of the others
LARGEST = 1 << 31  # of the numbers in a header
UNPACKED, SHRINKS = 1 << 30, 100  # bytes; and how far a large file may shrink


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> None:
    """Write arrays and their checksum."""
    checked: dict[str, Any] = {**arrays, "digest": np.array(_digest(arrays))}
    write_atomically(path, lambda file: (np.savez_compressed if compress else np.savez)(file, **checked))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file.

    Raises:
        ValueError: if it is damaged or something else. OSError: if it cannot be read.
    """
    data = path.read_bytes()
    _refuse_bomb(data, path)
    if data.startswith(b"\x93NUMPY"):
        raise ValueError(f"surface: {path} is a single array; make a surface of it with from_losses")
    if path.suffix != ".npz" and not data.startswith(b"PK"):  # a log or a table, say: nothing of ours is damaged
        raise ValueError(f"surface: {path} is no surface; of a log surfaces are made by tsl import {path} --out FOLDER")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        digest = arrays.pop("digest", None)
        if digest is not None and str(digest) != _digest(arrays):
            raise ValueError("its checksum does not match")
    except Exception as error:  # damage shows as whatever the layer that meets it raises
        fix = "restore it from a copy, or delete it: that checkpoint is lost"
        raise ValueError(f"surface: {path} is damaged ({error}); {fix}") from None
    if digest is None:
        raise ValueError(f"surface: {path} has no checksum: no file of a surface, or damaged; name a run's folder")
    return arrays


def _refuse_bomb(data: bytes, path: Path) -> None:
    """Refuse a small file that stands for more than memory may hold: arrays of losses do not shrink so far."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):  # said by who reads it
        return
    if size > max(UNPACKED, SHRINKS * len(data)):
        found = f"{path} is damaged: its {len(data):,} bytes unpack to {size:,}"
        raise ValueError(f"surface: {found}, as those of no surface do; restore it from a copy")


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {value.dtype.str} {value.shape}".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Write the header of a surface and its checksum."""
    write_atomically(folder / HEADER, json.dumps({**header, CHECKSUM: _checksum(header)}, indent=1))


def read_header(folder: Path) -> dict[str, Any]:
    """The header of a surface.

    Raises:
        FileNotFoundError: where there is none. ValueError: where it is damaged, or of another schema.
    """
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"surface: no {HEADER} in {folder}; begin one with surface.create") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"surface: {folder / HEADER} is damaged ({error}); restore it from a copy") from None
    if isinstance(header, dict) and CHECKSUM in header and header.pop(CHECKSUM) != _checksum(header):
        fix = f"restore it from a copy, or take out its {CHECKSUM} if you changed it on purpose"
        raise ValueError(f"surface: {folder / HEADER} is damaged or was changed: its checksum does not match; {fix}")
    return checked_header(header, folder / HEADER)


def _checksum(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def checked_header(header: Any, path: Path) -> dict[str, Any]:
    """The header itself, once it is known to have what every surface has.

    Args:
        header: as it was read. path: of its file, for messages.

    Raises:
        ValueError: where it is damaged, or of another schema.
    """
    schema = header.get("schema") if isinstance(header, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"surface: {path} has schema {schema!r:.40}, this version reads {SCHEMA}")
    if "variables" in header:  # of a saved surface, whose arrays say the rest
        return header
    clusters, context, attrs = (header.get(name) for name in ("clusters", "context", "attrs"))
    counts = [*clusters.values(), context] if isinstance(clusters, dict) and clusters else [0]
    if not all(type(count) is int and 0 < count <= LARGEST for count in counts) or not isinstance(attrs, dict):
        expected = "clusters (split: number), context (a number) and attrs (a mapping)"
        raise ValueError(f"surface: {path} is damaged: expected {expected}; restore it from a copy")
    return header


class CheckpointArray(BackendArray):
    """One array of every checkpoint of a folder, (split, tokens, cluster, position), read when it is indexed.

    Splits with fewer clusters than the widest are filled up with zeros. The files must have been verified.
    """

    def __init__(self, files: Sequence[Path], name: str, clusters: Mapping[str, int], positions: int) -> None:
        """Of the arrays SPLIT/`name` in `files`; clusters: of each split."""
        self.files, self.name, self.splits = list(files), name, list(clusters)
        self.shape = (len(clusters), len(self.files), max(clusters.values()), positions)
        self.dtype = np.dtype(np.float64)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        """The array at integers and slices."""
        which_split, which_file, *rest = key
        places = np.arange(len(self.files))[which_file]
        splits = np.arange(len(self.splits))[which_split]
        found = np.zeros((np.size(splits), np.size(places), *self.shape[2:]))
        for j, place in enumerate(np.atleast_1d(places)):
            with np.load(self.files[place], allow_pickle=False) as file:
                for i, split in enumerate(np.atleast_1d(splits)):
                    array = file[f"{self.splits[split]}/{self.name}"]
                    found[i, j, : len(array)] = array
        outer = tuple(0 if isinstance(part, int | np.integer) else slice(None) for part in (which_split, which_file))
        return found[(*outer, *rest)]


# ------------------------------------------------------------------------------------- a dataset as arrays and a header


def to_arrays(dataset: xr.Dataset, header: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every variable and coordinate of a dataset, and a header that describes them.

    Args:
        header: its other entries.

    Raises:
        ValueError: for attributes that are no JSON values, and arrays of anything but numbers, text and dates.
    """
    kinds = {"variables": dataset.data_vars, "coordinates": dataset.coords}
    labels = {kind: {str(n): [list(v.dims), v.attrs] for n, v in group.items()} for kind, group in kinds.items()}
    full = {**header, **labels, "attrs": dataset.attrs}
    try:
        written = json.dumps(full, default=_plain)
    except TypeError as error:
        fix = "give attributes as numbers, text, lists and mappings"
        raise ValueError(f"surface: an attribute cannot be saved ({error}); {fix}") from None
    arrays = {f"{kind}/{name}": _storable(str(name), v) for kind, group in kinds.items() for name, v in group.items()}
    return {**arrays, "header": np.array(written)}


def from_arrays(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
    """The dataset of `to_arrays`."""

    def read(kind: str) -> dict[str, Any]:
        return {name: (dims, arrays[f"{kind}/{name}"], attrs) for name, (dims, attrs) in header[kind].items()}

    return xr.Dataset(read("variables"), read("coordinates"), header["attrs"])


def _plain(value: Any) -> Any:
    """The JSON value of a record, such as a schedule, or of numpy's numbers."""
    if hasattr(value, "to_plan"):
        return value.to_plan()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"it is a {type(value).__name__}")


def _storable(name: str, variable: xr.DataArray) -> np.ndarray:
    """The values; text as numpy's own, as an array of objects would need pickle."""
    values = variable.values
    if values.dtype.kind in "OT" and all(isinstance(value, str) for value in values.ravel()):
        values = values.astype(str)
    if values.dtype.kind not in "biufcSUmM":
        raise ValueError(f"surface: {name} holds {values.dtype} and cannot be saved; make it numbers or text")
    return values
