"""Which of several runs ends lower, by how much, and how sure that is: groups of seeds against the first of them.

At equal tokens, with differences d_k over the seeds k that both groups have (paired), or two independent groups,

    paired        mean d +- t sd(d)/sqrt(n),   n - 1 degrees of freedom
    independent   mean_1 - mean_0 +- t sqrt(s_1^2/n_1 + s_0^2/n_0),   Welch's degrees of freedom
    known sd      +- z sd sqrt(1/n_1 + 1/n_0),   of a single run, from many seeds of an earlier study

Equivalence within a margin is shown where the interval at 1 - 2 alpha lies inside it (two one-sided tests, Schuirmann
1987). The mean of a group is below a target with the one-sided z = (target - mean) sqrt(n)/sd: the rule of the
modded-nanogpt speedruns, with their sd of .0013 nats; without a known sd Student's t takes its place. Runs of unequal
length are compared at the tokens that all have; where one is judged at its own end, the loss's slope there times the
missing steps is the correction that is printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

LEVEL = 0.95


@dataclass(frozen=True)
class RunComparison:
    """Groups of runs against the first.

    Attributes:
        table: a row a group: runs, loss (mean at `tokens`), sd (over its runs), difference to the first group with low
            and high at `level`, p (two-sided), pairs (0: independent groups), verdict; tokens_to_match (at which its
            mean curve is as low as the first group at `tokens`), speed (tokens over those); loss_at_flops (at the
            compute the first group has at `tokens`); p_target where a target is given.
        by_position: (group, position) difference of the mean losses; None for surfaces of one position.
        curves: (group, tokens) mean losses. tokens, target, margin, level, sd: as asked for.
    """

    table: pd.DataFrame
    by_position: xr.DataArray | None
    curves: xr.DataArray
    tokens: float
    level: float
    margin: float | None
    target: float | None
    sd: float | None

    def report(self) -> str:
        """The table and a sentence for each group."""
        columns = ["runs", "loss", "sd", "difference", "low", "high", "p", "pairs", "tokens_to_match", "speed"]
        known = {name: np.isfinite(self.table[name].to_numpy(float)).any() for name in ("loss_at_flops", "p_target")}
        columns += [name for name, there in known.items() if there]
        numbers: Any = dict.fromkeys(("loss", "sd", "difference", "low", "high", "loss_at_flops"), "{:.4f}".format)
        numbers |= {"tokens_to_match": "{:.3g}".format, "speed": "{:.2f}".format}
        numbers |= dict.fromkeys(("p", "p_target"), "{:.2g}".format) | {"pairs": "{:.0f}".format}
        table: Any = self.table[columns]
        shown = table.to_string(formatters=numbers, na_rep="-")
        lines = [f"mean loss at {self.tokens:,.0f} tokens, {self.level:.0%} intervals, against {self.table.index[0]}"]
        lines.append(shown)
        lines += [f"{name}: {row.verdict}" for name, row in self.table.iterrows()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.report()

    def plot(self) -> Any:
        """A matplotlib figure: the mean curves, differences with intervals, and by position where there are any."""
        # drawn by the layer above, which this one must not know when it is imported
        return import_module("tsl_jax.reporting.plots").run_comparison(self)


def compare_runs(
    groups: Mapping[str, Mapping[str, xr.Dataset]],
    split: str = "",
    tokens: float | None = None,
    margin: float | None = None,
    target: float | None = None,
    sd: float | None = None,
    level: float = LEVEL,
) -> RunComparison:
    """Compare groups of runs, seed -> surface each, with the first group.

    Args:
        split: default the first of the first run. tokens: at which losses are compared; default the last that all runs
            have. margin: nats within which groups count as equal. target: a loss that a group's mean is to be below.
            sd: of the end of one run over seeds, where it is known; it also makes single runs comparable.

    Raises:
        ValueError: for fewer than two groups, tokens that a run has not, or numbers that are not positive.
    """
    if len(groups) < 2 and target is None:
        raise ValueError(f"compare: expected two groups of runs or more, found {', '.join(groups) or 'none'}")
    for name, value in (("margin", margin), ("target", target), ("sd", sd), ("tokens", tokens)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError(f"compare: {name} must be a positive number, found {value}")
    if not 0.5 < level < 1:
        raise ValueError(f"compare: the level of an interval lies between .5 and 1, found {level}")
    every = [run for group in groups.values() for run in group.values()]
    split = split or str(every[0].split.values[0])
    means = {name: {seed: _mean_curve(run, split) for seed, run in group.items()} for name, group in groups.items()}
    shared = min(float(curve.tokens[-1]) for group in means.values() for curve in group.values())
    at = shared if tokens is None else float(tokens)
    if at > shared or any(at < float(curve.tokens[0]) for group in means.values() for curve in group.values()):
        raise ValueError(f"compare: every run has losses up to {shared:,.0f} tokens, found {at:,.0f}")
    ends = {name: {seed: _at(curve, at) for seed, curve in group.items()} for name, group in means.items()}
    grid = np.unique(np.concatenate([curve.tokens.values for group in means.values() for curve in group.values()]))
    grid = grid[grid <= shared]
    curves = {name: np.mean([_along(curve, grid) for curve in group.values()], axis=0) for name, group in means.items()}
    first, *_ = groups
    flops = {name: _flops_per_token(group) for name, group in groups.items()}
    rows = {}
    for name, values in ends.items():
        row = _difference(ends[first], values, sd, level) if name != first else {}
        losses = np.array(list(values.values()))
        row |= {"runs": len(losses), "loss": losses.mean(), "sd": losses.std(ddof=1) if len(losses) > 1 else np.nan}
        row["tokens_to_match"] = _reached(grid, curves[name], float(np.mean(list(ends[first].values()))), at)
        row["speed"] = at / row["tokens_to_match"]
        equal_flops = at * flops[first] / flops[name]
        inside = np.isfinite(equal_flops) and grid[0] <= equal_flops <= grid[-1] and name != first
        row["loss_at_flops"] = float(np.interp(equal_flops, grid, curves[name])) if inside else np.nan
        row["p_target"] = _below(losses, target, sd) if target is not None else np.nan
        row["verdict"] = _verdict(row, name, first, margin, target, level)
        rows[name] = row
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(
        columns=["runs", "loss", "sd", "difference", "low", "high", "p", "pairs", "tokens_to_match", "speed",
                 "loss_at_flops", "p_target", "verdict"]
    )  # fmt: skip
    table.index.name = "group"
    labels = {"group": list(curves), "tokens": grid}
    stacked = xr.DataArray(np.stack(list(curves.values())), labels, ("group", "tokens"))
    return RunComparison(table, _by_position(groups, split, at), stacked, at, level, margin, target, sd)


def _mean_curve(run: xr.Dataset, split: str) -> xr.DataArray:
    """The mean loss (tokens,) of the checkpoints that have one."""
    if split not in run.split.values:
        raise ValueError(f"compare: a run has the splits {', '.join(map(str, run.split.values))}, found {split!r}")
    curve = run.loss.sel(split=split).mean("position", skipna=False).dropna("tokens")
    if not curve.sizes["tokens"]:
        raise ValueError(f"compare: a run has no loss of {split}")
    return curve


def _along(curve: xr.DataArray, tokens: np.ndarray) -> np.ndarray:
    """The curve between its checkpoints, linear in log tokens; NaN before the first."""
    values = np.interp(np.log(np.maximum(tokens, 1)), np.log(np.maximum(curve.tokens.values, 1)), curve.values)
    return np.where(tokens < float(curve.tokens[0]), np.nan, values)


def _at(curve: xr.DataArray, tokens: float) -> float:
    return float(_along(curve, np.array([tokens]))[0])


def _difference(
    first: Mapping[str, float], other: Mapping[str, float], sd: float | None, level: float
) -> dict[str, Any]:
    """Difference of two groups, seed -> loss, its interval and p; paired over the seeds where both have the same."""
    from scipy import stats  # late: a second to import

    a, b = np.array(list(first.values())), np.array(list(other.values()))
    difference = float(b.mean() - a.mean())
    paired = set(first) == set(other) and len(a) > 1 and sd is None
    if sd is not None:
        error, free = sd * np.sqrt(1 / len(a) + 1 / len(b)), np.inf
    elif paired:
        each = np.array([other[seed] - first[seed] for seed in first])
        error, free = each.std(ddof=1) / np.sqrt(len(each)), len(each) - 1
    elif len(a) > 1 and len(b) > 1:
        parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
        error = np.sqrt(sum(parts))
        free = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1)) if error else 1.0
    else:
        return {"difference": difference, "low": np.nan, "high": np.nan, "p": np.nan, "pairs": 0}
    width = float(stats.t.ppf((1 + level) / 2, free)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, free)) if error else float(difference == 0)
    pairs = len(a) if paired else 0
    return {"difference": difference, "low": difference - width, "high": difference + width, "p": p, "pairs": pairs}


def _below(losses: np.ndarray, target: float, sd: float | None) -> float:
    """One-sided p of a mean of at least the target; NaN for one run without a known sd."""
    from scipy import stats

    error = (losses.std(ddof=1) if len(losses) > 1 else np.nan) if sd is None else sd
    z = (target - losses.mean()) * np.sqrt(len(losses)) / error
    return float(stats.norm.sf(z) if sd is not None else stats.t.sf(z, len(losses) - 1))


def _reached(tokens: np.ndarray, curve: np.ndarray, loss: float, at: float) -> float:
    """Tokens at which a mean curve first is as low as `loss`; NaN where it is not by the end of the grid."""
    below = np.flatnonzero((curve <= loss + 1e-12) & (tokens <= max(at, tokens[-1])))
    if not len(below):
        return np.nan
    k = int(below[0])
    if k == 0 or not np.isfinite(curve[k - 1]):
        return float(tokens[k])
    share = (curve[k - 1] - loss) / (curve[k - 1] - curve[k])
    return float(np.exp((1 - share) * np.log(tokens[k - 1]) + share * np.log(tokens[k])))


def _flops_per_token(group: Mapping[str, xr.Dataset]) -> float:
    values = {float(run.attrs.get("flops_per_token", np.nan)) for run in group.values()}
    return values.pop() if len(values) == 1 else np.nan


def _by_position(groups: Mapping[str, Mapping[str, xr.Dataset]], split: str, at: float) -> xr.DataArray | None:
    """Mean differences (group, position) to the first group at the checkpoints nearest to `at`."""
    every = [run for group in groups.values() for run in group.values()]
    if every[0].sizes["position"] < 2 or any(not np.array_equal(run.position, every[0].position) for run in every):
        return None
    ends = {
        name: np.mean(
            [run.loss.sel(split=split).sel(tokens=at, method="nearest").values for run in group.values()], axis=0
        )
        for name, group in groups.items()
    }
    first, *others = ends
    if not others:
        return None
    labels = {"group": others, "position": every[0].position.values}
    return xr.DataArray(np.stack([ends[name] - ends[first] for name in others]), labels, ("group", "position"))


def _verdict(
    row: Mapping[str, Any], name: str, first: str, margin: float | None, target: float | None, level: float
) -> str:
    """What the row says in words."""
    parts: Sequence[str] = []
    if target is not None:
        p = row["p_target"]
        parts = [*parts, f"below {target:g} with p = {p:.2g}" if p < 0.5 else f"not below {target:g}"]
        if not np.isfinite(p):
            parts = [f"one run tells nothing of its mean beside {target:g}: give more seeds, or a known sd"]
    if name == first:
        return "; ".join([*parts, "the group that others are compared with"])
    low, high = row["low"], row["high"]
    if not np.isfinite(low):
        return "; ".join([*parts, f"{row['difference']:+.4f} nats; one run each does not tell how sure that is"])
    word = "lower" if row["difference"] < 0 else "higher"
    sure = "surely" if low > 0 or high < 0 else "not surely"
    parts = [*parts, f"{sure} {word}, {row['difference']:+.4f} nats ({low:+.4f} to {high:+.4f}, {level:.0%})"]
    if margin is not None:
        inside = -margin < low and high < margin
        parts = [*parts, f"{'within' if inside else 'not shown to be within'} {margin:g} nats"]
    return "; ".join(parts)
