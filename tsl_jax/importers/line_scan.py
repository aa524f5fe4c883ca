"""Numbers of log lines, block by block: a key such as `lm loss: ` is searched in the bytes and what follows it parsed,
both vectorised, so that large logs are read in a few passes over memory and no line becomes a Python object.

A format is data (`LineFormat`): which key stands before which number. `text_formats` lists them.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tsl_jax.importers.byte_search import Search
from tsl_jax.importers.decimal_scan import WIDEST, numbers_at
from tsl_jax.importers.log_rows import SAYS_NAN, LogRows, as_text, number_of, open_log, rows_where
from tsl_jax.importers.log_times import OF_LINES, line_time
from tsl_jax.importers.model_size import STATED

BLOCK = 4 << 20  # bytes read at once: a block and its masks stay in the processor's cache
MOST_THREADS = 8
TIMES, DATED = 16, 160  # lines of a block whose date is read; bytes of a line that may hold it
FACTS_WITHIN = 50_000  # lines of a log that may state the length of sequences and the like
ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
WHOLE_ENDING = re.compile(rb"(\.\d{2,}|[^\d\s.,:=+-])\s*$")  # a number of some decimals, or no number at all

_INSIDE_WORD = np.zeros(256, bool)  # of these bytes none stands before a key
_INSIDE_WORD[np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", np.uint8)] = True


Fact = tuple[str, bytes, bytes]


class Key(NamedTuple):
    """A number of a line.

    Attributes:
        column: its name. before: the bytes before it, which no letter, digit or _ precedes unless `inside`.
        on: bytes that its line must hold; off: must not hold. start: whether its line begins with `before`.
        grouped: whether commas may part thousands and a suffix K, M, B, T may follow.
        inside: whether `before` may stand within a word.
    """

    column: str
    before: bytes
    on: bytes = b""
    off: bytes = b""
    start: bool = False
    grouped: bool = False
    inside: bool = False


@dataclass(frozen=True)
class LineFormat:
    """A format of log lines.

    Attributes:
        name: in words. probe: a pattern of its lines of losses; the format with most matches is taken.
        keys: its numbers. losses: the columns of them that are losses.
        step_before: whether steps stand on lines of their own, before those with their losses.
        step_needed: whether a line without a step is none of the log's: source code above it may hold the same words.
        facts: of the run, such as the tokens of a step: name, bytes that a block must hold for its pattern to be
            searched (in the case they have there), and the pattern with the number as its first group.
        nan_where: (column, bytes): a line with the bytes but without the column's number has a loss that is NaN.
        named: a key whose column is named by the text before it on the line, such as `eval/c4/CE loss=`.
        remarks: findings for every log of the format: (column or "", code, sentence, warning).
    """

    name: str
    probe: bytes
    keys: tuple[Key, ...]
    losses: tuple[str, ...]
    step_before: bool = False
    step_needed: bool = True
    facts: tuple[Fact, ...] = ()
    nan_where: tuple[str, bytes] | None = None
    named: bytes = b""
    units: tuple[tuple[str, str], ...] = ()
    remarks: tuple[tuple[str, str, str, bool], ...] = ()


def read_lines(path: Path, form: LineFormat) -> LogRows:
    """The rows of a text log: every line with a loss, with the step, tokens and rate of that line or one before.

    Raises:
        OSError: if it cannot be read.
    """
    parts: list[dict[str, np.ndarray]] = []
    known: dict[str, float] = {}
    cut: tuple[int, bytes] | None = None
    parts_of = _by_steps(blocks(path), form.keys[0].before) if form.step_before else blocks(path)
    for block, found in _side_by_side(parts_of, form):
        if block.cut:
            cut = (block.line + int(block.data.count(b"\n")), block.data.rpartition(b"\n")[2])
        for fact, within, pattern in (*form.facts, *STATED) if block.line < FACTS_WITHIN else ():
            match = re.search(pattern, block.data) if fact not in known and within in block.data else None
            value = number_of(match[1].decode("ascii", "ignore").replace("_", "")) if match else None
            if value is not None and np.isfinite(value) and value > 0:
                known[fact] = value
        rows = _rows(found, form)
        if form.step_needed and len(rows["line"]):
            has_step = np.isfinite(rows.get("step", np.full(len(rows["line"]), np.nan)))
            rows = {name: values[has_step] for name, values in rows.items()}
        if len(rows["line"]):
            rows["line"] = block.line + rows["line"]
            parts.append(rows)
    names = list(dict.fromkeys(name for part in parts for name in part))
    columns = {
        name: np.concatenate([part.get(name, np.full(len(part["line"]), np.nan)) for part in parts]) for name in names
    }
    line = columns.pop("line", np.zeros(0)).astype(np.int64, copy=False)
    losses = tuple(name for name in names if name in form.losses or (form.named and name.endswith("loss")))
    log = LogRows(path, form.name, columns, line, losses=losses, units=dict(form.units), known=known, eval_rows=True)
    if cut is not None:
        log.note("cut_last_line", "the last line has no line end and may be cut: left out", cut[0] or 1)
    for column, code, sentence, warning in form.remarks:
        if not column or np.isfinite(columns.get(column, np.zeros(0))).any():
            log.note(code, sentence, 0, warning)
    return log


def _side_by_side(
    parts: Iterator[Block], form: LineFormat
) -> Iterator[tuple[Block, dict[str, tuple[np.ndarray, np.ndarray]]]]:
    """Blocks with what was found in each, in order; a thread a core, since numpy lets go of the interpreter."""
    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS) if hasattr(os, "sched_getaffinity") else 2
    waiting: deque[tuple[Block, Future[dict[str, tuple[np.ndarray, np.ndarray]]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for block in parts:
            waiting.append((block, pool.submit(_scan, block.data, form)))
            if len(waiting) > threads:
                first, found = waiting.popleft()
                yield first, found.result()
        for block, found in waiting:
            yield block, found.result()


class Block(NamedTuple):
    """Whole lines of a file: bytes, the number of the first line from 1, and whether a cut last line was left out."""

    data: bytes
    line: int
    cut: bool


def blocks(path: Path, size: int = BLOCK) -> Iterator[Block]:
    """The lines of a file, some megabytes at a time, without colours; memory does not grow with the file."""
    line, rest = 1, b""
    with open_log(path) as file:
        first = file.read(size)
        if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
            first = as_text(first + file.read())
        data = as_text(first)
        while data or rest:
            more = file.read(size)
            data = rest + data
            rest = b""
            if more:
                end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
                data, rest = data[:end], data[end:]
            if b"\x1b" in data:
                data = without_colours(data)
            cut = not more and not data.endswith((b"\n", b"\r")) and not is_whole(data)
            shown = data
            if cut:
                data = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
            yield Block(data, line, cut)
            line += _feeds(shown)
            data = more
            if not more:
                break


def _feeds(data: bytes) -> int:
    """How many line feeds there are, three times as fast as bytes.count of one byte."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == 10))


