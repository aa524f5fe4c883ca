"""Do the intervals of a fitted scaling law hold the constants that the runs were drawn from, as often as they say?

    python -m experiments.scaling_evidence.coverage [--draws 100] [--out results/coverage.csv]

Ladders are drawn from each published law on designs that people have, with the noise that runs have: the logarithm of
each loss errs by .2 % (a seed), and, where there are several sizes, by another .2 % that the runs of one size share (a
learning rate that suits one size better than another). A parameter's coverage is the share of draws whose 90 % interval
holds the published value; "prediction" is that of the noiseless loss at three times the largest size and ten times the
most data.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from tsl_jax import laws
from tsl_jax.laws import Law
from tsl_jax.scaling import fit_ladder
from tsl_jax.scaling.ladder import losses

OUT = Path(__file__).parent / "results" / "coverage.csv"
SEED_NOISE, SIZE_NOISE = 0.002, 0.002
FACTORS = {"n_params": 3.0, "tokens": 10.0, "steps_min": 10.0, "pf_days": 10.0, "pf_days_min": 10.0}  # to the target
RESAMPLES = 100


def designs() -> Iterator[tuple[Law, str, pd.DataFrame]]:
    """Each law, the design in words, and its runs without losses."""
    sizes = np.geomspace(1e7, 3e9, 8)
    one = pd.DataFrame({"n_params": sizes, "tokens": 100 * sizes, "pf_days": 6 * 100 * sizes**2 / 8.64e19})
    one["pf_days_min"] = one.pf_days / 2
    for law in (laws.KAPLAN_N, laws.KAPLAN_C, laws.KAPLAN_C_MIN):
        yield law, "8 sizes over 2.5 decades, a run each", one
    halved = pd.DataFrame({"n_params": 1e9, "tokens": 2e10 / 2.0 ** np.arange(8)})
    yield laws.KAPLAN_D, "8 data sets by halving, one size", halved
    for count in (6, 10):
        grid = [(n, n * ratio) for n in np.geomspace(3e7, 3e9, count) for ratio in (5, 20, 80)]
        runs = pd.DataFrame(grid, columns=["n_params", "tokens"])
        yield laws.CHINCHILLA, f"{count} sizes over 2 decades, 5, 20 and 80 tokens a parameter", runs
    grid = [(n, d) for n in np.geomspace(1e6, 1e9, 6) for d in 2e10 / 4.0 ** np.arange(5)]
    runs = pd.DataFrame(grid, columns=["n_params", "tokens"])
    yield laws.KAPLAN_ND, "6 sizes over 3 decades, 5 data sets by quarters", runs
    grid = [(n, s) for n in np.geomspace(1e6, 1e9, 6) for s in np.geomspace(2e3, 1e5, 5)]
    yield laws.KAPLAN_NS, "6 sizes over 3 decades, 5 lengths", pd.DataFrame(grid, columns=["n_params", "steps_min"])


def drawn(law: Law, runs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The runs with losses of the published law and noise."""
    rng = np.random.default_rng(seed)
    sizes, of_size = np.unique(runs.n_params, return_inverse=True)
    noise = SEED_NOISE * rng.standard_normal(len(runs))
    if len(sizes) > 1:
        noise += SIZE_NOISE * rng.standard_normal(len(sizes))[of_size]
    return runs.assign(loss=_truth(law, runs) * np.exp(noise))


def _truth(law: Law, runs: pd.DataFrame) -> np.ndarray:
    constants = np.array([[law.published[name] for name in law.params]])
    return losses(law, {name: runs[name].to_numpy(float) for name in law.covariates}, constants)[0]


def coverage(law: Law, runs: pd.DataFrame, draws: int) -> dict[str, float]:
    """The share of draws whose interval holds the constant, by parameter; "prediction" is that of the target's loss."""
    target = pd.DataFrame({name: [FACTORS[name] * runs[name].max()] for name in law.covariates})
    truth, held = _truth(law, target)[0], []
    for seed in range(draws):
        ladder = fit_ladder(law, drawn(law, runs, seed), resamples=RESAMPLES, held_out=0, seed=seed)
        table, predicted = ladder.interval(), ladder.predict(target).iloc[0]
        inside = (table.low <= table.paper) & (table.paper <= table.high)
        held.append({**inside, "prediction": predicted.low <= truth <= predicted.high})
    return {str(name): float(share) for name, share in pd.DataFrame(held).mean().items()}


def main() -> None:
    """Print a line a design as it is done, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = []
    for law, design, runs in designs():
        shares = coverage(law, runs, options.draws)
        print(
            f"{law.name}, {design}: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items()), flush=True
        )
        rows += [
            {"law": law.name, "design": design, "quantity": name, "coverage": share} for name, share in shares.items()
        ]
        table = pd.DataFrame(rows).assign(draws=options.draws)
        table["standard_error"] = np.sqrt(table.coverage * (1 - table.coverage) / options.draws)
        table.to_csv(options.out, index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
