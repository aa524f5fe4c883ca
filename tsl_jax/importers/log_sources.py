"""Which files are logs, and of what format: a file, a folder of any trainer or tracker, a pattern such as `*.csv`."""

from __future__ import annotations

import glob
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from tsl_jax.importers.delimited_logs import read_delimited
from tsl_jax.importers.event_logs import WANDB, read_tensorboard, read_wandb
from tsl_jax.importers.json_logs import read_events, read_json
from tsl_jax.importers.line_scan import LineFormat
from tsl_jax.importers.log_roles import EVAL_WORDS, STEPS, loss_columns, loss_unit, normal
from tsl_jax.importers.log_roles import words as words_of
from tsl_jax.importers.log_rows import COMPRESSED, LogRows, NotThisFormat, concatenated, open_log
from tsl_jax.importers.log_stores import magic, read_mlflow, read_parquet, read_sqlite
from tsl_jax.importers.text_formats import FORMATS, read_text, sniff_text

TABLES = (".csv", ".tsv", ".psv")
JSON = (".json", ".jsonl", ".ndjson")
# Files of a folder that may be logs; a file that is named is read whatever its name ends in.
LOGS = (*TABLES, *JSON, ".parquet", ".log", ".txt", ".out", ".err", ".wandb", ".db", ".sqlite", ".sqlite3")
MOST_FILES = 20_000
# Columns of rows of a name and a value.
KEYS = ("key", "metric", "metric_name", "name", "tag", "variable")
VALUES = ("value", "metric_value", "scalar")
# Words in a column of one of these names say what a loss was measured on.
SPLITS = ("split", "type", "mode", "phase", "stage", "subset", "set", "kind", "event", "partition", "evaluation")
DOMAINS = ("domain", "dataset", "corpus", "source")
MOST_KINDS = 200  # different words of such a column

Reader = Callable[[Path], LogRows | list[LogRows]]


def find_logs(given: Iterable[str | Path], words: Collection[str] = (), losses: Collection[str] = ()) -> list[LogRows]:
    """The logs of files, folders and patterns, each of one or several runs.

    Args:
        words: columns to be kept as words too, because they name runs. losses: columns named as losses.

    Raises:
        ValueError: for a pattern without files, a folder without logs, or a file that is none; it says why for each
            format that was tried. OSError: if a file cannot be read.
    """
    logs: list[LogRows] = []
    for name in given:
        path = Path(name)
        if not path.exists() and glob.has_magic(str(name)):
            matches = sorted((Path(match) for match in glob.glob(str(name), recursive=True)), key=_natural)
            if not matches:
                raise ValueError(f"import: no file matches {name}; name a file, a folder or a pattern of some")
            logs += _several(matches, Path(path.anchor or "."), words, losses)
        elif path.is_dir():
            logs += _several(_files_of(path), path, words, losses)
        else:
            logs += read_source(path, words, losses)
    return _joined(logs)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key by which log2 comes before log10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _files_of(folder: Path) -> list[Path]:
    """Files and folders within a folder that are logs of a kind; those that hold others of them are left out."""
    files = sorted((file for file in folder.rglob("*") if file.is_file()), key=_natural)[:MOST_FILES]
    found: list[Path] = []
    mlflow = {file.parent for file in files if file.name == "meta.yaml" and (file.parent / "metrics").is_dir()}
    if folder.name != "metrics" and (folder / "metrics").is_dir() and not mlflow:
        mlflow = {folder}
    found += sorted(mlflow, key=_natural)
    rest = [file for file in files if not any(run in file.parents for run in mlflow)]
    offline = [file for file in rest if file.suffix == ".wandb"]
    rest = [file for file in rest if not any(run.parent in file.parents for run in offline)]
    rest = [file for file in rest if file.name not in ("debug.log", "debug-internal.log")]  # of W&B's own service
    events = [file for file in rest if "tfevents" in file.name]
    states = [file for file in rest if file.name == "trainer_state.json"]
    by_run: dict[Path, Path] = {}
    for state in states:  # each checkpoint of a Trainer holds the whole history up to it
        run = state.parent.parent if state.parent.name.startswith("checkpoint") else state.parent
        by_run[run] = state if run not in by_run or state.parent == run or by_run[run].parent != run else by_run[run]
    rest = [file for file in rest if file not in events and file not in states]
    return [*found, *offline, *events, *by_run.values(), *(file for file in rest if file.suffix.lower() in LOGS)]


