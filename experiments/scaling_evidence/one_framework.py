"""One law of size and time for every position, asked for a size that it has not seen, beside laws of one axis.

    python -m experiments.scaling_evidence.one_framework [--out results/one_framework.csv]

The sizes of Kaplan's study (experiments/kept_runs/kaplan-sizes.parquet, constant rate). Decided 2026-11-29, before
the largest size was looked at by any of these laws: the form of `forecasting/size_ladder.py` was chosen with 3x80
left out; 4x128, 3.4 times as large, is the test. All are given the smaller sizes whole ("size"), or their first half
of the tokens ("size and time"), and are judged by the mean loss from then on: mean relative error, that of the end,
and for those with intervals the share of checkpoints inside 90 %.

    one law         log L = k - alpha log N - beta log S - gamma log N log S, every position, averaged
    Chinchilla, Kaplan's L(N, D) on the mean, D the tokens seen (`fit_ladder`, Huber)
    size alone      a power law in N at each token count (the last that is known, for later ones)
    time alone      a power law over tokens of the next smaller size, as if size did not matter
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.fitting import fit
from tsl_jax.forecasting import fit_size_ladder
from tsl_jax.laws import CHINCHILLA, KAPLAN_ND, POWER
from tsl_jax.scaling import fit_ladder
from tsl_jax.sweeps.archive import read_archive

KEPT = Path(__file__).parent.parent / "kept_runs" / "kaplan-sizes.parquet"
OUT = Path(__file__).parent / "results" / "one_framework.csv"
FIRST = 2e5  # tokens: two warm-ups and a little more, from which losses are compared
SIZES = ("3x80", "4x128")  # left out in turn: development, test


def predictions(ladder: Mapping[str, xr.Dataset], n_params: float, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Method -> (tokens, 3): mean loss, low, high (NaN where a method has none)."""
    one = fit_size_ladder(ladder.values(), "id").predict(n_params, tokens)
    made = {"one law": np.stack([one["mean"], one.mean_low, one.mean_high], axis=1)}
    means = {name: run.loss.sel(split="id").mean("position") for name, run in ladder.items()}
    parts = [
        pd.DataFrame({"tokens": curve.tokens.values.astype(float), "loss": curve.values}).assign(
            run=name, n_params=float(ladder[name].attrs["n_params"])
        )
        for name, curve in means.items()
    ]
    rows = pd.concat(parts).query("tokens >= @FIRST")
    for law in (CHINCHILLA, KAPLAN_ND):
        fitted = fit_ladder(law, rows, resamples=100, held_out=0)
        table = fitted.predict({"n_params": np.full(len(tokens), n_params), "tokens": tokens})
        made[law.name] = table[["loss", "low", "high"]].to_numpy()
    nothing = np.full((len(tokens), 2), np.nan)
    sizes, alone = np.log([float(run.attrs["n_params"]) for run in ladder.values()]), []
    for at in tokens:
        losses = [float(np.interp(np.log(at), np.log(curve.tokens), curve)) for curve in means.values()]
        slope, level = np.polyfit(sizes, np.log(losses), 1)
        alone.append(np.exp(level + slope * np.log(n_params)))
    made["size alone"] = np.column_stack([alone, nothing])
    largest = max(ladder, key=lambda name: float(ladder[name].attrs["n_params"]))
    curve = means[largest].sel(tokens=means[largest].tokens >= FIRST)
    power = fit(POWER, curve.values, x=curve.tokens.values.astype(float))
    made["time alone"] = np.column_stack([power.predict(tokens).values, nothing])
    return made


def main() -> None:
    """Print and write a row a left-out size, question and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    runs = {name: run for name, run in read_archive(KEPT).items() if name.startswith("size-")}
    rows = []
    for size in SIZES:
        target = next(run for name, run in runs.items() if size in name)
        n_params = float(target.attrs["n_params"])
        smaller = {name: run for name, run in runs.items() if float(run.attrs["n_params"]) < n_params}
        truth = target.loss.sel(split="id").mean("position")
        truth = truth.sel(tokens=truth.tokens >= FIRST)
        half = float(truth.tokens[-1]) / 2
        for question, ladder, from_tokens in (
            ("size", smaller, FIRST),
            ("size and time", {name: run.sel(tokens=run.tokens <= half) for name, run in smaller.items()}, half),
        ):
            unseen = truth.sel(tokens=truth.tokens > from_tokens)
            for method, values in predictions(ladder, n_params, unseen.tokens.values.astype(float)).items():
                error = values[:, 0] / unseen.values - 1
                inside = (values[:, 1] <= unseen.values) & (unseen.values <= values[:, 2])
                rows.append({
                    "left_out": size, "question": question, "method": method,
                    "mean_absolute_error": np.abs(error).mean(), "mean_error": error.mean(),
                    "error_of_the_end": error[-1],
                    "inside_90": inside.mean() if np.isfinite(values[:, 1]).all() else np.nan,
                })  # fmt: skip
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.4f}".format))
    table.to_csv(options.out, index=False, float_format="%.5f")


if __name__ == "__main__":
    main()
