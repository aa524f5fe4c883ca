"""Put runs that studies have made into the archives of kept_runs/: NAME.npz and NAME.json become a row of a table.

    python -m experiments.archive_runs

`tsl reproduce` keeps each new run as two files in kept_runs/, where all studies find it. This command moves them to the
archive of their kind, with what the analyses read: losses to the last bit, sums by cluster and the additive estimate
where a study needs them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from tsl_jax.surface import load_surface, with_losses
from tsl_jax.sweeps import read_archive, write_archive
from tsl_jax.sweeps.archive import read_manifests

KEPT = Path(__file__).parent / "kept_runs"
SUMS = ("loss_sum", "count", "cluster_sum", "cluster_count")


@dataclass(frozen=True)
class Kind:
    """An archive: which runs it holds, by their names, and of which checkpoints it keeps the sums by cluster.

    Where `by_position` is false all positions are summed: what is left is the mean loss. The split `without` is left
    out.
    """

    archive: str
    names: str
    clusters: slice | None
    additive: bool
    by_position: bool = True
    without: str = ""


KINDS = (
    Kind("position_weighting-larger", r"larger-weights-", slice(-1, None), False, by_position=False),
    Kind("position_weighting", r"(more-)?weights-", slice(-1, None), False),  # final losses on halves of the documents
    Kind("mid_run_changes", r"change-", None, False),
    Kind("kaplan", r"(batch|data|shape|arch|rate)-|size-.*-long$", None, False),
    Kind("kaplan-sizes", r"size-", slice(None), False),  # transfer: the four clusters are the four other texts
    Kind("position_law", r"(tiny|small-(neox|moe|lstm|64|256))-", slice(None), True),
    Kind("base-locked-seeds", r".*@1\d\d$", slice(None), False),  # apart, so that no losses of the locked set are read
    Kind("second-locked-seeds", r".*@2\d\d$", None, False),  # and the second one
    Kind("mixture_selection-targets", r"mix-target-.*@0$", slice(None), False, without="id"),  # domains are splits
    Kind("mixture_selection", r"mix-", slice(None), False, by_position=False, without="id"),
    Kind("tsl-9.8m", r"tsl-9\.8m-", slice(None), True),
    Kind("base", r"", slice(None), True),
)


def mean_over_positions(surface: xr.Dataset) -> xr.Dataset:
    """The same with one position, to which all are summed."""
    sums = [name for name in SUMS if name in surface]
    whole = surface[sums].sum("position").expand_dims(position=[1], axis=-1)
    return with_losses(whole.assign_attrs(surface.attrs)).assign_coords(
        {name: surface[name] for name in ("step", "lr")}
    )


def reduced(surface: xr.Dataset, kind: Kind) -> xr.Dataset:
    """What an archive of this kind keeps of a run, but for what `write_archive` leaves out."""
    if kind.without:
        surface = surface.drop_sel(split=kind.without)
    return surface if kind.by_position else mean_over_positions(surface)


def main(folder: Path = KEPT) -> None:
    manifests = sorted(path for path in folder.glob("*.json") if path.with_suffix(".npz").exists())
    kinds = {path: next(kind for kind in KINDS if re.match(kind.names, path.stem)) for path in manifests}
    for kind in KINDS:
        file, new = folder / f"{kind.archive}.parquet", [path for path in manifests if kinds[path] == kind]
        if not new:
            continue
        runs = {}
        if file.exists():
            made = read_manifests(file)
            runs = {name: (surface, made[name]) for name, surface in read_archive(file).items()}
        for path in new:
            runs[path.stem] = reduced(load_surface(path.with_suffix(".npz")), kind), json.loads(path.read_text())
        write_archive(file, runs, kind.clusters, kind.additive)
        for path in new:
            path.unlink()
            path.with_suffix(".npz").unlink()
        print(f"{file}: {len(runs)} runs, {len(new)} of them new, {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
