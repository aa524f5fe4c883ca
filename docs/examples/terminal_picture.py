"""The terminal picture of the README: real output of `tsl import` and `tsl watch` on a small log, as SVG.

    python docs/examples/terminal_picture.py LOG.csv docs/assets/terminal.svg

LOG.csv: a log with steps, losses and rates, such as `multipower/25M/cosine_24000.csv` of the public curves;
its first half is copied, imported and watched, row by row, as if a job wrote it.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tsl_jax.commands.import_table import ImportCommand, run_import
from tsl_jax.commands.watch import WatchCommand, _read, _Watch
from tsl_jax.commands.watch_display import LivePanel

WIDTH, SEEN, LOOKS = 104, 85, 12  # characters, rows, and looks at the last of them


def main(log: Path, out: Path) -> None:
    """Run both commands on the first rows of a log, and draw what they print."""
    lines = log.read_text().splitlines()
    end = float(lines[-1].split(",")[0])
    console = Console(width=WIDTH, record=True, force_terminal=True, color_system="truecolor")
    with tempfile.TemporaryDirectory() as folder:
        train = Path(folder) / "train.csv"
        train.write_text("\n".join(lines[:SEEN]) + "\n")
        console.print(Text("$ tsl import train.csv --tokens-per-step 1", "bold"))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            run_import(ImportCommand((str(train),), out=Path(folder) / "runs", tokens_per_step="1"))
        console.print(Text(printed.getvalue().replace(folder + "/", "").rstrip()))
        console.print(Text(f"\n$ tsl watch train.csv --end {end:.0f} --tokens-per-step 1", "bold"))
        display = LivePanel(Path("train.csv"), console)
        watch = _Watch(WatchCommand(train, end=end, tokens_per_step=1), None, display)
        for seen in range(SEEN - LOOKS, SEEN + 1):
            train.write_text("\n".join(lines[:seen]) + "\n")
            watch.look(_read(watch.command))
    console.print(display.panel())
    svg = console.export_svg(title="tsl", clear=False)
    out.write_text(_without_fonts(svg))


def _without_fonts(svg: str) -> str:
    """Fonts of the reader's system in place of those that rich would fetch."""
    head, _, rest = svg.partition("@font-face")
    tail = rest[rest.rindex("font-weight: 700;") :]
    tail = tail[tail.index("}") + 1 :]
    return (head + tail).replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
