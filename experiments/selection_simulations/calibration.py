"""Does the mixture that is chosen with probability .7 win in 70 % of tables, and how much is lost beside simpler ways?

    python -m experiments.selection_simulations.calibration [--tables 40] [--out results/calibration.csv]

Three uses on simulated tables (`truth`), each over tables of all four forms:

    untried    N finished runs of one size; 60 mixtures without runs are ranked (N = 32 of 5 domains, 128 of 17)
    ladder     28 mixtures finished at three sizes; the fourth size, which nobody has run, is predicted
    race       the same, with the fourth size seen up to 30 % of its curves

Judged against the expected loss at the target, in `race` against the ends of the runs: share of losses inside their
90 % intervals, mean P(best) of the chosen and how often it is the best, Spearman's correlation, regret in nats; beside
a linear regression, the data mixing law, gradient boosting (RegMix in manner, where scikit-learn is installed), the
loss of the next smaller size, and the loss at the cut-off.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.selection_simulations.truth import table
from tsl_jax.selection import Choice, Runs, choose
from tsl_jax.selection.cross_validation import linear, mixing_law, spearman
from tsl_jax.selection.mixture_regression import MixturePoints

OUT = Path(__file__).parent / "results" / "calibration.csv"
SIZES = (1.2e8, 3e8, 8e8, 2.7e9)
CUTOFF = 0.3
DESIGNS = (
    "untried, 32 runs of 5 domains",
    "untried, 128 runs of 17 domains",
    "ladder, 28 mixtures",
    "race, 28 mixtures",
)


def boosting(points: MixturePoints, y: np.ndarray, at: MixturePoints) -> np.ndarray | None:
    """Gradient boosting over shares, log parameters beside them; None where scikit-learn is not installed."""
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError:
        return None
    model = HistGradientBoostingRegressor(max_iter=200, learning_rate=0.1, min_samples_leaf=3, random_state=0)
    inputs = [np.column_stack([p.shares, p.log_params]) for p in (points, at)]
    return model.fit(inputs[0], y).predict(inputs[1])


def judged(design: str, seed: int) -> Iterator[dict[str, Any]]:
    """A row a way to choose, on one table."""
    if design.startswith("untried"):
        count, domains = (32, 5) if "32" in design else (128, 17)
        runs, truth = table(seed, count + 60, domains, SIZES[:1])
        fitted, others = split(runs, count)
        choice = choose(fitted, others)
        actual = truth[0, count:]
    else:
        runs, truth = table(seed, 28, 6, SIZES, curves=design.startswith("race"))
        choice = choose(runs, cutoff=CUTOFF if design.startswith("race") else 0.0)
        at_target = runs.table.n_params == SIZES[-1]
        fitted, others = subset(runs, ~at_target.to_numpy()), subset(runs, at_target.to_numpy())
        actual = others.table.loss.to_numpy() if design.startswith("race") else truth[-1]
    yield {"way": "tsl select", **ours(choice, actual)}
    for name, values in simpler_ways(fitted, others, design).items():
        yield {"way": name, "spearman": spearman(values, actual), "regret": actual[np.argmin(values)] - actual.min()}
    yield {"way": "by chance", "spearman": 0.0, "regret": actual.mean() - actual.min()}


def ours(choice: Choice, actual: np.ndarray) -> dict[str, Any]:
    """Scores of a choice; candidates are named by their number."""
    number = choice.table.candidate.str.extract(r"(\d+)")[0].astype(int)
    order = (number - number.min()).to_numpy()
    truth, chosen = actual[order], choice.table.iloc[0]
    inside = (choice.table.low <= truth) & (truth <= choice.table.high)
    best = int(np.argmin(truth))
    return {
        "spearman": spearman(choice.table.loss.to_numpy(), truth),
        "regret": truth[0] - actual.min(),
        "expected_regret": chosen.regret,
        "inside_90": inside.mean(),
        "p_chosen": chosen.p_best,
        "chosen_is_best": float(best == 0),
        "p_of_best": choice.table.p_best[best],
        "brier": float(np.sum((choice.table.p_best - (np.arange(len(truth)) == best)) ** 2)),
        "best_is_chosen_or_tied": float(choice.table.candidate[best] in (choice.chosen, *choice.tied)),
    }


def simpler_ways(fitted: Runs, others: Runs, design: str) -> dict[str, np.ndarray]:
    """Predicted losses (or what ranks alike) of the candidates of `others` by each simpler way."""
    points, at = as_points(fitted), as_points(others)
    y = np.log(fitted.table.loss.to_numpy())
    regressions: dict[str, Callable[..., Any]] = {"linear": linear, "data mixing law": mixing_law, "boosting": boosting}
    ways = {name: regress(points, y, at) for name, regress in regressions.items()}
    if not design.startswith("untried"):
        largest = fitted.table[fitted.table.n_params == SIZES[-2]].set_index("candidate").loss
        ways["loss of smaller runs"] = largest.loc[others.table.candidate].to_numpy()
    if design.startswith("race"):
        cut = others.seen(CUTOFF, np.ones(len(others.table), bool))
        ways["loss at the cut-off"] = cut.table.loss.to_numpy()
    return {name: values for name, values in ways.items() if values is not None and np.isfinite(values).all()}


def as_points(runs: Runs) -> MixturePoints:
    """The ends of runs as regressions read them."""
    assert runs.shares is not None
    code = pd.factorize(runs.table.candidate)[0]
    shares = runs.shares.loc[runs.table.candidate].to_numpy()
    return MixturePoints(shares, code, np.log(runs.table.n_params.to_numpy()), np.zeros(len(code)))


def subset(runs: Runs, rows: np.ndarray) -> Runs:
    """Some of the runs."""
    part = runs.table[rows].reset_index(drop=True)
    curves = tuple(curve for curve, taken in zip(runs.curves, rows, strict=True) if taken)
    shares = None if runs.shares is None else runs.shares.loc[list(dict.fromkeys(part.candidate))]
    return Runs(part, curves, shares, runs.available, runs.notes)


def split(runs: Runs, count: int) -> tuple[Runs, Runs]:
    """The first `count` runs, and the others."""
    first = np.arange(len(runs.table)) < count
    return subset(runs, first), subset(runs, ~first)


def main() -> None:
    """Print a table a design as it is done, and write the rows' means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=40)
    parser.add_argument("--designs", nargs="*", default=DESIGNS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    tables = []
    for design in options.designs:
        rows = pd.DataFrame([row for seed in range(options.tables) for row in judged(design, seed)])
        means = rows.groupby("way", sort=False).mean()
        means["regret_se"] = rows.groupby("way", sort=False).regret.sem()
        print(f"{design}\n{means.to_string(float_format='{:.4f}'.format, na_rep='')}\n", flush=True)
        tables.append(means.reset_index().assign(design=design, tables=options.tables))
        pd.concat(tables).to_csv(options.out, index=False, float_format="%.5f")


if __name__ == "__main__":
    main()
