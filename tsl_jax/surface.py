"""The loss surface: cross-entropy by (split, tokens seen, position), in memory and on disk.

The only interface between training, which writes surfaces, and the fits of laws, which read them. In memory it is an
`xarray.Dataset` with the schema below; on disk a folder with one immutable checksummed file a checkpoint beside
`surface.json`, or a single file (`pack`, `save_surface`). Conventions, decided here once:

* `position` i counts from 1: the loss at position i is that of the token which has i tokens of context in its window.
* `tokens` is the number of training tokens seen so far, over all devices; losses are nats per token.
* `loss` is the plain mean over the windows of a split; `loss_additive` the two-way additive estimate (see
  `tsl_jax.training.evaluation`), NaN where the windows do not overlap.
* Errors come from clusters (documents): windows of one document overlap, so window-wise errors are too small. With S_c
  and n_c the sum and the count of losses in cluster c, m = sum S_c / sum n_c, and C clusters,
  `sem^2 = C/(C-1) * sum_c (S_c - m n_c)^2 / (sum_c n_c)^2` (ratio estimator; Cochran, Sampling Techniques, ch. 6).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from tsl_jax.atomic_write import is_unused
from tsl_jax.surface_file import (
    HEADER,
    SCHEMA,
    CheckpointArray,
    checked_header,
    from_arrays,
    read_arrays,
    read_header,
    to_arrays,
    write_arrays,
    write_header,
)

CHECKPOINT_FILES = "tokens-*.npz"
DIMENSIONS = ("split", "tokens", "position")
IDENTITY = ("run", "config_hash", "model", "windows", "seed")  # attributes that all checkpoints of a surface share
IN_MEMORY = 2**28  # bytes of sums by cluster that are loaded with the rest
TABLES = (".csv", ".jsonl", ".ndjson", ".parquet")  # of losses; an importer makes surfaces of them
# What one checkpoint stores for each split: (name, dimensions).
STORED = {
    "loss_sum": ("position",),
    "loss_sum_squares": ("position",),
    "count": ("position",),
    "cluster_sum": ("cluster", "position"),
    "cluster_sum_squares": ("cluster", "position"),
    "cluster_count": ("cluster", "position"),
    "loss_additive": ("position",),
    "loss_additive_sem": ("position",),
}


# ---------------------------------------------------------------------------------------------------- in memory


def validate_surface(surface: object) -> xr.Dataset:
    """The surface itself, once it is known to follow the schema.

    Raises:
        ValueError: naming the first rule that is broken, what was found, and how to fix it.
    """
    if not isinstance(surface, xr.Dataset):
        raise ValueError(f"surface: expected an xr.Dataset, found {type(surface).__name__}; see tsl.from_losses")
    if "loss" not in surface or surface.loss.dims != DIMENSIONS:
        dims = surface.loss.dims if "loss" in surface else tuple(surface.data_vars)
        raise ValueError(f"surface: expected a variable loss over {DIMENSIONS}, found {dims}; see tsl.from_losses")
    for split in map(str, surface.split.values if "split" in surface.coords else ()):
        if not split.isprintable():
            raise ValueError(f"surface: the split {split!r:.80} has control characters in its name; rename it")
    for name in ("tokens", "position"):
        if name not in surface.coords:
            raise ValueError(f"surface: the dimension {name} has no coordinate; assign it with .assign_coords({name}=)")
        values = surface[name].values
        if values.size and (not np.all(np.isfinite(values)) or np.any(np.diff(values) <= 0)):
            raise ValueError(f"surface: {name} must increase strictly, found {values[:8]}...; sort and drop duplicates")
    if surface.position.size and surface.position.values[0] < 1:
        first = surface.position.values[0]
        raise ValueError(f"surface: position counts tokens of context, from 1; the first is {first}. Add 1 to an index")
    if surface.tokens.size and surface.tokens.values[0] < 0:
        raise ValueError(f"surface: tokens seen cannot be negative, found {surface.tokens.values[0]}")
    return surface


def position_noise(surface: xr.Dataset) -> xr.DataArray:
    """What each cluster adds to the noise of the plain mean loss: a root of its covariance between positions, nats,

        noise_c(i) = (S_c(i) - m(i) n_c(i))/n(i) sqrt(C/(C - 1)),     covariance(i, j) = sum_c noise_c(i) noise_c(j).

    A covariance of n positions has n^2 numbers a checkpoint, its root only n a cluster.

    Returns:
        DataArray (split, tokens, cluster, position). NaN where fewer than two clusters were scored.
    """
    residual = surface.cluster_sum - surface.loss * surface.cluster_count
    clusters = (surface.cluster_count.sum("position") > 0).sum("cluster")
    noise = residual / surface["count"] * (clusters / (clusters - 1).where(clusters > 1)) ** 0.5
    return noise.transpose("split", "tokens", "cluster", "position")


def position_covariance(surface: xr.Dataset) -> xr.DataArray:
    """Covariance of the plain mean loss between positions, from cluster sums; see `position_noise`.

    Returns:
        DataArray (split, tokens, position, position_), nats^2. NaN where fewer than two clusters were scored.
    """
    noise = position_noise(surface)
    covariance = xr.dot(noise, noise.rename(position="position_"), dim="cluster")
    return covariance.transpose("split", "tokens", "position", "position_")


def with_losses(stored: xr.Dataset) -> xr.Dataset:
    """The stored sums with `loss` beside them, and `sem` where there are sums by cluster."""
    loss = (stored.loss_sum / stored["count"].where(stored["count"] > 0)).transpose(*DIMENSIONS)
    if "cluster_sum" not in stored:
        return stored.assign(loss=loss)
    residual = stored.cluster_sum - loss * stored.cluster_count
    clusters = (stored.cluster_count.sum("position") > 0).sum("cluster")
    factor = clusters / (clusters - 1).where(clusters > 1)
    sem = np.sqrt(factor * (residual**2).sum("cluster")) / stored["count"].where(stored["count"] > 0)
    return stored.assign(loss=loss, sem=sem.transpose(*DIMENSIONS))


# ------------------------------------------------------------------------------------------------------ on disk


def create(folder: str | Path, *, clusters: Mapping[str, int], context: int, attrs: Mapping[str, Any]) -> None:
    """Begin a surface: write `surface.json` with the schema, or check that the one on disk is the same.

    Args:
        folder: where the surface lives; made if absent.
        clusters: number of clusters (documents) of each split, in the order of the splits.
        context: number of positions n.
        attrs: what is known of the run (JSON values): run, model, n_params, schedule, windows, document_boundary,
            seed, versions, git_commit.

    Raises:
        ValueError: if the folder holds a surface with another header, or something else; it is left as it is.
    """
    folder = Path(folder)
    header = {"schema": SCHEMA, "clusters": dict(clusters), "context": int(context), "attrs": dict(attrs)}
    header = json.loads(json.dumps(header))  # tuples become lists, as they will on disk
    if (folder / HEADER).exists():
        on_disk = read_header(folder)
        identity = [key for key in ("schema", "clusters", "context") if on_disk[key] != header[key]]
        identity += [key for key in IDENTITY if on_disk["attrs"].get(key) != header["attrs"].get(key)]
        if identity:
            raise ValueError(
                f"surface: {folder} holds another run's surface ({', '.join(identity)} differ); use a new folder"
            )
        return
    if not is_unused(folder, CHECKPOINT_FILES):
        raise ValueError(f"surface: {folder} is there and holds no surface; use a new folder, or an empty one")
    folder.mkdir(parents=True, exist_ok=True)
    write_header(folder, header)


def annotate(folder: str | Path, **attrs: Any) -> None:
    """Add attributes to the header of a surface, or replace some; those that identify it stay.

    Args:
        folder: a surface begun by `create`. attrs: JSON values; a mapping adds its entries to those that are there.

    Raises:
        ValueError: for an attribute in IDENTITY.
    """
    folder = Path(folder)
    fixed = [name for name in attrs if name in IDENTITY]
    if fixed:
        raise ValueError(f"surface: {fixed[0]} says whose surface {folder} is and cannot change; use a new folder")
    header = read_header(folder)
    for name, value in attrs.items():
        before = header["attrs"].get(name)
        header["attrs"][name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    write_header(folder, header)


def append(
    folder: str | Path, *, tokens: int, step: int, lr: float, splits: Mapping[str, Mapping[str, np.ndarray]]
) -> Path:
    """Add one checkpoint: an immutable file, complete or absent whatever happens meanwhile.

    Args:
        folder: a surface begun by `create`.
        tokens: training tokens seen; step: optimizer steps taken, -1 where not known; lr: learning rate of the last
            step, NaN where not known.
        splits: for each split the float64 arrays named in `STORED`.

    Raises:
        ValueError: if arrays are missing or misshapen, or this number of tokens is there already.
        OSError: if the disk is full or not writable; earlier checkpoints are untouched.
    """
    folder = Path(folder)
    header = read_header(folder)
    path = folder / f"tokens-{tokens:015d}.npz"
    if path.exists():
        raise ValueError(f"surface: {path} exists, and checkpoints are immutable; load it, or use a new folder")
    arrays = {"tokens": np.array(tokens, np.int64), "step": np.array(step, np.int64), "lr": np.array(lr, np.float64)}
    for split, n_clusters in header["clusters"].items():
        sizes = {"cluster": n_clusters, "position": header["context"]}
        for name, dims in STORED.items():
            value, shape = np.asarray(splits[split][name], np.float64), tuple(sizes[d] for d in dims)
            if value.shape != shape:
                raise ValueError(f"surface: {split}/{name} has shape {value.shape}, the header asks for {shape}")
            arrays[f"{split}/{name}"] = value
    write_arrays(path, arrays)
    return path


def checkpoints(folder: str | Path) -> dict[int, Path]:
    """Tokens seen -> file, of the checkpoints on disk, in order; empty where there is no surface yet."""
    return {int(path.stem.split("-")[1]): path for path in sorted(Path(folder).glob(CHECKPOINT_FILES))}


def damage(folder: str | Path, tokens: int) -> str:
    """What is wrong with the file of a checkpoint, as a sentence; empty where it is whole, or not there."""
    path = checkpoints(folder).get(tokens)
    try:
        if path is not None:
            read_arrays(path)
    except (OSError, ValueError) as error:
        return str(error).removeprefix("surface: ").partition(";")[0]
    return ""


def load_surface(path: str | Path) -> xr.Dataset:
    """A surface from a run's folder, its `surface` folder, a packed or a saved file; every checksum is verified.

    Returns:
        Dataset with `loss`, `sem`, `loss_additive` ... over (split, tokens, position), the sums by cluster, the
        coordinates `step` and `lr` on tokens where known, and the run's facts as attrs; of a saved file what was saved.
        Sums by cluster of a folder that are larger than IN_MEMORY are read when used, checkpoint by checkpoint.

    Raises:
        FileNotFoundError: no surface there. ValueError: a file is damaged (named) or of another schema.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix in TABLES:
            raise ValueError(f"surface: {path} is a table; make surfaces of it by tsl import {path} --out FOLDER")
        arrays = read_arrays(path)
        if "header" not in arrays:
            raise ValueError(f"surface: {path} is one checkpoint of a surface; name its folder, or a packed file")
        try:
            header = json.loads(str(arrays.pop("header")))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"surface: {path} is damaged (its header: {error}); restore it from a copy") from None
        return _dataset(checked_header(header, path), arrays, path)
    folder = path if (path / HEADER).exists() else path / "surface"
    if not (folder / HEADER).exists():
        raise FileNotFoundError(
            f"surface: no {HEADER} in {path} or {path / 'surface'}; name a run's folder or a packed file"
        )
    header = read_header(folder)
    files = list(checkpoints(folder).values())
    if not files:
        raise ValueError(f"surface: {folder} holds no checkpoint yet; wait for the first evaluation")
    of_clusters = [name for name, dims in STORED.items() if "cluster" in dims]
    positions, clusters = header["context"], header["clusters"]
    if 8 * len(files) * len(of_clusters) * sum(clusters.values()) * positions <= IN_MEMORY:
        loaded = [read_arrays(file) for file in files]
        for file, arrays in zip(files, loaded, strict=True):
            if arrays.keys() != loaded[0].keys():
                problem = f"{file} has other arrays than {files[0]}"
                raise ValueError(f"surface: {problem}; move it away, it is not of this surface")
        return _dataset(header, {name: [a[name] for a in loaded] for name in loaded[0]}, folder)
    parts: list[xr.Dataset] = []
    for file in files:
        arrays = {name: [values] for name, values in read_arrays(file).items()}
        parts.append(_dataset(header, arrays, file).drop_vars(of_clusters))
    shared = set.intersection(*(set(part.coords) for part in parts))  # a step may be known of some alone
    parts = [part.drop_vars(set(part.coords) - shared) for part in parts]
    late = {name: CheckpointArray(files, name, clusters, positions) for name in of_clusters}
    lazy = {name: (("split", "tokens", *STORED[name]), indexing.LazilyIndexedArray(late[name])) for name in late}
    return xr.concat(parts, "tokens").assign(lazy)