def _several(paths: list[Path], root: Path, words: Collection[str], losses: Collection[str]) -> list[LogRows]:
    """The logs of many files; those without losses are passed over, and said, unless none has any."""
    logs: list[LogRows] = []
    failed: list[str] = []
    event_files: dict[Path, list[Path]] = {}
    json_files: dict[Path, list[Path]] = {}
    single: list[Path] = []
    for path in paths:
        if "tfevents" in path.name:
            event_files.setdefault(path.parent, []).append(path)
        elif path.suffix == ".json" and re.search(r"\d", path.stem):
            json_files.setdefault(path.parent, []).append(path)
        else:
            single.append(path)
    for folder, files in json_files.items():
        try:
            if len(files) < 2:
                raise NotThisFormat("one file")
            logs.append(_named(_checked(read_events(files, folder), losses), folder, root))
        except NotThisFormat:
            single += files
    for folder, files in event_files.items():
        try:
            logs.append(_named(_checked(read_tensorboard(files, folder), losses), folder, root))
        except NotThisFormat as error:
            failed.append(f"{folder.name}: {error}")
    for path in single:
        try:
            found = [_checked(read_mlflow(path), losses)] if path.is_dir() else read_source(path, words, losses)
            logs += [_named(log, path, root) for log in found]
        except ValueError as error:
            failed.append(str(error).removeprefix("import: ").partition(" (as")[0])
    if not logs:
        why = f" ({failed[0]})" if failed else ""
        raise ValueError(f"import: {root} holds no log with losses{why}; name the file itself")
    if failed:
        found = f"{len(failed)} other files hold no losses that can be read: passed over, the first as {failed[0]}"
        logs[0].note("passed_over", found, 0, warning=False)
    return logs


def _named(log: LogRows, path: Path, root: Path) -> LogRows:
    """The log with its runs named by where it lies below the folder that was given."""
    if log.runs == [""]:
        try:
            inner = path.relative_to(root)
        except ValueError:
            inner = Path(path.name)
        parts = (
            [part for part in inner.with_suffix("").parts if part not in (".", "..")]
            if path.is_file()
            else [part for part in inner.parts if part not in (".", "..")]
        )
        log.runs = ["-".join(parts) or path.resolve().name]
    return log


def _checked(log: LogRows, losses: Collection[str]) -> LogRows:
    """The log, if a loss was read from it: a file without one is never called clean."""
    log = _reshaped(log, losses)
    if losses or log.losses:
        return log
    findings = list(log.findings)
    found = loss_columns(log)
    log.findings[:] = findings  # what loss_columns remarks is remarked once, later
    if not found:
        names = ", ".join([*log.columns, *log.text][:12])
        raise NotThisFormat(f"no column of losses among {names or 'its columns'}; name it with --loss")
    return log


