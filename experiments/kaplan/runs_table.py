"""The runs of the study as tables: a row a checkpoint, and of these ends, early stops, and the least loss by compute.

The name of a run says what it is for and which model it is: SET-MODEL or SET-MODEL-VARIANT, with @SEED where there are
several seeds; before it the scale, gpu- or paper-.

    size     models of growing size on text that never repeats: L(N), L(C), L(N, S), allocation, transfer; the
             variant long stands in for the run of its size where whole curves are read
    data     two or more sizes on data sets of growing size, repeated: L(D), L(N, D); early stopping; the runs
             whose model has dropout stand in for the others in L(N, D)
    batch    one model at several batch sizes: the critical batch
    shape    models of one size and other shapes        arch    other architectures
    rate     one model at other learning rates: whether the rule of the plan suits it
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from experiments.shared import Runs
from tsl_jax.scaling.runs_table import complete

SETS = ("size", "data", "batch", "shape", "arch", "rate")
SPLIT = "id"
WARM = 2  # warm-ups: steps before these many belong to no law of steps
FEWEST_SIZES = 4  # of a resample: the best of three sizes is always the middle one
GRID = 40  # budgets of compute between the ends of the curves


def checkpoints(runs: Runs) -> pd.DataFrame:
    """A row a checkpoint of each run.

    Columns: set, run, model, variant, seed, n_params, tokens, unique_tokens, batch_tokens, steps, flops (6 N D),
    pf_days, loss (mean over positions, split id), whether text `repeats`, whether the model has `dropout`, and whether
    the checkpoint is `warm`, past the warm-up.

    Raises:
        ValueError: for a run whose name begins with none of SETS.
    """
    parts = []
    for name, surface in runs.surfaces.items():
        manifest = runs.manifests[name]
        plain, _, seed = name.removeprefix(f"{runs.scale}-").partition("@")
        kind, *rest = plain.split("-")
        if kind not in SETS:
            raise ValueError(f"kaplan: names of runs begin with {', '.join(SETS)} and -, found {name!r}")
        curve = surface.loss.sel(split=SPLIT).mean("position")
        tokens, batch = surface.tokens.values, float(manifest["batch_tokens"])
        warmup = float(surface.attrs["schedule"]["warmup_tokens"])
        facts = {"set": kind, "run": name, "model": rest[0] if rest else "", "variant": "-".join(rest[1:])}
        facts |= {"seed": int(seed or 0), "n_params": float(manifest["n_params"]), "batch_tokens": batch}
        unique = float(manifest["config"].get("unique_tokens", 0))
        columns = {"tokens": tokens.astype(float), "steps": tokens / batch, "loss": curve.values}
        part = pd.DataFrame({**facts, **columns})
        part["unique_tokens"] = np.minimum(unique or np.inf, part.tokens)
        part["repeats"] = unique > 0
        part["dropout"] = manifest["model"]["dropout"] > 0
        part["warm"] = part.tokens >= WARM * warmup
        parts.append(part)
    return complete(pd.concat(parts, ignore_index=True))


def of_set(table: pd.DataFrame, *kinds: str) -> pd.DataFrame:
    """The rows of some sets."""
    return table[table.set.isin(kinds)]


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """The last checkpoint of each run."""
    return table.loc[table.groupby("run", sort=False).tokens.idxmax()].reset_index(drop=True)


def early_stops(table: pd.DataFrame) -> pd.DataFrame:
    """The checkpoint of each run with the least loss: early stopping after the fact."""
    return table.loc[table.groupby("run", sort=False).loss.idxmin()].reset_index(drop=True)


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The sizes of the first plan, all seeds: those without a variant."""
    return table[table.variant == ""]


def curves_of_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """One run of each size: the first seed, and where there are several lengths the longest."""
    sizes = of_set(table, "size")
    last = ends(sizes).sort_values(["tokens", "seed"], ascending=[False, True])
    return sizes[sizes.run.isin(last.drop_duplicates("model").run)]


def longest_ends(table: pd.DataFrame) -> pd.DataFrame:
    """The end of each size: of its longest run, of several seeds of that length each."""
    last = ends(of_set(table, "size"))
    return last[last.tokens == last.groupby("model").tokens.transform("max")].reset_index(drop=True)


def by_budget(table: pd.DataFrame, compute: str) -> pd.DataFrame:
    """The loss of each size (a column of n_params) at budgets of `compute` (the index), NaN where its run is not there.

    Budgets are even in the logarithm, from where two sizes are past their warm-up to where two sizes end; losses are
    linear in the logarithm between checkpoints.
    """
    warm = table[table.warm]
    span = warm.groupby("run")[compute]
    at = np.geomspace(np.sort(span.min())[1], np.sort(span.max())[-2], GRID)
    losses = {}
    for _, curve in warm.groupby("n_params"):
        x = np.log(curve[compute].to_numpy(float))
        losses[curve.n_params.iloc[0]] = np.interp(np.log(at), x, curve.loss, left=np.nan, right=np.nan)
    return pd.DataFrame(losses, index=pd.Index(at, name=compute))


def envelope(losses: pd.DataFrame) -> pd.DataFrame:
    """The least loss at each budget that two sizes reach, and the size that has it: of a table of `by_budget`.

    A budget is left out where the best size is the smallest one that reaches it and a smaller one has ended before:
    that one might have been better still.
    """
    several = losses[losses.notna().sum(axis=1) >= 2]
    best = several.idxmin(axis=1)
    smallest = several.notna().idxmax(axis=1)
    whole = (best > smallest) | (smallest == losses.columns.min())
    table = pd.DataFrame({"n_params": best, "loss": several.min(axis=1)})[whole]
    return table.reset_index()


def resampled_sizes(losses: pd.DataFrame, resamples: int, seed: int = 0) -> Iterator[pd.DataFrame]:
    """A table of `by_budget` of sizes drawn with replacement, one drawn twice once; draws of too few are made anew."""
    sizes, random = losses.columns.to_numpy(), np.random.default_rng(seed)
    while resamples:
        drawn = np.unique(random.choice(sizes, len(sizes)))
        if len(drawn) >= min(FEWEST_SIZES, len(sizes)):
            resamples -= 1
            yield losses[drawn]
