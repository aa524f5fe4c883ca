"""Losses by position from any trainer: three lines in an evaluation loop, numpy only, and a surface comes out.

    losses = PositionLosses("runs/mine/losses.jsonl")
    ...
    losses.add(loss_BxL, domain="web")                   # losses of each token, in an evaluation
    losses.write(step=step, tokens=tokens, lr=lr)        # after it
    ...
    surface = tsl.read_log("runs/mine/losses.jsonl").surfaces["losses"]      # or tsl import

Kept are, by domain and position i, the sum of losses S_i, the sum of their squares Q_i and their count n_i, so that

    loss_i = S_i/n_i,        sem_i = sqrt((Q_i/n_i - loss_i^2)/(n_i - 1)),

where `sem` takes windows for independent: it is too small where several come from one document. A file grows by a line
an evaluation and domain, of some 5 bytes a position (means to 1e-6 nats, deviations to 1e-3, compressed), which is
written in one step and synced: after a kill all lines but the last are whole, and the next one begins anew. To write,
this file needs nothing else of the package.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

FORMAT = "tsl_jax position losses 1"
UNITS = (1e6, 1e3, 1.0)  # of the mean, the standard deviation and the count, which are kept as whole numbers


class PositionLosses:
    """Sums of losses by position and domain, appended to a file after each evaluation.

    Args:
        path: the file; its folder is made if absent. Records are appended to what is there.
        rank: of this process. Ranks that evaluate other windows write files of their own, such as
            `losses-0.jsonl`; they are added up when their folder or pattern is read.
    """

    def __init__(self, path: str | Path, rank: int = 0):
        self.path, self.rank = Path(path), int(rank)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._sums: dict[str, np.ndarray] = {}  # domain -> (3, position)

    def add(self, loss: Any, domain: str = "id", mask: Any = None) -> None:
        """Add the losses of a batch of windows.

        Args:
            loss: cross-entropies in nats, (batch, position) or (position,): an array of numpy, PyTorch or JAX. Column
                i is the loss of the token that has i + 1 tokens of context, so that position counts from 1.
            domain: what the text is of; each becomes a split.
            mask: the same shape, false where there is no token (padding). NaN counts as no token too.

        Raises:
            ValueError: for other shapes, or a window longer or shorter than those of the evaluation so far.
        """
        losses = np.atleast_2d(_array(loss))
        kept = np.isfinite(losses)
        if mask is not None:
            kept &= np.broadcast_to(np.atleast_2d(_array(mask)) != 0, losses.shape)
        if losses.ndim != 2 or losses.shape[1] == 0:
            raise ValueError(f"position losses: expected (batch, position), found shape {losses.shape}")
        losses = np.where(kept, losses, 0.0)
        sums = np.stack([losses.sum(0), (losses**2).sum(0), kept.sum(0)])
        before = self._sums.get(domain)
        if before is not None and before.shape != sums.shape:
            found = f"windows of {sums.shape[1]} positions after some of {before.shape[1]}"
            raise ValueError(f"position losses: {found} in {domain}; evaluate windows of one length, with a mask")
        self._sums[domain] = sums if before is None else before + sums

    def write(self, *, step: int, tokens: int | None = None, lr: float | None = None) -> None:
        """Append the sums of this evaluation, and begin anew; without losses nothing is written.

        Args:
            step: optimizer steps taken. tokens: training tokens seen; without, steps are the clock. lr: of this step.

        Raises:
            OSError: if the file cannot be written; the sums are kept for another try.
        """
        lines = []
        for domain, sums in self._sums.items():
            if not sums[2].any():
                continue
            data = _packed(sums)
            record = {
                "format": FORMAT,
                "step": int(step),
                "tokens": None if tokens is None else int(tokens),
                "lr": None if lr is None else float(lr),
                "domain": domain,
                "rank": self.rank,
                "positions": int(sums.shape[1]),
                "crc": zlib.crc32(data),
                "data": base64.b64encode(data).decode(),
            }
            lines.append(json.dumps(record) + "\n")
        if lines:
            _append(self.path, "".join(lines).encode())
        self._sums = {}


def _packed(sums: np.ndarray) -> bytes:
    """Sums (3, position) as compressed differences along positions of whole numbers, byte by byte."""
    n = np.maximum(sums[2], 1)
    mean = sums[0] / n
    deviation = np.sqrt(np.maximum(sums[1] / n - mean**2, 0))
    whole = np.round(np.stack([mean, deviation, sums[2]]) * np.array(UNITS)[:, None]).astype("<i8")
    steps = np.diff(whole, axis=1, prepend=0).astype("<i8")
    return zlib.compress(np.ascontiguousarray(steps.view("u1").reshape(-1, 8).T).tobytes(), 9)


def _unpacked(data: bytes, positions: int) -> np.ndarray:
    """Sums (3, position) of `_packed`."""
    octets = np.frombuffer(zlib.decompress(data), "u1").reshape(8, 3 * positions)
    whole = np.cumsum(np.ascontiguousarray(octets.T).view("<i8").reshape(3, positions), axis=1)
    mean, deviation, n = whole / np.array(UNITS)[:, None]
    return np.stack([mean * n, (deviation**2 + mean**2) * n, n])


def _array(values: Any) -> np.ndarray:
    """An array of any library in float64; PyTorch's may be on a device, with gradients, in bfloat16."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, np.float64)


