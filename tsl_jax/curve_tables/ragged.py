"""From rows of a long table to curves that can be fitted together.

A long table is a stream of chunks of rows `curve,x,y[,weight]`; a curve is a run of rows with one name, however many
chunks it spans. `blocks` cuts the stream into blocks of whole curves. `groups` gathers the curves of a block that
share their x into arrays (curve, point). Curves of different lengths, or with gaps, on a lattice x0, x0 + d, ... (such
as positions 1 to n) share it: it is filled up with points of weight zero to one of few lengths. Which lattice a curve
gets depends on its own x alone, never on its neighbours, so a curve's fit does not depend on the file around it.
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
    """Some rows: names (nulls where missing), numbers (NaN where malformed), and a sentence for each malformed row."""

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
class Block:
    """Whole curves: curve k has the rows starts[k] to before starts[k + 1]; `row` is the first row's place."""

    rows: Chunk
    starts: np.ndarray
    row: int

    @property
    def names(self) -> pa.Array:
        return self.rows.curve.take(pa.array(self.starts[:-1]))

    @property
    def spoiled(self) -> np.ndarray:
        """Which curves have a malformed row (curve,)."""
        spoiled = np.zeros(len(self.starts) - 1, bool)
        rows = np.fromiter(self.rows.problems, int, len(self.rows.problems))
        spoiled[np.searchsorted(self.starts, rows, side="right") - 1] = True
        return spoiled


@dataclass(frozen=True)
class Group:
    """Curves with one x (point,): their places in the block, y (curve, point), weights for all, each, or none."""

    curves: np.ndarray
    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None


@dataclass(frozen=True)
class Layout:
    """Where the points of one x go: slots of a longer x; the others have weight zero."""

    x: np.ndarray
    slots: np.ndarray


def blocks(chunks: Iterable[Chunk], points: int = BLOCK_POINTS) -> Iterator[Block]:
    """Whole curves, about `points` rows at a time; the curve that a chunk leaves open goes on in the next."""
    held: list[Chunk] = []
    count = row = 0
    enough = points
    for chunk in chunks:
        held.append(chunk)
        count += len(chunk)
        if count < enough:
            continue
        rows = _joined(held)
        starts = _starts(rows.curve)
        if len(starts) == 1:  # one curve so far; look again when there is twice as much
            held, enough = [rows], 2 * count
            continue
        last = int(starts[-1])
        yield Block(rows.part(0, last), starts, row)
        held, count, row, enough = [rows.part(last, len(rows))], count - last, row + last, points
    if count:
        rows = _joined(held)
        yield Block(rows, np.append(_starts(rows.curve), len(rows)), row)


def groups(block: Block) -> Iterator[Group]:
    """The sound curves of a block, those with the same x together; shared weights where the gaps are shared."""
    gathered: dict[Any, list[tuple[Layout, np.ndarray]]] = {}
    for curves in _by_x(block):
        own = _points(block, curves)
        layout = layout_of(block.rows.x[own[0]])
        whole = len(layout.slots) == len(layout.x)
        even = np.ones(len(curves), bool) if block.rows.weight is None else (block.rows.weight[own] == 1).all(axis=1)
        for plain in (True, False):
            if (even == plain).any():
                key = (layout.x.tobytes(), plain and whole)
                gathered.setdefault(key, []).append((layout, curves[even == plain]))
    for (_, plain), parts in gathered.items():
        yield _group(block, parts, plain)


def layout_of(x: np.ndarray) -> Layout:
    """The longer x for one x: its lattice if it has one that it fills by half, else itself with its end repeated."""
    steps = np.diff(x)
    step = steps.min(initial=np.inf)
    if 0 < step < np.inf:
        slots = np.rint((x - x[0]) / step).astype(int) if x[-1] - x[0] < 2 * len(x) * step else None
        if slots is not None and np.array_equal(x[0] + step * slots, x):
            return Layout(x[0] + step * np.arange(_length(int(slots[-1]) + 1)), slots)
    return Layout(np.pad(x, (0, _length(len(x)) - len(x)), mode="edge"), np.arange(len(x)))


def _length(points: int) -> int:
    """The least of 32, 48, 64, 96, ... that is enough."""
    length = SHORTEST
    while length < points:
        length = length * 3 // 2 if length & (length - 1) == 0 else length // 3 * 4
    return length


def _group(block: Block, parts: list[tuple[Layout, np.ndarray]], plain: bool) -> Group:
    curves = np.concatenate([own for _, own in parts])
    x = parts[0][0].x
    y = np.zeros((len(curves), len(x)))
    weights = None if plain else np.zeros_like(y)
    first = 0
    for layout, own in parts:
        points = _points(block, own)
        here = np.ix_(np.arange(first, first + len(own)), layout.slots)
        y[here] = block.rows.y[points]
        if weights is not None:
            weights[here] = 1 if block.rows.weight is None else block.rows.weight[points]
        first += len(own)
    return Group(curves, x, y, weights)


def _points(block: Block, curves: np.ndarray) -> np.ndarray:
    """Row numbers (curve, point) of curves of one length."""
    first = block.starts[curves]
    return first[:, None] + np.arange(block.starts[curves[0] + 1] - first[0])


def _by_x(block: Block) -> list[np.ndarray]:
    """Places of the sound curves, one array for each distinct x."""
    sound = np.flatnonzero(~block.spoiled)
    lengths = np.diff(block.starts)[sound]
    x, starts = block.rows.x, block.starts
    found: list[np.ndarray] = []
    for length in np.unique(lengths):
        curves = sound[lengths == length]
        if (x[_points(block, curves)] == x[starts[curves[0]] : starts[curves[0]] + length]).all():
            found.append(curves)
            continue
        same: dict[bytes, list[int]] = {}
        for k in curves:
            same.setdefault(x[starts[k] : starts[k] + length].tobytes(), []).append(k)
        found.extend(np.asarray(places) for places in same.values())
    return found


def _starts(curve: pa.Array) -> np.ndarray:
    """First row of each run of equal names."""
    if len(curve) < 2:
        return np.zeros(len(curve), int)
    differs = pc.fill_null(pc.not_equal(curve.slice(1), curve.slice(0, len(curve) - 1)), True)
    return np.append(0, np.flatnonzero(differs.to_numpy(zero_copy_only=False)) + 1)


def _joined(chunks: list[Chunk]) -> Chunk:
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