def save_surface(surface: xr.Dataset, file: str | Path) -> Path:
    """Write any surface as one compressed, checksummed file, which `load_surface` reads: for losses from elsewhere.

    A surface written by training is on disk already; `pack` makes one file of it.

    Args:
        surface: as `from_losses` and `read_table` make it. file: as for `pack`; its folder is made if absent.

    Returns:
        The file written. A file that was there is replaced.

    Raises:
        ValueError: for what is no surface, or attributes that are no JSON values. OSError: if it cannot be written.
    """
    arrays, file = to_arrays(validate_surface(surface), {"schema": SCHEMA}), _npz(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(file, arrays, compress=True)
    return file


def pack(path: str | Path, file: str | Path, clusters: int | None = None) -> Path:
    """Write the surface of a run as one compressed, checksummed file, which `load_surface` reads as it does the folder.

    Args:
        path: a surface, or the folder of a run. file: its name ends in `.npz`, which is added where it is missing.
        clusters: merge neighbouring clusters of each split into so many, which makes the file a fraction of its size:
            losses stay exact, errors and covariances are estimated from fewer, larger clusters, kept to seven digits.

    Returns:
        The file written.
    """
    if clusters is not None and clusters < 2:
        raise ValueError(f"surface: errors need two clusters or more, found clusters={clusters}")
    surface = load_surface(path)
    if "header" not in surface.attrs:
        raise ValueError(f"surface: {path} is a saved surface without the sums of its clusters; copy it, or name a run")
    header = json.loads(surface.attrs["header"])
    unknown = {"step": np.full(surface.sizes["tokens"], -1), "lr": np.full(surface.sizes["tokens"], np.nan)}
    known = {name: surface[name].values for name in ("tokens", "step", "lr") if name in surface.coords}
    arrays: dict[str, np.ndarray] = unknown | known
    for split, count in header["clusters"].items():
        source = surface.sel(split=split).isel(cluster=slice(0, count))
        target = min(count, clusters or count)
        starts = np.arange(target) * count // target
        for name, dims in STORED.items():
            values = source[name].transpose("tokens", *dims).values
            arrays[f"{split}/{name}"] = _merged(values, starts, clusters) if "cluster" in dims else values
        header["clusters"][split] = target
    arrays["header"] = np.array(json.dumps(header))
    file = _npz(file)
    write_arrays(file, arrays, compress=True)
    return file


def _npz(file: str | Path) -> Path:
    file = Path(file)
    return file if file.suffix == ".npz" else file.with_name(file.name + ".npz")


def _merged(values: np.ndarray, starts: np.ndarray, clusters: int | None) -> np.ndarray:
    """Sums over neighbouring clusters, to seven digits: the rest is noise that takes half of a file."""
    return values if clusters is None else np.add.reduceat(values, starts, axis=1).astype(np.float32).astype(np.float64)


def _dataset(header: dict[str, Any], arrays: Mapping[str, Any], path: Path) -> xr.Dataset:
    """The dataset of a header and its arrays, or lists of them, one a checkpoint.

    Raises:
        ValueError: where they do not fit together.
    """
    try:
        if "variables" in header:
            return validate_surface(from_arrays(header, arrays))
        return _assemble(header, {name: np.stack(values) for name, values in arrays.items()})
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:  # as the layer that meets it raises
        if str(error).startswith("surface: "):
            raise
        found = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ValueError(
            f"surface: the header and arrays of {path} do not fit together ({found:.200}); restore it from a copy"
        ) from None


def _assemble(header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
    """The dataset of a header and its arrays, which are stacked over tokens."""
    widest = max(header["clusters"].values())
    variables = {}
    for name, dims in STORED.items():
        by_split = [arrays[f"{split}/{name}"] for split in header["clusters"]]
        if "cluster" in dims:  # splits may have different numbers of clusters: fill up with empty ones
            by_split = [np.pad(a, ((0, 0), (0, widest - a.shape[1]), (0, 0))) for a in by_split]
        variables[name] = (("split", "tokens", *dims), np.stack(by_split))
    coordinates = {
        "split": list(header["clusters"]),
        "tokens": arrays["tokens"],
        "position": np.arange(1, header["context"] + 1),
    }
    for name, known in (("step", arrays["step"] >= 0), ("lr", np.isfinite(arrays["lr"]))):
        if known.all():
            coordinates[name] = ("tokens", arrays[name])
    attrs = {"units": "nats/token", **header["attrs"], "header": json.dumps(header)}
    return validate_surface(with_losses(xr.Dataset(variables, coordinates, attrs)))
