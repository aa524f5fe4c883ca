"""`tsl benchmark`: zero-shot accuracies of the checkpoints of a run, or of a published model, beside their losses."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from tsl_jax import processes
from tsl_jax.pretrained.options import DEFAULT_TASKS, BenchmarkOptions, PretrainedOptions
from tsl_jax.training.config import MeshConfig

if TYPE_CHECKING:
    from tsl_jax.pretrained.zero_shot import BenchmarkResult

OF_EITHER = ("context", "batch", "begin")  # options of PretrainedOptions that serve a run too
SPLITS = 3  # whose losses the terminal shows; the files have all


@dataclass(frozen=True)
class BenchmarkCommand:
    """Measure benchmarks of lm-evaluation-harness on the checkpoints that a run has kept (train --keep N), or with --hf
    on those of a published model. Pairs of checkpoint and task that are measured are kept; the same call goes on.

    tsl benchmark runs/books | tsl benchmark runs/books --tasks arc_easy piqa --limit 200
    """

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """Folder of a run; or --hf."""
    hf: str = ""
    """Folder of a checkpoint in the format of transformers, or OWNER/NAME on the Hugging Face hub."""
    tasks: tuple[str, ...] = DEFAULT_TASKS
    """Tasks, groups or tags of the harness, patterns (arc_*), or task files (.yaml) in its format."""
    include_path: tuple[Path, ...] = ()
    """Folders of task files, whose tasks --tasks may name."""
    limit: int = 0
    """Examples of a task, the first ones; 0: all."""
    fewshot: int = 0
    """Solved examples in a prompt; 0: zero-shot."""
    surface: Path | None = None
    """Loss surface whose mean losses stand beside the accuracies; default that of the run."""
    out: Path | None = None
    """Folder of the results (results.json, results.csv); default zero-shot in that of the run."""
    mesh: MeshConfig | None = None
    """Other devices; without it laid out as in training."""
    pretrained: Annotated[PretrainedOptions, tyro.conf.arg(name="")] = field(default_factory=PretrainedOptions)
    """Options of --hf; context, batch and begin are of either."""


def run_benchmark(command: BenchmarkCommand) -> None:
    """Measure, and print the table and the correlations."""
    given, options = command.run, command.pretrained
    if (given is None) == (not command.hf):
        found = "neither" if given is None else "both"
        raise ValueError(f"benchmark: name the folder of a run, or --hf with that of a published model, found {found}")
    changed = [name for name, value in vars(options).items() if value != getattr(PretrainedOptions, name)]
    changed = [name.replace("_", "-") for name in changed if name not in OF_EITHER]
    if given is not None and changed:
        raise ValueError(f"benchmark: --{changed[0]} is an option of --hf, and {given} is a run; leave it out")
    if options.begin not in ("auto", "yes", "no"):
        raise ValueError(f"benchmark: --begin must be auto, yes or no, found {options.begin!r}")
    if command.hf and command.out is None:
        raise ValueError("benchmark: --hf needs --out, the folder of the results")
    names = tuple(name for entry in command.tasks for name in entry.split(",") if name)
    tasks = BenchmarkOptions(tuple(dict.fromkeys(names)), command.include_path, command.limit, command.fewshot)
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the harness would write across ours
    _show(_measure(command, tasks), command)


def _measure(command: BenchmarkCommand, tasks: BenchmarkOptions) -> BenchmarkResult:
    from tsl_jax.commands.options import stamp
    from tsl_jax.commands.progress import Lines, bars
    from tsl_jax.pretrained import zero_shot

    again = "the same command goes on"
    try:
        with ExitStack() as stack:
            progress = stack.enter_context(bars())
            if isinstance(progress, Lines):  # the harness prints what it does; in a terminal above the bars
                stack.enter_context(redirect_stdout(sys.stderr))
            stack.enter_context(processes.ending_at_once(lambda: again))  # each pair is on disk once measured
            return zero_shot.benchmark(
                command.hf or str(command.run),
                command.out,
                tasks,
                hf=bool(command.hf),
                pretrained=command.pretrained,
                surface=command.surface,
                devices=command.mesh,
                made_by=stamp(command),
                progress=progress,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(again) from None


def _show(result: BenchmarkResult, command: BenchmarkCommand) -> None:
    """Print a row a checkpoint and task, what was cut, and the correlations."""
    rows: list[dict[str, Any]] = result.table.to_dict("records")
    print(table_text(rows))
    for task in dict.fromkeys(row["task"] for row in rows):
        cut, requests = (sum(row[name] for row in rows if row["task"] == task) for name in ("cut", "requests"))
        if cut:
            share = f"{cut:,} of {requests:,} requests"
            print(f"{task}: {share} were longer than the model's context, and cut from the left")
    checkpoints = len({row["checkpoint"] for row in rows})
    print("\n".join(correlation_lines(result.correlations.to_dict("records"), checkpoints)))
    if command.limit:
        print(f"of the first {command.limit} examples of each task")
    print(f"results: {result.folder / 'results.json'}, results.csv")


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in columns: metrics with their standard errors, and the losses of some splits.

    Args:
        rows: of `benchmark_table`.
    """
    from tsl_jax.pretrained.zero_shot_table import COUNTS, PLACE

    columns = list(rows[0])
    losses = [name for name in columns if name.startswith("loss_")]
    metrics = [name for name in columns if name not in (*PLACE, *COUNTS, *losses) and "_stderr" not in name]
    losses = losses[:SPLITS]
    table = [["checkpoint", "tokens", "task", *metrics, *(f"loss {name[5:]}" for name in losses), "examples"]]
    for row in rows:
        tokens = "" if _missing(row["tokens"]) else f"{row['tokens']:,}"
        cells = [_with_error(row, name) for name in metrics]
        cells += ["" if _missing(row[name]) else f"{row[name]:.4f}" for name in losses]
        table.append([row["checkpoint"], tokens, row["task"], *cells, f"{row['examples']:,}"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:  # names stand to the left, numbers to the right
        sized = enumerate(zip(cells, widths, strict=True))
        lines.append("  ".join(c.ljust(w) if i in (0, 2) else c.rjust(w) for i, (c, w) in sized).rstrip())
    return "\n".join(lines)


def _with_error(row: Mapping[str, Any], metric: str) -> str:
    """A value with its standard error, which the harness names before a filter: exact_match_stderr,strict."""
    name, comma, rest = metric.partition(",")
    error = row.get(f"{name}_stderr{comma}{rest}")
    form = ".4f" if name in ("acc", "acc_norm") else ".5g"  # others, such as perplexities, may be of any size
    if _missing(row[metric]):
        return ""
    return format(row[metric], form) + ("" if _missing(error) else f" ±{format(error, form)}")


def _missing(value: Any) -> bool:
    """Whether a cell is None, pandas' NA or NaN."""
    import pandas as pd

    return bool(pd.isna(value))


def correlation_lines(rows: Sequence[Mapping[str, Any]], checkpoints: int) -> list[str]:
    """How loss and accuracy go together, a line a task, metric and split; or why that is not known.

    Args:
        rows: of `correlations`. checkpoints: that were measured.
    """
    from tsl_jax.pretrained.zero_shot_table import FEWEST

    if checkpoints < FEWEST:
        return [f"loss and accuracy are correlated over {FEWEST} checkpoints or more; there are {checkpoints}"]
    if not rows:
        return [f"loss and accuracy are not correlated: a loss is known at fewer than {FEWEST} of the checkpoints"]
    lines = ["loss and accuracy over checkpoints, with 95 % intervals that take checkpoints for independent:"]
    for row in rows:
        what = f"  {row['task']}, {row['metric']} and loss of {row['split']}, {row['checkpoints']} checkpoints: "
        if _missing(row["pearson"]):
            lines.append(what + "one of the two is the same at all of them")
            continue
        ends = [(kind, *(row[f"{kind}{end}"] for end in ("", "_low", "_high"))) for kind in ("spearman", "pearson")]
        lines.append(
            what + ", ".join(f"{kind.title()} {r:.2f} ({low:.2f} to {high:.2f})" for kind, r, low, high in ends)
        )
    return lines
