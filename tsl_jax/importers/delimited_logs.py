"""Logs in tables of text: CSV, TSV and their relatives, as trainers and trackers export them.

Lightning's metrics.csv (no row is complete, headers recur), Weights & Biases' chart and history exports, TensorBoard's
"Wall time,Step,Value", tables with semicolons and decimal commas, and tables of one's own.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tsl_jax.importers.line_scan import is_whole
from tsl_jax.importers.log_roles import SAMPLES, STEPS, TOKENS, loss_unit, normal
from tsl_jax.importers.log_rows import (
    LogRows,
    NotThisFormat,
    as_text,
    number_of,
    numbers_of,
    of_arrow,
    open_log,
    read_whole,
)

LARGE = 16 << 20  # bytes from which a table is read by Arrow, a block at a time
DELIMITERS = ",;\t|"
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+([eE][-+]?\d+)?")
THOUSANDS = re.compile(r"\d{1,3}(\.\d{3})+(,\d+)?")
CHART = re.compile(r"(?P<run>.+) - (?P<metric>[^\"]+?)(?P<part>__MIN|__MAX)?")  # a column of a W&B chart
TAG = re.compile(r"-tag-(?P<tag>.+?)(?:\.csv|\.tsv)?(?:\.gz|\.bz2|\.xz)?$")  # of the file that TensorBoard exports
CHART_X = ("step", "_step", "global_step", "trainer/global_step", "train/global_step")
CHART_TIME = ("relative time (process)", "relative time (wall)", "wall time", "_timestamp", "_runtime", "epoch")


def read_delimited(path: Path, words: Collection[str] = ()) -> LogRows:
    """The rows of a table of text.

    Args:
        words: columns to be kept as words too, because they name runs.

    Raises:
        NotThisFormat: where there is no header and no numbers. ValueError: for a table that is no curve.
        OSError: if it cannot be read.
    """
    with open_log(path) as file:
        head = file.read(1 << 16)
        large = len(head) == 1 << 16 and path.suffix.lower() not in (".gz", ".bz2", ".xz")
    large = large and path.stat().st_size > LARGE and head[:2] not in (b"\xff\xfe", b"\xfe\xff")
    delimiter, decimal_comma = sniff_delimiter(as_text(head).decode("utf-8", "replace"))
    rows = None
    if large and not decimal_comma and delimiter != " ":
        rows = _by_arrow(path, delimiter, as_text(head), words)
    if rows is None:
        rows = _by_csv(path, delimiter, decimal_comma, words)
    if delimiter == ";":
        commas = " and numbers have decimal commas" if decimal_comma else ""
        rows.note("semicolons", f"cells are parted by semicolons{commas}", 0, warning=False)
    return _as_format(rows)


def sniff_delimiter(head: str) -> tuple[str, bool]:
    """The separator of the cells, and whether numbers have a decimal comma."""
    lines = [line for line in head.splitlines()[:50] if line.strip() and not line.startswith("#")]
    if head and not head.endswith("\n") and len(lines) > 2:
        lines = lines[:-1]
    if not lines:
        raise NotThisFormat("no rows")
    scores: dict[str, tuple[int, int]] = {}
    for delimiter in DELIMITERS:
        counts = Counter(len(row) for row in csv.reader(lines, delimiter=delimiter))
        width, many = max(counts.items(), key=lambda entry: (entry[1], entry[0]))
        scores[delimiter] = (many if width > 1 else 0, width)
    best = max(DELIMITERS, key=lambda d: scores[d])
    semicolons = scores[";"][0] >= max(1, len(lines) - 1)
    if semicolons and scores[";"][1] > 1:
        return ";", _has_decimal_commas(lines[1:], ";")
    if scores[best][0] == 0:
        widths = {len(line.split()) for line in lines}
        if len(widths) == 1 and widths != {1}:
            return " ", False
        return ",", False
    return best, _has_decimal_commas(lines[1:], best)


def _has_decimal_commas(lines: list[str], delimiter: str) -> bool:
    """Whether commas of the cells are decimal: 4,1706 is no number else, and 4,171 is 4171 only beside a 3.95.

    A table of losses has decimals, by a sign or the other; two commas in a cell part thousands.
    """
    cells = [cell.strip() for row in csv.reader(lines, delimiter=delimiter) for cell in row]
    commas = [cell for cell in cells if DECIMAL_COMMA.fullmatch(cell)]
    if not commas or any(re.fullmatch(r"\d{1,3}(,\d{3}){2,}", cell) for cell in cells):
        return False
    points = sum("." in cell and not THOUSANDS.fullmatch(cell) and number_of(cell) is not None for cell in cells)
    may_be_thousands = all(number_of(cell) is not None for cell in commas)
    return points == 0 if may_be_thousands else len(commas) > points


def _by_csv(path: Path, delimiter: str, decimal_comma: bool, words: Collection[str]) -> LogRows:
    """Row by row, with every trap named."""
    data = read_whole(path)
    text = data.decode("utf-8", "replace").replace("\0", "")
    cut_line, cut = text.count("\n") + 1, bool(text) and not text.endswith(("\n", "\r")) and not is_whole(data)
    if cut:
        text = text[: max(text.rfind("\n"), text.rfind("\r")) + 1]
    lines = io.StringIO(text, newline="")
    if delimiter == " ":
        cells = ((number, line.split()) for number, line in enumerate(lines, start=1))
    else:
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        cells = _numbered(reader)
    header: list[str] = []
    blocks: list[tuple[list[str], list[list[str]], list[int]]] = []
    again, ragged = [], []
    for number, row in cells:
        row = [cell.strip() for cell in row]
        if not any(row) or row[0].startswith("#"):
            continue
        if not header:
            header = _header(row)
            blocks.append((header, [], []))
            if header is row:
                continue
        if row == header:
            again.append(number)
            continue
        if len(row) != len(header):
            # A program that was started again may log other columns, below a header of their own.
            if len(row) > 1 and all(number_of(cell) is None and cell for cell in row):
                header = row
                blocks.append((header, [], []))
                again.append(number)
            else:
                ragged.append(number)
            continue
        if len(row) > 1 and set(row) == set(header):  # the same columns in another order
            header = row
            blocks.append((header, [], []))
            again.append(number)
            continue
        blocks[-1][1].append(row)
        blocks[-1][2].append(number)
    if not header:
        raise NotThisFormat("no rows")
    blocks = [block for block in blocks if block[1]] or blocks[:1]
    line = np.array([number for block in blocks for number in block[2]], np.int64)
    log = LogRows(path, "table of text", {}, line)
    log.text["_header"] = np.array(header)  # until the format is known
    _fill_columns(log, blocks, decimal_comma, words)
    if cut:
        log.note("cut_last_line", "the last line has no line end and may be cut: left out", cut_line)
    if again:
        log.note("header_again", f"the header stands again within the table, {len(again)} times: skipped", again[0])
    if ragged:
        found = f"{len(ragged)} lines have another number of cells than the header: left out"
        log.note("ragged_rows", found, ragged[0])
        if len(ragged) > len(line):
            raise NotThisFormat(f"most lines have another number of cells than the header, as line {ragged[0]}")
    return log


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of the line they begin on."""
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            continue
        yield number, row


