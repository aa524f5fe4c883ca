"""The conclusions of the study, by the rules of its plan: what Kaplan et al. say, what came out, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from experiments.shared import Claim
from experiments.shared.paired_differences import DIFFERENT, EQUIVALENT
from experiments.shared.seeds_and_intervals import interval
from experiments.shared.tables import rounded
from tsl_jax.laws import KAPLAN_ND

SHAPE_MARGIN = 0.03
RMS, RMS_FAR = 0.02, 0.04
RANK, RANK_FAR, RATIO = 0.9, 0.7, 0.74
ENDS, ENDS_FAR = 0.03, 0.06
CONVERGED = 0.02
NOISE, NOISE_FAR = 3.0, 10.0
PAPER = "Kaplan et al. 2020"


def verdict(agrees: bool, differs: bool) -> str:
    """agrees, differs, or undecided where neither rule is met."""
    return "agrees" if agrees else "differs" if differs else "undecided"


def all_claims(tables: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """The eight conclusions of the paper's summary, then allocation and architectures; of the tables alone."""
    noise_of_seeds = float(tables["seeds"].seed_spread.iloc[0])
    eight = [
        shape(tables["shapes"], noise_of_seeds),
        power_laws(tables["laws"]),
        overfitting(tables["overfitting"], tables["exponents"]),
        training_curves(tables["curve_ends"]),
        transfer(tables["transfer"]),
        sample_efficiency(tables["sample_efficiency"]),
        convergence(tables.get("convergence", pd.DataFrame())),
        batch(tables["batch"], tables["exponents"]),
    ]
    others = architectures(tables["architectures"], noise_of_seeds) if "architectures" in tables else []
    return [*eight, allocation(tables["allocation"]), *others]


def shape(shapes: pd.DataFrame, noise_of_seeds: float) -> Claim:
    """Losses of all shapes at the base's size."""
    worst = shapes.loc[shapes.above.abs().idxmax()]
    beyond = shapes[shapes.above.abs() > SHAPE_MARGIN + 2 * np.nan_to_num(noise_of_seeds)]
    return Claim(
        "Performance depends strongly on scale, weakly on model shape",
        "shapes of one size lie within a few percent (figure 5)",
        f"{len(shapes)} shapes of {shapes.n_params.iloc[0]:,.0f} parameters from {shapes.above.min():+.1%} to "
        f"{shapes.above.max():+.1%} of the base's loss, margin {SHAPE_MARGIN:.0%}; most apart: {worst.shape_name}",
        verdict(bool((shapes.above.abs() <= SHAPE_MARGIN).all()), len(beyond) > 0),
        f"Spread of seeds {noise_of_seeds:.1%}; each shape at the rate of its width, not at its best one.",
        rounded(shapes, "shape_name", "n_params", "loss", "above"),
    )


def power_laws(laws: pd.DataFrame) -> Claim:
    """L(N), L(D), L(C)."""
    three = laws[laws.law.isin(("kaplan_n", "kaplan_d", "kaplan_c"))]
    words = ", ".join(f"{row.exponent_name} {row.exponent:.3f} [{row.exponent_low:.3f}, {row.exponent_high:.3f}] with "
                      f"rms {row.rms:.1%}" for row in three.itertuples())  # fmt: skip
    return Claim(
        "Loss is a power law of each of size, data and compute, the others not limiting",
        "alpha_N .076, alpha_D .095, alpha_C .057 (figures 1 and 13)",
        words,
        verdict(bool((three.rms <= RMS).all() and (three.exponent_low > 0).all()), bool((three.rms > RMS_FAR).any())),
        "Ranges are of two to four orders of magnitude where the paper has six and more; the largest size ends before "
        "it has converged, and text, tokenizer and context are others.",
        rounded(three, "law", "exponent", "exponent_low", "exponent_high", "paper", "rms", "points"),
    )


