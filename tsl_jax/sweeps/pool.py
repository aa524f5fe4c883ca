"""The run pool: runs that are made once, found by their resolved configuration, and kept as small surfaces.

KEPT/NAME.npz         the surface, packed with a few clusters of documents a split (losses exact, under 1 MB)
KEPT/NAME.json        how it was made: resolved configuration, seed, commit, hardware, versions, seconds
KEPT/MANY.parquet     many of such pairs in one file (`archive`)
RUNS/NAME             the run itself, checkpoints and all; not needed once it is kept

A run is a process of its own, `tsl train` as a user calls it: it owns its devices and its allocator, and no crash or
kill of one takes another with it. Whatever ends it, the next call goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import xarray as xr

from tsl_jax.atomic_write import write_atomically
from tsl_jax.surface import load_surface, pack
from tsl_jax.sweeps import distribute
from tsl_jax.sweeps.archive import read_archive, read_manifests
from tsl_jax.training import run_dir
from tsl_jax.training.config import TrainConfig, config_hash, from_dict, to_dict

CLUSTERS = 4  # of documents a split: enough for errors, few enough for hundreds of runs in a repository
KEPT_FACTS = (
    "model", "n_params", "n_params_embedding", "flops_per_token", "batch_tokens", "total_tokens",
    "seed", "corpus", "environment", "later_environments", "seconds", "tokens_per_second", "probes",
)  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """Runs that are kept, and those under way.

    Attributes:
        kept: folder of packed surfaces with their manifests, and of archives. runs: folder of whole runs.
        clusters: of documents that a packed surface keeps.
    """

    kept: Path
    runs: Path
    clusters: int = CLUSTERS

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Configuration hash -> manifest of every run that is kept, with its "name" and the "file" of its surface.

        The configuration is hashed now: a hash that was written down is of the version that wrote it.
        """
        manifests = {}
        for file in sorted(self.kept.glob("*.parquet")):
            manifests |= _archived(file, file.stat().st_mtime_ns)
        for path in sorted(self.kept.glob("*.json")):
            manifest, surface = _read_manifest(path), path.with_name(f"{path.stem}.npz")
            if surface.exists() and "config" in manifest:
                manifests[_hash(manifest)] = {**manifest, "name": path.stem, "file": surface}
        return manifests

    def find(self, config: TrainConfig) -> dict[str, Any] | None:
        """The manifest of the run with this configuration, whatever its name; None where none is kept."""
        return self.manifests().get(config_hash(config))

    def manifests_of(self, runs: Mapping[str, TrainConfig]) -> dict[str, dict[str, Any]]:
        """Name here -> manifest, of those of the runs that are kept."""
        manifests, hashes = self.manifests(), {name: config_hash(config) for name, config in runs.items()}
        return {name: manifests[key] for name, key in hashes.items() if key in manifests}

    def load(self, runs: Mapping[str, TrainConfig]) -> dict[str, xr.Dataset]:
        """Name here -> surface of the runs.

        Raises:
            FileNotFoundError: where one is not kept.
        """
        manifests = self.manifests_of(runs)
        if missing := [name for name in runs if name not in manifests]:
            raise FileNotFoundError(f"pool: {self.kept} has no run {missing[0]}; make it with tsl sweep")
        archives: dict[Path, list[str]] = {}
        for manifest in manifests.values():
            if manifest["file"].suffix == ".parquet":
                archives.setdefault(manifest["file"], []).append(manifest["name"])
        archived = {file: read_archive(file, names) for file, names in archives.items()}
        return {
            name: archived[file][manifest["name"]] if (file := manifest["file"]) in archived else load_surface(file)
            for name, manifest in manifests.items()
        }

    def states(self, runs: Mapping[str, TrainConfig]) -> dict[str, str]:
        """ "kept", "begun" or "to do", by name."""
        in_pool = self.manifests_of(runs)
        begun = {name for name in runs if (self.runs / name / run_dir.CONFIG).exists()}
        return {name: "kept" if name in in_pool else "begun" if name in begun else "to do" for name in runs}

    def validate_name(self, name: str, config: TrainConfig) -> None:
        """Nothing, where a run of this configuration may have this name.

        Raises:
            ValueError: where another one has it, kept or begun.
        """
        own, manifests = config_hash(config), self.manifests()
        for key, manifest in manifests.items():
            if manifest["name"] == name and key != own:
                fix = "give the new one another name in the sweep file"
                raise ValueError(f"sweep: {manifest['file']} has a run {name} with another configuration; {fix}")
        for file in (self.kept / f"{name}.npz", self.kept / f"{name}.json"):
            if os.path.lexists(file) and own not in manifests and not self._is_begun(file, own):
                fix = "move it away, or give the run another name in the sweep file"
                raise ValueError(f"sweep: {file} is there and is not of this sweep; {fix}")
        try:
            run_dir.is_complete(self.runs / name, config, resume=True)
        except ValueError as error:
            fix = f"give the run another name in the sweep file, or remove {self.runs / name}"
            raise ValueError(f"sweep: run {name}: {error}. In a sweep: {fix}") from None

    @staticmethod
    def _is_begun(file: Path, own: str) -> bool:
        """Whether a file is the surface of this run, of a call that was killed before its manifest, or its manifest."""
        try:
            if file.suffix == ".npz":
                return load_surface(file).attrs.get("config_hash") == own
            manifest = _read_manifest(file)
            return "config" in manifest and _hash(manifest) == own
        except (OSError, ValueError):
            return False

    def make(
        self,
        name: str,
        config: TrainConfig,
        deadline: float | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> bool:
        """Make a run, or go on with it, and keep it; False where time was up or another process has it in hand.

        Args:
            name: of its files. config: what to train. deadline: of `time.time`, at which the run stops at a checkpoint.
            stop: for threads, which Ctrl-C does not reach and which share a terminal: asked whether to stop before.

        Raises:
            ValueError: where the name is another run's, or the run failed. KeyboardInterrupt: after Ctrl-C.
        """

        def late() -> bool:
            return (deadline is not None and time.time() >= deadline) or (stop is not None and stop())

        if self.find(config):
            return True
        if late():
            return False
        with distribute.lock(self.runs / name) as locked:
            if locked is None:
                return False
            self.validate_name(name, config)
            bars = stop is None and sys.stderr.isatty()
            if not distribute.train(self.runs / name, config, locked, late, bars=bars):
                return False
            self.keep(name)
        return True

    def keep(self, name: str) -> None:
        """Pack the surface of the finished run RUNS/NAME; the manifest last, so that one vouches for the other.

        Raises:
            ValueError: for a run that is not complete, or where the name is another run's.
        """
        run = self.runs / name
        record, config = run_dir.read_record(run), run_dir.read_config(run)
        if not record.get("complete"):
            raise ValueError(f"pool: {run} is not complete; {run_dir.how_to_resume(run)}")
        self.validate_name(name, config)
        self.kept.mkdir(parents=True, exist_ok=True)
        surface = load_surface(pack(run, self.kept / f"{name}.npz", clusters=self.clusters))
        final = surface.loss.isel(tokens=-1).mean("position")
        manifest = {fact: record[fact] for fact in KEPT_FACTS if fact in record}
        manifest |= {
            "config": to_dict(config),
            "checkpoints": surface.sizes["tokens"],
            "final_loss": {str(split): float(final.sel(split=split)) for split in final.split.values},
        }
        if config.noise_scale != "off":  # at the checkpoints: metrics.jsonl, a line a step, stays with the run
            from tsl_jax.training.noise_scale import noise_scale

            noise = noise_scale(run).sel(group="total", tokens=surface.tokens.values)
            named = {"noise_scale": noise.noise_scale, "training_loss": noise.loss}
            values = {name: [float(v) if v == v else None for v in array.values] for name, array in named.items()}
            manifest["gradient_noise"] = {"tokens": surface.tokens.values.tolist(), **values}
        text = json.dumps(manifest, indent=1) + "\n"
        write_atomically(self.kept / f"{name}.json", text)


@lru_cache(maxsize=16)
def _archived(file: Path, changed: int) -> dict[str, dict[str, Any]]:
    """Configuration hash -> manifest of the runs of an archive, read once until it has changed."""
    return {_hash(run): {**run, "name": name, "file": file} for name, run in read_manifests(file).items()}


def _hash(manifest: Mapping[str, Any]) -> str:
    return config_hash(from_dict(TrainConfig, manifest["config"]))


def _read_manifest(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where it is no manifest."""
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"pool: {path} is damaged ({error}); restore it, or remove it and its surface") from None
    return manifest if isinstance(manifest, dict) else {}