def _header(row: list[str]) -> list[str]:
    """The header itself, or names for a table that begins with numbers: a step and losses."""
    numbers = [number_of(cell) for cell in row]
    if any(value is None for value in numbers) or not np.isfinite([v for v in numbers if v is not None]).any():
        return row
    if len(row) < 2:
        raise NotThisFormat("one column of numbers without a header")
    return ["step", "loss", *(f"column_{k}" for k in range(3, len(row) + 1))]


def _fill_columns(
    log: LogRows,
    blocks: list[tuple[list[str], list[list[str]], list[int]]],
    decimal_comma: bool,
    words_of: Collection[str],
) -> None:
    """Numbers and words of each column, over blocks with headers of their own."""
    count = len(log)
    start = 0
    for header, rows, _ in blocks:
        stop = start + len(rows)
        repeated = [name for name, times in Counter(header).items() if times > 1 and name]
        for name in repeated:
            log.units[name] = "repeated"
        for k, name in reversed(list(enumerate(header))):
            cells = [row[k] for row in rows]
            if decimal_comma:
                cells = [cell.replace(".", "").replace(",", ".") for cell in cells]
            values, words = numbers_of(cells)
            mostly_words = words and words * 2 >= sum(cell.strip().lower() not in ("", "nan") for cell in cells)
            if mostly_words or name in words_of:
                log.text.setdefault(name, np.full(count, "", object))[start:stop] = cells
            if mostly_words:
                continue
            if words:
                line = next(n for n, c in zip(log.line[start:stop], cells, strict=True) if number_of(c) is None)
                log.note("words", f"{words} cells of {name} are no numbers: missing", int(line))
            log.columns.setdefault(name, np.full(count, np.nan))[start:stop] = values
        start = stop
    names = list(dict.fromkeys(name for header, _, _ in blocks for name in header))
    log.columns = {name: log.columns[name] for name in names if name in log.columns}  # in the order of the header


