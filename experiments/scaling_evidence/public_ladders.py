"""Do scaling laws fitted to the small models of public ladders predict the large ones?

    python -m experiments.scaling_evidence.public_ladders FOLDER [--out results/public_ladders.csv]

FOLDER holds olmo_ladder/runs.csv (allenai/OLMo-ladder, Apache-2.0) and gemstones/*.jsonl (mcleish7, MIT), which are not
part of this repository. Both sets were looked at before: their large models are no sealed test.

OLMo: the law is chosen by its error at 760M, fitted to 190M and 370M; then it is fitted to all three and predicts 1B at
.5 to 10 times the Chinchilla tokens, c4_en. Gemstones: chosen by the error at 470M to 545M, fitted to the models below
200M; then fitted below 600M it predicts the models of 2B. Parameters are without embeddings (two matrices of 50,304
rows), and, for comparison, with them, as those of the data set are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from tsl_jax.laws import CHINCHILLA, KAPLAN_ND
from tsl_jax.scaling import fit_ladder

LAWS = (CHINCHILLA, KAPLAN_ND)
OUT = Path(__file__).parent / "results" / "public_ladders.csv"
VOCABULARY = 50_304


def olmo(folder: Path) -> pd.DataFrame:
    """The end of every run: size, n_params, tokens, loss."""
    rows = pd.read_csv(folder / "olmo_ladder" / "runs.csv").sort_values("tokens")
    ends = rows.groupby(["size", "chinchilla_multiple", rows.rerun.fillna("")], as_index=False).last()
    once = ends[ends.chinchilla_multiple == 1].groupby("size").tokens.max() / 20  # 20 tokens a parameter
    return pd.DataFrame(
        {"size": ends["size"], "n_params": ends["size"].map(once), "tokens": ends.tokens, "loss": ends.c4_en}
    )


def gemstones(folder: Path, embeddings: bool) -> pd.DataFrame:
    """Every checkpoint at a constant learning rate: all (with embeddings), n_params, tokens, loss, run."""
    rows = pd.read_json(folder / "gemstones" / "constant_lr.jsonl", lines=True)
    n_params = rows.params_active_precise - (0 if embeddings else 2 * VOCABULARY * rows.width)
    columns = {"all": rows.params_active_precise, "n_params": n_params, "tokens": rows.tokens, "loss": rows.final_loss}
    return pd.DataFrame({**columns, "run": rows.run_name})


def predictions(folder: Path, loss: str) -> Iterator[dict[str, object]]:
    """A row a data set, law and step: "choice" by development runs, "test" on the large models."""
    runs = olmo(folder)
    small, middle = runs["size"].isin(["190M", "370M"]), runs["size"] == "760M"
    cases = [("olmo ladder", runs, {"choice": (small, middle), "test": (small | middle, runs["size"] == "1B")})]
    for embeddings in (False, True):
        runs = gemstones(folder, embeddings)
        development = runs["all"] < 6e8
        parts = {
            "choice": (runs["all"] < 2e8, development & (runs["all"] > 4e8)),
            "test": (development, runs["all"] > 1.8e9),
        }
        cases.append((f"gemstones, {'with' if embeddings else 'without'} embeddings", runs, parts))
    for name, runs, parts in cases:
        for law in LAWS:
            for step, (train, test) in parts.items():
                ladder = fit_ladder(law, runs[train], loss=loss, resamples=0, held_out=0)
                error = ladder.predict({k: runs[test][k] for k in law.covariates}).loss.to_numpy() / runs[test].loss - 1
                yield {
                    "data": name, "law": law.name, "step": step, "loss": loss, "runs": int(train.sum()),
                    "predicted": int(test.sum()), "mean_absolute_error": float(np.abs(error).mean()),
                    "mean_error": float(error.mean()), "largest_error": float(np.abs(error).max()),
                    **{f"param_{k}": float(v) for k, v in ladder.fit.params.to_series().items()},
                }  # fmt: skip


def main() -> None:
    """Print a line a fit as it is made, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--loss", default="log_huber", choices=("log_huber", "log"))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = []
    with jax.enable_x64(True):
        for row in predictions(options.folder, options.loss):
            rows.append(row)
            error = (
                f"{row['mean_absolute_error']:.2%} (mean {row['mean_error']:+.2%}, largest {row['largest_error']:.2%})"
            )
            print(f"{row['data']}, {row['law']}, {row['step']}: {error}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.6g")
    print(options.out)


if __name__ == "__main__":
    main()
