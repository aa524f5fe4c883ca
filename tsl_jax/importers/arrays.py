"""Losses measured elsewhere: arrays become a surface, once shape, labels and values are known to be sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.surface import DIMENSIONS, validate_surface

UNITS = "nats/token"


def from_losses(
    loss: Any, *, tokens: Any, position: Any = None, split: Any = None, allow_missing: bool = False, **attrs: Any
) -> xr.Dataset:
    """A surface from losses measured elsewhere.

    Args:
        loss: nats per token, shape (tokens, position) or (split, tokens, position); a DataArray of these dimensions
            may have them in any order. Masked losses are missing ones.
        tokens: training tokens seen at each checkpoint, increasing.
        position: context length of each loss, from 1; default 1..n.
        split: names of the splits; default ("id",).
        allow_missing: whether losses may be NaN; a fit of such a curve has the status `non_finite`.
        attrs: anything to keep with it, such as `run` or `schedule`.

    Raises:
        ValueError: for labels or losses that are no numbers, other units, negative losses, NaN without `allow_missing`,
            infinite losses, or where the result breaks the schema (see `surface.validate_surface`).
    """
    if attrs.get("units", UNITS) != UNITS:
        raise ValueError(f"surface: losses are in {UNITS}, found units {attrs['units']!r}; multiply bits by log 2")
    if isinstance(loss, xr.DataArray):
        dims = DIMENSIONS[-loss.ndim :]  # without split where there is one
        if set(loss.dims) != set(dims):
            raise ValueError(f"surface: expected a DataArray over {dims}, found {loss.dims}; rename, or give .values")
        loss = loss.transpose(*dims).values
    values = _numbers("loss", loss)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise ValueError(f"surface: expected loss of shape ([split,] tokens, position), found shape {values.shape}")
    coordinates = {
        "split": ["id"] if split is None else [split] if isinstance(split, str) else list(split),
        "tokens": _labels("tokens", tokens),
        "position": np.arange(1, values.shape[2] + 1) if position is None else _labels("position", position),
    }
    for (name, labels), size in zip(coordinates.items(), values.shape, strict=True):
        if len(labels) != size:
            raise ValueError(f"surface: {name} has {len(labels)} labels, but loss has {size} along that dimension")
    if len(set(coordinates["split"])) < len(coordinates["split"]):
        raise ValueError(f"surface: two splits have one name, found {coordinates['split']}; name each of them")
    surface = validate_surface(xr.Dataset({"loss": (DIMENSIONS, values)}, coordinates, {"units": UNITS, **attrs}))
    # Losses are cross-entropies: numbers from 0 up.
    sign = "a loss is a cross-entropy in nats per token, positive: are these log-probabilities?"
    _refuse("negative", surface.loss < 0, sign)
    _refuse("infinite", xr.apply_ufunc(np.isinf, surface.loss), "leave these checkpoints or positions out")
    if not allow_missing:
        fix = "leave these checkpoints or positions out, or give allow_missing=True"
        _refuse("NaN", surface.loss.isnull(), fix)
    return surface


def _numbers(name: str, values: Any) -> np.ndarray:
    """The values in float64, those that are masked NaN."""
    try:
        if isinstance(values, np.ma.MaskedArray):
            # np.asarray would show what stands under the mask.
            return np.ma.filled(values.astype(np.float64), np.nan)
        if np.iscomplexobj(values):  # else numpy drops the imaginary part
            raise TypeError
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"surface: {name} must be numbers, found {str(values)[:60]!r}") from None


def _labels(name: str, values: Any) -> np.ndarray:
    """The labels with the type they came in, if it is one of numbers."""
    is_column = type(values) is np.ndarray and values.dtype.kind in "iuf"  # else it is converted to see what it holds
    numbers = values if is_column else _numbers(name, values)
    if numbers.ndim != 1:
        raise ValueError(f"surface: {name} must be a list, one number a label, found shape {numbers.shape}")
    return np.asarray(values) if np.asarray(values).dtype.kind in "iuf" else numbers


def _refuse(what: str, bad: xr.DataArray, fix: str) -> None:
    """An error with how many losses are bad and where the first one stands, if there is any."""
    count = int(np.count_nonzero(bad.values))
    if count:
        first = bad.isel({name: int(at[0]) for name, at in zip(bad.dims, np.nonzero(bad.values), strict=True)})
        place = ", ".join(f"{name} {first[name].item()}" for name in DIMENSIONS)
        many = f"{count} of {bad.size} losses {'is' if count == 1 else 'are'} {what}, the first at {place}"
        raise ValueError(f"surface: {many}; {fix}")
