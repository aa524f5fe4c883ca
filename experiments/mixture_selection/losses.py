"""Losses of the runs of the study of mixtures: by domain, on two halves of the documents, weighted as a target weighs.

A run's name says what it is: mix-GROUP-MIXTURE or mix-GROUP-MIXTURE@SEED (mix58m-... at another scale), with the groups
proxy (small models), code (small models with another tokenizer), target, and limited (target models on a twentieth of
the text).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from experiments.shared import Runs
from experiments.shared.surface_measures import loss_on_clusters

TARGETS: dict[str, dict[str, float]] = {"even": {}, "code": {"tests": 0.7}, "language": {"dictionary": 0.55}}
BY_POSITION = ("target", "0")  # group and seed of the runs that are kept by position
POOLED = ("id", "ood")  # splits that are no domain
CHOICE, JUDGE = "a", "b"  # halves of the documents: what choices see, and what they are judged on


@dataclass(frozen=True)
class Group:
    """The runs of one group.

    Attributes:
        curves: mixture -> seed -> (half, domain, tokens, position), nats. facts: n_params, flops_per_token, tokens,
            evaluated (tokens of one evaluation), checkpoints. shares: (mixture, domain). schedule: the plan of the
            learning rate, as the surface has it.
    """

    curves: Mapping[str, Mapping[str, xr.DataArray]]
    facts: Mapping[str, float]
    shares: pd.DataFrame
    schedule: Any

    @property
    def names(self) -> list[str]:
        """Of the mixtures."""
        return list(self.curves)

    def ends(self, half: str, target: str, seeds: tuple[str, ...] = ()) -> pd.Series:
        """The loss at the end of each mixture, mean over seeds (all without any named), nats."""
        made = {}
        for name, of_seeds in self.curves.items():
            some = [weighted(curve, half, target) for seed, curve in of_seeds.items() if not seeds or seed in seeds]
            made[name] = float(np.mean([float(curve.isel(tokens=-1).mean("position")) for curve in some]))
        return pd.Series(made)

    def seed_sd(self, half: str, target: str) -> float:
        """Standard deviation of the end over seeds, pooled over the mixtures that have several; NaN: none has."""
        squares, degrees = 0.0, 0
        for of_seeds in self.curves.values():
            ends = [float(weighted(c, half, target).isel(tokens=-1).mean("position")) for c in of_seeds.values()]
            squares, degrees = squares + float(np.sum((np.array(ends) - np.mean(ends)) ** 2)), degrees + len(ends) - 1
        return float(np.sqrt(squares / degrees)) if degrees else float("nan")

    def prefix(self, half: str, target: str) -> xr.Dataset:
        """The curves of seed 0, mixtures as the splits of one surface, with the plan of the learning rate."""
        parts = [weighted(of_seeds["0"], half, target).expand_dims(split=[n]) for n, of_seeds in self.curves.items()]
        return xr.Dataset({"loss": xr.concat(parts, "split", join="exact")}, attrs={"schedule": self.schedule})

    def flops(self, share: float = 1.0, evaluations: bool = False) -> float:
        """Of one run up to a share of its tokens; an evaluated token costs a third of a trained one."""
        facts = self.facts
        trained = share * facts["tokens"]
        seen = share * facts["checkpoints"] * facts["evaluated"] / 3 if evaluations else 0.0
        return facts["flops_per_token"] * (trained + seen)


def weights_of(target: str, domains: Iterable[str]) -> dict[str, float]:
    """Domain -> weight of a target mixture: what TARGETS says, and the rest evenly over the others."""
    known, names = TARGETS[target], list(domains)
    rest = (1 - sum(known.values())) / (len(names) - len(known))
    return {name: known.get(name, rest) for name in names}


def targets_of(domains: Iterable[str]) -> list[str]:
    """The targets whose domains are there."""
    return [name for name, known in TARGETS.items() if set(known) <= set(domains)]


def weighted(curve: xr.DataArray, half: str, target: str) -> xr.DataArray:
    """The loss on a target mixture (tokens, position): the weighted mean over domains."""
    weights = weights_of(target, curve.split.values.tolist())
    array = xr.DataArray(list(weights.values()), dims="split", coords={"split": list(weights)})
    return (curve.sel(half=half) * array).sum("split", skipna=False)


def by_domain(surface: xr.Dataset) -> xr.Dataset:
    """The splits that are domains."""
    return surface.sel(split=[name for name in surface.split.values.tolist() if name not in POOLED])


def halves(surface: xr.Dataset) -> xr.DataArray:
    """The loss (half, split, tokens, position) by domain, on either half of its documents."""
    own = by_domain(surface)
    middle = own.sizes["cluster"] // 2
    parts = [loss_on_clusters(own, slice(middle)), loss_on_clusters(own, slice(middle, None))]
    return xr.concat(parts, xr.IndexVariable("half", [CHOICE, JUDGE]))


def runs_of_group(runs: Runs, name: str) -> dict[str, xr.Dataset]:
    """The surfaces of a group."""
    return {run: surface for run, surface in runs.surfaces.items() if run.split("-")[1] == name}


def group(runs: Runs, name: str) -> Group:
    """The runs of a group."""
    curves: dict[str, dict[str, xr.DataArray]] = {}
    shares, surfaces = {}, runs_of_group(runs, name)
    for run, surface in surfaces.items():
        mixture, _, seed = run.split("-", 2)[-1].partition("@")
        curve = halves(surface)
        if (name, seed) != BY_POSITION:
            curve = curve.mean("position").expand_dims(position=[1], axis=-1)
        curves.setdefault(mixture, {})[seed or "0"] = curve
        text = [entry.partition("@") for entry in runs.manifests[run]["config"]["data"]["text"]]
        shares[mixture] = {domain.partition("=")[0].rpartition(":")[2]: float(share) for domain, _, share in text}
    first, surface = next(iter(surfaces.items()))
    made = runs.manifests[first]
    facts = {
        "n_params": float(made["n_params"]),
        "flops_per_token": float(made["flops_per_token"]),
        "tokens": float(made["total_tokens"]),
        "evaluated": float(surface["count"].isel(tokens=0).sum()),
        "checkpoints": float(surface.sizes["tokens"]),
    }
    table = pd.DataFrame(shares).T[by_domain(surface).split.values.tolist()]
    return Group(curves, facts, table, surface.attrs.get("schedule"))


def curve_table(groups: Mapping[str, Group]) -> pd.DataFrame:
    """Every checkpoint of every run, as `tsl select` reads it: shares of domains, size, tokens, losses on half a."""
    rows = []
    for name, own in groups.items():
        for mixture, of_seeds in own.curves.items():
            for seed, curve in of_seeds.items():
                losses = curve.sel(half=CHOICE).mean("position").transpose("tokens", "split")
                run = {"run": f"{name}-{mixture}@{seed}", "seed": int(seed), "n_params": int(own.facts["n_params"])}
                run |= {f"share_{domain}": own.shares.loc[mixture, domain] for domain in own.shares}
                for tokens, values in zip(losses.tokens.values.tolist(), losses.values, strict=True):
                    of_domains = {f"loss_{d}": float(v) for d, v in zip(losses.split.values, values, strict=True)}
                    rows.append({**run, "planned": int(own.facts["tokens"]), "tokens": tokens, **of_domains})
    return pd.DataFrame(rows).round(6)
