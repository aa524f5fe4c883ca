"""The style of all printed figures, and their files: widths of journal columns, 8 pt, colours that stay apart in grey.

Colours: black for what was observed; then indigo, vermillion, green, sky blue and wine (Tol's muted scheme and Okabe
and Ito's), which differ from each other in lightness by 9 of 100 or more. Dashes and markers repeat the distinction.
Files are PDF and SVG with text as text, and PNG: the same bytes whenever the same is drawn.
Sources: P. Tol, Colour Schemes, SRON/EPS/TN/09-002; M. Okabe and K. Ito, Color Universal Design (2008).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from tsl_jax.atomic_write import write_atomically

Options = ParamSpec("Options")
SINGLE, DOUBLE = 3.4, 7.0  # inches: one column of a journal, and the width of its page
INK, MUTED, SHADE = "#000000", "#6b6b6b", "#ececec"  # what was observed, auxiliary lines, the part that was seen
PALETTE = ("#332288", "#D55E00", "#117733", "#56B4E9", "#882255")
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DOT = 2.6  # points: diameter of a marker
BAND = 0.2  # opacity of a band
SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": False,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "axes.titlepad": 4,
    "axes.unicode_minus": True,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.wspace": 0.05,
    "figure.dpi": 200,
    "font.family": ["DejaVu Sans"],  # matplotlib brings it: the same on every machine
    "font.size": 8,
    "hatch.linewidth": 0.4,
    "legend.columnspacing": 1.1,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.0,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": DOT,
    "pdf.fonttype": 42,
    "pdf.compression": 6,
    "svg.fonttype": "none",
    "svg.hashsalt": "tsl_jax",
    "xtick.labelsize": 7,
    "xtick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.labelsize": 7,
    "ytick.major.width": 0.6,
    "ytick.minor.width": 0.4,
}

DPI = 200  # of the PNG
SHOWN_DPI = 110  # in a notebook
# No dates, and no version of the program that wrote it, so that equal figures are equal bytes.
METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
    "png": {"Software": None},
}

# A user's own settings do not count. The backend stays: no drawing is shown, and asking for it loads pyplot.
DEFAULTS = {key: value for key, value in mpl.rcParamsDefault.items() if "backend" not in key}


def styled(draw: Callable[Options, Figure]) -> Callable[Options, Figure]:
    """A drawing function under `SETTINGS`, which are undone afterwards; its figure is laid out when it returns."""

    @wraps(draw)
    def wrapper(*args: Options.args, **options: Options.kwargs) -> Figure:
        settings: Any = {**DEFAULTS, **SETTINGS}
        with mpl.rc_context(settings):
            figure = draw(*args, **options)
            figure.draw_without_rendering()  # ticks are made with the settings in force at the first drawing: these
        return figure

    return wrapper


class Sheet(Figure):
    """A figure that a notebook shows: matplotlib's own do only where pyplot, which is never loaded here, is."""

    def _repr_png_(self) -> bytes:
        stream = BytesIO()
        self.savefig(stream, format="png", dpi=SHOWN_DPI, metadata=METADATA["png"])
        return stream.getvalue()


def sheet(width: float, height: float, rows: int = 1, columns: int = 1, **share: Any) -> tuple[Figure, np.ndarray]:
    """An empty figure, inches, and its panels (rows, columns)."""
    figure = Sheet(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **share)


def colour(k: int) -> str:
    """Colour of the k-th series."""
    return PALETTE[k % len(PALETTE)]


def line(k: int) -> dict[str, Any]:
    """Colour and dash of the k-th line; a pair repeats only after all colours have had all dashes."""
    return {"color": colour(k), "linestyle": DASHES[(k + k // len(PALETTE)) % len(DASHES)]}


def marker(k: int) -> str:
    """Marker of the k-th series."""
    return MARKERS[k % len(MARKERS)]


def sequential(count: int) -> list[Any]:
    """Colours from light to dark, evenly: viridis without its yellow, which is too light on white paper."""
    scale = mpl.colormaps["viridis_r"]
    return [scale(place) for place in np.linspace(0.12, 1, count)] if count > 1 else [scale(0.8)]


def diverging() -> LinearSegmentedColormap:
    """Blue below zero, white at it, brown above; in grey both ends are dark, so what is below is hatched as well."""
    return LinearSegmentedColormap.from_list("blue_brown", ["#2b6cb0", "#9cc4e4", "#ffffff", "#e8a76a", "#8c3d04"])


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
            options = {"format": kind, "dpi": DPI, "metadata": metadata}
            write_atomically(path, lambda file, options=options: figure.savefig(file, **options))
    return paths
