"""What is forecast from what: the protocols, fixed before any run of the locked test set was looked at.

    alone           every run with enough checkpoints, from 10, 20, 30 and 40 % of its tokens: every method, and by
                    position the controls
    fit_three       multipower: nothing of the run is seen, three short runs of its model are; judged over all of it
    three_siblings  multipower: cosine_72000 from 10 to 40 %, beside the same three
    ladder          olmo_ladder: runs of 5 and 10 times the Chinchilla tokens from 20 %, beside shorter and smaller runs
    cooldown        gemstones: the end of a cool-down from the curve at constant rate, beside cool-downs of other models
    cooldown_alone  the same without the other models: every method
    earlier_seeds   pool: a small run from 10 to 40 %, beside the runs of seeds 0 and 1 under all three schedules
    other_schedules the same beside those two seeds of the two schedules that are not its own

Siblings of `ladder`: the 3 longest shorter runs of the same size, then of smaller sizes the longest, in turns from the
nearest size, up to 8 in all; re-runs are left out. Siblings of `cooldown`: of the 6 development models nearest in size,
never the model itself, the run that cools down nearest to the same tokens. Both were written down beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import ceil, log
from typing import Any

import numpy as np
import xarray as xr

from experiments.forecast_evidence import controls
from experiments.forecast_evidence.curves import DEVELOPMENT, Curve
from tsl_jax.forecasting import METHODS, baselines, extrapolation, lr_aware, lr_history

CUTOFFS = (0.1, 0.2, 0.3, 0.4)
THREE = ("cosine_24000", "constant_24000", "wsdcon_9")
LADDER_CUTOFF, LONG, SAME_SIZE, AT_MOST = 0.2, (5, 10), 3, 8
ENDS, OTHER_MODELS = (0.2, 0.5, 1.0), 6  # which of a model's cool-downs, as shares of their number
COOLDOWN = "gemstones/cooldown"
PAPER = tuple(name for name, info in METHODS.items() if info.family == "position")
LR_AWARE = tuple(info.implementation for info in METHODS.values() if info.family == "lr_aware")
EARLIER = ("", "1")  # seeds, as they stand in the names of runs
MEAN = tuple(method for method in LR_AWARE if method.through is lr_aware.of_mean)


@dataclass(frozen=True)
class Case:
    """One forecast to be made by several methods.

    Attributes:
        cutoff: share of the target's tokens that is seen, as the table tells it. seen: tokens of it.
    """

    protocol: str
    target: Curve
    cutoff: float
    seen: float
    methods: tuple[Any, ...]
    siblings: tuple[Curve, ...] = ()

    @property
    def past(self) -> xr.Dataset:
        return self.target.surface.sel(tokens=self.target.surface.tokens <= self.seen)

    @property
    def future(self) -> xr.Dataset:
        return self.target.surface.sel(tokens=self.target.surface.tokens > self.seen)


def name_of(method: Any) -> str:
    """As a table has it."""
    return method if isinstance(method, str) else method.name


def cases(curves: Sequence[Curve], part: str) -> list[Case]:
    """All cases whose target belongs to a part; siblings may come from any curve given."""
    makers = (_alone, _fit_three, _three_siblings, _ladder, _cooldown, _seeds)
    return [case for make in makers for case in make(curves) if case.target.part == part]


def _total(target: Curve) -> float:
    return float(target.surface.tokens[-1])


def _alone(curves: Sequence[Curve]) -> Iterator[Case]:
    for target in curves:
        by_position = target.surface.sizes["position"] > 1
        methods = (*LR_AWARE, *controls.ALL, *PAPER) if by_position else MEAN
        methods += baselines.ALL
        for cutoff in CUTOFFS if target.data != COOLDOWN else ():
            case = Case("alone", target, cutoff, cutoff * _total(target), methods)
            if _enough(case):
                yield case


def _enough(case: Case) -> bool:
    """Whether each split has as many checkpoints before the cut-off as the laws need, and two after it."""
    past, future = case.past, case.future
    if not past.sizes["tokens"] or future.sizes["tokens"] < 2:
        return False
    plan = lr_history.schedule_of(past)
    runs = [lr_aware.mean_runs(past.sel(split=split), plan, ())[0] for split in past.split.values]
    return all(extrapolation.usable(run).sum() >= extrapolation.FEWEST for run in runs)


def _with_three(curves: Sequence[Curve]) -> Iterator[tuple[Curve, tuple[Curve, ...]]]:
    """Each multipower run beside the three of its model, where these are there."""
    for target in curves:
        same = {curve.run: curve for curve in curves if curve.data == target.data}
        if target.data.startswith("multipower/") and target.run not in THREE and set(THREE) <= set(same):
            yield target, tuple(same[run] for run in THREE)


def _fit_three(curves: Sequence[Curve]) -> Iterator[Case]:
    for target, three in _with_three(curves):
        yield Case("fit_three", target, 0.0, 0.0, MEAN, three)


def _three_siblings(curves: Sequence[Curve]) -> Iterator[Case]:
    for target, three in _with_three(curves):
        for cutoff in CUTOFFS if target.run == "cosine_72000" else ():
            yield Case("three_siblings", target, cutoff, cutoff * _total(target), MEAN, three)


def _ladder(curves: Sequence[Curve]) -> Iterator[Case]:
    runs = [curve for curve in curves if curve.data == "olmo_ladder" and not curve.run.endswith("rerun")]
    for target in runs:
        siblings = _shorter_and_smaller(target, runs)
        if float(target.run.split("-")[1]) in LONG and siblings:
            yield Case("ladder", target, LADDER_CUTOFF, LADDER_CUTOFF * _total(target), MEAN, siblings)


def _shorter_and_smaller(target: Curve, runs: Sequence[Curve]) -> tuple[Curve, ...]:
    longest_first = sorted(runs, key=_total, reverse=True)
    same = [curve for curve in longest_first if curve.n_params == target.n_params and _total(curve) < _total(target)]
    sizes = sorted({curve.n_params for curve in runs if curve.n_params < target.n_params}, reverse=True)
    turns = zip_longest(*([curve for curve in longest_first if curve.n_params == size] for size in sizes))
    smaller = [curve for turn in turns for curve in turn if curve is not None]
    same = same[:SAME_SIZE]
    return tuple(same + smaller[: AT_MOST - len(same)])


def _model(target: Curve) -> str:
    return target.run.split("@")[0]


def _cooldown(curves: Sequence[Curve]) -> Iterator[Case]:
    ends: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve.data == COOLDOWN:
            ends.setdefault(_model(curve), []).append(curve)
    for model, own in ends.items():
        own = sorted(own, key=_total)
        for place in sorted({ceil(share * len(own)) - 1 for share in ENDS}):
            target, seen = own[place], float(own[place].surface.tokens[-2])
            others = _other_models(target, {name: runs for name, runs in ends.items() if name != model})
            cutoff = round(seen / _total(target), 3)
            if others:
                yield Case("cooldown", target, cutoff, seen, MEAN, others)
            yield Case("cooldown_alone", target, cutoff, seen, (*MEAN, *baselines.ALL))


def _other_models(target: Curve, ends: dict[str, list[Curve]]) -> tuple[Curve, ...]:
    allowed = [runs for runs in ends.values() if runs[0].part == DEVELOPMENT]
    nearest = sorted(allowed, key=lambda runs: abs(log(runs[0].n_params / target.n_params)))[:OTHER_MODELS]
    return tuple(min(runs, key=lambda curve: abs(_total(curve) - _total(target))) for runs in nearest)


def _seeds(curves: Sequence[Curve]) -> Iterator[Case]:
    small = {curve.run: curve for curve in curves if curve.data == "pool" and curve.run.startswith("small-")}
    earlier = [name for name in small if name.partition("@")[2] in EARLIER]
    for name, target in small.items():
        kind = name.partition("@")[0]
        others = [run for run in earlier if run.partition("@")[0] != kind]
        sets = {"earlier_seeds": earlier, "other_schedules": others} if name not in earlier and earlier else {}
        for protocol, siblings in sets.items():
            beside = tuple(small[run] for run in siblings)
            for cutoff in CUTOFFS:
                seen = cutoff * _total(target)
                yield Case(protocol, target, cutoff, seen, (lr_aware.MEAN_ANNEALING,), beside)


def sibling_compute(case: Case) -> float:
    """Training compute of the siblings over that of the whole target run."""
    spent = sum(sibling.n_params * _total(sibling) for sibling in case.siblings)
    return float(spent / (case.target.n_params * _total(case.target))) if case.siblings else 0.0


def siblings_of(case: Case) -> str:
    """The siblings with their tokens."""
    return "; ".join(f"{sibling.run} ({_total(sibling):.3g})" for sibling in case.siblings)


def cluster(target: Curve) -> str:
    """Rows of one cluster are not independent: a run, and all gemstones of one model."""
    name = _model(target) if target.data.startswith("gemstones") else target.run
    return f"{target.data.split('/')[0] if target.data.startswith('gemstones') else target.data} {name}"


def count(every: Sequence[Case]) -> int:
    """Forecasts to make."""
    return int(np.sum([len(case.methods) for case in every]))