def overfitting(cells: pd.DataFrame, exponents: pd.DataFrame) -> Claim:
    """The rank correlation of the excess with N^.74/D, and the ratio of exponents."""
    rank = float(stats.spearmanr(cells.above, cells.n_params**RATIO / cells.data_tokens).statistic)
    ratio = exponents[exponents.law == KAPLAN_ND.name].set_index("quantity").loc["alpha_N/alpha_D"]
    holds = bool(ratio.value_low <= RATIO <= ratio.value_high)
    return Claim(
        "Overfitting depends on N^.74/D alone",
        "alpha_N/alpha_D = .74: eight times the size needs five times the data (figure 9)",
        f"rank correlation {rank:.2f} over {len(cells)} cells, excess up to {cells.above.max():.0%}; alpha_N/alpha_D "
        f"{ratio.value:.2f} [{ratio.value_low:.2f}, {ratio.value_high:.2f}]",
        verdict(rank >= RANK and holds, rank < RANK_FAR or bool(np.isfinite(ratio.value_low) and not holds)),
        "Early stopping; runs of one length, so that the largest data sets are read few times.",
        rounded(cells, "n_params", "data_tokens", "loss", "above"),
    )


def training_curves(curve_ends: pd.DataFrame) -> Claim:
    """Ends of the curves from their first halves."""
    error = float(curve_ends.error.abs().mean())
    return Claim(
        "Training curves follow power laws whose parameters hardly depend on the size",
        "L(N, S_min) fits all curves after their warm-up; the early part predicts the rest (figure 4)",
        f"from the first half of every curve the ends are predicted within {error:.1%} on average, "
        f"{curve_ends.error.abs().max():.1%} at most",
        verdict(error <= ENDS, error > ENDS_FAR),
        "Rates are constant here: no decay bends the curves.",
        rounded(curve_ends, "n_params", "observed", "predicted", "error"),
    )


def transfer(texts: pd.DataFrame) -> Claim:
    """Equivalence of offsets of two phases at one loss, for each text."""
    words = ", ".join(f"{row.text} {row.phase_difference:+.3f}" for row in texts.itertuples())
    return Claim(
        "On other text the loss is at a constant offset, whatever the phase of training",
        "transfer depends on the loss on the training text alone (figure 8)",
        f"offset of the larger size in mid-training minus that of the smaller at its end, nats: {words}; slopes of the "
        f"other loss on the loss on id {texts.slope.min():.2f} to {texts.slope.max():.2f}",
        verdict(bool((texts.equivalence == EQUIVALENT).all()), bool((texts.equivalence == DIFFERENT).any())),
        "A slope other than 1 is no constant offset even where the phase does not matter.",
        rounded(
            texts,
            "text",
            "offset",
            "phase_difference",
            "phase_difference_low",
            "phase_difference_high",
            "equivalence",
            "slope",
        ),
    )


def sample_efficiency(pairs: pd.DataFrame) -> Claim:
    """Tokens to the same losses, larger over smaller size."""
    by_pair = pairs.assign(log=np.log(pairs.ratio)).groupby(["n_params", "n_params_larger"]).log.mean()
    mean = interval(by_pair, 0.9)
    factor, low, high = np.exp([mean.mean, mean.low, mean.high])
    table = np.exp(by_pair).rename("ratio").reset_index()
    return Claim(
        "Larger models reach a loss with fewer tokens and fewer steps",
        "the larger the model, the fewer (figure 2)",
        f"the next larger size takes {factor:.2f} [{low:.2f}, {high:.2f}] of the tokens, over {len(table)} neighbours",
        verdict(bool(high < 1), bool(low > 1)),
        "",
        rounded(table, "n_params", "n_params_larger", "ratio"),
    )


