"""Any log becomes surfaces: read by its format, its columns recognised, its restarts stitched, its doubts named.

account = tsl.read_log("run.log")    # or a folder, a pattern, several files
print(account)                       # what was read, inferred, left out
account.surfaces["run"]
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.importers.arrays import from_losses
from tsl_jax.importers.log_checks import check_curve, drop_carried
from tsl_jax.importers.log_clock import ClockOptions, clock_of, finite
from tsl_jax.importers.log_roles import LogRoles, LossColumn, find_roles
from tsl_jax.importers.log_rows import Finding, LogRows, NoLossLeft, Rows, any_loss, every, rows_where
from tsl_jax.importers.log_sources import find_logs
from tsl_jax.importers.log_stitching import REPEATED, Curve, Repeated, RunRecords, stitch
from tsl_jax.importers.log_times import times_of
from tsl_jax.importers.model_size import as_number, of_column, size_of
from tsl_jax.importers.position_losses import is_position_losses, read_position_losses
from tsl_jax.importers.table import MEAN, add_plans, rows_of_runs

LN2 = float(np.log(2))
CAPPED = float(np.exp(20)) * (1 - 1e-6)  # perplexities from here on say only that they are large
LOSS_UNITS = ("nats/token", "bits/token", "bits/byte", "bits/char", "perplexity")
PLAIN = ("table of text", "JSON, an object a row", "Parquet table")  # tables of one's own


@dataclass
class LogImport:
    """What was read of some logs, and the account of it.

    Attributes:
        surfaces: run -> surface. formats: file -> its format. findings: (file, finding), in the order they were made.
    """

    surfaces: dict[str, xr.Dataset]
    formats: dict[str, str] = field(default_factory=dict)
    findings: list[tuple[str, Finding]] = field(default_factory=list)

    @property
    def warnings(self) -> list[Finding]:
        """Findings that dropped or changed something, or leave a doubt."""
        return [finding for _, finding in self.findings if finding.warning]

    def __str__(self) -> str:
        several = len(self.formats) > 1
        lines = [f"read: {name} as {form}" for name, form in list(self.formats.items())[:8]]
        if len(self.formats) > 8:
            lines.append(f"read: {len(self.formats) - 8} more files")
        shown: dict[str, int] = {}
        for name, finding in self.findings:
            shown[finding.code] = shown.get(finding.code, 0) + 1
            if shown[finding.code] <= 4:
                lines.append(f"{'warning' if finding.warning else 'note'}: {f'{name}: ' if several else ''}{finding}")
        lines += [f"... {count - 4} more of the kind {code}" for code, count in shown.items() if count > 4]
        return "\n".join(lines)


def read_log(
    paths: str | Path | Sequence[str | Path],
    *,
    loss: str | Sequence[str] = (),
    tokens: str | None = "tokens",
    step: str | None = "step",
    lr: str | None = "lr",
    run: str | Sequence[str] = (),
    n_params: str | float | None = "n_params",
    tokens_per_step: int | Sequence[tuple[int, int]] | None = None,
    sequence_length: int | None = None,
    tokens_unit: float | None = None,
    loss_unit: str | None = None,
    bytes_per_token: float | None = None,
    logging_steps: int | None = None,
    schedule: Any = None,
    warmup_tokens: int | None = None,
    repeated: Repeated = "last",
    strict: bool = False,
) -> LogImport:
    """The runs of any logs, each as a surface (split, tokens, 1); losses are means over positions.

    Args:
        paths: files, folders, or patterns such as `logs/*.txt`.
        loss: columns of losses; each is a split. Empty: those that are recognised by their names.
        tokens, step, lr, n_params: a column; its role's own name: the one that is recognised; None: passed over.
            n_params may be the number itself, without embeddings, of the model of all runs; where it is neither, and a
            log states its number of parameters, that is taken, and the account says what it counts.
        run: columns that name the run together.
        tokens_per_step: tokens of a step; of a ramp [(first step, tokens of a step from there on), ...].
        sequence_length: tokens of a sample, where the log counts samples.
        tokens_unit: what the column of tokens counts in, such as 1e9.
        loss_unit: one of LOSS_UNITS, for all losses. bytes_per_token: turns bits per byte into nats per token.
        logging_steps: steps between two rows of a log that has no steps.
        schedule, warmup_tokens: as for `read_table`.
        repeated: which losses of one step are kept where a run was started again: `last`, `first`, their `mean`, or
            both attempts `apart`.
        strict: refuse where anything would be guessed, dropped, changed or doubtful: all findings but those of
            `log_rows.FACTS`.

    Raises:
        ValueError: for what is no log, options that make no sense, or findings if `strict`. OSError: if a file cannot
            be read.
    """
    _check_options(tokens_per_step, repeated, loss_unit, sequence_length, tokens_unit, bytes_per_token, logging_steps)
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    losses, keys = ([names] if isinstance(names, str) else list(names) for names in (loss, run))
    size = as_number(n_params)
    column = None if size is not None or n_params is None else str(n_params)
    named = {"tokens": tokens, "step": step, "lr": lr, "n_params": column}
    result = LogImport({})
    given = _position_losses(given, result)
    logs = find_logs(given, keys, losses) if given else []
    for log in logs:
        try:
            roles = find_roles(log, losses, keys, named)
            if loss_unit is not None:
                roles.losses = [LossColumn(column.column, loss_unit) for column in roles.losses]
            clock = ClockOptions(tokens_per_step, sequence_length, tokens_unit, logging_steps)
            of_model = {} if n_params is None else size_of(log, size)
            surfaces = _surfaces(log, roles, clock, bytes_per_token, repeated, of_model)
        except ValueError as error:
            if isinstance(error, NoLossLeft) and len(logs) > 1:  # others are not lost with it
                result.findings.append((log.path.name, Finding("passed_over", f"{error}: passed over")))
                continue
            raise ValueError(f"import: {log.path.name}: {str(error).removeprefix('import: ')}") from None
        for name, surface in surfaces.items():
            unused, k = name, 2
            while unused in result.surfaces:
                unused, k = f"{name}-{k}", k + 1
            result.surfaces[unused] = surface.assign_attrs(run=unused)
        result.formats[log.path.name if len(given) == 1 else str(log.path)] = _read_as(log, roles)
        result.findings += [(log.path.name, finding) for finding in log.findings]
    if logs and not result.surfaces:
        raise ValueError(f"import: {result.findings[-1][0]} and {len(logs) - 1} more: {result.findings[-1][1]}")
    if strict:
        _refuse(result)
    add_plans(result.surfaces, schedule, warmup_tokens)
    return result


def _refuse(result: LogImport) -> None:
    """Raises ValueError where anything but facts was found, with the first of each kind."""
    refused = [(name, finding) for name, finding in result.findings if finding.refused]
    if not refused:
        return
    kinds = {finding.code: f"{name}: {finding} [{finding.code}]" for name, finding in reversed(refused)}
    first = "; ".join(list(kinds.values())[::-1][:6])
    more = f"; and {len(kinds) - 6} more kinds" if len(kinds) > 6 else ""
    raise ValueError(f"import: {first}{more}. --strict refuses this; without it the log is read as said")


def _position_losses(given: list[str | Path], result: LogImport) -> list[str | Path]:
    """Read what `PositionLosses` has written, files of several ranks as one run; what else is given is returned."""
    rest: list[str | Path] = []
    for name in given:
        path = Path(name)
        files = [path]
        if path.is_dir():
            files = sorted(path.glob("*.jsonl"))
        elif not path.exists():
            files = sorted(Path(match) for match in glob.glob(str(name)))
        ranks = [file for file in files if is_position_losses(file)]
        if not ranks or len(ranks) < len(files):
            rest.append(name)
            continue
        run = path.resolve().name if path.is_dir() else ranks[0].stem
        result.surfaces[run], damaged = read_position_losses(ranks, run)
        result.formats[run] = f"losses by position of {len(ranks)} processes"
        if damaged:
            found = f"{damaged} lines are damaged or cut: left out"
            result.findings.append((run, Finding("cut_record", found)))
    return rest


def _read_as(log: LogRows, roles: LogRoles) -> str:
    """The format, and which columns were read as what, in a line."""
    by_unit: dict[str, list[str]] = {}
    for column in roles.losses:
        by_unit.setdefault(column.unit, []).append(column.column)
    losses = "; ".join(f"{', '.join(names[:6])} in {unit}" for unit, names in by_unit.items())
    others = [name for name in (roles.step, roles.tokens or roles.samples, roles.lr, *roles.runs) if name]
    return f"{log.format}: {len(log):,} rows; {losses}; {', '.join(others) or 'no step'}"


def _check_options(tokens_per_step: Any, repeated: str, loss_unit: str | None, *numbers: float | None) -> None:
    """Options that make no sense, before anything is read."""
    if repeated not in REPEATED:
        raise ValueError(f"import: repeated must be one of {', '.join(REPEATED)}, found {repeated!r}")
    if loss_unit is not None and loss_unit not in LOSS_UNITS:
        raise ValueError(f"import: loss_unit must be one of {', '.join(LOSS_UNITS)}, found {loss_unit!r}")
    for value in numbers:
        if value is not None and not value > 0:
            raise ValueError(f"import: expected a number above 0, found {value}")
    if isinstance(tokens_per_step, int | float) or tokens_per_step is None:
        if tokens_per_step is not None and (tokens_per_step < 1 or tokens_per_step % 1):
            raise ValueError(f"import: tokens_per_step must be a whole number from 1, found {tokens_per_step}")
        return
    ramp = list(tokens_per_step)
    firsts = [first for first, _ in ramp]
    if not ramp or firsts != sorted(set(firsts)) or firsts[0] < 0 or any(size < 1 for _, size in ramp):
        raise ValueError(f"import: a ramp is a list of (first step, tokens of a step), steps rising; found {ramp}")


def _surfaces(
    log: LogRows,
    roles: LogRoles,
    clock: ClockOptions,
    bytes_per_token: float | None,
    repeated: Repeated,
    of_log: Mapping[str, Any],
) -> dict[str, xr.Dataset]:
    """Run -> surface of one log; of_log: attributes of all its runs, where no column says better.

    Raises:
        ValueError: where no loss is left.
    """
    loss, splits, units = _losses(log, roles, bytes_per_token)
    attrs = _attrs(log, clock, units)
    surfaces: dict[str, xr.Dataset] = {}
    lr = None if roles.lr is None else finite(log.columns[roles.lr])
    for name, rows in _runs(log, roles, loss).items():
        of_run = loss[rows]
        drop_carried(log, splits, of_run, log.line[rows])
        found = clock_of(log, roles, clock, rows, any_loss(~np.isnan(of_run)))
        records = RunRecords(
            log,
            splits,
            found.clock,
            of_run,
            found.step,
            None if lr is None else _rates(lr[rows], found.clock),
            log.line[rows],
            None if roles.micro_step is None else log.columns[roles.micro_step][rows],
            found.unit,
            [column.is_eval for column in roles.losses],
        )
        of_model = {} if roles.n_params is None else of_column(log.columns[roles.n_params][rows])
        of_model = {**(of_model or of_log), **times_of(log, rows, found.clock)}
        for curve in stitch(records, repeated):
            for k, split in enumerate(splits):
                check_curve(log, split, curve.clock, curve.loss[:, k], roles.losses[k].is_eval)
            surface = _surface(log, curve, splits, {**of_model, **attrs}, name + curve.name)
            surfaces[name + curve.name] = surface.assign_attrs({"log": {"clock": found.unit}})
    if not surfaces:
        raise NoLossLeft(
            "no loss is left after NaN, infinities, zeros, negatives and rows without a step were taken out"
        )
    for surface in surfaces.values():
        if log.format in PLAIN and not log.findings:
            del surface.attrs["log"]  # a plain table read as it stands needs no account
            continue
        sentences = [f"{finding.code}: {finding.sentence}" for finding in log.findings]
        surface.attrs["log"] |= {"format": log.format, "findings": sentences[:50]}
    return surfaces


def _losses(
    log: LogRows, roles: LogRoles, bytes_per_token: float | None
) -> tuple[np.ndarray, list[str], dict[str, str]]:
    """Losses in nats (row, split), the names of the splits, and the unit of those that are not nats per token."""
    columns, units = [], {}
    for column in roles.losses:
        values = log.columns[column.column]
        if column.unit == "perplexity":
            capped = int((np.isfinite(values) & (values >= CAPPED)).sum())
            with np.errstate(invalid="ignore", divide="ignore"):
                values = np.where(np.isfinite(values) & (values > 0), np.log(np.where(values > 0, values, 1)), values)
            if capped:
                values = np.where(log.columns[column.column] >= CAPPED, np.nan, values)
                found = f"{capped} perplexities of {column.column} are capped at e^20 and say nothing: missing"
                log.note("capped_perplexity", found)
            log.note("perplexity", f"{column.column} is a perplexity: its logarithm is the loss in nats per token")
        elif column.unit == "bits/token":
            values = values * LN2
            log.note("bits", f"{column.column} is in bits per token: times ln 2 = {LN2:.4f}, nats per token")
        elif column.unit in ("bits/byte", "bits/char"):
            per = column.unit.partition("/")[2]
            factor = LN2 * (bytes_per_token or 1.0)
            values = values * factor
            if bytes_per_token is None:
                units[column.column] = f"nats/{per}"
                found = f"{column.column} is in bits per {per}: times ln 2 = {LN2:.4f}, nats per {per}, not per token"
                found = f"{found}; --bytes-per-token B makes them nats per token"
            else:
                found = f"{column.column} is in bits per {per}: times {factor:.4f}, nats per token"
            log.note("bits_per_byte", found)
        columns.append(values)
    return np.stack(columns).T, [column.column for column in roles.losses], units


def _runs(log: LogRows, roles: LogRoles, loss: np.ndarray) -> dict[str, Rows]:
    """Name of a run -> its rows."""
    name = log.path.name if log.path.is_dir() else log.path.name.removesuffix("".join(log.path.suffixes[-1:]))
    runs = _several_runs(log, roles, any_loss(~np.isnan(loss)), name)
    if runs is None:
        return {log.runs[0] or name: slice(None)}
    return {name: slice(None) if len(rows) == len(log) else rows for name, rows in runs.items()}


def _several_runs(log: LogRows, roles: LogRoles, measured: np.ndarray, name: str) -> dict[str, np.ndarray] | None:
    """The same where a column or the reader tells runs apart, else None."""
    if roles.runs:
        cells = [log.text[key] if key in log.text else _as_words(log.columns[key]) for key in roles.runs]
        rows = np.flatnonzero(measured)
        groups = rows_of_runs(log.path, [list(column[rows]) for column in cells], len(rows))
        return {key: rows[of] for key, of in groups.items()}
    if log.run is not None:
        codes = np.unique(log.run[measured])
        return {log.runs[code] or name: np.flatnonzero(log.run == code) for code in codes}
    return _by_words(log, roles, measured) or None


def _as_words(values: np.ndarray) -> np.ndarray:
    return np.array(["" if value != value else f"{value:.15g}" for value in values.tolist()], object)


def _by_words(log: LogRows, roles: LogRoles, measured: np.ndarray) -> dict[str, np.ndarray]:
    """Runs by a column of words, where the step falls back unless its cells tell runs apart."""
    key = roles.step or roles.tokens
    if key is None or not log.text:
        return {}
    rows = np.flatnonzero(measured)
    clock = log.columns[key][rows]
    if not (np.diff(clock) < 0).any():
        return {}
    for name, cells in log.text.items():
        kinds = set(cells[rows].tolist())
        if not 1 < len(kinds) <= len(rows) / 2 or "" in kinds:
            continue
        groups = {str(kind): rows[cells[rows] == kind] for kind in sorted(kinds)}
        if all((np.diff(log.columns[key][of]) >= 0).all() for of in groups.values()):
            log.note("runs_by_words", f"{len(groups)} runs, separated by {name}; --run names other columns", 0, False)
            return groups
    return {}


def _rates(lr: np.ndarray, clock: np.ndarray) -> np.ndarray:
    """Rates of rows that lack one, from other rows of the same step: trackers may write a row a metric."""
    lacking, known = np.isnan(lr) & np.isfinite(clock), np.isfinite(lr) & np.isfinite(clock)
    if not lacking.any() or not known.any():
        return lr
    at, last = np.unique(clock[known][::-1], return_index=True)
    place = np.minimum(np.searchsorted(at, clock[lacking]), len(at) - 1)
    rates = lr.copy()
    rates[lacking] = np.where(at[place] == clock[lacking], lr[known][::-1][last][place], np.nan)
    return rates


def _surface(log: LogRows, curve: Curve, splits: list[str], attrs: Mapping[str, Any], name: str) -> xr.Dataset:
    """The surface of a curve, with step and lr as coordinates where every checkpoint has them."""
    clock = curve.clock.astype(np.int64)
    if not every(np.equal, clock, curve.clock):
        clock = np.round(curve.clock).astype(np.int64)
    kept = np.ones(len(clock), bool)
    np.greater(clock[1:], clock[:-1], out=kept[1:])
    has_loss = np.array([np.isfinite(values).any() for values in curve.loss.T])
    labels = {"tokens": rows_where(clock, kept), "split": [s for s, has in zip(splits, has_loss, strict=True) if has]}
    loss = rows_where(rows_where(curve.loss, kept).T, has_loss)
    surface = from_losses(loss[:, :, None], **labels, allow_missing=True, run=name, **attrs)
    step = None if curve.step is None else rows_where(curve.step, kept)
    if step is not None and every(np.isfinite, step):
        whole = every(lambda some: (some == np.round(some)) & (np.abs(some) < 9e15), step)
        surface = surface.assign_coords(step=("tokens", step.astype(np.int64) if whole else step))
    if curve.lr is not None and np.isfinite(rows_where(curve.lr, kept)).any():
        rate = rows_where(curve.lr, kept)
        known = np.isfinite(rate)
        if not known.all():
            missing = int((~known).sum())
            rate = np.interp(clock[kept], clock[kept][known], rate[known])
            found = f"lr is missing at {missing} of {len(known)} checkpoints: taken between its neighbours in tokens"
            log.note("lr_interpolated", found, int(curve.line[kept][~known][0]), warning=not log.eval_rows)
        surface = surface.assign_coords(lr=("tokens", np.abs(rate)))
    return surface


def _attrs(log: LogRows, clock: ClockOptions, units: Mapping[str, str]) -> dict[str, Any]:
    """What is known of every run of a log."""
    attrs: dict[str, Any] = {}
    if isinstance(clock.tokens_per_step, int):
        attrs["batch_tokens"] = clock.tokens_per_step
    elif clock.tokens_per_step is None and "tokens_per_step" in log.known:
        attrs["batch_tokens"] = int(log.known["tokens_per_step"])
    attrs["loss_is"] = MEAN
    attrs["source"] = {"file": log.path.name}
    if log.path.is_file():
        with open(log.path, "rb") as file:
            attrs["source"]["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    if units:
        attrs["split_units"] = dict(units)
    return attrs
