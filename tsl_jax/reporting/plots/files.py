"""Figures as files: PDF and SVG with text as text, PNG, the same bytes whenever the same is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tsl_jax.atomic_write import write_atomically
from tsl_jax.reporting.plots.style import SETTINGS

DPI = 200  # of the PNG
# No dates, and no version of the program that wrote it: what is the same is the same.
METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
    "png": {"Software": None},
}


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write STEM.pdf, STEM.svg and STEM.png (200 dpi), each whole or not at all.

    Args:
        stem: path without suffix; its folder is made if absent.

    Returns:
        The three paths.

    Raises:
        OSError: if a file cannot be written; one that was there before is untouched.
    """
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in METADATA]
    settings: Any = SETTINGS
    with mpl.rc_context(settings):
        for path, (kind, metadata) in zip(paths, METADATA.items(), strict=True):
            _write(figure, path, kind, metadata)
    return paths


def _write(figure: Figure, path: Path, kind: str, metadata: dict[str, Any]) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=DPI, metadata=metadata))