def convergence(optima: pd.DataFrame) -> Claim:
    """How far from converged the best size is."""
    middle = (
        optima.iloc[int(np.argsort(optima.above_convergence.to_numpy())[(len(optima) - 1) // 2])]
        if len(optima)
        else None
    )
    if middle is None:
        return Claim(
            "Training to convergence is inefficient", "stop about 10 % above the converged loss (figure 3, section 6)",
            "no budget has its best size among those tried", "out of reach",
        )  # fmt: skip
    return Claim(
        "Training to convergence is inefficient: the best use of compute is a larger model that stops early",
        "stop about 10 % above the converged loss, alpha_N/alpha_S (figure 3, section 6)",
        f"the best size of a budget is {middle.above_convergence:.0%} [{middle.above_convergence_low:.0%}, "
        f"{middle.above_convergence_high:.0%}] above its converged loss (median of {len(optima)} budgets)",
        verdict(bool(middle.above_convergence_low > CONVERGED), bool(middle.above_convergence_high < CONVERGED)),
        "The converged loss is that of the fitted L(N, S_min) at infinite steps: an extrapolation.",
        rounded(optima.iloc[:: max(1, len(optima) // 6)], "pf_days_min", "n_params", "loss", "above_convergence"),
    )


def batch(trades: pd.DataFrame, exponents: pd.DataFrame) -> Claim:
    """The exponent of B_crit(L), and the noise scale beside it."""
    power = exponents[exponents.law == "critical_batch"].set_index("quantity").loc["1/alpha_B"]
    known = trades.dropna(subset=["noise_scale"])
    factor = float(np.exp(np.log(known.noise_scale / known.b_crit).mean())) if len(known) else np.nan
    apart = max(factor, 1 / factor) if np.isfinite(factor) else np.nan
    return Claim(
        "The critical batch is a power of the loss, and the gradient noise scale estimates it",
        "B_crit = 2e8 tokens/L^4.8 (figure 10)",
        f"1/alpha_B {power.value:.1f} [{power.value_low:.1f}, {power.value_high:.1f}]; B_crit "
        f"{trades.b_crit.min():,.0f} to {trades.b_crit.max():,.0f} tokens; the noise scale is {factor:.2g} times that",
        verdict(bool(power.value_low > 0 and apart <= NOISE), bool(power.value_high < 0 or apart > NOISE_FAR)),
        "One model; the rate of each batch by the root of its size, not at its best.",
        rounded(trades, "loss", "s_min", "e_min", "b_crit", "noise_scale"),
    )


def allocation(quantities: pd.DataFrame) -> Claim:
    """Where more compute goes."""
    rows = quantities.set_index("quantity")
    size = rows.loc["n_params"]
    words = ", ".join(
        f"{name} {rows.loc[key, 'fitted']:.2f} [{rows.loc[key, 'fitted_low']:.2f}, {rows.loc[key, 'fitted_high']:.2f}] "
        f"(by constants {rows.loc[key, 'from_constants']:.2f})"
        for key, name in (("n_params", "N"), ("batch_tokens", "B"), ("steps", "S"))
    )
    return Claim(
        "More compute goes mostly into size, little into steps",
        "N .73, B .24, S .03 fitted (figure 14); .68, .25, .07 by the constants",
        words,
        verdict(bool(size.fitted_low > 0.5), bool(size.fitted_high < 0.5)),
        f"Intervals are of the {size.usable_resamples:.0%} of the resamples whose best size lies between others at "
        "three budgets or more. Later work (Hoffmann et al. 2022) found .5.",
        rounded(quantities, *quantities.columns),
    )


def architectures(pairs: pd.DataFrame, noise_of_seeds: float) -> list[Claim]:
    """LSTMs by position, and Universal Transformers, beside Transformers of the same size."""
    conclusions, noise = [], 2 * np.nan_to_num(noise_of_seeds)
    lstm, universal = (pairs[pairs.architecture == name] for name in ("lstm", "universal"))
    if len(lstm):
        far = noise * lstm.loss
        behind = bool((lstm.early_difference > far).all())
        conclusions.append(
            Claim(
                "LSTMs keep up with Transformers at early positions and fall behind at late ones",
                "match early, behind late (figure 7)",
                "LSTM minus Transformer, nats: "
                + "; ".join(
                    f"{r.n_params:,.0f} parameters {r.early_difference:+.3f} early, {r.late_difference:+.3f} late"
                    for r in lstm.itertuples()
                ),
                verdict(bool((lstm.late_minus_early > far).all()), bool((lstm.late_minus_early < -far).all())),
                "Early: positions 1 to 4; late: the later half."
                + (" The rule asks for a gap that grows; here LSTMs are behind early too." if behind else ""),
                rounded(
                    lstm, "n_params", "loss", "transformer", "early_difference", "late_difference", "late_minus_early"
                ),
            )
        )
    if len(universal):
        far = noise * universal.loss
        conclusions.append(
            Claim(
                "Recurrent (Universal) Transformers are slightly better at the same number of parameters",
                "slightly better per parameter, worse per compute (figure 17)",
                "Universal minus Transformer, nats: "
                + "; ".join(f"{r.n_params:,.0f} parameters {r.mean_difference:+.3f}" for r in universal.itertuples()),
                verdict(bool((universal.mean_difference < far).all()), bool((universal.mean_difference > far).any())),
                "A few passes of one block, at the same tokens: more compute for each parameter.",
                rounded(universal, "n_params", "loss", "transformer", "mean_difference"),
            )
        )
    return conclusions