def read_source(path: Path, words: Collection[str] = (), losses: Collection[str] = ()) -> list[LogRows]:
    """The logs of one file.

    Raises:
        ValueError: for a file that is no log, with what each reader found. OSError: if it cannot be read.
    """
    with open_log(path) as file:
        try:
            head = file.read(1 << 14)
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"import: {path.name} cannot be unpacked ({error}); unpack it yourself") from None
    if not head.strip(b"\0 \r\n\t\xef\xbb\xbf"):
        raise ValueError(f"import: {path.name} has no rows; expected a log with losses")
    reasons: list[str] = []
    for kind, reader in _readers(path, head, words):
        try:
            found = reader(path)
            logs = [log for log in (found if isinstance(found, list) else [found]) if len(log)]
            if not logs:
                raise NotThisFormat("no rows with losses")
            return [_checked(log, losses) for log in logs]
        except NotThisFormat as error:
            reasons.append(f"as {kind}: {error}")
        except (UnicodeError, RecursionError, EOFError, lzma.LZMAError, zlib.error) as error:
            reasons.append(f"as {kind}: {type(error).__name__}")
        except ValueError as error:
            raise ValueError(f"import: {path.name}: {str(error).removeprefix('import: ')}") from None
    raise ValueError(f"import: {path.name}: no losses were read ({'; '.join(reasons)})")


def _readers(path: Path, head: bytes, words: Collection[str]) -> list[tuple[str, Reader]]:
    """The readers to try, the likeliest first."""
    if "tfevents" in path.name:
        return [("TensorBoard events", lambda file: read_tensorboard([file], file))]
    if head.startswith(WANDB):
        return [("offline run of W&B", read_wandb)]
    kind = magic(head)
    if kind == "sqlite":
        return [("SQLite", read_sqlite)]
    if kind == "parquet" or path.suffix.lower() == ".parquet":
        return [("Parquet", read_parquet)]
    json: tuple[str, Reader] = ("JSON", lambda file: read_json(file, words))
    table: tuple[str, Reader] = ("a table", lambda file: read_delimited(file, words))
    text: tuple[str, Reader] = ("text", read_text)
    inner = Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()
    if inner in TABLES:
        return [table, text, json]
    if inner in JSON:
        return [json, text, table]
    form = _known_text(path)
    if form is not None:
        return [("text", lambda file: read_text(file, form)), json, table]
    if head.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] in (b"{", b"["):
        return [json, text, table]
    first_line = head.splitlines()[0].decode("utf-8", "replace") if head.splitlines() else ""
    names = {normal(cell) for cell in re.split(r"[,;\t|]", first_line)}
    if names & set(STEPS) or (any("loss" in name for name in names) and len(names) > 1):
        return [table, json, text]
    return [json, text, table] if b"{" in head else [text, table, json]


def _known_text(path: Path) -> LineFormat | None:
    """The trainer's format of a text log, None where it is of none."""
    try:
        form = sniff_text(path)
    except NotThisFormat:
        return None
    return form if form in FORMATS else None


def _joined(logs: list[LogRows]) -> list[LogRows]:
    """Logs of which each continues the one before become one: a run that was started again in a new file."""
    joined: list[LogRows] = []
    for log in logs:
        before = joined[-1] if joined else None
        if before is not None and _continues(before, log):
            parts = [before, log]
            whole = concatenated(parts)
            whole.runs = before.runs
            whole.note("continued", f"{log.path.name} continues {before.path.name}: one run", 0, warning=False)
            joined[-1] = whole
        else:
            joined.append(log)
    return joined


def _continues(before: LogRows, log: LogRows) -> bool:
    """Whether a log begins where another of the same kind ends, or in its later half, at about the same loss."""
    pattern = [re.sub(r"\d+", "#", each.path.name) for each in (before, log)]
    if pattern[0] != pattern[1] or before.format != log.format or before.run is not None or log.run is not None:
        return False
    if before.path.parent != log.path.parent and before.path.name != log.path.name:
        return False
    one, other = _ends(before), _ends(log)
    if one is None or other is None:
        return False
    (first, last, gap, _, loss), (begins, _, _, loss_there, _) = one, other
    return (
        first + 3 * gap < begins <= last + 3 * gap
        and begins > first + (last - first) / 4
        and (abs(loss - loss_there) < 0.3 * max(loss, loss_there))
    )


