"""The run pool: runs that are made once, found by their resolved configuration, and kept as small surfaces.

KEPT/NAME.npz     the surface, packed with a few clusters of documents a split (losses exact, under 1 MB)
KEPT/NAME.json    how it was made: resolved configuration and its hash, seed, commit, hardware, versions, seconds
RUNS/NAME         the run itself, checkpoints and all; not needed once it is kept

A run is a process of its own, `tsl train` as a user calls it: it owns its devices and its allocator, and no crash or
kill of one takes another with it. Whatever ends it, the next call goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from tsl_jax.durable import write_durably
from tsl_jax.surface import load_surface, pack
from tsl_jax.training import folder
from tsl_jax.training.config import TrainConfig, config_hash, to_dict

CLUSTERS = 4  # of documents a split: enough for errors, few enough for hundreds of runs in a repository
KEPT_FACTS = (
    "model", "n_params", "n_params_embedding", "flops_per_token", "batch_tokens", "total_tokens",
    "seed", "corpus", "environment", "later_environments", "seconds", "tokens_per_second", "probes",
)  # fmt: skip
POLL = 0.2  # seconds between looks at a run under way
PATIENCE = 600  # seconds that a run may take to write its checkpoint once it is told to stop


@dataclass(frozen=True)
class Pool:
    """Runs that are kept, and those under way.

    Attributes:
        kept: folder of packed surfaces with their manifests. runs: folder of whole runs.
        clusters: of documents that a packed surface keeps.
    """

    kept: Path
    runs: Path
    clusters: int = CLUSTERS

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Configuration hash -> manifest of every run that is kept, with "name" and "file" of its surface."""
        found = {}
        for path in sorted(self.kept.glob("*.json")):
            manifest = json.loads(path.read_text())
            surface = path.with_suffix(".npz")
            if surface.exists() and "config_hash" in manifest:
                found[manifest["config_hash"]] = {**manifest, "name": path.stem, "file": surface}
        return found

    def find(self, config: TrainConfig) -> dict[str, Any] | None:
        """The manifest of the run with this configuration, whatever its name; None where none is kept."""
        return self.manifests().get(config_hash(config))

    def load(self, config: TrainConfig) -> xr.Dataset:
        """The surface of the run with this configuration.

        Raises:
            FileNotFoundError: where it is not kept.
        """
        found = self.find(config)
        if found is None:
            raise FileNotFoundError(f"pool: no run {config_hash(config)} in {self.kept}; make it with tsl sweep")
        return load_surface(found["file"])

    def state(self, name: str, config: TrainConfig) -> str:
        """ "kept", "begun" or "to do"."""
        if self.find(config):
            return "kept"
        return "begun" if (self.runs / name / folder.RECORD).exists() else "to do"

    def make(self, name: str, config: TrainConfig, deadline: float | None = None) -> bool:
        """Make a run, or go on with it, and keep it; False where the deadline came first.

        Args:
            name: of its files. config: what to train. deadline: of `time.monotonic`, at which the run stops at a
                checkpoint.

        Raises:
            ValueError: where the run failed; its own message stands on stderr.
        """
        if self.find(config):
            return True
        if deadline is not None and time.monotonic() >= deadline:
            return False
        code = _finished(_started(self.runs / name, config), deadline)
        if code == 130 and deadline is not None and time.monotonic() >= deadline:
            return False
        if code == 130:
            raise KeyboardInterrupt
        if code:
            raise ValueError(f"sweep: run {name} ended with exit code {code}; its message stands above")
        self.keep(name)
        return True

    def keep(self, name: str) -> None:
        """Pack the surface of the finished run RUNS/NAME; the manifest last, so that one vouches for the other.

        Raises:
            ValueError: for a run that is not complete.
        """
        run = self.runs / name
        record, config = folder.read_record(run), folder.read_config(run)
        if not record.get("complete"):
            raise ValueError(f"pool: {run} is not complete; {folder.how_to_resume(run)}")
        self.kept.mkdir(parents=True, exist_ok=True)
        surface = load_surface(pack(run, self.kept / f"{name}.npz", clusters=self.clusters))
        final = surface.loss.isel(tokens=-1).mean("position")
        manifest = {fact: record[fact] for fact in KEPT_FACTS if fact in record}
        manifest |= {
            "config_hash": config_hash(config),
            "config": to_dict(config),
            "checkpoints": surface.sizes["tokens"],
            "final_loss": {str(split): float(final.sel(split=split)) for split in final.split.values},
        }
        text = json.dumps(manifest, indent=1).encode() + b"\n"
        write_durably(self.kept / f"{name}.json", lambda file: file.write(text))


def _started(run: Path, config: TrainConfig) -> subprocess.Popen[bytes]:
    """`tsl train` in a process of its own, from a file beside the run's folder."""
    import yaml

    told = run.with_name(f"{run.name}.yaml")
    run.parent.mkdir(parents=True, exist_ok=True)
    told.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    resume = ["--resume"] if (run / folder.CONFIG).exists() else []
    command = [sys.executable, "-m", "tsl_jax.cli", "train", "--config", str(told), "--out", str(run), *resume]
    return subprocess.Popen(command)


def _finished(process: subprocess.Popen[bytes], deadline: float | None) -> int:
    """The exit code; at the deadline, and at Ctrl-C, the run is told to stop, and may write its checkpoint."""
    try:
        while process.poll() is None:
            if deadline is not None and time.monotonic() >= deadline:
                process.send_signal(signal.SIGINT)
                return process.wait(PATIENCE)
            time.sleep(POLL)
    except KeyboardInterrupt:  # a terminal tells the whole group; a signal to us alone must be passed on
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
        raise
    return process.returncode
