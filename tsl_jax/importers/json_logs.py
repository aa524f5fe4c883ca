"""Logs in JSON: an object a line, one document, or one file an event.

Hugging Face's trainer_state.json, Megatron's golden values, Levanter's and Marin's json_logger, MaxText, Meta lingua,
OLMo's metrics_stepN.json, exports of Weights & Biases and of TensorBoard, and objects of one's own. A bare NaN, which
JSON does not know and Python writes, is read; objects within objects get names such as `train/loss`.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsl_jax.importers.line_scan import Key, LineFormat, blocks, read_lines
from tsl_jax.importers.log_rows import (
    DEEPEST,
    LogRows,
    NotThisFormat,
    as_text,
    flattened,
    number_of,
    numbers_of,
    of_arrow,
    open_log,
    read_whole,
)
from tsl_jax.importers.model_size import of_flops

LARGE = 24 << 20  # bytes from which lines of JSON become no objects of Python
SAMPLE = 1 << 20
STEP_IN_NAME = re.compile(r"(?:step|iter|ckpt)[-_]?(\d+)")
MOST_NAMES = 4000  # columns of one log
WRAPPERS = ("metrics/", "data/", "values/", "log/")
KEY = re.compile(rb'"[^"\\]*":')


def read_json(path: Path, words: Collection[str] = ()) -> LogRows:
    """The rows of a .json or .jsonl file, whichever of the two it is.

    Args:
        words: columns to be kept as words too, because they name runs.

    Raises:
        NotThisFormat: where it holds no rows. ValueError: for a file of last values. OSError: if it cannot be read.
    """
    with open_log(path) as file:
        head = as_text(file.read(SAMPLE))
    if path.name in ("tracker_metrics.jsonl", "wandb-summary.json"):
        raise ValueError("holds only the last value of each metric, and no curve; give the log of the run itself")
    lines = [line for line in head.splitlines() if line.strip()]
    if _is_lines(lines, len(head) == SAMPLE):
        return _read_lines(path, lines, words)
    data = read_whole(path)
    try:
        document = json.loads(data, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise NotThisFormat(f"no JSON ({error!s:.100})") from None
    return from_document(path, document, data, words)


def _is_lines(lines: Sequence[bytes], cut: bool) -> bool:
    """Whether a file holds an object a line, some lines with a prefix or no JSON at all."""
    if len(lines) < 2:
        return len(lines) == 1 and lines[0].lstrip().startswith(b'{"') and _flat(lines[0])
    sample = lines[:50] if not cut else lines[: max(1, min(50, len(lines) - 1))]
    return sum(_parsed(line) is not None for line in sample) * 2 >= len(sample)


def _flat(line: bytes) -> bool:
    """Whether a single object is a row rather than a document of many."""
    row = _parsed(line)
    if row is None or all(number_of(name) is not None for name in row):  # {"100": {"loss": 3.2}, ...}
        return False
    return not any(
        isinstance(value, list) or (isinstance(value, dict) and any(isinstance(v, list | dict) for v in value.values()))
        for value in row.values()
    )


class _Pairs(dict):
    """An object that remembers which of its names stood twice: a dict would keep the last in silence."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        names = [name for name, _ in pairs] if len(self) < len(pairs) else []
        self.repeated = {name for name in names if names.count(name) > 1}


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line, perhaps behind a prefix of the logger."""
    start = line.find(b"{")
    if start < 0:
        return None
    try:
        row = json.loads(line[start:], object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _read_lines(path: Path, sample: Sequence[bytes], words: Collection[str]) -> LogRows:
    if not words and path.suffix.lower() not in (".gz", ".bz2", ".xz") and path.stat().st_size > LARGE:
        fast = _by_library(path, sample)
        if fast is not None:
            return fast
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[int] = []
    cut = 0
    for block in blocks(path, 1 << 22):
        for number, line in enumerate(block.data.split(b"\n"), start=block.line):
            if not line.strip():
                continue
            row = _parsed(line)
            if row is None:
                bad.append(number)
                continue
            rows.append(row)
            numbers.append(number)
        if block.cut:
            cut = block.line + block.data.count(b"\n")
            row = _parsed(read_whole(path).rpartition(b"\n")[2])
            if row is not None:  # an object that is closed is whole
                rows.append(row)
                numbers.append(cut)
                cut = 0
    if not rows:
        raise NotThisFormat("no object a line")
    log = from_rows(path, rows, numbers, words)
    if cut:
        log.note("cut_last_line", "the last line has no line end and is cut: left out", cut)
    if bad:
        many = len(bad) > len(rows)
        log.note("no_json", f"{len(bad)} lines are no JSON: passed over", bad[0], warning=not many)
    return log


def _by_library(path: Path, sample: Sequence[bytes]) -> LogRows | None:
    """A large file without an object of Python a row: by Arrow's parser where its rows are flat and of numbers, else
    by searching its bytes for keys; None where neither reads the sample as the slow way does."""
    parsed = [(line, _parsed(line)) for line in sample[: min(400, max(1, len(sample) - 1))]]
    if any(row is None for _, row in parsed):
        return None
    slow = from_rows(path, [row for _, row in parsed if row is not None], range(1, len(parsed) + 1))
    if slow.text or slow.runs != [""] or slow.format == "OLMo metrics":
        return None
    log = _by_arrow(path) or _by_search(path, [line for line, _ in parsed], slow)
    if log is None:
        return None
    first = np.searchsorted(log.line, len(parsed), side="right")
    for name, values in slow.columns.items():
        if not np.array_equal(log.columns.get(name, np.full(len(log), np.nan))[:first], values, equal_nan=True):
            return None
    log.format, log.roles, log.losses = slow.format, slow.roles, slow.losses
    log.units, log.eval_rows = slow.units, slow.eval_rows
    return log


def _by_arrow(path: Path) -> LogRows | None:
    """A file of flat objects of numbers, one a line; None where any line is something else."""
    import pyarrow as pa
    import pyarrow.json

    try:
        table = pyarrow.json.read_json(path)
    except (pa.ArrowException, UnicodeError):
        return None
    block = deque(blocks(path), 1)[0]
    rows = block.line - 1 + block.data.count(b"\n") + (not block.data.endswith(b"\n") or block.cut)
    names, kinds = table.column_names, table.schema.types
    is_plain = all(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind) for kind in kinds)
    if not is_plain or len(table) != rows or any(name.startswith(WRAPPERS) for name in names):
        return None
    columns: dict[str, np.ndarray] = {}
    for name, column in zip(names, table.columns, strict=True):
        columns[name] = of_arrow(column.cast(pa.float64(), safe=False))
    return LogRows(path, "", columns, np.arange(1, len(table) + 1))


def _by_search(path: Path, sample: Sequence[bytes], slow: LogRows) -> LogRows | None:
    """A file by searching its bytes for the keys of a sample, which `slow` holds as columns.

    None where a key is none of the sample's: its numbers would be passed over in silence.
    """
    names = set(KEY.findall(b"\n".join(sample)))
    if any(block.data.count(b'":') != sum(map(block.data.count, names)) for block in blocks(path)):
        return None
    keys = []
    for name in slow.columns:
        spelled = json.dumps(name.rpartition("/")[2] if f'"{name}"'.encode() not in sample[0] else name).encode() + b":"
        whole = json.dumps(name).encode() + b":"
        keys.append(Key(name, whole if any(whole in line for line in sample) else spelled, inside=True))
    if len({key.before for key in keys}) < len(keys):
        return None
    form = LineFormat(slow.format, b"", tuple(keys), tuple(slow.columns), step_needed=False)
    for key in keys:  # a key that several objects of a line have, or that stands in a text
        if any(line.count(key.before) > 1 for line in sample):
            return None
    return read_lines(path, form)


def from_document(path: Path, document: Any, data: bytes = b"", words: Collection[str] = ()) -> LogRows:
    """The rows of one JSON document.

    Raises:
        NotThisFormat: where none of the shapes that are known is found.
    """
    if isinstance(document, Mapping) and isinstance(document.get("log_history"), list):
        rows = [row for row in document["log_history"] if isinstance(row, dict)]
        return trainer_history(path, rows, document, data)
    golden = _golden(path, document)
    if golden is not None:
        return golden
    rows = _rows_within(document)
    if rows:
        numbers = _lines_of(data, len(rows))
        return from_rows(path, rows, numbers, words)
    if isinstance(document, Mapping):
        columns = {str(k): v for k, v in flattened(document).items() if isinstance(v, list) and len(v) > 1}
        longest = max((len(v) for v in columns.values()), default=0)
        even = {name: values for name, values in columns.items() if len(values) == longest}
        if len(even) > 1:
            rows = [dict(zip(even, row, strict=True)) for row in zip(*even.values(), strict=True)]
            log, shorter = from_rows(path, rows, []), [name for name in columns if name not in even]
            if shorter:
                found = f"{', '.join(shorter[:6])}: of another length than {next(iter(even))}, left out"
                log.note("shorter_lists", f"{found}; write rows of a step and its losses")
            return log
        flat = flattened(document)
        if any("loss" in str(name).lower() for name in flat):
            return from_rows(path, [document], [1])
    raise NotThisFormat("no rows of metrics in the document")


def _lines_of(data: bytes, count: int) -> Sequence[int]:
    """Lines on which the objects of a pretty-printed list begin, if they can be found."""
    at = [m.start() for m in re.finditer(rb"(?m)^\s*\{\s*$", data)]
    return [data.count(b"\n", 0, k) + 1 for k in at[-count:]] if len(at) >= count and count < 5000 else []


def trainer_history(path: Path, rows: list[dict[str, Any]], state: Mapping[str, Any], data: bytes = b"") -> LogRows:
    """The log_history of a Trainer; rows of a summary (`train_runtime`, `total_flos`) are no measurements.

    Its `train_loss` is the mean over the whole run: beside the losses of the last step it would look like one of them.
    """
    numbers = _lines_of(data, len(rows))
    kept = [k for k, row in enumerate(rows) if "train_loss" not in row or "loss" in row or "eval_loss" in row]
    summaries = len(rows) - len(kept)
    log = from_rows(path, [rows[k] for k in kept], [numbers[k] for k in kept] if len(numbers) == len(rows) else [])
    log.format, log.eval_rows = "Hugging Face trainer_state.json", True
    if summaries:
        log.note("summary_row", "the row with train_loss is the mean over the run: left out", 0, warning=False)
    seen = log.columns.get("num_input_tokens_seen")
    if seen is not None and not (np.nan_to_num(seen) > 0).any():
        log.columns.pop("num_input_tokens_seen")
    steps = number_of(state.get("max_steps"))
    if steps is not None and steps > 0:
        log.known["total_steps"] = steps
    log.known |= of_flops(number_of(state.get("total_flos")), number_of(state.get("num_input_tokens_seen")))
    return log


def _golden(path: Path, document: Any) -> LogRows | None:
    """Megatron's golden values: metric -> values by step; "nan" after the end of the run means nothing is there."""
    if not isinstance(document, Mapping):
        return None
    series = {
        str(name): entry["values"]
        for name, entry in document.items()
        if isinstance(entry, Mapping) and isinstance(entry.get("values"), Mapping)
    }
    if not series:
        return None
    steps = sorted({step for values in series.values() for step in values if number_of(step) is not None}, key=float)
    columns: dict[str, np.ndarray] = {"step": np.array([float(step) for step in steps])}
    for name, values in series.items():
        numbers, _ = numbers_of([values.get(step) for step in steps])
        finite = np.flatnonzero(np.isfinite(numbers))
        numbers[(finite[-1] + 1 if len(finite) else 0) :] = np.nan
        columns[name] = numbers
    log = LogRows(path, "Megatron golden values", columns, np.zeros(len(steps), np.int64))
    log.losses = tuple(name for name in series if "loss" in name.lower() and "scale" not in name.lower())
    return log


