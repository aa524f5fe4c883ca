"""Binary logs: TensorBoard's event files and offline runs of Weights & Biases (`run-*.wandb`).

Both are records in a frame with a protocol buffer each. The few fields that hold scalars are read here, so that neither
package is needed: TFRecord (length, its checksum, data, checksum) with `tensorflow.Event`, and LevelDB's log (blocks of
32 KiB, records in fragments) with `wandb_internal.Record`. All points are read, where TensorBoard's own reader keeps
10,000 a tag and drops the rest at random.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tsl_jax.importers.json_logs import from_rows
from tsl_jax.importers.log_rows import SAYS_NAN, LogRows, NotThisFormat
from tsl_jax.importers.model_size import of_config

BLOCK = 32_768  # bytes of a block of LevelDB's log
WANDB = b":W&B"
# Field numbers of tensorflow's event.proto, summary.proto and tensor.proto.
EVENT_TIME, EVENT_STEP, EVENT_SUMMARY = 1, 2, 5
VALUE_TAG, VALUE_SIMPLE, VALUE_TENSOR = 1, 2, 8
# of wandb_internal.proto
RECORD_HISTORY, RECORD_CONFIG, RECORD_RUN = 2, 5, 17
RUN_CONFIG = 4
ITEM_INTEGER, ITEM_NUMBER, ITEM_JSON = 5, 6, 16
RUN_NAMES = (8, 1)  # display_name, run_id
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # of a tensor


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a protocol buffer: int of a varint, bytes of the others.

    Raises:
        ValueError: where it is cut or no protocol buffer.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field of kind {kind}")
        if at + size > end:
            raise ValueError("a field is cut")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number is cut")


def read_tensorboard(paths: list[Path], folder: Path) -> LogRows:
    """The scalars of the event files of one folder, which are one run: a later file is a restart.

    Raises:
        NotThisFormat: where they hold no scalars. OSError: if one cannot be read.
    """
    rows: list[dict[str, Any]] = []
    cut = []
    for path in sorted(paths, key=_written_at):
        data = path.read_bytes()
        row: dict[str, Any] = {}
        try:
            for event in _tfrecords(data):
                for step, values, written in _event(event):
                    # Scalars of one step follow one another, each in an event of its own.
                    if row.get("step") != step or set(values) & set(row):
                        rows.append(row := {"step": step} | ({"wall_time": written} if written == written else {}))
                    row |= values
        except (ValueError, struct.error):
            cut.append(path.name)
    if not rows:
        raise NotThisFormat("no scalars in the event files")
    log = from_rows(folder, rows, [])
    log.format, log.eval_rows = "TensorBoard events", True
    if cut:
        log.note("cut_record", f"the last record of {cut[0]} is cut: left out")
    return log


def _written_at(path: Path) -> tuple[float, str]:
    """Time of an event file, from its name (events.out.tfevents.SECONDS.HOST...)."""
    part = path.name.partition("tfevents.")[2].partition(".")[0]
    return (float(part) if part.isdigit() else 0.0), path.name


def _tfrecords(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        if at + 12 + size + 4 > len(data):
            raise ValueError("cut")
        yield data[at + 12 : at + 12 + size]
        at += 16 + size
    if at < len(data):
        raise ValueError("cut")


def _event(data: bytes) -> Iterator[tuple[int, dict[str, float], float]]:
    """Step, scalars and time of an event."""
    step, summaries, written = 0, [], np.nan
    for number, value in fields(data):
        if number == EVENT_STEP and isinstance(value, int):
            step = value - (1 << 64) if value >> 63 else value
        elif number == EVENT_SUMMARY and isinstance(value, bytes):
            summaries.append(value)
        elif number == EVENT_TIME and isinstance(value, bytes) and len(value) == 8:
            (written,) = struct.unpack("<d", value)
    values: dict[str, float] = {}
    for summary in summaries:
        for _, entry in fields(summary):
            if not isinstance(entry, bytes):
                continue
            parts = dict(fields(entry))
            tag = parts.get(VALUE_TAG, b"").decode("utf-8", "replace")
            scalar = _scalar(parts)
            if tag and scalar is not None:
                values[tag] = scalar
    if values:
        yield step, values, written


def _scalar(parts: dict[int, Any]) -> float | None:
    """The number of a summary's value, in the old field or in a tensor of one element."""
    if VALUE_SIMPLE in parts:
        return struct.unpack("<f", parts[VALUE_SIMPLE])[0]
    if VALUE_TENSOR not in parts:
        return None
    tensor = dict(fields(parts[VALUE_TENSOR]))
    dtype = DTYPES.get(tensor.get(1, 0))
    content = tensor.get(4) or tensor.get(5) or tensor.get(6)  # tensor_content, float_val, double_val
    if dtype is None or not isinstance(content, bytes) or len(content) != np.dtype(dtype).itemsize:
        return None
    return float(np.frombuffer(content, dtype)[0])


