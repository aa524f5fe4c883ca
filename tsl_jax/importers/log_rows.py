"""What every reader of a log yields: named columns of numbers, the line each row stood on, and findings.

A reader knows its format and nothing of runs that were restarted, of units or of surfaces: it returns `LogRows`. What
is the loss, the step, the learning rate is decided by name in `log_roles`; restarts, repeated rows and bad losses are
handled once, for all formats, in `log_stitching`; doubts about a curve are raised in `log_checks`.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import itertools
import lzma
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Float, Int

# A cell that says NaN is kept apart from one with nothing in it, which is NaN itself: a loss that is not a number is
# worth a sentence, an evaluation that did not take place is not. No cross-entropy is -inf.
SAYS_NAN = -np.inf
MISSING = frozenset(("", "na", "n/a", "none", "null", "-", "--", "no log"))  # cells with nothing in them, in lower case
COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MOST_BYTES = 4 << 30  # of a file that is held in memory whole
FORTRAN = re.compile(r"(?<=[\d.])[dD](?=[-+]\d+$)")  # 6.00D-04 is 6.00e-04
DEEPEST = 6  # objects within objects that are looked into
SHOWN = 110  # characters of a line that is shown
TOGETHER = 1 << 15  # rows of which a condition is asked at once: what is computed of them stays in the cache

# Remarks that `strict` lets pass: the log says so itself, or its format always is so, and no loss, step or rate is
# guessed, changed or lost. Every other finding refuses, those of codes that are yet to come too.
FACTS = frozenset(
    (
        "accuracy",  # not read as a loss
        "bits_beside",  # not read
        "clock_is_steps",  # nothing is made up in the place of tokens
        "files_sorted",  # a file an event, named by its step
        "last_micro_batch",
        "left_out",  # a copy or a mean of a loss that is read
        "lr_interpolated",  # of formats that write evaluations on rows of their own; a warning elsewhere
        "min_max",
        "n_params",  # as the log says it; what it counts is kept with it
        "no_json",  # a console with more words than objects; a warning elsewhere
        "perplexity_beside",  # not read
        "semicolons",
        "summary_row",
        "tokens_from_samples",
        "tokens_interpolated",  # of formats that write evaluations on rows of their own; a warning elsewhere
        "tokens_per_step",
    )
)


class NoLossLeft(ValueError):
    """A log has losses, and none that is a number above 0 at a known step."""


class NotThisFormat(ValueError):
    """A file is not what its reader took it for; the message says what was found."""


@dataclass(frozen=True)
class Finding:
    """One thing that a reader of the account should know.

    Attributes:
        code: a short name, such as `restart`. sentence: what was found and what was done about it.
        line: number of the line that shows it, from 1; 0 where there is none. shown: that line.
        warning: whether something was dropped, changed or is doubtful. Others are remarks.
    """

    code: str
    sentence: str
    line: int = 0
    shown: str = ""
    warning: bool = True

    @property
    def refused(self) -> bool:
        """Whether `strict` refuses it: all but remarks of FACTS."""
        return self.warning or self.code not in FACTS

    def __str__(self) -> str:
        where = f" (line {self.line:,}{': ' + self.shown if self.shown else ''})" if self.line else ""
        return f"{self.sentence}{where}"


Rows = np.ndarray | slice  # of a log: their indices, or all of them, which are views then and no copies


@dataclass
class LogRows:
    """The rows of a log as columns.

    Attributes:
        path: the file or folder. format: its name in words.
        columns: name -> numbers (row,), NaN where a row lacks them, SAYS_NAN where it says NaN.
        text: name -> cells (row,) of the columns that are words, from which runs can be named.
        line: number of the line each row stood on, (row,); 0 where there are no lines.
        run: name of the run of each row, as an index into `runs`; one run of no name unless the reader knows better.
        roles: role (step, tokens, lr, samples) -> column, where the format says so and the name does not.
        losses: columns of losses where the format says so; empty: by their names. units: column -> unit, likewise.
        known: facts about the run that the log states: tokens_per_step, sequence_length, total_steps.
        eval_rows: whether evaluations stand on rows of their own, which have no learning rate by design.
    """

    path: Path
    format: str
    columns: dict[str, np.ndarray]
    line: np.ndarray
    text: dict[str, np.ndarray] = field(default_factory=dict)
    run: np.ndarray | None = None
    runs: list[str] = field(default_factory=lambda: [""])
    roles: dict[str, str] = field(default_factory=dict)
    losses: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    known: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    eval_rows: bool = False

    def __len__(self) -> int:
        return len(self.line)

    def note(self, code: str, sentence: str, line: int = 0, warning: bool = True) -> None:
        """Add a finding, once; a line of a file is shown."""
        if not any(found.code == code and found.sentence == sentence for found in self.findings):
            self.findings.append(Finding(code, sentence, line, line_of(self.path, line), warning))


def open_log(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where its name ends in .gz, .bz2 or .xz."""
    opened: Any = COMPRESSED.get(path.suffix.lower(), open)(path, "rb")
    return opened


def read_whole(path: Path) -> bytes:
    """A file as UTF-8, in memory.

    Raises:
        ValueError: for more than MOST_BYTES: a few kilobytes that are packed may stand for any number.
    """
    with open_log(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"holds more than {MOST_BYTES >> 30} GiB in one piece; export it as lines, or as Parquet")
    return as_text(data)


