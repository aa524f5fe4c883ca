"""A choice among candidates in the terminal: what was read, how good predictions were, the candidates, what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tsl_jax.reporting.wording import count
from tsl_jax.selection import Choice, Runs
from tsl_jax.selection.cross_validation import GP

LONGEST = 40  # letters of a candidate in one line
WIDTH = 100  # of the table at least: numbers that are cut off are worse than lines that are broken
CLEAR = 0.02  # of Spearman's correlation, or a tenth of the rms error: by which a simpler way is said to be better


def show_choice(choice: Choice, runs: Runs, rows: int = 15) -> None:
    """Print a choice; `runs` are what was read, `rows` the candidates that are listed."""
    from rich.console import Console

    console = Console()
    console = Console(width=max(console.width, WIDTH))
    lines = [_read(runs), *choice.notes, f"predicted: {choice.method}", *_validated(choice.cross_validation)]
    print("\n".join(lines))
    console.print(_candidates(choice, rows))
    if len(choice.table) > rows:
        print(f"{len(choice.table) - rows} more candidates: --rows N, or --out FILE")
    print("\n".join([_verdict(choice), *_stops(choice), *_next(choice), *_scores(choice.scores)]))


def _read(runs: Runs) -> str:
    """What was read, in a line."""
    table = runs.table
    checkpoints = sum(len(tokens) for tokens, _ in runs.curves)
    sizes = table.n_params.dropna().unique()
    parts = [f"{len(table)} runs", f"{table.candidate.nunique()} candidates"]
    parts += [] if runs.shares is None else [f"{runs.shares.shape[1]} domains"]
    if len(sizes) > 1:
        parts.append(f"{len(sizes)} sizes from {count(sizes.min())} to {count(sizes.max())} parameters")
    elif len(sizes):
        parts.append(f"one size, {count(sizes[0])} parameters")
    else:
        parts.append("sizes not known")
    return "read: " + ", ".join(parts) + (f", {checkpoints} checkpoints" if checkpoints > len(table) else "")


def _validated(table: pd.DataFrame) -> list[str]:
    """How good the predictions were on held-out runs, beside simpler ways, and whether one of those is better."""
    if GP not in table.index:
        return ["cross-validation: too few finished candidates of one size (8) to say how good predictions are"]
    ours = table.loc[GP]
    lines = [
        f"cross-validation, {ours.held_out:.0f} runs held out in parts: Spearman {ours.spearman:.3f}, rms error "
        f"{ours.rms:.4f} nats, {ours.inside_90:.0%} inside their 90 % intervals"
    ]
    others = []
    for name, row in table.drop(index=GP).iterrows():
        error = f", rms {row.rms:.4f}" if np.isfinite(row.rms) else ""
        others.append(f"{name} {row.spearman:.3f}{error}")
    if others:
        lines.append(f"  beside it (Spearman): {'; '.join(others)}")
    better = [
        str(name)
        for name, row in table.drop(index=GP).iterrows()
        if row.spearman > ours.spearman + CLEAR or row.rms < 0.9 * ours.rms
    ]
    if better:
        lines.append(f"  warning: on these runs {' and '.join(better)} predicted better than what is used below")
    if ours.spearman < 0.5:
        lines.append(
            "  warning: held-out runs were hardly ranked at all; do not choose by predictions of untried mixtures"
        )
    return lines


def _candidates(choice: Choice, rows: int) -> Any:
    """The table of candidates."""
    from rich.table import Table
    from rich.text import Text

    n_params, tokens = choice.target["n_params"], choice.target["tokens"]
    size = f"{count(n_params)} parameters" if np.isfinite(n_params) else ""
    length = f"{count(tokens)} tokens" if np.isfinite(tokens) else ""
    where = " and ".join(filter(None, (size, length))) or "the end of the runs"
    table = Table(title=Text(f"candidates at {where}"), title_justify="left")
    read, known = choice.table.epochs.notna().any(), choice.table.actual.notna().any()
    seen = choice.table.seen.notna().any()
    names = ["rank", "candidate", *(["seen"] if seen else []), "predicted (90 %)", "behind", "P(best)", "state"]
    for name in [*names, *(["epochs"] if read else []), *(["actual"] if known else [])]:
        table.add_column(Text(name), no_wrap=name != "candidate", overflow="fold")
    longest = max(map(len, choice.table.candidate.head(rows)), default=0)
    table.columns[1].min_width = min(max(longest, 9), LONGEST)  # a path is broken, a name is not
    row: Any
    for row in choice.table.head(rows).itertuples():
        cells = [str(row.rank), row.candidate]
        cells += [f"{row.seen:.4f}" if np.isfinite(row.seen) else "-"] if seen else []
        cells += [f"{row.loss:.4f} ± {(row.high - row.low) / 2:.4f}", f"{row.behind:.4f}", _chance(row.p_best)]
        cells += [f"{row.state}: stop" if row.stop else row.state]
        cells += [f"{row.epochs:.1f} {row.epochs_of}"] if read else []
        cells += [f"{row.actual:.4f}" if np.isfinite(row.actual) else "-"] if known else []
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table


def _chance(p: float) -> str:
    """A probability as far as draws resolve it."""
    return "< .01" if p < 0.01 else "> .99" if p > 0.99 else f"{p:.2f}".removeprefix("0")


def _verdict(choice: Choice) -> str:
    """The chosen one, how sure that is, and its mixture."""
    row = choice.table.iloc[0]
    sure = f"best with probability {_chance(row.p_best)}, expected to be {row.regret:.4f} nats above the best"
    lines = [f"chosen: {choice.chosen} ({sure})"]
    if choice.tied:
        some = ", ".join(choice.tied[:6]) + (f" and {len(choice.tied) - 6} more" if len(choice.tied) > 6 else "")
        lines.append(f"tied with it (the difference may be chance): {some}")
    if choice.shares is not None:
        lines.append(f"its mixture: {_mixture(choice.shares.loc[choice.chosen])}")
    return "\n".join(lines)


def _mixture(shares: Any, most: int = 8) -> str:
    """Shares from the largest on."""
    ordered = shares.sort_values(ascending=False)
    ordered = ordered[ordered > 0.0005]
    rest = f" and {len(ordered) - most} smaller" if len(ordered) > most else ""
    return ", ".join(f"{name} {share:.3f}" for name, share in ordered.head(most).items()) + rest


def _stops(choice: Choice) -> list[str]:
    """Which running candidates may be stopped, and what that saves."""
    stopped = choice.table.candidate[choice.table.stop].tolist()
    running = int((choice.table.state == "running").sum())
    if not running:
        return []
    if not stopped:
        return [f"stop: none of the {running} running candidates is surely behind yet"]
    saved = choice.saved
    hours = f", {saved['gpu_hours']:,.3g} GPU-hours" if np.isfinite(saved["gpu_hours"]) else ""
    some = ", ".join(stopped[:8]) + (f" and {len(stopped) - 8} more" if len(stopped) > 8 else "")
    return [f"stop: {some} ({len(stopped)} of {running} running): saves {count(saved['tokens'])} tokens{hours}"]


def _next(choice: Choice) -> list[str]:
    """The candidate worth trying next."""
    if not len(choice.following):
        return []
    row = choice.following.iloc[0]
    name, mixture = str(row.candidate), ""
    columns = [column for column in choice.following if str(column).startswith("share ")]
    if columns:
        mixture = f": {_mixture(row[columns].astype(float).rename(lambda column: column.removeprefix('share ')))}"
    gain = f"expected gain {row.gain:.4f} nats, lower than the chosen one with probability {_chance(row.chance)}"
    if row.gain < 1e-4:
        return [f"next: no candidate within what was tried promises a gain (the most: {row.gain:.1g} nats)"]
    return [f"next to try: {name} ({gain}){mixture}"]


def _scores(scores: pd.DataFrame) -> list[str]:
    """How the choice was, by ends that it did not see."""
    if not len(scores):
        return []
    lines = ["by the ends that were hidden:"]
    for name, row in scores.iterrows():
        ours = float(row.p_best) if "p_best" in row else np.nan
        chance = f", the actual best had probability {_chance(ours)}" if np.isfinite(ours) else ""
        lines.append(f"  {name}: Spearman {row.spearman:.3f}, regret {row.regret:.4f} nats{chance}")
    return lines
