"""From rows of a long table to curves that can be fitted together.

A long table is a stream of chunks of rows `curve,x,y[,weight]`; a curve is a run of rows with one name, however many
chunks it spans. `blocks` cuts the stream into blocks of whole curves, `CurveBlock.fitted` sorts each by its x, and
`groups` gathers the curves that share their x into arrays (curve, point). Curves of different lengths, or with gaps, on
a lattice x0, x0 + d, ... (such as positions 1 to n) share it: it is filled up with points of weight zero to one of few
lengths. Which lattice a curve gets depends on its own x alone, never on its neighbours, so a curve's fit does not
depend on the file around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # made at import, so a type checker does not see it
BLOCK_POINTS = 1 << 22  # points fitted together: 100 MB with x, y and weight in float64
SHORTEST = 32  # the lengths that curves are filled up to: 32, 48, 64, 96, 128, ...


@dataclass(frozen=True)
class Chunk:
    """Some rows: names (nulls where missing), numbers (NaN where malformed), and a sentence for each malformed row.

    x is (row,), or (row, covariate) for laws of several covariates; the points of a curve then keep their order.
    """

    curve: pa.Array
    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None
    problems: dict[int, str]

    def __len__(self) -> int:
        return len(self.curve)

    def part(self, first: int, end: int) -> Chunk:
        """Rows first to before end."""
        weight = None if self.weight is None else self.weight[first:end]
        inside = {row - first: text for row, text in self.problems.items() if first <= row < end}
        return Chunk(self.curve.slice(first, end - first), self.x[first:end], self.y[first:end], weight, inside)


@dataclass(frozen=True)
class CurveBlock:
    """Whole curves: curve k has the rows starts[k] to before starts[k + 1]; `row` is the first row's place."""

    rows: Chunk
    starts: np.ndarray
    row: int

    @property
    def names(self) -> pa.Array:
        return self.rows.curve.take(pa.array(self.starts[:-1]))

    def sound(self) -> np.ndarray:
        """Whether each curve is without malformed rows."""
        sound = np.ones(len(self.starts) - 1, bool)
        sound[np.searchsorted(self.starts, np.array([*self.rows.problems], int), side="right") - 1] = False
        return sound

    def fitted(self, *, without_zero: bool = False) -> FittedPoints:
        """The points that are fitted, of sound curves in the order of x; where y is missing, with weight zero.

        Args:
            without_zero: leave out the points at x = 0, where the law has no value.
        """
        x, y, weight, starts = self.rows.x, self.rows.y, self.rows.weight, self.starts
        falls = np.diff(x) < 0 if x.ndim == 1 else np.zeros(max(0, len(x) - 1), bool)
        falls[starts[1:-1] - 1] = False  # from one curve to the next
        if falls.any():
            order = np.lexsort((x, np.repeat(np.arange(len(starts) - 1), np.diff(starts))))  # stable
            x, y, weight = x[order], y[order], None if weight is None else weight[order]
        sound, zeros, count = self.sound(), 0, 0
        if without_zero:
            zero = x == 0 if x.ndim == 1 else (x == 0).any(axis=1)
            zeros = int((zero & np.repeat(sound, np.diff(starts))).sum())
            starts = np.append(0, np.cumsum(~zero))[starts]
            x, y, weight = x[~zero], y[~zero], None if weight is None else weight[~zero]
        missing = np.isnan(y)
        if missing.any():
            weight = np.ones_like(y) if weight is None else weight
            count = int((missing & (weight > 0) & np.repeat(sound, np.diff(starts))).sum())
            weight = np.where(missing, 0, weight)
        sound &= np.diff(starts) > 0
        return FittedPoints(x, y, weight, starts, np.flatnonzero(sound), count, zeros)


@dataclass(frozen=True)
class FittedPoints:
    """Points that are fitted: curve k, one of the sound `curves` of its block, has starts[k] to before starts[k + 1].

    `missing` is how many of them have weight zero because y is missing, `zeros` how many at x = 0 are left out.
    """

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None
    starts: np.ndarray
    curves: np.ndarray
    missing: int
    zeros: int

    def points(self, curves: np.ndarray) -> np.ndarray:
        """Places (curve, point) of curves of one length."""
        first = self.starts[curves]
        return first[:, None] + np.arange(self.starts[curves[0] + 1] - first[0])


@dataclass(frozen=True)
class CurveGroup:
    """Curves with one x (point,) or (point, covariate).

    `curves` are their places in the block; y is (curve, point), and so are weights, where there are some.
    """

    curves: np.ndarray
    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None


@dataclass(frozen=True)
class Layout:
    """Where the points of one x go: slots of a longer x; the others have weight zero."""

    x: np.ndarray
    slots: np.ndarray