def without_colours(data: bytes) -> bytes:
    """Bytes without the codes of a terminal, of which a log has a few again and again."""
    for code in set(ANSI.findall(data[: 1 << 14])):
        data = data.replace(code, b"")
    return ANSI.sub(b"", data) if b"\x1b" in data else data


def is_whole(data: bytes) -> bool:
    """Whether a last line without its line end is whole for certain: it ends as lines of its shape before it do.

    Some logs lose their last line end when they are copied. 4.4 below 4.55 and 4.52 is cut, 4.48 is not.
    """
    head, _, last = data.rstrip(b" \t").rpartition(b"\n")
    if not WHOLE_ENDING.search(last):
        return False
    shapes = [_shape(line) for line in head[-20_000:].splitlines()[-60:]]
    wanted = _shape(last)
    alike = [shape for shape in shapes if re.sub(rb"\.0*", b".", shape) == re.sub(rb"\.0*", b".", wanted)]
    return len(alike) >= 2 and all(shape == wanted for shape in alike)


def _shape(line: bytes) -> bytes:
    """A line with its digits as zeros: those before the point are one, those after it as many as there are."""
    line = re.sub(rb"\d", b"0", line.strip())
    return re.sub(rb"(?<![.0])0+", b"0", line)


def _scan(data: bytes, form: LineFormat) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Column -> (line from 0, number) of a block, the first of a line alone; `named` columns too."""
    if not data:
        return {}
    block = np.frombuffer(data + b"\n" * (WIDEST + 8), np.uint8)
    search = Search(data, block)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for key in form.keys:
        if key.start:
            at, lines = search.beginning_with(key.before)
        else:
            at, lines = search.on_lines(key.before)
        if not (key.start or key.inside) and len(at):
            whole_word = (at == 0) | ~_INSIDE_WORD[block[at - 1]]
            at, lines = rows_where(at, whole_word), rows_where(lines, whole_word)
        if not len(at):
            continue
        for marker, wanted in ((key.on, True), (key.off, False)):
            if marker and len(at):
                keep = search.lines_with(marker)[lines] == wanted
                at, lines = rows_where(at, keep), rows_where(lines, keep)
        values = numbers_at(block, at + len(key.before), key.grouped)
        good = ~np.isnan(values)
        lines, values = first_of_each(rows_where(lines, good), rows_where(values, good))
        if key.column in found:  # a column of several keys
            lines = np.concatenate([found[key.column][0], lines])
            values = np.concatenate([found[key.column][1], values])
            lines, kept = np.unique(lines, return_index=True)
            values = values[kept]
        found[key.column] = (lines, values)
    if form.named:
        _add_named(search, form, found)
    _add_times(search, form, found)
    if form.nan_where is not None:
        column, marker = form.nan_where
        old = found.get(column, (np.zeros(0, np.int64), np.zeros(0)))
        without = search.lines_with(marker)
        without[old[0]] = False
        lines = np.flatnonzero(without)
        if len(lines):
            both = np.concatenate([old[0], lines])
            order = np.argsort(both, kind="stable")
            found[column] = (both[order], np.concatenate([old[1], np.full(len(lines), SAYS_NAN)])[order])
    found["_lines"] = (search.real_number(), np.zeros(0))
    return found


def first_of_each(lines: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first number of each line, of lines in order."""
    first = np.ones(len(lines), bool)
    np.greater(lines[1:], lines[:-1], out=first[1:])
    return rows_where(lines, first), rows_where(values, first)


