"""The public curves of the benchmark: their files with hashes, and their runs with the plans that were known.

A file whose SHA-256 is not that of `hashes.json` is refused, so that all entries see the same numbers. `fetch` brings
the files; of a folder that holds a part of the sources that part is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import tsl_jax as tsl
from experiments.forecast_evidence import curves
from experiments.forecast_evidence.curves import Curve

HASHES = Path(__file__).with_name("hashes.json")
PUBLIC = "public"  # the part of a run, and `data` its family, by which results are averaged
MOST_RUNS = 16  # of a family, chosen by the hash of their names: large sweeps do not outweigh single runs
LR_SCHEDULING_BATCH, LLMC_BATCH, MEGATRON_LENGTH = 102_400, 524_288, 4096
LLMC_PLAN = {"kind": "cosine", "peak": 6e-4, "warmup_tokens": 700 * LLMC_BATCH, "total_tokens": 19_560 * LLMC_BATCH}
LLMC_PLAN["final_ratio"] = 0.0
# file -> sequences a step, peak, sequences of the warm-up, sequences of the cosine (None: constant)
MEGATRON = {
    "gpt3_15b_h100": (384, 4.5e-4, 3_906_252, 1_950_000_000),
    "gpt3_15b_a100": (384, 4.5e-4, 3_906_252, 1_950_000_000),
    "mixtral_8x7b_h100": (1024, 3e-4, 3_906_252, None),
}
KINDS = {"cos": "cosine", "const": "constant", "wsdcon": "drop", "wsdld": "wsd"}


def end_of(run: Curve) -> float:
    """The final loss, nats: the mean of the last rows."""
    return float(run.surface.loss.values[0, -run.last :, 0].mean())


def check(folder: Path) -> list[str]:
    """The sources of which nothing is there. Raises ValueError unless every file of the others has its hash."""
    there = {name.split("/")[0] for name in known_hashes() if (folder / name).is_file()}
    if not there:
        raise ValueError(
            f"benchmark: no public curves in {folder}; python -m experiments.forecast_benchmark.fetch --to {folder}"
        )
    absent: dict[str, None] = {}
    for name, expected in known_hashes().items():
        path, source = folder / name, name.split("/")[0]
        if source not in there:
            absent[source] = None
            continue
        if not path.is_file():
            raise ValueError(f"benchmark: {path} is missing; `fetch {source}` brings it")
        found = hash_of(path)
        if found != expected:
            raise ValueError(
                f"benchmark: {path} is another file: its SHA-256 is {found[:12]}..., not {expected[:12]}..."
            )
    return list(absent)


def known_hashes() -> dict[str, str]:
    """File -> `digest` of it."""
    return json.loads(HASHES.read_text())


def hash_of(path: Path) -> str:
    """`digest` of a file."""
    return digest(path.read_bytes())


def digest(content: bytes) -> str:
    """SHA-256 with line ends as \\n: of checkouts that write other ones the numbers are the same."""
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def load(folder: Path) -> list[Curve]:
    """The runs of the benchmark, of the sources that are there: at most MOST_RUNS of a family."""
    absent = check(folder)
    found: dict[str, list[Curve]] = {}
    readers = {"lr_scheduling": lr_scheduling, "modded_nanogpt": _llmc, "megatron": _megatron}
    others = (read(folder) for name, read in readers.items() if name not in absent)
    for run in chain(_evidence(folder, absent), *others):
        found.setdefault(run.data, []).append(run)
    order = {
        name: sorted(runs, key=lambda run: hashlib.sha256(run.run.encode()).hexdigest()) for name, runs in found.items()
    }
    return [run for name in sorted(order) for run in order[name][:MOST_RUNS]]


def _evidence(folder: Path, absent: Sequence[str]) -> Iterator[Curve]:
    """multipower, olmo_ladder (c4_en) and gemstones at constant rates, as `forecast_evidence` reads them."""
    loaded, left_out = curves.load(curves.PARTS, folder, Path("no pool"))
    if any(not why.startswith(("run pool", *absent)) for why in left_out):
        raise ValueError(f"benchmark: {'; '.join(left_out)}")
    for curve in loaded:
        if curve.data == "gemstones/cooldown":
            continue
        source = curve.data.split("/")[0]
        kind = {"olmo_ladder": "cosine", "gemstones": "constant"}.get(source, curve.run.split("_")[0])
        surface = curve.surface.isel(split=[0])
        if source == "multipower":
            surface = surface.assign_attrs(batch_tokens=1)  # steps are the clock
        yield Curve(PUBLIC, f"{source} {KINDS.get(kind, kind)}", curve.run, surface, curve.last)


def lr_scheduling(folder: Path) -> Iterator[Curve]:
    """The runs of lr_scheduling."""
    plans = json.loads((folder / "lr_scheduling" / "plans.json").read_text())
    table = pd.read_csv(folder / "lr_scheduling" / "runs.csv")
    for name, rows in table.groupby("run"):
        rows = rows.sort_values("tokens", kind="stable").drop_duplicates("tokens", keep="last")
        facts = {"schedule": plans[name], "n_params": float(rows.n_params.iloc[0]), "batch_tokens": LR_SCHEDULING_BATCH}
        kind = rows.kind.iloc[0]
        size = "124M" if "124M" in str(name) else "33M to 93M"
        surface = _surface(rows.tokens.to_numpy(), rows.val_loss.to_numpy(), facts, rows.lr.to_numpy())
        yield Curve(PUBLIC, f"lr_scheduling {size} {KINDS.get(kind, kind)}", str(name), surface)


def _llmc(folder: Path) -> Iterator[Curve]:
    log = tsl.read_log(folder / "modded_nanogpt" / "2024-10-13_llmc" / "main.log", tokens_per_step=LLMC_BATCH)
    (surface,) = log.surfaces.values()
    for split, last in (("val_loss", 1), ("train_loss", 400)):
        loss = surface.loss.sel(split=split).values[:, 0]
        facts = {"schedule": LLMC_PLAN, "n_params": 124e6, "batch_tokens": LLMC_BATCH}
        yield Curve(
            PUBLIC, f"llm.c {split}", split, _surface(surface.tokens.values, loss, facts, surface.lr.values), last
        )


def _megatron(folder: Path) -> Iterator[Curve]:
    for name, (batch, peak, warmup, total) in MEGATRON.items():
        each = batch * MEGATRON_LENGTH
        (surface,) = tsl.read_log(folder / "megatron" / f"{name}.json", tokens_per_step=each).surfaces.values()
        loss, tokens = surface.loss.values[0, :, 0], surface.tokens.values
        warm, end = warmup * MEGATRON_LENGTH, int(tokens[-1])
        plan: dict[str, Any] = {
            "kind": "table",
            "tokens": [0, warm, end],
            "lr": [0.0, peak, peak],
            "warmup_tokens": warm,
        }
        if total is not None:
            plan = {"kind": "cosine", "peak": peak, "warmup_tokens": warm, "total_tokens": total * MEGATRON_LENGTH}
            plan["final_ratio"] = 0.1
        yield Curve(
            PUBLIC, "megatron train loss", name, _surface(tokens, loss, {"schedule": plan, "batch_tokens": each}), 200
        )


def _surface(tokens: np.ndarray, loss: np.ndarray, facts: dict[str, Any], lr: np.ndarray | None = None) -> xr.Dataset:
    known = np.isfinite(loss)
    surface = tsl.from_losses(loss[None, known, None], tokens=tokens[known], split=["loss"], **facts)
    return surface if lr is None else surface.assign_coords(lr=("tokens", lr[known]))