def blocks(chunks: Iterable[Chunk], points: int = BLOCK_POINTS) -> Iterator[CurveBlock]:
    """Whole curves, about `points` rows at a time; the curve that a chunk leaves open goes on in the next."""
    held: list[Chunk] = []
    count = row = 0
    enough = points
    for chunk in chunks:
        held.append(chunk)
        count += len(chunk)
        if count < enough:
            continue
        rows = _join(held)
        starts = _curve_starts(rows.curve)
        if len(starts) == 1:  # one curve so far; look again when there is twice as much
            held, enough = [rows], 2 * count
            continue
        last = int(starts[-1])
        yield CurveBlock(rows.part(0, last), starts, row)
        held, count, row, enough = [rows.part(last, len(rows))], count - last, row + last, points
    if count:
        rows = _join(held)
        yield CurveBlock(rows, np.append(_curve_starts(rows.curve), len(rows)), row)


def groups(fitted: FittedPoints) -> Iterator[CurveGroup]:
    """The curves of these points, those that share a layout together.

    A curve without gaps whose weights are all one needs no weights, and gets none: fits without weights are faster.
    """
    gathered: dict[Any, list[tuple[Layout, np.ndarray]]] = {}
    for curves in _by_x(fitted):
        points = fitted.points(curves)
        layout = layout_of(fitted.x[points[0]])
        full = len(layout.slots) == len(layout.x)
        even = np.ones(len(curves), bool) if fitted.weight is None else (fitted.weight[points] == 1).all(axis=1)
        for unweighted in (True, False):
            if (even == unweighted).any():
                key = (layout.x.tobytes(), unweighted and full)
                gathered.setdefault(key, []).append((layout, curves[even == unweighted]))
    for (_, unweighted), parts in gathered.items():
        members = np.concatenate([curves for _, curves in parts])
        x = parts[0][0].x
        y = np.zeros((len(members), len(x)))
        weights = None if unweighted else np.zeros_like(y)
        first = 0
        for layout, curves in parts:
            points = fitted.points(curves)
            slots = np.ix_(np.arange(first, first + len(curves)), layout.slots)
            y[slots] = fitted.y[points]
            if weights is not None:
                weights[slots] = 1 if fitted.weight is None else fitted.weight[points]
            first += len(curves)
        yield CurveGroup(members, x, y, weights)


def layout_of(x: np.ndarray) -> Layout:
    """The longer x for one x: its lattice if it has one that it fills by half, else itself with its end repeated."""
    more = _filled_length(len(x)) - len(x)
    if x.ndim > 1:
        return Layout(np.pad(x, ((0, more), (0, 0)), mode="edge"), np.arange(len(x)))
    steps = np.diff(x)  # of a lattice all are multiples of the least
    step = steps.min(initial=np.inf)
    if 0 < step < np.inf:
        slots = np.rint((x - x[0]) / step).astype(int) if x[-1] - x[0] < 2 * len(x) * step else None
        if slots is not None and np.array_equal(x[0] + step * slots, x):
            return Layout(x[0] + step * np.arange(_filled_length(int(slots[-1]) + 1)), slots)
    return Layout(np.pad(x, (0, more), mode="edge"), np.arange(len(x)))


def _filled_length(points: int) -> int:
    """The least of 32, 48, 64, 96, ... that is enough."""
    length = SHORTEST
    while length < points:
        length = length * 3 // 2 if length & (length - 1) == 0 else length // 3 * 4
    return length


def _by_x(fitted: FittedPoints) -> list[np.ndarray]:
    """The curves, one array for each distinct x."""
    x, starts = fitted.x, fitted.starts
    lengths = np.diff(starts)[fitted.curves]
    places: list[np.ndarray] = []
    for length in np.unique(lengths):
        curves = fitted.curves[lengths == length]
        # Most tables have one x for each length, and one comparison of arrays tells so; else hash the x of each curve.
        if (x[fitted.points(curves)] == x[starts[curves[0]] : starts[curves[0]] + length]).all():
            places.append(curves)
            continue
        same: dict[bytes, list[int]] = {}
        for k in curves:
            same.setdefault(x[starts[k] : starts[k] + length].tobytes(), []).append(k)
        places.extend(np.asarray(members) for members in same.values())
    return places


def _curve_starts(curve: pa.Array) -> np.ndarray:
    """First row of each run of equal names."""
    if len(curve) < 2:
        return np.zeros(len(curve), int)
    differs = pc.fill_null(pc.not_equal(curve.slice(1), curve.slice(0, len(curve) - 1)), True)
    return np.append(0, np.flatnonzero(differs.to_numpy(zero_copy_only=False)) + 1)


def _join(chunks: list[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    offsets = np.cumsum([0] + [len(chunk) for chunk in chunks])
    problems = {
        row + int(offset): text
        for chunk, offset in zip(chunks, offsets, strict=False)
        for row, text in chunk.problems.items()
    }
    weights = [chunk.weight for chunk in chunks]
    return Chunk(
        pa.concat_arrays([chunk.curve for chunk in chunks]),
        np.concatenate([chunk.x for chunk in chunks]),
        np.concatenate([chunk.y for chunk in chunks]),
        None if weights[0] is None else np.concatenate([w for w in weights if w is not None]),
        problems,
    )
