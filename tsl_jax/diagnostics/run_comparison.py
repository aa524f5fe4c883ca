"""Which of several runs ends lower, by how much, and how sure that is: groups of seeds against the first of them.

At equal tokens, with differences d_k over the seeds k that both groups have (paired), or two independent groups,

    paired        mean d +- t sd(d)/sqrt(n),   n - 1 degrees of freedom
    independent   mean_1 - mean_0 +- t sqrt(s_1^2/n_1 + s_0^2/n_0),   Welch's degrees of freedom
    known sd      +- z sd sqrt(1/n_1 + 1/n_0),   of a single run, from many seeds of an earlier study

Equivalence within a margin is shown where the interval at 1 - 2 alpha lies inside it (two one-sided tests, Schuirmann
1987). The mean of a group is below a target with the one-sided z = (target - mean) sqrt(n)/sd: the rule of the
modded-nanogpt speedruns, with their sd of .0013 nats, (target - mean) sqrt(n) >= .004 for p < .001; without a known sd
Student's t takes its place. Runs of unequal length are compared at the tokens that all have, or each at its own end: at
the end T_0 of the first group a group would have had

    mean_g + slope (T_g - T_0),   and   (mean_0 - that)/sqrt(1/n_0 + 1/n_g) >= .004   is the same rule for two groups,

the slope in nats a token (a step, where steps are the clock): given, or estimated from the last OWN_END of the curves
of the group with its standard error, which then widens the interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

LEVEL = 0.95
OWN_END = 0.1  # of a run's tokens, over which the slope at its end is estimated


@dataclass(frozen=True)
class RunComparison:
    """Groups of runs against the first.

    Attributes:
        table: a row a group: runs, loss (mean at `tokens`), sd (over its runs), difference to the first group with low
            and high at `level`, p (two-sided), pairs (0: independent groups), verdict; tokens_to_match (at which its
            mean curve is as low as the first group at `tokens`), speed (tokens over those); loss_at_flops (at the
            compute the first group has at `tokens`); weighted (the difference over sqrt(1/n_0 + 1/n)); p_target where
            a target is given.
        by_position: (group, position) difference of the mean losses; None for surfaces of one position.
        curves: (group, tokens) mean losses. tokens, target, margin, level, sd: as asked for.
        slopes: group -> fall a token at its end and its standard error, where runs are compared at their own ends.
    """

    table: pd.DataFrame
    by_position: xr.DataArray | None
    curves: xr.DataArray
    tokens: float
    level: float
    margin: float | None
    target: float | None
    sd: float | None
    slopes: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def report(self) -> str:
        """The table and a sentence for each group."""
        columns = ["runs", "loss", "sd", "difference", "low", "high", "p", "pairs", "tokens_to_match", "speed"]
        optional = ("loss_at_flops", "p_target")
        known = {name: np.isfinite(self.table[name].to_numpy(float)).any() for name in optional}
        columns += ["weighted"] if self.sd is not None and len(self.table) > 1 else []
        columns += [name for name, there in known.items() if there]
        in_nats = ("loss", "sd", "difference", "low", "high", "loss_at_flops", "weighted")
        numbers: Any = dict.fromkeys(in_nats, "{:.4f}".format)
        numbers |= {"tokens_to_match": "{:.3g}".format, "speed": "{:.2f}".format}
        numbers |= dict.fromkeys(("p", "p_target"), "{:.2g}".format) | {"pairs": "{:.0f}".format}
        table: Any = self.table[columns]
        shown = table.to_string(formatters=numbers, na_rep="-")
        where = f"at {self.tokens:,.0f} tokens"
        if self.slopes:
            each = ", ".join(f"{name} {slope:.3g} +- {error:.1g}" for name, (slope, error) in self.slopes.items())
            where = f"at each run's own end, carried to {self.tokens:,.0f} tokens by the fall a token: {each}"
        lines = [f"mean loss {where}, {self.level:.0%} intervals, against {self.table.index[0]}"]
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
    own_ends: bool = False,
    slope: float | None = None,
) -> RunComparison:
    """Compare groups of runs, seed -> surface each, with the first group.

    Args:
        split: default the first of the first run. tokens: at which losses are compared; default the last that all runs
            have. margin: nats within which groups count as equal. target: a loss that a group's mean is to be below.
            sd: of the end of one run over seeds, where it is known; it also makes single runs comparable.
        own_ends: compare each run at its own end, carried to that of the first group by `slope`, nats by which the loss
            falls a token; default that of each group, estimated.

    Raises:
        ValueError: for fewer than two groups, tokens that a run has not, or numbers that are not positive.
    """
    if len(groups) < 2 and target is None:
        raise ValueError(f"compare: expected two groups of runs or more, found {', '.join(groups) or 'none'}")
    if (own_ends and tokens is not None) or (slope is not None and not own_ends):
        raise ValueError("compare: tokens, or own_ends with or without a slope; not both, nor a slope without own_ends")
    for name, value in (("margin", margin), ("target", target), ("sd", sd), ("tokens", tokens), ("slope", slope)):
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
    slopes: dict[str, tuple[float, float]] = {}
    carried = dict.fromkeys(means, 0.0)  # tokens
    if own_ends:
        at = float(np.mean([curve.tokens[-1] for curve in next(iter(means.values())).values()]))
        slopes = {name: (slope, 0.0) if slope else _slope(list(group.values())) for name, group in means.items()}
        for name, group in means.items():
            beyond = {seed: float(curve.tokens[-1]) - at for seed, curve in group.items()}
            ends[name] = {seed: float(curve[-1]) + slopes[name][0] * beyond[seed] for seed, curve in group.items()}
            carried[name] = float(np.mean(list(beyond.values())))
    grid = np.unique(np.concatenate([curve.tokens.values for group in means.values() for curve in group.values()]))
    grid = grid[grid <= shared]
    curves = {name: np.mean([_along(curve, grid) for curve in group.values()], axis=0) for name, group in means.items()}
    first, *_ = groups
    flops = {name: _flops_per_token(group) for name, group in groups.items()}
    rows = {}
    for name, values in ends.items():
        extra = slopes[name][1] * carried[name] if slopes else 0.0  # the error of what a group was carried by
        row = _difference(ends[first], values, sd, level, extra) if name != first else {}
        losses = np.array(list(values.values()))
        row |= {"runs": len(losses), "loss": losses.mean(), "sd": losses.std(ddof=1) if len(losses) > 1 else np.nan}
        row["tokens_to_match"] = _reached(grid, curves[name], float(np.mean(list(ends[first].values()))), at)
        row["speed"] = at / row["tokens_to_match"]
        row["weighted"] = row.get("difference", np.nan) / np.sqrt(1 / len(ends[first]) + 1 / len(losses))
        equal_flops = at * flops[first] / flops[name]
        inside = np.isfinite(equal_flops) and grid[0] <= equal_flops <= grid[-1] and name != first
        row["loss_at_flops"] = float(np.interp(equal_flops, grid, curves[name])) if inside else np.nan
        reached = losses - slopes[name][0] * carried[name] if slopes else losses  # the target is for where it stopped
        row["p_target"] = _below(reached, target, sd) if target is not None else np.nan
        row["verdict"] = _verdict(row, name, first, margin, target, level)
        rows[name] = row
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(
        columns=["runs", "loss", "sd", "difference", "low", "high", "p", "pairs", "tokens_to_match", "speed",
                 "loss_at_flops", "weighted", "p_target", "verdict"]
    )  # fmt: skip
    table.index.name = "group"
    labels = {"group": list(curves), "tokens": grid}
    stacked = xr.DataArray(np.stack(list(curves.values())), labels, ("group", "tokens"))
    by_position = None if own_ends else _by_position(groups, split, at)
    return RunComparison(table, by_position, stacked, at, level, margin, target, sd, slopes)


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


def _slope(curves: Sequence[xr.DataArray]) -> tuple[float, float]:
    """Nats by which the loss falls a token at the end of a group of runs, and its standard error.

    Of each run by least squares over the last OWN_END of its tokens; the error is that of the mean over runs, of a
    single run that of its line.
    """
    falls, errors = [], []
    for curve in curves:
        tokens, loss = curve.tokens.values.astype(float), curve.values
        late = tokens >= (1 - OWN_END) * tokens[-1]
        if late.sum() < 3:
            late = np.arange(len(tokens)) >= len(tokens) - 3
        if late.sum() < 2:
            raise ValueError("compare: a run of one checkpoint has no slope at its end; give it (--slope)")
        apart = tokens[late] - tokens[late].mean()
        fall = -float(apart @ loss[late]) / float(apart @ apart)
        rest = loss[late] - loss[late].mean() + fall * apart
        falls.append(fall)
        errors.append(float(np.sqrt(rest @ rest / max(late.sum() - 2, 1) / (apart @ apart))))
    error = float(np.std(falls, ddof=1) / np.sqrt(len(falls))) if len(falls) > 1 else errors[0]
    return float(np.mean(falls)), error


def _difference(
    first: Mapping[str, float], other: Mapping[str, float], sd: float | None, level: float, extra: float = 0.0
) -> dict[str, Any]:
    """Difference of two groups, seed -> loss, its interval and p; paired over the seeds where both have the same.

    Args:
        extra: a standard error beside that of the runs.
    """
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
    error = float(np.hypot(error, extra))
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