def _append(path: Path, data: bytes) -> None:
    """Add whole lines to a file in one step; a line that a kill has cut is closed first."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            data = b"\n" + data
        written = os.write(handle, data)
        if written < len(data):
            raise OSError(f"{path}: the disk is full, {written} of {len(data)} bytes were written")
        os.fsync(handle)
    finally:
        os.close(handle)


def is_position_losses(path: Path) -> bool:
    """Whether a file was written by `PositionLosses`."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return FORMAT.encode() in file.read(200)


def read_position_losses(paths: Path | list[Path], run: str | None = None) -> tuple[xr.Dataset, int]:
    """The surface of one run's files, one a rank, and how many lines were damaged and left out.

    Of evaluations at the same tokens the last of each rank counts, and where tokens go back, what an earlier attempt
    measured beyond them is left out: the run was started again.

    Raises:
        ValueError: where there is no whole record.
    """
    from tsl_jax.importers.arrays import from_losses

    paths = [paths] if isinstance(paths, Path) else paths
    damaged = 0
    sums: dict[tuple[int, str], np.ndarray] = {}  # (clock, domain) -> (3, position), over ranks
    facts: dict[int, tuple[int, float]] = {}  # clock -> step, lr
    for path in paths:
        of_rank: dict[tuple[int, str], np.ndarray] = {}
        last = -1
        with open(path, "rb") as file:
            for line in file:
                try:
                    clock, step, lr, domain, values = _record(line)
                except (ValueError, KeyError, TypeError, zlib.error):
                    damaged += bool(line.strip())
                    continue
                if clock < last:
                    of_rank = {key: kept for key, kept in of_rank.items() if key[0] < clock}
                last = clock
                of_rank[clock, domain] = values
                facts[clock] = (step, lr)
        for key, values in of_rank.items():
            longest = max(values.shape[1], sums[key].shape[1] if key in sums else 0)
            sums[key] = _padded(values, longest) + (_padded(sums[key], longest) if key in sums else 0)
    if not sums:
        raise ValueError(f"position losses: {paths[0]} holds no whole record; expected a line an evaluation")
    clocks, domains = sorted({clock for clock, _ in sums}), list(dict.fromkeys(domain for _, domain in sums))
    longest = max(values.shape[1] for values in sums.values())
    nothing = np.zeros((3, longest))
    total = np.stack(
        [[_padded(sums.get((clock, domain), nothing), longest) for clock in clocks] for domain in domains]
    )  # (domain, clock, 3, position)
    n = np.where(total[:, :, 2] > 0, total[:, :, 2], np.nan)
    loss = total[:, :, 0] / n
    variance = np.maximum(total[:, :, 1] / n - loss**2, 0) / np.where(n > 1, n - 1, np.nan)
    surface = from_losses(
        loss, tokens=clocks, split=domains, allow_missing=True, run=run or paths[0].stem, source={"file": paths[0].name}
    )
    dims = ("split", "tokens", "position")
    surface = surface.assign(sem=(dims, np.sqrt(variance)), count=(dims, np.nan_to_num(n)))
    surface = surface.assign_coords(step=("tokens", [facts[clock][0] for clock in clocks]))
    rates = np.array([facts[clock][1] for clock in clocks])
    return (surface.assign_coords(lr=("tokens", rates)) if np.isfinite(rates).all() else surface), damaged


def _record(line: bytes) -> tuple[int, int, float, str, np.ndarray]:
    """ClockOptions, step, rate, domain and sums of a line.

    Raises:
        ValueError, KeyError, TypeError, zlib.error: where it is damaged.
    """
    record = json.loads(line)
    data = base64.b64decode(record["data"], validate=True)
    if record["format"] != FORMAT or zlib.crc32(data) != record["crc"]:
        raise ValueError("damaged")
    values = _unpacked(data, record["positions"])
    step, lr = int(record["step"]), record["lr"]
    clock = step if record["tokens"] is None else int(record["tokens"])
    return clock, step, np.nan if lr is None else float(lr), str(record["domain"]), values


def _padded(values: np.ndarray, longest: int) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, longest - values.shape[1])))
