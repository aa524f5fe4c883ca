"""Where bytes stand in a block of lines, all places at once: by their rarest byte, or by the place that they have on
lines of one shape."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, UInt8

from tsl_jax.importers.decimal_scan import words

FEW_TIMES = 64  # a key, in a block: it is searched, and no place on the lines guessed
SAMPLES, MOST_PLACES = 12, 6  # of a key in a block


class Search:
    """Where bytes stand in a block, and on which line; what was found is kept, since keys share it."""

    def __init__(self, data: bytes, block: UInt8[np.ndarray, " byte"]):
        self.data, self.block = data, block
        self._of_byte: dict[int, np.ndarray] = {}
        self._of_key: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        self.common = np.bincount(block[: 1 << 16], minlength=256)
        ends = self._positions(10)
        if b"\r" in data:  # progress bars return to the line's beginning
            ends = np.sort(np.concatenate([ends, self._positions(13)]))
        self.ends: Int[np.ndarray, " line"] = ends
        self.starts = np.concatenate([np.zeros(1, np.int64), ends + 1])
        self._stops = np.concatenate([ends, [len(data)]])
        self._eight = words(block)

    def real_number(self) -> Int[np.ndarray, " line"]:
        """The number of each line from 0, as editors count them: by line feeds."""
        feeds = self.block[self.ends] == 10
        return np.concatenate([[0], np.cumsum(feeds)])

    def _positions(self, byte: int) -> Int[np.ndarray, " hit"]:
        if byte not in self._of_byte:
            self._of_byte[byte] = np.flatnonzero(self.block[: len(self.data)] == byte)
        return self._of_byte[byte]

    def positions(self, key: bytes) -> Int[np.ndarray, " hit"]:
        """Where a key begins: candidates by its rarest byte, then the others are compared."""
        if key not in self.data:
            return np.zeros(0, np.int64)
        rare = min(range(len(key)), key=lambda k: (self.common[key[k]], -k))
        at = self._positions(key[rare]) - rare
        at = at[(at >= 0) & (at + len(key) <= len(self.data))]
        for k in sorted(range(len(key)), key=lambda k: self.common[key[k]]):
            if k != rare:
                at = at[self.block[at + k] == key[k]]
        return at

    def beginning_with(self, key: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Where lines begin with a key, and the line from 0 of each."""
        lines = np.flatnonzero(self.is_at(key, self.starts))
        return self.starts[lines], lines

    def on_lines(self, key: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Where a key stands, and on which line from 0.

        Lines of one shape have it at few places of the line: those where it stands in some samples are looked at on
        every line. Where that is not all of them, by their count, the whole block is searched.
        """
        if key not in self._of_key:
            self._of_key[key] = self._on_lines(key)
        return self._of_key[key]

    def _on_lines(self, key: bytes) -> tuple[np.ndarray, np.ndarray]:
        few = self._few(key)
        if few is not None:
            return few, self.line_of(few)
        at, lines = self._at_places(key)
        if len(at) == self.data.count(key):
            return at, lines
        at = self.positions(key)
        return at, self.line_of(at)

    def _few(self, key: bytes) -> Int[np.ndarray, " hit"] | None:
        """Where a key begins that stands less than FEW_TIMES in the block."""
        found: list[int] = []
        at = self.data.find(key)
        while at >= 0 and len(found) < FEW_TIMES:
            found.append(at)
            at = self.data.find(key, at + 1)
        return np.array(found, np.int64) if at < 0 else None

    def _at_places(self, key: bytes) -> tuple[np.ndarray, np.ndarray]:
        places: set[int] = set()
        for share in range(SAMPLES):  # of the block, evenly
            at = self.data.find(key, len(self.data) * share // SAMPLES)
            if at >= 0:
                places.add(at - int(self.starts[np.searchsorted(self.ends, at)]))
        if len(places) > MOST_PLACES:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        lines, at = [], []
        for place in places:
            on = np.flatnonzero(self.is_at(key, self.starts + place))
            on = on[self.starts[on] + place + len(key) <= self._stops[on]]  # within that line
            lines.append(on)
            at.append(self.starts[on] + place)
        if len(places) == 1:
            return at[0], lines[0]
        both = np.concatenate(at)
        order = np.argsort(both, kind="stable")
        return both[order], np.concatenate(lines)[order]

    def lines_with(self, key: bytes) -> Bool[np.ndarray, " line"]:
        """Which lines a key stands on."""
        has = np.zeros(len(self.starts), bool)
        has[self.on_lines(key)[1]] = True
        return has

    def is_at(self, key: bytes, at: Int[np.ndarray, " place"]) -> Bool[np.ndarray, " place"]:
        """Whether the key begins at each place; compared eight bytes at a time."""
        last = len(self.block) - 8
        here = np.ones(len(at), bool)
        for begin in range(0, len(key), 8):
            part = key[begin : begin + 8]
            mask = np.uint64((1 << 8 * len(part)) - 1)
            here &= self._eight[np.minimum(at + begin, last)] & mask == np.uint64(int.from_bytes(part, "little"))
        return here

    def line_of(self, at: Int[np.ndarray, " hit"]) -> Int[np.ndarray, " hit"]:
        """The line from 0 that each position stands on."""
        return np.searchsorted(self.ends, at)