def _add_times(search: Search, form: LineFormat, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """The times of a few lines of a block, which are enough for the pace of a run."""
    dated = ("step",) if form.step_before else (*form.losses, "step")
    lines = next((found[name][0] for name in dated if name in found), None)
    if lines is None or not len(lines):
        return
    some = lines[np.unique(np.linspace(0, len(lines) - 1, TIMES).astype(int))]
    starts = search.starts[some].tolist()
    times = np.array([line_time(search.data[start : start + DATED]) for start in starts])
    known = np.isfinite(times)
    if known.any():
        found[OF_LINES] = (some[known], times[known])


def _add_named(search: Search, form: LineFormat, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Columns that are named on their lines: few, so a line at a time."""
    at, _ = search.on_lines(form.named)
    for key in form.keys:  # their lines have been read, without a name each
        if key.before.endswith(form.named):
            begins = at + len(form.named) - len(key.before)
            at = at[(begins < 0) | ~search.is_at(key.before, begins)]
    lines = search.line_of(at)
    values = numbers_at(search.block, at + len(form.named), False)
    by_name: dict[str, list[tuple[int, float]]] = {}
    for position, line, value in zip(at.tolist(), lines.tolist(), values.tolist(), strict=True):
        start = max(search.data.rfind(b"\n", 0, position), search.data.rfind(b"\r", 0, position)) + 1
        words = search.data[start:position].decode("utf-8", "replace").split()
        name = (words[-1] if words else "") + form.named.rstrip(b"=: ").decode()
        if value == value and name not in found:
            by_name.setdefault(name, []).append((line, value))
    for name, pairs in by_name.items():
        found[name] = (np.array([line for line, _ in pairs]), np.array([value for _, value in pairs]))


def _rows(found: dict[str, tuple[np.ndarray, np.ndarray]], form: LineFormat) -> dict[str, np.ndarray]:
    """The rows of a block: lines with a loss; or, where steps stand on lines of their own, all lines up to the next."""
    if not found:
        return {"line": np.zeros(0, np.int64)}
    number = found.pop("_lines")[0]
    if form.step_before and "step" in found:
        steps = found["step"][0]
        for name, (lines, values) in found.items():
            owner = np.searchsorted(steps, lines, side="right") - 1
            owned = owner >= 0
            found[name] = first_of_each(steps[rows_where(owner, owned)], rows_where(values, owned))
    is_loss = {name: name in form.losses or bool(form.named and name.endswith("loss")) for name in found}
    of_losses = [lines for name, (lines, _) in found.items() if is_loss[name]]
    with_loss = np.zeros(len(number) + 1, bool)
    for lines in of_losses:
        with_loss[lines] = True
    row_lines = np.flatnonzero(with_loss)
    if not len(row_lines):
        return {"line": row_lines}
    rows: dict[str, np.ndarray] = {"line": number[row_lines]}
    row_of = np.cumsum(with_loss) - 1
    for name, (lines, values) in found.items():
        inside = with_loss[lines]
        rows[name] = np.full(len(row_lines), np.nan)
        rows[name][row_of[rows_where(lines, inside)]] = rows_where(values, inside)
    return rows


def _by_steps(parts: Iterator[Block], step: bytes) -> Iterator[Block]:
    """Blocks that end before a line with a step, so that what belongs to a step is in one block."""
    rest, line = b"", 1
    for block in parts:
        data = rest + block.data
        line = line if rest else block.line
        at = data.rfind(step)
        end = data.rfind(b"\n", 0, at) + 1 if at >= 0 else 0
        if end and not block.cut and len(block.data) >= BLOCK // 2:
            yield Block(data[:end], line, False)
            line += _feeds(data[:end])
            rest = data[end:]
        elif len(data) > 8 * BLOCK or block.cut:  # no step in a long while
            yield Block(data, line, block.cut)
            line, rest = line + data.count(b"\n"), b""
        else:
            rest = data
    if rest:
        yield Block(rest, line, False)
