"""Losses measured elsewhere: arrays become a surface, once shape, labels and values are known to be sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.surface import DIMENSIONS, validate_surface


def from_losses(
    loss: Any, *, tokens: Any, position: Any = None, split: Any = None, allow_missing: bool = False, **attrs: Any
) -> xr.Dataset:
    """A surface from losses measured elsewhere.

    Args:
        loss: nats per token, shape (tokens, position) or (split, tokens, position).
        tokens: training tokens seen at each checkpoint, increasing.
        position: context length of each loss, from 1; default 1..n.
        split: names of the splits; default ("id",).
        allow_missing: whether losses may be NaN; a fit of such a curve has the status `non_finite`.
        attrs: anything to keep with it, such as `run` or `schedule`.

    Raises:
        ValueError: for labels or losses that are no numbers, negative losses, NaN without `allow_missing`, infinite
            losses, or where the result breaks the schema (see `surface.validate_surface`).
    """
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
    surface = validate_surface(
        xr.Dataset({"loss": (DIMENSIONS, values)}, coordinates, {"units": "nats/token", **attrs})
    )
    _need_losses(surface.loss, allow_missing)
    return surface


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"surface: {name} must be numbers, found {str(values)[:60]!r}") from None


def _labels(name: str, values: Any) -> np.ndarray:
    """The labels with the type they came in."""
    numbers = _numbers(name, values)
    if numbers.ndim != 1:
        raise ValueError(f"surface: {name} must be a list, one number a label, found shape {numbers.shape}")
    return np.asarray(values)


def _need_losses(loss: xr.DataArray, allow_missing: bool) -> None:
    """Losses are cross-entropies: numbers from 0 up."""
    sign = "a loss is a cross-entropy in nats per token, positive: are these log-probabilities?"
    _refuse("negative", loss < 0, sign)
    _refuse("infinite", xr.apply_ufunc(np.isinf, loss), "leave these checkpoints or positions out")
    if not allow_missing:
        _refuse("NaN", loss.isnull(), "leave these checkpoints or positions out, or give allow_missing=True")


def _refuse(what: str, found: xr.DataArray, mend: str) -> None:
    """An error with how many there are and where the first one stands, if there is any."""
    count = int(found.sum())
    if count:
        first = found.isel({name: int(at[0]) for name, at in zip(found.dims, np.nonzero(found.values), strict=True)})
        place = ", ".join(f"{name} {first[name].item()}" for name in DIMENSIONS)
        many = f"{count} of {found.size} losses {'is' if count == 1 else 'are'} {what}, the first at {place}"
        raise ValueError(f"surface: {many}; {mend}")