def line_of(path: Path, number: int) -> str:
    """A line of a file as it may be printed: without colours and control characters, cut to SHOWN characters."""
    if number < 1 or not path.is_file():
        return ""
    try:
        with open_log(path) as file:
            line = next(itertools.islice(file, number - 1, number), b"")
    except (OSError, EOFError, lzma.LZMAError):
        return ""
    if b"\0" in line:  # a binary file has no lines
        return ""
    text = " ".join("".join(c if c.isprintable() else " " for c in line.decode("utf-8", "replace")).split())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def as_text(data: bytes) -> bytes:
    """Bytes as UTF-8 without a byte-order mark: PowerShell writes UTF-16."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace").encode()
    return data.removeprefix(b"\xef\xbb\xbf")


def number_of(cell: Any) -> float | None:
    """One cell as a number: SAYS_NAN where it says NaN, NaN where nothing stands there, None for other words.

    `1,234,567`, `41M`, `1.2B`, `5e-4`, `6.0D-04`, `inf` and `'2.163'` are numbers; true, false and `1_0` are not.
    """
    if cell is None:
        return np.nan
    if isinstance(cell, bool):
        return None
    if isinstance(cell, int | float):
        try:
            value = float(cell)
        except OverflowError:
            return np.inf
        return SAYS_NAN if value != value else value
    if not isinstance(cell, str):
        return None
    word = cell.strip().strip("'\"").strip()
    if word.lower() in MISSING:
        return np.nan
    if "_" in word:
        return None
    word = FORTRAN.sub("e", word)
    factor = {"K": 1e3, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}.get(word[-1:], 1.0)
    try:
        value = float(word.removesuffix("%") if factor == 1 else word[:-1])
    except ValueError:
        try:
            # Commas part thousands only where three digits follow each.
            head, *groups = (word if factor == 1 else word[:-1]).split(",")
            if not groups or not all(len(g.partition(".")[0]) == 3 for g in groups) or not 0 < len(head) < 5:
                return None
            value = float("".join([head, *groups]))
        except ValueError:
            return None
    return SAYS_NAN if value != value else value * factor


def numbers_of(cells: Sequence[Any]) -> tuple[Float[np.ndarray, " row"], int]:
    """Cells as float64, and how many of them are words, which become NaN."""
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made when it is imported

    try:
        fast = pa.array(cells, pa.float64(), from_pandas=False)
        values = fast.to_numpy(zero_copy_only=False).copy()
        written = np.isnan(values) & ~np.asarray(fast.is_null())
        values[written] = SAYS_NAN
        if not any(isinstance(cell, bool) for cell in cells):
            return values, 0
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    try:
        if cells and all(isinstance(cell, str) for cell in cells):
            strings = pc.utf8_trim_whitespace(pa.array(cells, pa.string()))
            strings = pc.if_else(pc.equal(strings, ""), pa.scalar(None, pa.string()), strings)
            known = strings.cast(pa.float64())
            values = known.to_numpy(zero_copy_only=False).copy()
            values[np.isnan(values) & ~np.asarray(known.is_null())] = SAYS_NAN
            return values, 0
    except (pa.ArrowException, UnicodeError):
        pass
    values = np.empty(len(cells))
    words = 0
    for k, cell in enumerate(cells):
        value = number_of(cell)
        words += value is None
        values[k] = np.nan if value is None else value
    return values, words


def of_arrow(column: Any) -> Float[np.ndarray, " row"]:
    """A column of Arrow's float64 as numpy's, which may be written to: null is NaN, and NaN SAYS_NAN."""
    values = column.to_numpy()
    values = values if values.flags.writeable else values.copy()
    if np.isnan(values.min(initial=np.inf)):
        values[np.isnan(values) & ~np.asarray(column.is_null())] = SAYS_NAN
    return values


def every(holds: Callable[..., np.ndarray], *columns: np.ndarray) -> bool:
    """Whether a condition of rows, (row,) bool, holds in all of them; asked of some at a time, up to the first not.

    A large log has columns of 100 MB: what is computed of a whole one is new memory, which costs more than the numbers.
    """
    starts = range(0, len(columns[0]), TOGETHER)
    return all(holds(*(column[start : start + TOGETHER] for column in columns)).all() for start in starts)


def rises(values: np.ndarray) -> bool:
    """Whether each row is above the one before it."""
    return every(np.greater, values[1:], values[:-1])


def any_loss(present: Bool[np.ndarray, "row split"]) -> Bool[np.ndarray, " row"]:
    """Which rows have a loss of any split."""
    return functools.reduce(np.logical_or, present.T)


def rows_where(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The rows that are marked; where all are, the column itself and no copy."""
    return values if which.all() else values[which]


def flattened(row: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """The entries of objects within objects under names such as `train/loss`."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping) and depth < DEEPEST:
            flat |= flattened(value, f"{prefix}{name}/", depth + 1)
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def concatenated(parts: Iterable[LogRows]) -> LogRows:
    """Rows of several files as those of one, in their order; columns that a part lacks are NaN there."""
    parts = list(parts)
    first = parts[0]
    if len(parts) == 1:
        return first
    names = dict.fromkeys(name for part in parts for name in part.columns)
    words = dict.fromkeys(name for part in parts for name in part.text)
    columns = {
        name: np.concatenate([part.columns.get(name, np.full(len(part), np.nan)) for part in parts]) for name in names
    }
    text = {name: np.concatenate([part.text.get(name, np.full(len(part), "")) for part in parts]) for name in words}
    line: Int[np.ndarray, " row"] = np.concatenate([part.line for part in parts])
    roles: dict[str, str] = {}
    units: dict[str, str] = {}
    known: dict[str, float] = {}
    for part in parts:
        roles |= part.roles
        units |= part.units
        known |= part.known
    losses = tuple(dict.fromkeys(name for part in parts for name in part.losses))
    findings = [finding for part in parts for finding in part.findings]
    return LogRows(
        first.path,
        first.format,
        columns,
        line,
        text,
        roles=roles,
        losses=losses,
        units=units,
        known=known,
        findings=findings,
        eval_rows=first.eval_rows,
    )