def _rows_within(document: Any, depth: int = 0) -> list[dict[str, Any]]:
    """The longest list of objects with a number in a document; TensorBoard's [wall time, step, value] too."""
    if isinstance(document, list):
        rows = [row for row in document if isinstance(row, dict)]
        if len(rows) * 2 > len(document):
            return rows
        triples = [row for row in document if isinstance(row, list) and len(row) == 3 and number_of(row[1]) is not None]
        if document and len(triples) == len(document):
            return [{"wall_time": wall, "step": step, "loss": value} for wall, step, value in triples]
    if isinstance(document, Mapping) and len(document) > 1:  # {"100": {"loss": 3.2}, ...}
        steps = [number_of(str(name)) for name in document]
        if None not in steps and all(isinstance(row, Mapping) for row in document.values()):
            return [{"step": step, **row} for step, row in zip(steps, document.values(), strict=True)]
    if depth < DEEPEST and isinstance(document, Mapping | list):
        inner = document.values() if isinstance(document, Mapping) else document[:50]
        return max((_rows_within(value, depth + 1) for value in inner), key=len, default=[])
    return []


def from_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], words_of: Collection[str] = ()
) -> LogRows:
    """Objects, one a row, as columns; the shape of the tracker that wrote them is undone.

    Args:
        numbers: the line of each; empty where not known. words_of: columns that are read as words.
    """
    form, losses = "JSON, an object a row", ()
    repeated = {name for row in rows for name in getattr(row, "repeated", ())}
    number_list = list(numbers) if len(numbers) == len(rows) else [0] * len(rows)
    if any(row.get("tracker") and "event" in row for row in rows[:50]):
        form = "Levanter json_logger"
        events = [(row, k) for row, k in zip(rows, number_list, strict=True) if row.get("event", "log") == "log"]
        flat = [{"step": row.get("step"), **flattened(_mapping(row.get("metrics")))} for row, _ in events]
        number_list = [k for _, k in events]
    else:
        flat = [flattened(row) if any(isinstance(v, Mapping) for v in row.values()) else row for row in rows]
        flat = [_unwrapped(row) for row in flat]
    names = dict.fromkeys(name for row in flat for name in row)
    if len(names) > MOST_NAMES:
        raise NotThisFormat(f"{len(names)} different names in its rows")
    if {"log_history"} & set(names) or ("learning_rate" in names and "loss" in names and "epoch" in names):
        form = "Hugging Face log history"
    elif "learning/loss" in names:
        form = "MaxText metrics"
    elif "loss/out" in names and "global_step" in names:
        form = "Meta lingua metrics"
    columns: dict[str, np.ndarray] = {}
    text: dict[str, np.ndarray] = {}
    log = LogRows(path, form, columns, np.array(number_list, np.int64), text, losses=losses)
    log.eval_rows = form.startswith(("Hugging Face", "MaxText", "Levanter"))
    for name in names:
        cells = [row.get(name) for row in flat]
        if any(isinstance(cell, list | dict) for cell in cells):
            continue
        values, words = numbers_of(cells)
        present = sum(cell is not None for cell in cells)
        if name in words_of or (words and words * 2 >= present):
            text[name] = np.array(["" if cell is None else str(cell) for cell in cells], object)
            if words or not present:
                continue
        if words:
            at = next(k for k, cell in enumerate(cells) if number_of(cell) is None)
            log.note("words", f"{words} cells of {name} are no numbers: missing", number_list[at])
        columns[name] = values
    log.units |= dict.fromkeys(repeated, "repeated")
    return log


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _unwrapped(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Entries below `metrics`, `data` or `values` under their own names."""
    for wrapper in WRAPPERS if any(name.startswith(WRAPPERS) for name in row) else ():
        if any(name.startswith(wrapper) for name in row):
            return {name.removeprefix(wrapper): value for name, value in row.items()}
    return row


def read_events(paths: Sequence[Path], folder: Path) -> LogRows:
    """A folder with one JSON file an event, in the order of their steps, which is not that of their names.

    OLMo's metrics_stepN.json holds all metrics so far: evaluations of earlier steps are carried along, and are read at
    the step where each value stands for the first time.

    Raises:
        NotThisFormat: where they are no such files.
    """
    rows: list[tuple[float, dict[str, Any]]] = []
    for path in paths:
        row = _parsed(read_whole(path).replace(b"\n", b" "))
        if row is None:
            raise NotThisFormat(f"{path.name} is no JSON object")
        flat = dict(_unwrapped(flattened(row)))
        named = STEP_IN_NAME.search(path.stem)
        step = next((number_of(flat[name]) for name in ("step", "_step", "global_step") if name in flat), None)
        step = float(named[1]) if step is None and named else step
        if step is None or not np.isfinite(step):
            raise NotThisFormat(f"{path.name} has no step")
        rows.append((step, {**flat, "step": step}))
    order = sorted(range(len(rows)), key=lambda k: rows[k][0])
    log = from_rows(folder, [rows[k][1] for k in order], [])
    log.format = "one JSON file an event"
    if order != list(range(len(rows))):
        log.note("files_sorted", "files do not list in the order of their steps: sorted by step", 0, warning=False)
    return log