def _by_arrow(path: Path, delimiter: str, head: bytes, words: Collection[str]) -> LogRows | None:
    """The numeric columns of a large table, a block at a time; None where it is not as regular as that needs."""
    import pyarrow as pa
    import pyarrow.csv as pc

    first = next(csv.reader(io.StringIO(head.decode("utf-8", "replace")), delimiter=delimiter, skipinitialspace=True))
    if _header(first) is not first or len({name.strip() for name in first}) < len(first) or head.startswith(b"#"):
        return None
    skipped: list[int] = []

    def skip(row: pc.InvalidRow) -> str:
        skipped.append(row.number or 0)
        return "skip"

    sample = list(csv.reader(io.StringIO(head.decode("utf-8", "replace")), delimiter=delimiter))[1:-1]
    kinds: dict[str, pa.DataType] = {}
    for k, name in enumerate(first):
        cells = [row[k].strip() for row in sample if len(row) == len(first)]
        is_number = name.strip() not in words and numbers_of(cells)[1] == 0
        kinds[name] = pa.float64() if is_number else pa.string()
    nulls = ["", "NA", "N/A", "null", "None", "none"]
    options = pc.ConvertOptions(column_types=kinds, null_values=nulls, strings_can_be_null=False)
    parse = pc.ParseOptions(delimiter=delimiter, invalid_row_handler=skip)
    try:
        with pc.open_csv(path, convert_options=options, parse_options=parse) as reader:
            table = pa.Table.from_batches(list(reader), reader.schema)
    except (pa.ArrowException, UnicodeError):
        return None  # a header again, a word among numbers: row by row
    columns: dict[str, np.ndarray] = {}
    text: dict[str, np.ndarray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.type == pa.string():
            text[name.strip()] = column.to_pandas().to_numpy()
        else:
            columns[name.strip()] = of_arrow(column)
    log = LogRows(path, "table of text", columns, np.arange(2, len(table) + 2), text)
    log.text["_header"] = np.array([name.strip() for name in first])
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 15)))
        tail = file.read()
    if not tail.endswith((b"\n", b"\r")) and not is_whole(tail):
        log = _without_last(log)
        log.note("cut_last_line", "the last line has no line end and may be cut: left out", int(log.line[-1]) + 1)
    if skipped:
        found = f"{len(skipped)} lines have another number of cells than the header: left out"
        log.note("ragged_rows", found, skipped[0])
    return log


def _without_last(log: LogRows) -> LogRows:
    header = log.text.pop("_header")
    columns = {name: values[:-1] for name, values in log.columns.items()}
    text = {name: values[:-1] for name, values in log.text.items()}
    return LogRows(log.path, log.format, columns, log.line[:-1], {**text, "_header": header})


