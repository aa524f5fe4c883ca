"""Accuracies of checkpoints beside their tokens and losses, and how the two go together over checkpoints.

    Pearson's r of (loss, accuracy);   Spearman's rho: r of their ranks, equal values sharing their mean rank

Intervals are those of Fisher's z, tanh(atanh(r) -+ 1.96 se): se = 1/sqrt(n - 3) for r, sqrt((1 + rho^2/2)/(n - 3)) for
rho (Bonett and Wright 2000), whose magnitude is taken at most halfway between 1 and the value next to it,
1 - 6/(n (n^2 - 1)), as small n often gives exactly 1. Both take checkpoints for independent, which those of one run are
not: the true intervals are wider.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import atanh, nan, sqrt, tanh
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

FEWEST = 4  # checkpoints, for which Fisher's interval exists
Z95 = 1.959964
FIRST = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")  # columns of metrics that come first
PLACE, COUNTS = ("checkpoint", "step", "tokens", "task"), ("examples", "requests", "cut")


def benchmark_table(records: Iterable[Mapping[str, Any]], losses: xr.DataArray | None = None) -> pd.DataFrame:
    """A row a checkpoint and task.

    Args:
        records: each with checkpoint, step and tokens (None: not known), task, examples, requests, cut, and metrics.
        losses: mean loss over (split, tokens) of the same run, nats per token; None: not there.

    Returns:
        Columns checkpoint, step, tokens, task, a column a metric (acc, acc_stderr, acc_norm, ...), loss_SPLIT for each
        split, NaN at tokens that the surface lacks, examples, requests, cut (requests cut from the left).
    """
    rows, metrics = [], set()
    for record in records:
        metrics |= set(record["metrics"])
        row = {name: record[name] for name in PLACE} | dict(record["metrics"])
        if losses is not None:
            at = losses.reindex(tokens=[record["tokens"] or -1]).isel(tokens=0)  # NaN where it is not there
            row |= {f"loss_{split}": float(at.sel(split=split)) for split in losses.split.values}
        rows.append(row | {name: record[name] for name in COUNTS})
    first = [name for name in FIRST if name in metrics]
    split_names = [] if losses is None else [f"loss_{split}" for split in losses.split.values]
    names = [*PLACE, *first, *sorted(metrics - set(first)), *split_names, *COUNTS]
    return pd.DataFrame(rows, columns=names).astype({"step": "Int64", "tokens": "Int64"})  # which may be missing


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """How loss and accuracy go together over checkpoints: a row a task, metric (acc, acc_norm) and split.

    Args:
        table: from `benchmark_table`.

    Returns:
        Columns task, metric, split, checkpoints, pearson, pearson_low, pearson_high, spearman, spearman_low,
        spearman_high: 95 % intervals. A row for what has FEWEST checkpoints with both or more; NaN where one of the two
        is the same at all of them.
    """
    rows = []
    splits = [name.removeprefix("loss_") for name in table.columns if name.startswith("loss_")]
    for task, part in table.groupby("task", sort=False):
        for metric in ("acc", "acc_norm"):
            for split in splits if metric in part else []:
                pair = part[[f"loss_{split}", metric]].astype(float).dropna()
                if len(pair) >= FEWEST:
                    numbers = _correlation(*pair.to_numpy().T)
                    rows.append({"task": task, "metric": metric, "split": split, "checkpoints": len(pair)} | numbers)
    names = [f"{kind}{end}" for kind in ("pearson", "spearman") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["task", "metric", "split", "checkpoints", *names])


def _correlation(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Both correlations with their intervals."""
    n = len(x)
    ranks = [pd.Series(values).rank().to_numpy() for values in (x, y)]
    result = {}
    for kind, r in (("pearson", pearson(x, y)), ("spearman", pearson(*ranks))):
        most = 1 - 6 / (n * (n**2 - 1)) if kind == "spearman" else 1 - 1e-12
        middle = float(np.clip(r, -most, most))
        error = sqrt((1 + middle**2 / 2 if kind == "spearman" else 1) / (n - 3))
        low, high = (tanh(atanh(middle) + sign * Z95 * error) for sign in (-1, 1)) if np.isfinite(r) else (nan, nan)
        result |= {kind: r, f"{kind}_low": min(low, r), f"{kind}_high": max(high, r)}
    return result


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation; NaN where one of them does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return nan
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))
