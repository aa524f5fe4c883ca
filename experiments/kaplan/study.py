"""Do the scaling laws of Kaplan et al. hold for models of a thousand to three million parameters?

Paper: Scaling Laws for Neural Language Models (Kaplan et al., arXiv 2001.08361): the eight conclusions of its summary,
the fits of its appendix A, and its comparisons of shapes, architectures, batches and other text.

    tsl reproduce kaplan        the same as: python -m experiments.kaplan.study

The dated plan and what came out: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.kaplan import claims, comparisons, plots, plots_of_comparisons
from experiments.kaplan.fits import Fits, fit_all, grid, overfitting
from experiments.kaplan.runs_table import checkpoints, curves_of_sizes, ends, of_set
from experiments.shared import Findings, Runs, Study
from tsl_jax.laws import CRITICAL_BATCH, KAPLAN_NS
from tsl_jax.scaling import Ladder, fit_ladder, tokens_needed
from tsl_jax.scaling.ladder import losses

LEVEL = 0.9
LOST = 0.02  # by overfitting, the paper's spread of seeds
WITHOUT_DROPOUT = "kaplan_nd_no_dropout"
HALF = 0.5  # of the tokens of a curve, from which its end is predicted
DATA_SET = {"tokens": "data_tokens"}  # which in L(D), L(N, D) is D, not the tokens seen
CURVE = ("set", "run", "n_params", "batch_tokens", "unique_tokens", "tokens", "loss")


# ---------------------------------------------------------------------------------------------------------- the tables


def laws(fits: Fits) -> pd.DataFrame:
    """A row a law of one variable: its exponent with interval, the paper's, residuals, error at the largest size."""
    named = {"alpha_N": fits.size, "alpha_D": fits.data, "alpha_C": fits.compute, "alpha_C_min": fits.compute_min}
    rows = []
    for name, fitted in named.items():
        ladder = isinstance(fitted, Ladder)
        points, law = fitted.runs if ladder else fitted.table, fitted.law
        params, draws = (fitted.fit.params.values, fitted.params) if ladder else (fitted.params, fitted.draws)
        k = law.params.index(name)
        held = float(fitted.held_out.error.abs().max()) if ladder and len(fitted.held_out) else np.nan
        x = {covariate: points[covariate].to_numpy(float) for covariate in law.covariates}
        residual = losses(law, x, params[None])[0] / points.loss.to_numpy() - 1
        rows.append(
            {
                "law": law.name, "exponent_name": name, "exponent": float(params[k]), **_ends("exponent", draws[:, k]),
                "paper": law.published[name], "rms": float(np.sqrt(np.mean(residual**2))), "held_out_error": held,
                "sizes": points.n_params.nunique(), "points": len(points),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _ends(name: str, draws: np.ndarray) -> dict[str, float]:
    """Columns NAME_low and NAME_high of an interval over resamples; NaN where none is usable."""
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(draws) else (np.nan, np.nan)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def rms(ladder: Ladder) -> float:
    """Root mean square of the relative residual."""
    return float(np.sqrt(np.mean((ladder.fit.predict().values / ladder.runs.loss.to_numpy() - 1) ** 2)))


def exponents(fits: Fits) -> pd.DataFrame:
    """A row an exponent: ours with its interval beside the paper's, whether the interval holds it, and the law."""
    rows = []

    def add(quantity: str, law: str, value: float, draws: np.ndarray, paper: float) -> None:
        row = {"quantity": quantity, "law": law, "value": value, **_ends("value", draws), "paper": paper}
        rows.append(row | {"holds": bool(row["value_low"] <= paper <= row["value_high"])})

    for row in laws(fits).itertuples():
        ends_of = {"value": row.exponent, "value_low": row.exponent_low, "value_high": row.exponent_high}
        holds = bool(row.exponent_low <= row.paper <= row.exponent_high)
        rows.append({"quantity": row.exponent_name, "law": row.law, **ends_of, "paper": row.paper, "holds": holds})
    ladders = [
        (fits.size_data, ("alpha_N", "alpha_D"), fits.size_data.law.name),
        (fits.size_steps, ("alpha_N", "alpha_S"), fits.size_steps.law.name),
    ]
    if fits.size_data_plain is not None:
        ladders.insert(1, (fits.size_data_plain, ("alpha_N", "alpha_D"), WITHOUT_DROPOUT))
    for ladder, names, law in ladders:
        own, published, draws = ladder.fit.params.to_series(), ladder.law.published, ladder.params
        places = [ladder.law.params.index(name) for name in names]
        for name, k in zip(names, places, strict=True):
            add(name, law, float(own[name]), draws[:, k], published[name])
        ratio = draws[:, places[0]] / draws[:, places[1]]
        of_paper = published[names[0]] / published[names[1]]
        add("/".join(names), law, float(own[names[0]] / own[names[1]]), ratio, of_paper)
    paper, of_batches = CRITICAL_BATCH.published["alpha_B"], fits.trade.constants or {"alpha_B": np.nan}
    for law, alpha, draws in (
        (CRITICAL_BATCH.name, of_batches["alpha_B"], fits.trade_draws[:, 1]),
        ("noise_scale", fits.critical["alpha_B"], fits.critical_draws[:, 1]),
    ):
        add("alpha_B", law, alpha, draws, paper)
        add("1/alpha_B", law, 1 / alpha, 1 / draws, 1 / paper)
    return pd.DataFrame(rows)


def data_needed(fits: Fits) -> pd.DataFrame:
    """The data set at which a size loses 2 % by overfitting, by the fitted L(N, D), with its interval."""
    sizes = sorted(fits.size_data.runs.n_params.unique())
    names = {"tokens": "data_tokens", "low": "data_tokens_low", "high": "data_tokens_high"}
    return fits.size_data.data_needed(sizes, LOST, LEVEL).rename(columns=names)


def curve_ends(fits: Fits) -> pd.DataFrame:
    """The end of each curve by L(N, S_min) fitted to the first halves of all curves: observed, predicted, error."""
    warm = fits.minimal[fits.minimal.warm]
    last = warm.loc[warm.groupby("run", sort=False).tokens.idxmax()]
    first = warm[warm.tokens <= HALF * warm.groupby("run").tokens.transform("max")]
    params = fit_ladder(KAPLAN_NS, first, resamples=0, held_out=0).fit.params.values
    x = {name: last[name].to_numpy(float) for name in KAPLAN_NS.covariates}
    predicted = losses(KAPLAN_NS, x, params[None])[0]
    table = last[["run", "n_params", "tokens"]].assign(observed=last.loss, predicted=predicted)
    return table.assign(error=table.predicted / table.observed - 1).reset_index(drop=True)


def gradient_noise(runs: Runs, table: pd.DataFrame) -> pd.DataFrame:
    """The noise scale of each run that logged it, at its warm checkpoints: run, n_params, tokens, loss, noise_scale."""
    warm, rows = table[table.warm], []
    for name in warm.run.unique():
        noise = runs.manifests[name].get("gradient_noise")
        if noise is None:
            continue
        own = warm[warm.run == name]
        values = pd.DataFrame(
            {"tokens": noise["tokens"], "loss": noise["training_loss"], "noise_scale": noise["noise_scale"]}
        )
        values = values.astype(float).dropna()
        values = values[values.tokens.isin(own.tokens)]
        rows.append(values.assign(run=name, n_params=own.n_params.iloc[0]))
    columns = ["run", "n_params", "tokens", "loss", "noise_scale"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def batch_table(fits: Fits, noise: pd.DataFrame) -> pd.DataFrame:
    """The hyperbola at each loss, and the noise scale of runs at the same loss, geometric mean over runs."""
    at = fits.trade.trades.loss.to_numpy()
    each = []
    for _, part in noise.groupby("run"):
        part = part.sort_values("loss")
        each.append(np.interp(at, part.loss, np.log(part.noise_scale), left=np.nan, right=np.nan))
    known = np.array(each).reshape(-1, len(at))
    means = np.array(
        [np.exp(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else np.nan for column in known.T]
    )
    trades = fits.trade.trades[["loss", "runs", "s_min", "e_min", "b_crit", "log_b_crit_se", "usable"]]
    return trades.assign(noise_scale=means if len(known) else np.nan)


def convergence(fits: Fits) -> pd.DataFrame:
    """How far the best size of each budget is above its converged loss, with intervals over resampled runs."""
    table, law = comparisons.convergence(fits), fits.size_steps
    known = law.params[np.isfinite(law.params).all(1)]
    n_c, alpha = (known[:, law.law.params.index(name)][:, None] for name in ("N_c", "alpha_N"))
    draws = table.loss.to_numpy()[None] / (n_c / table.n_params.to_numpy()[None]) ** alpha - 1
    if not len(draws) or not len(table):
        return table.assign(above_convergence_low=np.nan, above_convergence_high=np.nan)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return table.assign(above_convergence_low=low, above_convergence_high=high)


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Final losses at half and twice the rate, relative to the same size at the rule's rate and the same tokens."""
    rows = []
    for _, run in ends(of_set(table, "rate")).iterrows():
        same = curves_of_sizes(table)
        curve = same[same.model == run.model].sort_values("tokens")
        rule = float(np.interp(np.log(run.tokens), np.log(curve.tokens), curve.loss)) if len(curve) else np.nan
        facts = {"run": run["run"], "n_params": run.n_params, "rate_of_rule": run.variant, "tokens": run.tokens}
        rows.append({**facts, "loss": run.loss, "loss_of_rule": rule, "above": run.loss / rule - 1})
    return pd.DataFrame(rows)


def as_kept(table: pd.DataFrame) -> pd.DataFrame:
    """The table as its file has it, so that claims follow from the files: eight digits, whole numbers of parameters."""
    table = table.copy()
    for name in table.select_dtypes("float"):
        table[name] = [float(f"{value:.8g}") for value in table[name]]
        if name.startswith("n_params") and (table[name] % 1 == 0).all():
            table[name] = table[name].astype(int)
    return table


# ---------------------------------------------------------------------------------------------------- the conclusions


def analyse(runs: Runs) -> Findings:
    """Every table, claim and figure of the plan."""
    table = checkpoints(runs)
    noise, pairs, spread = gradient_noise(runs, table), comparisons.offsets(runs, table), comparisons.seed_noise(table)
    fits = fit_all(table, noise)
    tables = {
        "exponents": exponents(fits),
        "laws": laws(fits),
        "allocation": fits.allocation,
        "grid": grid(table).rename(columns=DATA_SET)[["run", "n_params", "data_tokens", "seen", "loss"]],
        "overfitting": overfitting(table).rename(columns=DATA_SET)[
            ["run", "n_params", "data_tokens", "loss", "free_loss", "above"]
        ],
        "data_needed": data_needed(fits),
        "batch": batch_table(fits, noise),
        "curve_ends": curve_ends(fits),
        "sample_efficiency": comparisons.tokens_to_losses(table),
        "convergence": convergence(fits),
        "shapes": comparisons.shapes(table, float(fits.size.fit.params.to_series()["alpha_N"])),
        "architectures": comparisons.architectures(runs, table),
        "transfer": comparisons.transfer(pairs),
        "rates": rates(table),
        "seeds": pd.DataFrame({"runs": [len(table.run.unique())], "seed_spread": [spread]}),
        "gradient_noise": noise,
        "runs": ends(table)[list(CURVE)],
        "curves": table[list(CURVE)],
    }
    kept = {name: as_kept(part) for name, part in tables.items() if len(part)}
    drawn = figures(runs, table, fits, tables, pairs)
    captions = {name: CAPTIONS[name] for name in drawn}
    return Findings(kept, claims.all_claims(kept), notes(fits, tables), drawn, captions)


def figures(
    runs: Runs, table: pd.DataFrame, fits: Fits, tables: Mapping[str, pd.DataFrame], pairs: pd.DataFrame
) -> dict[str, Any]:
    """Name -> figure."""
    drawn = {
        "one_at_a_time": plots.one_at_a_time(table, fits),
        "size_and_data": plots.size_and_data(table, fits),
        "hyperbolas": plots.hyperbolas(fits),
        "critical_batch": plots.critical_batch(fits, tables["gradient_noise"]),
        "size_and_steps": plots.size_and_steps(fits),
        "allocation": plots.allocation(fits),
        "efficiency": plots_of_comparisons.efficiency(curves_of_sizes(table), tables["convergence"]),
        "shapes": plots_of_comparisons.shapes(tables["shapes"], claims.SHAPE_MARGIN),
    }
    if len(tables["architectures"]):
        drawn["by_position"] = plots_of_comparisons.by_position(comparisons.curves_beside(runs, table))
    if len(pairs):
        drawn["transfer"] = plots_of_comparisons.transfer(pairs)
    return drawn


CAPTIONS = {
    "one_at_a_time": "Loss by compute, by data and by size (the paper's figure 1). Left: curves of all sizes, light to "
    "dark, their least loss and its power law.",
    "size_and_data": "The paper's figure 9. Left: L(N, D) at the early stop, runs and fitted law; right: the excess "
    "over the loss of unlimited data collapses on one variable.",
    "hyperbolas": "Tokens against steps at fixed losses, nats, from runs of six batch sizes, with hyperbolas (the "
    "paper's appendix; McCandlish et al. 2018).",
    "critical_batch": "Critical batch by loss: from batch sizes with standard errors, its power law, and the gradient "
    "noise scale along runs (the paper's figure 10).",
    "size_and_steps": "Learning curves of all sizes over S_min, past their warm-up, and the one law L(N, S_min) (the "
    "paper's figures 4 and 11).",
    "allocation": "Best size, batch and steps over minimal compute, with exponents fitted, by our constants, and the "
    "paper's (figure 14); lines pass through the middle of the points.",
    "efficiency": "Left: loss over tokens by size (the paper's figure 2). Right: how far above its converged loss the "
    "best size of a budget is (figure 3 and section 6).",
    "shapes": "Loss of each shape, moved to the base's size, relative to the base (the paper's figure 5). Shaded: the "
    "margin.",
    "by_position": "Loss by position of other architectures and a Transformer of the same size at the same tokens (the "
    "paper's figure 7), means over nearby positions.",
    "transfer": "Loss on four other texts over the loss on the training text, along training (lines by size) and at "
    "the end (points); dashed: a constant offset, its value in the title (the paper's figure 8).",
}


def notes(fits: Fits, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What the numbers add."""
    table, checked, spread = tables["exponents"], tables["rates"], float(tables["seeds"].seed_spread.iloc[0])
    held = table[table.holds]
    sentences = [
        f"Of {len(table)} exponents the paper's value lies in our {LEVEL:.0%} interval for {len(held)}"
        + (f": {', '.join(f'{row.quantity} of {row.law}' for row in held.itertuples())}." if len(held) else "."),
        f"L(N, S_min) leaves {rms(fits.size_steps):.1%} (rms) of the loss of {len(fits.size_steps.runs)} checkpoints; "
        f"L(N, D) {rms(fits.size_data):.1%} of {len(fits.size_data.runs)} early stops. Seeds differ by {spread:.2%}.",
    ]
    needed = tables["data_needed"].iloc[-1]
    sentences.append(
        f"To lose {LOST:.0%} by overfitting, {needed.n_params:,.0f} parameters take {needed.data_tokens:.2g} tokens "
        f"[{needed.data_tokens_low:.2g}, {needed.data_tokens_high:.2g}] by our L(N, D); by the paper's constants "
        f"{tokens_needed(needed.n_params, LOST):.2g}."
    )
    if not len(tables["gradient_noise"]):
        source = "paper's constants" if fits.trade.constants is None else "batch sizes"
        sentences.append(f"No run has logged its gradient noise: S_min and C_min are by B_crit(L) of the {source}.")
    if len(checked):
        better = checked[checked.above < 0]
        sentences.append(
            f"Half and twice the rate of the rule change the loss by {checked.above.min():+.1%} to "
            f"{checked.above.max():+.1%}; better than the rule: {', '.join(better['run']) or 'none'}."
        )
    return sentences


STUDY = Study(
    name="kaplan",
    title="Do the scaling laws of Kaplan et al. hold for models of a thousand to three million parameters?",
    decided="2026-11-29",
    analyse=analyse,
    minutes=2,
)

if __name__ == "__main__":
    STUDY.main()
