"""Does the loss of a model fall with position as L(i) = a0/(1 + a1 i) + a2?

Temporal Scaling Law (arXiv 2404.17785), the dynamic hyperbolic law; its rival is the power law over positions of
Kaplan et al. (arXiv 2001.08361, appendix D.5), its controls an exponential and a logarithm with as many parameters.

    tsl reproduce position_law        the same as: python -m experiments.position_law.study

The dated plan and what came out: README.md beside this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from experiments.position_law import claims as conclusions
from experiments.position_law import measures
from experiments.position_law import plots as figures
from experiments.shared import Findings, Runs, Study
from experiments.shared import solver_comparison as lm
from tsl_jax.diagnostics import align_params
from tsl_jax.fitting import Fit
from tsl_jax.laws import HYPERBOLIC

LATE = 0.1  # share of the plan from which a checkpoint is late
EARLY_POSITIONS = 8


def analyse(runs: Runs) -> Findings:
    """Every measure of the plan; runs whose names begin as the cpu scale's do take part in the pairs."""
    surfaces = runs.surfaces
    fits = {name: measures.hyperbolas(surface) for name, surface in surfaces.items()}
    tested = measures.Tested()
    rows = pd.concat(
        [
            measures.by_checkpoint(name, surface, fits[name], _text(runs, name), tested)
            for name, surface in surfaces.items()
        ],
        ignore_index=True,
    )
    rows["passes"] = rows.p > measures.LEVEL
    main = _main(runs, rows, fits)
    comparisons = _comparisons(surfaces)
    pairs, differences = _pairs(runs)
    tables = {
        "position_law": main,
        "alternatives": comparisons,
        "alternatives_overall": conclusions.overall(comparisons, rows),
        "ranges": _ranges(surfaces),
        "architectures": pairs,
        "falls": _falls(surfaces),
        "status": conclusions.statuses(rows),
        "checkpoints": rows,
    }
    sizes = {name: runs.manifests[name]["n_params"] for name in surfaces}
    drawn, captions = _figures(surfaces, fits, rows, comparisons, differences, sizes)
    tables = {name: table for name, table in tables.items() if len(table)}
    return Findings(
        tables, conclusions.claims(main, rows, tables), conclusions.notes(main, rows, tables, surfaces), drawn, captions
    )


def _text(runs: Runs, name: str) -> str:
    """What the noise of a run comes from: its windows."""
    return str(runs.surfaces[name].attrs.get("windows"))


def _main(runs: Runs, rows: pd.DataFrame, fits: dict[str, Fit]) -> pd.DataFrame:
    """A row a run and split: the last checkpoint, and all of them."""
    table = []
    for (name, split), part in rows.groupby(["run", "split"], sort=False):
        last, late, surface = part.iloc[-1], part[part.share >= LATE], runs.surfaces[name]
        low, high = measures.resampled_i90(surface, split)
        config = runs.manifests[name]["config"]["model"]
        shown = last.passes
        table.append(
            {
                "run": name,
                "split": split,
                "architecture": config["architecture"] or "llama",
                "n_params": runs.manifests[name]["n_params"],
                "positions": fits[name].range_in_words(),
                "checkpoints": len(part),
                "r2": last.r2,
                "r2_expected": last.r2_expected,
                "r2_additive": last.r2_additive,
                "r2_late_median": late.r2.median(),
                "r2_above_95": (late.r2 > 0.95).mean(),
                "chi2": last.chi2_hyperbolic,
                "degrees": last.degrees,
                "p": last.p,
                "passes_late": late.passes.mean(),
                "passes_early": part[part.share < LATE].passes.mean(),
                "a0": last.a0,
                "a1": last.a1,
                "a2": last.a2,
                **{f"i90{end}": last[key] if shown else np.nan for end, key in I90},
                "i90_resampled_low": low if shown else np.nan,
                "i90_resampled_high": high if shown else np.nan,
                **lm.beside(HYPERBOLIC, surface.loss.sel(split=split, drop=True), "position"),
            }
        )
    return pd.DataFrame(table)


I90 = (("", "i90"), ("_low", "low"), ("_high", "high"))


def _comparisons(surfaces: dict[str, xr.Dataset]) -> pd.DataFrame:
    rows = [
        {"run": name, "split": split, **comparison}
        for name, surface in surfaces.items()
        for split in map(str, surface.split.values)
        for comparison in measures.comparisons(surface, split)
    ]
    return pd.DataFrame(rows)


