"""The law over positions at the last checkpoint of a surface, such as one that was measured again on more windows.

    tsl evaluate RUN --out FOLDER windows:eval-config --windows.id-stretches 1536 --windows.id-offsets 3 ...
    python -m experiments.position_law.last_checkpoint FOLDER

Two tables, by the measures of the study: R2 beside what is expected of a true law, and the test of each form; then the
hyperbola against its alternatives, by likelihood and by what is left out, for the plain mean and the additive estimate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import xarray as xr

from experiments.position_law import measures
from experiments.shared.tables import markdown
from tsl_jax.surface import load_surface

TESTED = ("split", "r2", "r2_expected", "r2_additive", "chi2_hyperbolic", "p", "chi2_position_power")
TESTED += ("p_position_power", "degrees", "a0", "a1", "a2", "i90", "low", "high")


def at_last_checkpoint(surface: xr.Dataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row a split: R2 and tests of the forms. A row a split, estimate and alternative."""
    last = surface.isel(tokens=[-1])
    fitted = measures.hyperbolas(last)
    tested = measures.by_checkpoint("last", last, fitted, str(last.attrs.get("windows")), measures.Tested())
    rows = [
        {"split": split, **row} for split in map(str, last.split.values) for row in measures.comparisons(last, split)
    ]
    return tested[list(TESTED)], pd.DataFrame(rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surface", type=Path)
    for table in at_last_checkpoint(load_surface(parser.parse_args().surface)):
        print(markdown(table), end="\n\n")


if __name__ == "__main__":
    main()
