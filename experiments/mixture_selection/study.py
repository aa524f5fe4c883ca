"""Which data mixture is best for the target model, and what does it cost to find out?

Paper: Temporal Scaling Law (Xiong et al., arXiv 2404.17785): retrieval by small models and re-ranking by forecasts on
the target model. Beside it RegMix (arXiv 2407.01492) and the data mixing law (arXiv 2403.16952) in manner.

    tsl reproduce mixture_selection        the same as: python -m experiments.mixture_selection.study

The dated plan and what came out: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from experiments.mixture_selection import plots, repetition
from experiments.mixture_selection.losses import (
    CHOICE,
    JUDGE,
    Group,
    by_domain,
    curve_table,
    group,
    runs_of_group,
    targets_of,
)
from experiments.mixture_selection.strategies import (
    AT_CUTOFF,
    CUTOFFS,
    RACE,
    SHORT_LIST,
    SMALL,
    Strategy,
    ranked,
    short_list,
    with_prefixes,
    without_target,
)
from experiments.shared import Claim, Findings, Runs, Study
from experiments.shared.tables import rounded
from tsl_jax.diagnostics import effective_context, expected_r2
from tsl_jax.fitting import fit
from tsl_jax.laws import HYPERBOLIC
from tsl_jax.selection.cross_validation import spearman
from tsl_jax.surface import position_covariance, position_noise

MAIN = "even"
HALVES, RESAMPLES, CEILING = 500, 1000, 1000
LEVEL = 0.9
PAPER = "paper's law by position"
REACH = 0.03  # nats of regret that the figure shows
ALIKE = ("boosting", "boosting of trajectories", "forecast by position")  # not drawn: they lie on others
TIED = 0.001  # nats of regret below which a choice is as good as the best


# ------------------------------------------------------------------------------------------------------- strategies


def chosen(strategy: Strategy, small: pd.Series, candidates: list[str], number: int) -> str:
    """What a strategy chooses among some mixtures, with a short list of so many."""
    return ranked(strategy, candidates, short_list(small.reindex(candidates), number))[0]


def random_halves(names: list[str]) -> list[list[str]]:
    """HALVES draws of half of the mixtures, the same for all strategies."""
    rng = np.random.default_rng(0)
    return [sorted(rng.choice(names, len(names) // 2, replace=False).tolist()) for _ in range(HALVES)]


def regrets_on_halves(strategy: Strategy, small: pd.Series, truth: pd.Series) -> np.ndarray:
    """Regret (draw,) in nats of what a strategy chooses of each half of the mixtures."""
    lost = []
    for part in random_halves(truth.index.tolist()):
        lost.append(truth[chosen(strategy, small, part, SHORT_LIST // 2)] - truth[part].min())
    return np.array(lost)


def correlation(strategy: Strategy, small: pd.Series, truth: pd.Series) -> dict[str, float]:
    """Spearman's correlation with the truth over what a strategy judges, with an interval over resampled mixtures."""
    predicted = strategy.judged(truth.index.tolist(), short_list(small, SHORT_LIST))
    names = predicted.index.to_numpy()
    if predicted.isna().all():
        return {"spearman": np.nan, "spearman_low": np.nan, "spearman_high": np.nan}
    predicted = predicted.fillna(predicted.max() + 1.0).to_numpy(float)
    known, rng = truth[names].to_numpy(float), np.random.default_rng(0)
    draws = [rng.integers(0, len(names), len(names)) for _ in range(RESAMPLES)]
    made = [spearman(predicted[k], known[k]) for k in draws if len(np.unique(k)) > 2]
    low, high = np.nanquantile(made, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"spearman": spearman(predicted, known), "spearman_low": float(low), "spearman_high": float(high)}