def _ranges(surfaces: dict[str, xr.Dataset]) -> pd.DataFrame:
    """The longest run over shorter ranges; joining them is refused, as it should be."""
    longest = max(surfaces, key=lambda name: surfaces[name].sizes["position"])
    n = surfaces[longest].sizes["position"]
    table = []
    for end, hyperbola in measures.by_range(surfaces[longest], (n // 4, n // 2, n)).items():
        beside = lm.beside(HYPERBOLIC, surfaces[longest].loss.isel(tokens=-1, position=slice(end)), "position")
        for split in map(str, hyperbola.status.split.values):
            params = align_params({"last": hyperbola}).params.sel(fit="last", split=split)
            stds = hyperbola.log_shape_stderr.sel(split=split, shape="a1")
            values = {str(name): float(params.sel(param=name)) for name in params.param.values}
            fit = {"r2": float(hyperbola.r2.sel(split=split)), "log_a1_stderr": float(stds)}
            table.append(
                {"run": longest, "split": split, "positions": hyperbola.range_in_words(), **values, **fit, **beside}
            )
    return pd.DataFrame(table).sort_values(["split", "positions"], key=lambda c: c.str.len(), kind="stable")


def _falls(surfaces: dict[str, xr.Dataset]) -> pd.DataFrame:
    """The fall of the loss from a tenth of the run to its end: the first positions, the second half, and their gap."""
    table = []
    for name, surface in surfaces.items():
        seen = int((surface.tokens <= LATE * surface.tokens[-1]).sum())
        for split in map(str, surface.split.values) if seen else ():
            change = measures.paired(surface.isel(tokens=slice(seen)), surface, split)
            for part, weights in measures.early_and_late(surface.sizes["position"], EARLY_POSITIONS).items():
                mean, each, clusters = change
                value, low, high = measures.contrast(mean, each, weights, clusters)
                ends = {"fall": value, "fall_low": low, "fall_high": high}
                table.append({"run": name, "split": split, "part": part, **ends})
    return pd.DataFrame(table)


def _pairs(runs: Runs) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Other architectures minus LLaMA, on the same windows."""
    table, differences = [], {}
    named = figures.architectures(runs.surfaces)
    llama = named.pop("LLaMA", "")
    if not llama:
        return pd.DataFrame(), differences
    seeds = runs.named(llama.partition("@")[0] + "@")
    n = runs.surfaces[llama].sizes["position"]
    for label, name in named.items():
        for split in ("id", "ood"):
            mean, each, clusters = measures.paired(runs.surfaces[name], runs.surfaces[llama], split)
            differences[f"{label} - LLaMA, {split}"] = (mean, each, clusters)
            for part, weights in measures.early_and_late(n, EARLY_POSITIONS).items():
                value, low, high = measures.contrast(mean, each, weights, clusters)
                seed = np.sqrt(2) * measures.seeds_apart(seeds, split, weights) if len(seeds) > 1 else np.nan
                # both errors: the text's half width, and twice the seeds' as t of few seeds has it
                width = float(np.hypot((high - low) / 2, measures.stats.t.ppf(0.95, max(len(seeds) - 1, 1)) * seed))
                ends = {"low": low, "high": high, "seed_sd": seed, "low_all": value - width, "high_all": value + width}
                table.append({"pair": f"{label} - LLaMA", "split": split, "part": part, "difference": value, **ends})
    return pd.DataFrame(table), differences


def _figures(
    surfaces: Any, fits: Any, rows: Any, comparisons: Any, differences: Any, n_params: dict[str, int]
) -> tuple[dict[str, Any], dict[str, str]]:
    drawn = figures.curves(surfaces, fits)
    captions = {name: f"{name.removeprefix('curves-')}: {conclusions.CURVES}" for name in drawn}
    if len(set(n_params.values())) > 1:
        drawn["sizes-id"] = figures.sizes(surfaces, fits, n_params, "id")
    llama = figures.architectures(surfaces).get("LLaMA")
    if llama:
        drawn |= figures.quality(rows, llama)
        drawn["residual-id"] = figures.residuals(surfaces[llama], fits[llama], "id")
        for split in ("id", "ood"):
            if len(rows[(rows.split == split) & rows.passes]):
                drawn[f"i90-{split}"] = figures.context(rows, split)
        position = surfaces[llama].position.values.astype(float)
        lstm = {label: difference for label, difference in differences.items() if label.startswith("LSTM")}
        if lstm:
            drawn["lstm"] = figures.by_position(lstm, position)
    for estimate in comparisons.estimate.unique():
        drawn[f"alternatives-{estimate}"] = figures.alternatives(comparisons, estimate)
    for name in (name for name in drawn if name not in captions):
        kind, _, which = name.partition("-")
        captions[name] = conclusions.CAPTIONS[kind] + (f" ({which})" if which else "")
    return drawn, captions


STUDY = Study(
    name="position_law",
    title="Does the loss fall with position as a hyperbola?",
    decided="2026-11-26",
    analyse=analyse,
    minutes=2,
)

if __name__ == "__main__":
    STUDY.main()