def read_wandb(path: Path) -> LogRows:
    """The history of an offline run of Weights & Biases.

    Raises:
        NotThisFormat: for another file. OSError: if it cannot be read.
    """
    data = path.read_bytes()
    if data[:4] != WANDB:
        raise NotThisFormat("no .wandb file")
    rows: list[dict[str, Any]] = []
    name, config, cut = "", {}, False
    try:
        for record in _leveldb(data):
            for number, value in fields(record):
                if number == RECORD_HISTORY and isinstance(value, bytes):
                    rows.append(_history(value))
                elif number == RECORD_RUN and isinstance(value, bytes):
                    name = _run_name(value) or name
                    config |= _config(dict(fields(value)).get(RUN_CONFIG))
                elif number == RECORD_CONFIG:
                    config |= _config(value)
    except ValueError:
        cut = True
    rows = [row for row in rows if row]
    if not rows:
        raise NotThisFormat("no history in the .wandb file")
    log = from_rows(path, rows, [])
    log.format, log.eval_rows, log.runs = "Weights & Biases offline run", True, [name]
    log.known |= of_config(config)
    if cut:
        log.note("cut_record", "the last record is cut: left out")
    return log


def _leveldb(data: bytes) -> Iterator[bytes]:
    """Records of LevelDB's log after the header of seven bytes; fragments are put together."""
    at, record = 7, b""
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        if at + 7 > len(data):
            raise ValueError("cut")
        size, kind = struct.unpack_from("<HB", data, at + 4)
        if kind == 0 and size == 0:  # the rest of a block is zeros
            at += left
            continue
        if at + 7 + size > len(data):
            raise ValueError("cut")
        part = data[at + 7 : at + 7 + size]
        at += 7 + size
        record = part if kind in (1, 2) else record + part
        if kind in (1, 4):
            yield record


def _history(data: bytes) -> dict[str, Any]:
    """Names and numbers of one history record; nested names are joined by a slash."""
    row: dict[str, Any] = {}
    for number, item in fields(data):
        if number != 1 or not isinstance(item, bytes):
            continue
        parts = list(fields(item))
        names = [v.decode("utf-8", "replace") for k, v in parts if k in (1, 2) and isinstance(v, bytes)]
        value = _history_value(dict(parts))
        if isinstance(value, str) and value.lower() in ("nan", "infinity", "-infinity"):
            value = float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            row["/".join(filter(None, names))] = SAYS_NAN if value != value else value
    return row


def _config(data: Any) -> dict[str, Any]:
    """Names and values of a run's configuration."""
    entries = [dict(fields(item)) for number, item in fields(data) if number == 1] if isinstance(data, bytes) else []
    return {entry[1].decode("utf-8", "replace"): _history_value(entry) for entry in entries if 1 in entry}


def _history_value(parts: dict[int, Any]) -> Any:
    """A value as JSON, or in a field of its type."""
    if isinstance(parts.get(ITEM_NUMBER), bytes):
        return struct.unpack("<d", parts[ITEM_NUMBER])[0]
    if isinstance(parts.get(ITEM_INTEGER), int):
        return parts[ITEM_INTEGER] - (1 << 64 if parts[ITEM_INTEGER] >> 63 else 0)
    try:
        return json.loads(parts.get(ITEM_JSON, b"null"))
    except (ValueError, TypeError, RecursionError):
        return None


def _run_name(data: bytes) -> str:
    """Display name of a run, else its id."""
    parts = {k: v.decode("utf-8", "replace") for k, v in fields(data) if k in RUN_NAMES and isinstance(v, bytes)}
    return next((parts[number] for number in RUN_NAMES if parts.get(number)), "")
