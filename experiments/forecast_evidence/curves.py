"""Which curves the evidence rests on: development data, on which methods may be chosen, and a locked test set.

Nothing of the locked part is opened, and no row of it kept, unless it is asked for: files are chosen by their name or
by the seed in their plan, rows of files that hold both parts by their size, before anything else of them is read.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tsl_jax as tsl
from tsl_jax.sweeps import Pool
from tsl_jax.training.config import TrainConfig, from_dict

DEVELOPMENT, LOCKED, SECOND = "development", "locked_test_set", "second_locked_test_set"
PARTS = (DEVELOPMENT, LOCKED)  # those that public curves are in
EVERY = (*PARTS, SECOND)
MULTIPOWER = {DEVELOPMENT: {"25M": 25e6}, LOCKED: {"100M": 100e6}}
OLMO = {DEVELOPMENT: {"190M": 190e6, "370M": 370e6}, LOCKED: {"760M": 760e6, "1B": 1e9}}
GEMSTONES_APART = 600e6  # parameters: models below are development data
SEEDS = {DEVELOPMENT: range(5), LOCKED: range(100, 200), SECOND: range(200, 300)}  # of runs of the pool
WARMUP_STEPS = 2160  # of multipower, before the first row of its files
NEAR_COSINE = 0.01  # of the peak: so near must a learning rate be to a cosine to be called one


@dataclass(frozen=True)
class Curve:
    """A finished run.

    Attributes:
        part, data, run: where it belongs, and its name within `data`.
        surface: (split, tokens, position), with its plan in the attribute schedule.
        last: its final loss is the mean of so many checkpoints.
    """

    part: str
    data: str
    run: str
    surface: xr.Dataset
    last: int = 1

    @property
    def n_params(self) -> float:
        return float(self.surface.attrs.get("n_params", np.nan))


def load(parts: tuple[str, ...], folder: Path | None, pool: Path) -> tuple[list[Curve], list[str]]:
    """The curves of these parts, and a sentence for each data set that is not there or cannot be read."""
    sources: dict[str, Callable[[str], Iterator[Curve]]] = {"run pool": lambda part: _pool(part, pool)}
    if folder is not None and SECOND not in parts:  # which holds runs of the pool alone
        public = {"multipower": _multipower, "olmo_ladder": _olmo, "gemstones": _gemstones}
        sources = {name: (lambda part, of=of: of(part, folder)) for name, of in public.items()} | sources
    curves, left_out = (
        [],
        [] if folder is not None or SECOND in parts else ["no folder of public curves: they are left out"],
    )
    for name, source in sources.items():
        for part in parts:
            try:
                loaded = list(source(part))
            except (ValueError, OSError) as error:  # the other data sets go on
                loaded, why = [], str(error)
            else:
                why = "" if loaded else "no run is there"
            curves += loaded
            left_out += [f"{name}, {part} part: {why}; left out"] if why else []
    return curves, left_out


def _multipower(part: str, folder: Path) -> Iterator[Curve]:
    """Steps are the clock."""
    for size, n_params in MULTIPOWER.get(part, {}).items():
        for path in sorted((folder / "multipower" / size).glob("*.csv")):
            (surface,) = tsl.read_table(path, tokens_per_step=1, warmup_tokens=WARMUP_STEPS).values()
            surface = surface.assign_attrs(n_params=n_params, schedule=plan_of(surface, WARMUP_STEPS))
            yield Curve(part, f"multipower/{size}", path.stem, surface, last=20)


def _olmo(part: str, folder: Path) -> Iterator[Curve]:
    """The warm-up takes as many tokens as the model has parameters."""
    sizes, path = OLMO.get(part, {}), folder / "olmo_ladder" / "runs.csv"
    with tempfile.TemporaryDirectory() as kept:
        copy = Path(kept) / path.name
        _keep_rows(path, copy, set(sizes))
        names = ("size", "chinchilla_multiple", "rerun")
        runs = tsl.read_table(copy, loss=("c4_en", "pile"), run=names, allow_missing=True) if copy.exists() else {}
    for name, surface in runs.items():
        n_params = sizes[name.split("-")[0]]
        surface = surface.assign_attrs(n_params=n_params, schedule=plan_of(surface, n_params))
        yield Curve(part, "olmo_ladder", name, surface)


def _keep_rows(path: Path, copy: Path, sizes: set[str]) -> None:
    """Copy the rows of these sizes; of others no cell but the size is looked at. No copy where no row is left."""
    with open(path, newline="") as file:
        header = next(file)
        place = next(csv.reader([header])).index("size")
        rows = [line for line in file if line.split(",")[place] in sizes]
    if rows:
        copy.write_text(header + "".join(rows))


def _gemstones(part: str, folder: Path) -> Iterator[Curve]:
    """Curves at a constant rate; and each cool-down as a run of its own, the constant one up to there and its end."""
    for kind in ("constant_lr", "constant_lr_half"):
        for name, surface in _gemstone_runs(part, folder / "gemstones" / f"{kind}.jsonl").items():
            plan = _knots([0, int(surface.tokens[-1])], [1.0, 1.0])
            yield Curve(part, f"gemstones/{kind}", name, surface.assign_attrs(schedule=plan))
    constant = _gemstone_runs(part, folder / "gemstones" / "constant_lr.jsonl")
    for name, ends in _gemstone_runs(part, folder / "gemstones" / "cooldown_end.jsonl").items():
        for end in ends.tokens.values if name in constant else ():
            yield Curve(part, "gemstones/cooldown", f"{name}@{end / 1e9:.0f}B", cooled(constant[name], ends, int(end)))


def _gemstone_runs(part: str, path: Path) -> dict[str, xr.Dataset]:
    kept = []
    with open(path) as file:
        for line in file:
            row = json.loads(line)
            if (row["params_active_precise"] < GEMSTONES_APART) == (part == DEVELOPMENT):
                kept.append(line)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text("".join(kept))
        names = {"loss": "final_loss", "run": ("width", "depth"), "n_params": "params_active_precise"}
        return tsl.read_table(copy, **names) if kept else {}


def cooled(constant: xr.Dataset, ends: xr.Dataset, end: int) -> xr.Dataset:
    """A run at a constant rate until 10 % before `end`, and from there linearly to zero."""
    branch = int(constant.tokens[constant.tokens <= end / 1.05][-1])
    past, last = constant.sel(tokens=slice(None, branch)), ends.sel(tokens=[end])
    plan = _knots([0, branch, end], [1.0, 1.0, 0.0])
    return tsl.from_losses(
        np.concatenate([past.loss.values, last.loss.values], axis=1),
        tokens=np.append(past.tokens.values, end),
        split=["loss"],
        n_params=float(constant.attrs["n_params"]),
        schedule=plan,
    )


def _pool(part: str, pool: Path) -> Iterator[Curve]:
    """Finished runs of the pool; the seed in a run's manifest says to which part it belongs."""
    kept = Pool(pool, Path("runs/pool"))
    configs = {
        manifest["name"]: from_dict(TrainConfig, manifest["config"])
        for manifest in kept.manifests().values()
        if manifest["seed"] in SEEDS[part]
    }
    for name, surface in sorted(kept.load(configs).items()):
        yield Curve(part, "pool", name, surface)


def plan_of(surface: xr.Dataset, warmup: float) -> dict[str, Any]:
    """The plan from the whole lr column, a linear warm-up before it; a cosine where it is one."""
    tokens, lr = surface.tokens.values, surface.lr.values.astype(float)
    peak, end = float(lr.max()), int(tokens[-1])
    cosine = {"kind": "cosine", "peak": peak, "warmup_tokens": int(warmup), "total_tokens": end}
    cosine["final_ratio"] = float(lr[-1]) / peak
    after = tokens >= warmup
    if cosine["final_ratio"] < 1 - NEAR_COSINE and warmup < end:
        formula = np.asarray(tsl.laws.Schedule.from_plan(cosine).lr(tokens[after].astype(float)))
        if np.allclose(formula, lr[after], rtol=0, atol=NEAR_COSINE * peak):
            return cosine
    knots = {0: 0.0, int(warmup): float(lr[after][0])} | dict(zip(tokens.tolist(), lr.tolist(), strict=True))
    return {**_knots(*zip(*sorted(knots.items()), strict=True)), "warmup_tokens": int(warmup)}


def _knots(tokens: Any, lr: Any) -> dict[str, Any]:
    return {"kind": "table", "tokens": list(tokens), "lr": list(lr)}