def _ends(log: LogRows) -> tuple[float, float, float, float, float] | None:
    """First and last step, the usual gap between rows, first and last loss; None where a log has no steps."""
    name = next((n for n in log.columns if normal(n) in STEPS), None)
    losses = [n for n in log.columns if "loss" in normal(n)]
    if name is None or not losses:
        return None
    main = max(losses, key=lambda n: np.isfinite(log.columns[n]).sum())
    known = np.isfinite(log.columns[name]) & np.isfinite(log.columns[main])
    step, loss = log.columns[name][known], log.columns[main][known]
    if len(step) < 2:
        return None
    return float(step[0]), float(step.max()), float(np.median(np.abs(np.diff(step)))), float(loss[0]), float(loss[-1])


# ------------------------------------------------------------------------------------ rows of one metric or split each


def _reshaped(log: LogRows, losses: Collection[str] = ()) -> LogRows:
    """The log with a column a metric and split; itself where its rows are whole already.

    Rows (step, key, value) and (step, split, loss) become (step, train/loss, valid/loss): as one column they would be
    one curve, measured twice at a step.

    Args:
        losses: columns that the user names: where they are there, nothing is changed.
    """
    if losses and all(name in log.columns for name in losses):
        return log
    return _by_split(_by_metric(log))


def _by_metric(log: LogRows) -> LogRows:
    """Rows of a name and a value: MLflow's and TensorBoard's tables, lines of a logger."""
    key = next((name for name in log.text if normal(name) in KEYS and _few(log.text[name])), None)
    value = next((name for name in log.columns if normal(name) in VALUES), None)
    if key is None or value is None or log.losses:
        return log
    cells = log.text[key].astype(str)
    kinds = dict.fromkeys(cells.tolist())
    if not any(loss_unit(kind) for kind in kinds):
        return log
    columns = {name: values for name, values in log.columns.items() if name != value}
    columns |= {kind: np.where(cells == kind, log.columns[value], np.nan) for kind in kinds if kind not in columns}
    text = {name: values for name, values in log.text.items() if name != key}
    log.note("long_table", f"{value} is of {len(kinds)} metrics, separated by {key}", 0, warning=False)
    return replace(log, columns=columns, text=text, eval_rows=True)


def _by_split(log: LogRows) -> LogRows:
    """Rows of a split and its loss; a column of which only rows of one kind have losses is left as it is."""
    step = next((name for name in log.columns if normal(name) in STEPS), None)
    in_order = step is not None and not (np.diff(log.columns[step]) < 0).any()
    for name, cells in log.text.items():
        named, kinds = normal(name), [kind for kind in dict.fromkeys(cells.tolist()) if isinstance(kind, str) and kind]
        of_eval = named in SPLITS and any(EVAL_WORDS & set(words_of(kind)) for kind in kinds)
        # A dataset may be what a run was trained on: then its steps begin again with each.
        if not (of_eval or (named in DOMAINS and in_order)) or not 1 < len(kinds) <= MOST_KINDS:
            continue
        parts = {
            loss: {kind: np.where(cells == kind, values, np.nan) for kind in kinds}
            for loss, values in log.columns.items()
            if loss_unit(loss) and sum(bool(np.isfinite(values[cells == kind]).any()) for kind in kinds) > 1
        }
        if parts:
            columns = {loss: values for loss, values in log.columns.items() if loss not in parts}
            columns |= {f"{kind}/{loss}": part for loss, of in parts.items() for kind, part in of.items()}
            units = log.units | {
                f"{kind}/{loss}": log.units[loss] for loss in parts for kind in kinds if loss in log.units
            }
            shown = ", ".join(kinds[:6])
            log.note("split_by_words", f"{', '.join(parts)} is of {shown}, as {name} says: a split each", 0, False)
            text = {other: values for other, values in log.text.items() if other != name}
            return replace(log, columns=columns, text=text, units=units, losses=(), eval_rows=True)
    return log


def _few(cells: np.ndarray) -> bool:
    return 0 < len(set(cells.tolist())) <= MOST_KINDS
