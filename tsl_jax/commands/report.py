"""`tsl report RUN`: fit, forecast and draw a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from tsl_jax.commands.analysis import Analysis


PAGE, SUMMARY, FIGURES = "report.html", "summary.json", "figures"


@dataclass(frozen=True)
class ReportCommand:
    """Fit the position law at every checkpoint, forecast from 10 to 40 % of the run, and draw it all."""

    run: tyro.conf.Positional[Path]
    """Folder of a run (or of a surface), or the .npz file of a surface."""
    out: Path | None = None
    """Folder for report.html and summary.json; without it the run's folder, or for NAME.npz the folder NAME."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Methods of `tsl forecast` to compare, or all, which takes longer; without it the default, the
    paper's by position, a power law of the mean and the last loss."""
    figures: bool = False
    """Write figures for print as well: figures/NAME.pdf, .svg and .png beside the page."""


def run_report(command: ReportCommand) -> None:
    """Write report.html and summary.json, and the figures where they are wanted; print the table of errors."""
    from tsl_jax.commands import options
    from tsl_jax.commands.progress import bars
    from tsl_jax.forecasting.methods import REPORTED
    from tsl_jax.surface import load_surface

    methods = options.forecast_methods(command.methods, REPORTED, "report")
    surface = load_surface(command.run)
    out = options.output_folder(command.run) if command.out is None else command.out
    check_out(command.run, out)
    with bars() as progress:
        summary = write(command.run, out, surface, options.stamp(command), progress, methods, command.figures)
    show(summary, surface, out)
    if command.figures:
        print(f"figures: {out / FIGURES}/*.pdf, .svg, .png")


def check_out(run: Path, out: Path) -> None:
    """Nothing, where what the report writes is not there, or was written by a report; before any work.

    Raises:
        ValueError: naming a file of somebody else's. OSError: where the folder cannot be written.
    """
    from tsl_jax.atomic_write import check_outputs
    from tsl_jax.commands.options import check_folder
    from tsl_jax.training import run_dir

    check_folder(out, "report")
    page, summary = out / PAGE, out / SUMMARY
    check_outputs([run], [page, summary], "report")
    ours = (out / run_dir.CONFIG).exists() or (summary.exists() and b'"tsl_jax"' in summary.read_bytes())
    foreign = [path for path in (summary, page, out / FIGURES) if os.path.lexists(path)]
    if foreign and not ours and not (page.exists() and b"tsl_jax report" in page.read_bytes()):
        raise ValueError(f"report: {foreign[0]} is there and is no report; move it away, or give another --out")


def show(summary: dict[str, Any], surface: Any, out: Path) -> None:
    """The short table, what is missing in it, and where the page is."""
    from tsl_jax.commands.analysis import missing
    from tsl_jax.reporting.terminal_tables import show_summary

    show_summary(summary, surface)
    print("\n".join(filter(None, [missing(surface), f"report: {out / PAGE}"])))


def write(
    source: Path,
    out: Path,
    surface: Any,
    stamp: dict[str, Any],
    progress: Callable[[str, int, int], None],
    methods: Sequence[str],
    figures: bool = False,
) -> dict[str, Any]:
    """Analyse a surface and write `summary.json` and `report.html` to `out`; the summary.

    Args:
        source: folder of the run, for what was recorded during training. stamp: see `options.stamp`.
        methods: of forecasting.
        figures: whether to draw `out`/figures for print as well.
    """
    import json
    import time

    from tsl_jax.atomic_write import write_atomically
    from tsl_jax.commands.analysis import analyse, missing
    from tsl_jax.reporting import json_values, report

    started = time.perf_counter()
    result = analyse(surface, progress, methods)
    analysed = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    record = source / "record.json"  # absent for a surface that came from elsewhere
    recorded = json.loads(record.read_text()) if record.exists() else {}
    forecasts = [result_part for result_part in (result.backtest, result.ahead) if result_part is not None]
    facts = _facts(recorded, missing(surface))
    report(out / PAGE, surface, result.by_position, *forecasts, r2=result.r2, facts=facts)
    progress("report", 1, 1)
    if figures:
        _draw(out / FIGURES, result, progress)
    seconds = {**recorded.get("seconds", {}), "analyse": analysed - started, "report": time.perf_counter() - analysed}
    summary = json_values.summary(surface, result.r2, result.backtest, {**recorded, "seconds": seconds}, stamp)
    text = json.dumps(summary, indent=1, allow_nan=False)
    write_atomically(out / SUMMARY, text)
    return summary


def _draw(folder: Path, result: Analysis, progress: Callable[[str, int, int], None]) -> None:
    """Figures for print, one after the other: matplotlib is loaded only here."""
    from tsl_jax.reporting.plots import figures_of, save

    figures = figures_of(result.surface, result.by_position, result.backtest, result.r2)
    for number, (name, figure) in enumerate(figures, 1):
        save(figure, folder / name)
        progress("figures", number, number)


def _facts(recorded: dict[str, Any], missing: str) -> dict[str, Any]:
    """What was recorded during training, and which forecasts are missing: the surface does not carry it."""
    environment = recorded.get("environment", {})
    facts = {
        "forecasts": missing,
        "machine": environment.get("machine"),
        "cores": environment.get("cores"),
        "device": environment.get("device"),
        "allocator": environment.get("allocator"),
        "training tokens per second": recorded.get("tokens_per_second"),
        "seconds by stage": recorded.get("seconds"),
        "FLOPs per token": recorded.get("flops_per_token"),
        "configuration": recorded.get("config_hash"),
    }
    return {name: value for name, value in facts.items() if value}
