"""Ways to choose a mixture for the target model: what each predicts, of which candidates, and what it costs.

All see half a of the documents. A prediction is a loss or anything that ranks as one, lower is better; NaN ranks last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd

import tsl_jax as tsl
from experiments.mixture_selection.losses import CHOICE, Group, weighted, weights_of
from experiments.selection_simulations.calibration import boosting
from tsl_jax.forecasting import lr_history
from tsl_jax.forecasting.forecast_run import after_warmup
from tsl_jax.selection import choose
from tsl_jax.selection.candidate_runs import Runs as CandidateRuns
from tsl_jax.selection.candidate_runs import runs_of_rows
from tsl_jax.selection.cross_validation import linear, mixing_law
from tsl_jax.selection.mixture_regression import MixturePoints

CUTOFFS, SHORT_LIST = (0.1, 0.25, 0.4), 6  # of 16 checkpoints 9, 10 and 11 are seen
FORECASTS = {
    "forecast of the mean": "mean_annealing",
    "paper's law by position": "paper",
    "forecast by position": "annealing",
}
AT_CUTOFF, RACE = "loss at the cut-off", "tsl select"
SMALL, ONE_SEED = "small model's winner", "small model's winner, one seed"


@dataclass(frozen=True)
class Strategy:
    """A way to choose.

    Attributes:
        name, cutoff: share of the target runs that it sees, 0: none. listed: whether it sees the short list alone.
        predicted: mixture -> loss, by which all are ranked. small_seeds: small runs of each mixture that it needs.
        of_list: the same from the target runs of a short list; None where what is predicted of a mixture comes from its
            own runs alone.
    """

    name: str
    cutoff: float
    listed: bool
    predicted: pd.Series
    small_seeds: int = 2
    of_list: Callable[[tuple[str, ...]], pd.Series] | None = None

    def judged(self, candidates: list[str], listed: list[str]) -> pd.Series:
        """What is predicted of the mixtures that it judges: the candidates, or the short list of these."""
        if self.of_list is not None:
            return self.of_list(tuple(sorted(listed))).reindex(listed)
        return self.predicted.reindex(listed if self.listed else candidates)

    def cost(self, small: Group, target: Group, candidates: int, short_list: int, evaluations: bool = False) -> float:
        """FLOPs in full runs of the target: small runs, prefixes, and the rest of the chosen one."""
        one = target.flops(evaluations=evaluations)
        spent = candidates * self.small_seeds * small.flops(evaluations=evaluations) / one
        run = short_list if self.listed else candidates
        return spent + run * self.cutoff + (1 - self.cutoff)


def without_target(small: Group, target: Group, weights: str) -> Iterator[Strategy]:
    """Strategies that see the small models alone."""
    yield Strategy(SMALL, 0.0, False, small.ends(CHOICE, weights))
    yield Strategy(ONE_SEED, 0.0, False, small.ends(CHOICE, weights, ("0",)), 1)
    choice = choose(runs_of(small, target, weights), n_params=target.facts["n_params"], tokens=target.facts["tokens"])
    yield Strategy("tsl select, small models", 0.0, False, choice.table.set_index("candidate").loss)
    points, y = _points(small, weights)
    at = _points(small, weights, ends_only=True)[0]
    ways: dict[str, Callable] = {"linear regression": linear, "boosting": boosting}
    last = points.log_tokens == points.log_tokens.max()
    law = sum(weight * _mixing_law(small, domain) for domain, weight in weights_of(weights, small.shares).items())
    yield Strategy("data mixing law", 0.0, False, law)
    for name, way in ways.items():
        made = way(points.take(last), y[last], at)
        if made is not None:
            yield Strategy(name, 0.0, False, pd.Series(np.exp(made), small.names))
    made = _boosting_of_trajectories(points, y, at)
    if made is not None:
        yield Strategy("boosting of trajectories", 0.0, False, pd.Series(np.exp(made), small.names))


def with_prefixes(small: Group, target: Group, weights: str) -> Iterator[Strategy]:
    """Strategies that train the target model to a cut-off: of the short list, and of all."""
    surface = target.prefix(CHOICE, weights)
    end = float(surface.tokens[-1])
    for cutoff in CUTOFFS:
        past = surface.sel(tokens=surface.tokens <= cutoff * end)
        predictions = {AT_CUTOFF: past.loss.isel(tokens=-1).mean("position").to_series()}
        learned = after_warmup(past, lr_history.schedule_of(surface))
        for name, method in FORECASTS.items():
            made = tsl.forecast(learned, end, method=method).mean.isel(tokens=-1)
            predictions[name] = made.to_series()
        for name, predicted in predictions.items():
            yield Strategy(name, cutoff, True, predicted)
            if name in (AT_CUTOFF, "forecast of the mean"):
                yield Strategy(f"{name}, all mixtures", cutoff, False, predicted, small_seeds=0)
        joined = cache(partial(_selected, small, target, weights, cutoff))
        everything = joined(tuple(target.names))
        yield Strategy(RACE, cutoff, True, everything, of_list=joined)
        yield Strategy(f"{RACE}, all mixtures", cutoff, False, everything)


def short_list(small_ends: pd.Series, number: int) -> list[str]:
    """The mixtures whose small models end lowest."""
    return small_ends.sort_values(kind="stable").index[:number].tolist()


def ranked(strategy: Strategy, candidates: list[str], listed: list[str]) -> list[str]:
    """The candidates that a strategy judges, the best first; where it predicts none, in the order of the list."""
    judged = strategy.judged(candidates, listed)
    return judged.sort_values(kind="stable", na_position="last").index.tolist()


def _selected(small: Group, target: Group, weights: str, cutoff: float, seen: tuple[str, ...]) -> pd.Series:
    """What `tsl select` predicts of all mixtures from small runs and from target runs of some, up to a cut-off."""
    choice = choose(runs_of(small, target, weights, seen), cutoff=cutoff)
    return choice.table.set_index("candidate").loss


def runs_of(small: Group, target: Group, weights: str, seen: Iterable[str] = ()) -> CandidateRuns:
    """Small runs, and those of seed 0 of the target of some mixtures, as `tsl select` reads a table of them."""
    of_target = {mixture: {"0": target.curves[mixture]["0"]} for mixture in seen}
    rows, shares = [], []
    for name, group, curves in (("small", small, small.curves), ("target", target, of_target)):
        plan = json.dumps(group.schedule)
        for mixture, of_seeds in curves.items():
            for seed, curve in of_seeds.items():
                losses = weighted(curve, CHOICE, weights).mean("position")
                facts = {"n_params": group.facts["n_params"], "planned": group.facts["tokens"]}
                facts |= {"run": f"{name} {mixture}@{seed}", "candidate": mixture, "schedule": plan}
                for tokens, loss in zip(losses.tokens.values.tolist(), losses.values.tolist(), strict=True):
                    rows.append({**facts, "tokens": float(tokens), "loss": loss})
                    shares.append(group.shares.loc[mixture])
    table = pd.DataFrame(shares).reset_index(drop=True)
    return runs_of_rows(pd.DataFrame(rows), table, {}, True, [])


def _mixing_law(small: Group, domain: str) -> pd.Series:
    """The loss on one domain by the data mixing law, which has its own numbers for each domain."""
    points, _ = _points(small, "even", ends_only=True)
    ends = [
        np.mean([float(c.sel(half=CHOICE, split=domain).isel(tokens=-1).mean("position")) for c in of_seeds.values()])
        for of_seeds in small.curves.values()
    ]
    return pd.Series(np.exp(mixing_law(points, np.log(ends), points)), small.names)


def _points(small: Group, weights: str, ends_only: bool = False) -> tuple[MixturePoints, np.ndarray]:
    """Mean over seeds of the small runs' curves past the warm-up as points of a regression, and their log losses."""
    surface = small.prefix(CHOICE, weights)
    surface = after_warmup(surface, lr_history.schedule_of(surface))
    shares, tokens, y = [], [], []
    for mixture, of_seeds in small.curves.items():
        losses = np.mean([weighted(c, CHOICE, weights).mean("position") for c in of_seeds.values()], axis=0)
        whole = np.log(losses[-surface.sizes["tokens"] :])
        for t, value in list(zip(surface.tokens.values, whole, strict=True))[-1 if ends_only else 0 :]:
            shares.append(small.shares.loc[mixture].to_numpy(float))
            tokens.append(np.log(float(t)))
            y.append(value)
    size = np.full(len(y), np.log(small.facts["n_params"]))
    return MixturePoints(np.array(shares), np.arange(len(y)), size, np.array(tokens)), np.array(y)


def _boosting_of_trajectories(points: MixturePoints, y: np.ndarray, at: MixturePoints) -> np.ndarray | None:
    """Gradient boosting over shares and log tokens of all checkpoints; None without scikit-learn."""
    moved = [MixturePoints(p.shares, p.candidate, p.log_tokens, p.log_tokens) for p in (points, at)]
    return boosting(moved[0], y, moved[1])