def _as_format(log: LogRows) -> LogRows:
    """The table as what its header says it is."""
    header = log.text.pop("_header").tolist()
    lowered = [name.lower() for name in header]
    if not len(log):
        raise NotThisFormat("a header and no rows")
    state = next((name for name in log.text if name.lower() == "state"), None)
    if state is not None and {"finished", "crashed", "failed", "killed", "running"} & set(log.text[state].tolist()):
        raise ValueError("a table of runs, one row a run, and no curve; export the history of a run, or its chart")
    if lowered[:3] == ["wall time", "step", "value"] or set(lowered) == {"wall time", "step", "value"}:
        log.format = "TensorBoard's CSV of a scalar"
        tag = TAG.search(log.path.name)
        name = tag["tag"] if tag else "loss"
        log.columns[name] = log.columns.pop(header[lowered.index("value")])
        log.losses = (name,) if loss_unit(name) else ()  # an accuracy is exported in the same way
        return log
    x = header[0] if lowered and (lowered[0] in CHART_X + CHART_TIME or _is_clock(header[0])) else None
    if x is not None and x in log.columns and len(header) > 1:
        named = {name: CHART.fullmatch(name) for name in header[1:]}
        if all(match or name.lower() in CHART_X + CHART_TIME for name, match in named.items()) and any(named.values()):
            return _chart(log, x, {name: match for name, match in named.items() if match})
    if "_step" in lowered and ("_runtime" in lowered or "_timestamp" in lowered):
        log.format, log.eval_rows = "Weights & Biases history", True
    elif "epoch" in lowered and "step" in lowered and any(name.endswith(("_step", "_epoch")) for name in lowered):
        log.format = "Lightning metrics.csv"
        log.eval_rows = True
    return log


def _is_clock(name: str) -> bool:
    """Whether a column counts steps, tokens or samples, by its name: an axis that was chosen for a chart."""
    plain = normal(name)
    return plain in STEPS or bool(TOKENS.fullmatch(plain) or SAMPLES.fullmatch(plain))


def _chart(log: LogRows, x: str, named: dict[str, re.Match[str]]) -> LogRows:
    """Rows (run, x) of a chart, which has a column a run; columns of a minimum or maximum are no runs."""
    by_run: dict[str, dict[str, str]] = {}
    for name, match in named.items():
        if not match["part"] and name in log.columns:
            by_run.setdefault(match["run"].removeprefix("Group: "), {})[match["metric"]] = name
    metrics = list(dict.fromkeys(metric for columns in by_run.values() for metric in columns))
    position = np.tile(log.columns[x], len(by_run))
    columns = {
        metric: np.concatenate(
            [log.columns.get(of.get(metric, ""), np.full(len(log), np.nan)) for of in by_run.values()]
        )
        for metric in metrics
    }
    for metric, values in columns.items():  # a chart writes NaN where a run has no point
        columns[metric] = np.where(np.isneginf(values), np.nan, values)
    metrics_x = [metric for metric in metrics if metric.lower() in CHART_X]
    clock = "step" if x.lower() in CHART_X + CHART_TIME else x  # tokens under their name, which may hold their unit
    chart = LogRows(
        log.path,
        "Weights & Biases chart",
        {metric: columns[metric] for metric in metrics if metric not in metrics_x} | {clock: position},
        np.tile(log.line, len(by_run)),
        run=np.repeat(np.arange(len(by_run)), len(log)),
        runs=list(by_run),
        findings=log.findings,
    )
    dropped = sum(bool(match["part"]) for match in named.values())
    if dropped:
        chart.note("min_max", f"{dropped} columns of minima and maxima are no runs: left out", 0, False)
    if x.lower() in CHART_TIME:
        found = f"the chart's axis is {x!r}, no step: its values are the clock; export it over steps"
        chart.note("axis_is_time", found, 1)
        scale = 1.0 if np.nanmax(np.abs(position), initial=0) > 1e3 else 1e6
        chart.columns["step"] = np.round(position * scale)
    return chart