def judged(strategies: Iterable[Strategy], small: Group, target: Group, weights: str) -> pd.DataFrame:
    """A row a strategy: its choice, regret, ranks and cost; `halves` has its regrets on random halves of mixtures."""
    truth, ends, rows = target.ends(JUDGE, weights), small.ends(CHOICE, weights), []
    for one in strategies:
        best = chosen(one, ends, truth.index.tolist(), SHORT_LIST)
        halves = regrets_on_halves(one, ends, truth)
        row = {"target": weights, "strategy": one.name, "cutoff": one.cutoff, "chosen": best}
        row |= {"regret": float(truth[best] - truth.min()), "regret_halves": float(halves.mean())}
        row |= {"regret_halves_high": float(np.quantile(halves, 0.95)), **correlation(one, ends, truth)}
        row |= {"judged": SHORT_LIST if one.listed else len(truth)}
        row |= {"cost": one.cost(small, target, len(truth), SHORT_LIST)}
        row["cost_with_evaluations"] = one.cost(small, target, len(truth), SHORT_LIST, evaluations=True)
        rows.append({**row, "refused": int(one.predicted.isna().sum()), "halves": halves})
    table = pd.DataFrame(rows)
    by_chance = [truth[part].mean() - truth[part].min() for part in random_halves(truth.index.tolist())]
    chance = {"target": weights, "strategy": "by chance", "cutoff": 0.0, "chosen": "", "judged": len(truth)}
    chance |= {"regret": float(truth.mean() - truth.min()), "regret_halves": float(np.mean(by_chance)), "cost": 1.0}
    return pd.concat([table, pd.DataFrame([chance])], ignore_index=True).assign(seed_sd=target.seed_sd(JUDGE, weights))


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Regret of the paper's re-ranking minus that of others on the same halves of the mixtures, by cut-off."""
    own = table.dropna(subset=["halves"]).set_index(["target", "strategy", "cutoff"]).halves
    rows = []
    for (weights, name, cutoff), halves in own.items():
        others = {SMALL: 0.0, AT_CUTOFF: cutoff, "forecast of the mean": cutoff, RACE: cutoff}
        for other, at in others.items() if name == PAPER else ():
            apart = halves - own[weights, other, at]
            low, high = np.quantile(apart, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            row = {"target": weights, "cutoff": cutoff, "minus": other, "difference": float(apart.mean())}
            row |= {"difference_low": float(low), "difference_high": float(high)}
            rows.append({**row, "better": float((apart < 0).mean()), "worse": float((apart > 0).mean())})
    return pd.DataFrame(rows)


def ceiling(truth: pd.Series, sd: float) -> float:
    """Spearman of a perfect judge of expected losses with the ends of one seed: mean over draws of the noise."""
    rng, known = np.random.default_rng(0), truth.to_numpy(float)
    return float(np.mean([spearman(known, known + rng.normal(0, sd, len(known))) for _ in range(CEILING)]))


# ----------------------------------------------------------------------------------------------- mixtures and domains


def candidates(groups: Mapping[str, Group]) -> pd.DataFrame:
    """A row a mixture: its shares, the ends of its runs, and whether it is on the short list of the main target."""
    small, target = groups["proxy"], groups["target"]
    ends = small.ends(CHOICE, MAIN)
    table = target.shares.assign(small=ends, target_a=target.ends(CHOICE, MAIN), target_b=target.ends(JUDGE, MAIN))
    for other in (name for name in targets_of(target.shares) if name != MAIN):
        table[f"target_{other}"] = target.ends(JUDGE, other)
    table["listed"] = table.index.isin(short_list(ends, SHORT_LIST))
    table["seeds"] = [len(target.curves[name]) for name in table.index]
    return table.rename_axis("mixture").reset_index()


def warnings_of_the_field(groups: Mapping[str, Group]) -> pd.DataFrame:
    """Orders by small models with another tokenizer, and at the target on little text, beside the plain ones."""
    small, target, rows = groups["proxy"], groups["target"], []
    for weights in targets_of(target.shares):
        truth, ends = target.ends(JUDGE, weights), small.ends(CHOICE, weights, ("0",))
        ways = {"small models": (ends, truth)}
        if "code" in groups:
            ways["small models, a tokenizer of code"] = (groups["code"].ends(CHOICE, weights), truth)
        if "limited" in groups:
            little = groups["limited"].ends(JUDGE, weights)
            some = little.index
            ways |= {
                f"small models, {len(some)} mixtures": (ends[some], truth[some]),
                f"small models, target on little text, {len(some)} mixtures": (ends[some], little),
                f"target on all text, target on little text, {len(some)} mixtures": (truth[some], little),
            }
        for name, (order, known) in ways.items():
            best = order.idxmin()
            row = {"target": weights, "order_by": name, "spearman": spearman(order[known.index], known)}
            rows.append({**row, "chosen": best, "best": known.idxmin(), "regret": float(known[best] - known.min())})
    return pd.DataFrame(rows)


def position_laws(surfaces: Mapping[str, xr.Dataset]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The hyperbola by domain at the last checkpoint of target models: a row a run and domain; curves of the first."""
    rows, curves = [], {}
    for name, surface in surfaces.items():
        last = by_domain(surface.isel(tokens=[-1]))
        made, sigma = fit(HYPERBOLIC, last.loss, over="position"), position_covariance(last)
        expected = expected_r2(made, last.loss, position_noise(last))
        used = effective_context(made, sigma, clusters=last.sizes["cluster"])
        for domain in last.split.values.tolist():
            at = {"split": domain, "tokens": last.tokens.values[0]}
            row = {"run": name, "domain": domain, "r2": float(made.r2.sel(at)), "status": int(made.status.sel(at))}
            row |= {f"r2_expected{end}": float(expected[key].sel(at)) for end, key in R2}
            row |= {param: float(made.params.sel(at).sel(param=param)) for param in HYPERBOLIC.params}
            rows.append(row | {f"i90{end}": float(used[key].sel(at)) for end, key in I90})
            if name == next(iter(surfaces)):
                fitted = made.predict().sel(at).values
                curves[domain] = last.position.values.astype(float), last.loss.sel(at).values, fitted
    return pd.DataFrame(rows), curves


R2 = (("", "mean"), ("_low", "low"), ("_high", "high"))
I90 = (("", "i90"), ("_low", "low"), ("_high", "high"))


# ---------------------------------------------------------------------------------------------------- the conclusions


def claims(table: pd.DataFrame, apart: pd.DataFrame) -> list[Claim]:
    """Against the paper, and against what public data say of simpler ways; of the main target.

    Args:
        table: of `judged`. apart: of `differences`.
    """
    own = table[table.target == MAIN]
    noise = float(own.seed_sd.iloc[0])
    paper = own[own.strategy == PAPER].set_index("cutoff")
    last = paper.loc[CUTOFFS[-1]]
    names = ("strategy", "cutoff", "chosen", "regret", "regret_halves", "spearman", "cost")
    refused = (
        f"The law refused {last.refused:.0f} of {own.judged.max():.0f} mixtures, which rank last; with seeds so far "
        "apart any of the better mixtures would fulfil the rule. Look at the regret over halves."
    )
    made = [
        Claim(
            "Retrieval by small models and re-ranking by the temporal law finds the best mixture",
            "yes, mostly (468M and 1.2B models)",
            f"regret {last.regret:.4f} nats from 40 %, seeds differ by {noise:.4f}",
            "agrees" if last.regret <= 2 * noise else "differs",
            refused if last.refused else "",
            numbers=rounded(own[own.strategy == PAPER], *names),
        )
    ]
    for sentence, other in (
        ("Re-ranking by the temporal law is better than the small model's winner", SMALL),
        ("Re-ranking by the temporal law is better than ranking by the loss at the cut-off", AT_CUTOFF),
    ):
        pairs = apart[(apart.target == MAIN) & (apart.minus == other)]
        below, above = bool((pairs.difference_high < 0).any()), bool((pairs.difference_low > 0).any())
        verdict = "agrees" if below and not above else "differs" if above and not below else "undecided"
        ours = ", ".join(f"{row.difference:+.4f} from {row.cutoff:.0%}" for row in pairs.itertuples())
        shown = rounded(pairs, "minus", "cutoff", "difference", "difference_low", "difference_high", "better", "worse")
        made.append(Claim(sentence, "yes", f"mean regret: {ours}", verdict, numbers=shown))
    bar = own[(own.strategy == SMALL) | ((own.strategy == f"{AT_CUTOFF}, all mixtures") & (own.cutoff == CUTOFFS[0]))]
    best = own[own.strategy.str.startswith(RACE)].sort_values("regret_halves").iloc[0]
    tied = bool((best.regret_halves <= bar.regret_halves + TIED).all() and (best.cost <= bar.cost).all())
    made.append(
        Claim(
            "tsl select beats or ties the loss at 10 % of the run and the small models, at less cost",
            "not asked; on public tables the loss at 10 % has Spearman .71 to .94, a small proxy .97",
            f"{best.strategy}: regret {best.regret_halves:.4f} at a cost of {best.cost:.1f} full runs",
            "agrees" if tied else "differs",
            numbers=rounded(pd.concat([bar, best.to_frame().T]), *names),
        )
    )
    return made


def notes(table: pd.DataFrame, target: Group, noise: float, best_correlation: float) -> list[str]:
    """What a reader must know beside the verdicts."""
    truth = target.ends(JUDGE, MAIN)
    near = int((truth - truth.min() < 2 * noise).sum())
    refused = table[(table.refused > 0)] if "refused" in table else table.iloc[:0]
    said = [
        f"Seeds of one mixture differ by {noise:.4f} nats (standard deviation); {near} of {len(truth)} mixtures end "
        "within twice that of the best.",
        f"One seed against the expected loss: Spearman {best_correlation:.3f} (noise ceiling).",
        "Regressions read the small models of all mixtures, and all prefixes where all are trained; for the halves of "
        "the mixtures only the choice is made anew, and for a short list the regression with its prefixes.",
        "The unit of cost is one full run of the target model; training all costs as many as there are mixtures.",
    ]
    if len(refused):
        where = ", ".join(sorted({f"{row.strategy} from {row.cutoff:.0%}" for row in refused.itertuples()}))
        said.append(f"Forecasts that a law refused rank last: {where}.")
    if not table.strategy.str.startswith("boosting").any():
        said.append("scikit-learn was not installed: no gradient boosting.")
    return said


def analyse(runs: Runs) -> Findings:
    """All tables, claims and figures."""
    present = {name.split("-")[1] for name in runs.surfaces}
    groups = {name: group(runs, name) for name in ("proxy", "code", "target", "limited") if name in present}
    small, target = groups["proxy"], groups["target"]
    parts = []
    for weights in targets_of(target.shares):
        strategies = [*without_target(small, target, weights), *with_prefixes(small, target, weights)]
        parts.append(judged(strategies, small, target, weights))
        print(f"judged: {weights}", flush=True)
    table = pd.concat(parts, ignore_index=True)
    apart, of_mixtures = differences(table), candidates(groups)
    noise = target.seed_sd(JUDGE, MAIN)
    of_target = runs_of_group(runs, "target")
    whole = {n: s for n, s in of_target.items() if n.endswith("@0") and s.sizes["position"] > 1}
    laws, curves = position_laws(whole) if whole else (pd.DataFrame(), {})
    table = table.drop(columns="halves")
    shown = table[table.target == MAIN]
    inside = shown[(shown.strategy != "by chance") & (shown.regret_halves <= REACH) & ~shown.strategy.isin(ALIKE)]
    beyond = sorted(set(shown.strategy[shown.regret_halves > REACH]) - {"by chance"})
    drawn = {
        "ranks": plots.ranks(of_mixtures),
        "regret": plots.regret_against_cost(inside, noise),
    }
    captions = {
        "ranks": "Each dot is a mixture: the end of the target model against that of its small models (both seeds).",
        "regret": "Mean regret over random halves of the mixtures against cost, cut-offs of 10, 25 and 40 % along a "
        f"line; dotted: the standard deviation of seeds. Beyond the axis: {', '.join(beyond) or 'none'}.",
    }
    if curves:
        drawn["by_domain"] = plots.by_domain(curves)
        captions["by_domain"] = f"{next(iter(whole))}: loss by position of each domain at the end, and its hyperbola."
    tables = {"strategies": table, "differences": apart, "candidates": of_mixtures}
    tables |= {"warnings": warnings_of_the_field(groups)} | ({"by_domain": laws} if len(laws) else {})
    if "limited" in groups:
        one = next(iter(runs_of_group(runs, "limited")))  # all have the same little text
        available = {domain: count["train"] for domain, count in runs.manifests[one]["corpus"]["tokens"].items()}
        some = [repetition.predicted(groups, available, weights) for weights in targets_of(target.shares)]
        tables["repetition"] = pd.concat(some, ignore_index=True)
    tables["curves"] = curve_table({name: groups[name] for name in ("proxy", "target")})
    said = notes(shown, target, noise, ceiling(target.ends(JUDGE, MAIN), noise))
    return Findings(tables, claims(table, apart), said, drawn, captions)


STUDY = Study(
    name="mixture_selection",
    title="Which data mixture is best for the target model, and what does it cost to find out?",
    decided="2026-11-29",
    analyse=analyse,
    minutes=12,
)

if __name__ == "__main__":
    STUDY.main()
