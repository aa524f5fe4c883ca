"""What the study compares beside the laws: shapes, architectures by position, other text, and how sizes use tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from experiments.kaplan.fits import Fits
from experiments.kaplan.runs_table import SPLIT, curves_of_sizes, ends, of_set, plain
from experiments.shared import Runs
from experiments.shared.paired_differences import equivalence

OTHER = "ood"  # the split of the text that is not trained on
EARLY_POSITIONS, LATE_SHARE = 4, 0.5  # 1 to 4, and the later half
MARGIN = 0.05  # nats, within which offsets of two phases of training count as the same
SAME_DOCUMENTS = 0.95  # of the excerpts of other text, at least, are of documents of their own
PAIRS_AT = 8  # losses at which two sizes are compared


# --------------------------------------------------------------------------------------------------------------- noise


def seed_noise(table: pd.DataFrame) -> float:
    """Standard deviation of the final log loss over seeds of one configuration, pooled; NaN where none has two."""
    last = ends(table)
    groups = [np.log(part.loss) for _, part in last.groupby(["set", "model", "variant"]) if len(part) > 1]
    freedom = sum(len(values) - 1 for values in groups)
    return (
        float(np.sqrt(sum(values.var(ddof=1) * (len(values) - 1) for values in groups) / freedom)) if groups else np.nan
    )


# -------------------------------------------------------------------------------------------------------------- shapes


def shapes(table: pd.DataFrame, alpha_n: float) -> pd.DataFrame:
    """Final losses of the shapes, each moved along L(N) to the size of the base, relative to it: `above`.

    The base, in the first row, is the variant base, mean over its seeds; where the plan has none it is the run of the
    set size whose number of parameters is nearest, at the same tokens: rates are constant, so that it is the same run.
    """
    last = ends(of_set(table, "shape"))
    means = last.groupby(["model", "variant"], sort=False)[["n_params", "loss"]].mean().reset_index()
    if "base" not in set(means.variant):
        sizes = ends(plain(of_set(table, "size")))
        nearest = sizes.loc[np.log(sizes.n_params / last.n_params.median()).abs().idxmin()]
        curve = table[table.run == nearest["run"]].sort_values("tokens")
        loss = float(np.interp(np.log(last.tokens.min()), np.log(curve.tokens), curve.loss))
        facts = {"model": nearest.model, "variant": "base", "n_params": nearest.n_params, "loss": loss}
        means = pd.concat([pd.DataFrame([facts]), means], ignore_index=True)
    means = means.sort_values("variant", key=lambda names: names != "base", kind="stable").reset_index(drop=True)
    base = means.iloc[0]
    at_size = means.loss * (means.n_params / base.n_params) ** alpha_n
    name = (means.model + " " + means.variant).str.strip()
    return means.assign(shape_name=name, loss_at_size=at_size, above=at_size / base.loss - 1)


# ------------------------------------------------------------------------------------------------------- architectures


def by_position(runs: Runs, name: str) -> xr.DataArray:
    """The final loss of a run over positions."""
    return runs.surfaces[name].loss.sel(split=SPLIT).isel(tokens=-1, drop=True)


def architectures(runs: Runs, table: pd.DataFrame) -> pd.DataFrame:
    """Each run of another architecture beside a Transformer of its size: differences of the final loss, nats.

    The Transformer's loss is that of the sizes, interpolated at every position to the tokens and the size of the other.
    Differences are of positions 1 to 4 (early), of the later half, of all, and late minus early.
    """
    curves = reference_curves(runs, table)
    rows = []
    for _, run in ends(of_set(table, "arch")).iterrows():
        own = by_position(runs, run["run"])
        reference = curves(run.n_params, run.tokens)
        difference = own - reference
        late = difference.sel(position=slice(int(own.position[-1] * LATE_SHARE) + 1, None)).mean()
        early = difference.sel(position=slice(1, EARLY_POSITIONS)).mean()
        rows.append(
            {
                "run": run["run"], "architecture": run.variant, "n_params": run.n_params, "loss": run.loss,
                "transformer": float(reference.mean()), "mean_difference": float(difference.mean()),
                "early_difference": float(early), "late_difference": float(late),
                "late_minus_early": float(late - early),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def reference_curves(runs: Runs, table: pd.DataFrame) -> Callable[[float, float], xr.DataArray]:
    """(n_params, tokens) -> loss (position,) of a Transformer: of the sizes, linear in log tokens and then in log N."""
    first = ends(curves_of_sizes(table)).sort_values("n_params")
    logs = np.log(first.n_params.to_numpy())
    curves = [runs.surfaces[name].loss.sel(split=SPLIT).drop_vars(("step", "lr")) for name in first.run]

    def curve(n_params: float, tokens: float) -> xr.DataArray:
        at = [loss.assign_coords(tokens=np.log(loss.tokens)).interp(tokens=np.log(tokens)) for loss in curves]
        reaching = [k for k, loss in enumerate(at) if bool(loss.notnull().all())]
        together = xr.concat([at[k] for k in reaching], pd.Index(logs[reaching], name="log_n"))
        return together.interp(log_n=float(np.clip(np.log(n_params), logs[reaching[0]], logs[reaching[-1]])))

    return curve


def curves_beside(runs: Runs, table: pd.DataFrame) -> dict[str, dict[str, xr.DataArray]]:
    """Final losses by position, for the figure: size -> architecture -> (position,), a Transformer of it first."""
    curves, panels = reference_curves(runs, table), {}
    for model, part in ends(of_set(table, "arch")).groupby("model", sort=False):
        middle = float(np.exp(np.log(part.n_params).mean()))
        own = {run.variant: by_position(runs, run["run"]) for _, run in part.iterrows()}
        panels[f"{model} parameters"] = {"transformer": curves(middle, float(part.tokens.min())), **own}
    return panels


# ------------------------------------------------------------------------------------------------------------ transfer


def offsets(runs: Runs, table: pd.DataFrame) -> pd.DataFrame:
    """A row a checkpoint of the sizes and another text: loss there, on id, and the difference.

    The other texts are the domains of the split ood, in equal shares. Kept runs have as many clusters of neighbouring
    documents, so that each holds the windows of one text, but for one or two where a text has too few documents.

    Raises:
        ValueError: where clusters and texts do not belong together.
    """
    rows = []
    for name in of_set(table, "size").run.unique():
        surface = runs.surfaces[name]
        if OTHER not in surface.split.values:
            continue
        other = surface.sel(split=OTHER)
        means = (other.cluster_sum.sum("position") / other.cluster_count.sum("position")).transpose("tokens", "cluster")
        design = surface.attrs["windows"][OTHER]
        if (
            design["documents"] < SAME_DOCUMENTS * design["stretches"]
            or len(design["domains"]) != means.sizes["cluster"]
        ):
            found = (
                f"{design['documents']} documents for {design['stretches']} excerpts of {len(design['domains'])} texts"
            )
            raise ValueError(f"kaplan: {name} has {found} in {means.sizes['cluster']} clusters; ask for fewer excerpts")
        for k in range(means.sizes["cluster"]):
            frame = pd.DataFrame({"tokens": surface.tokens.values.astype(float), "other": means.isel(cluster=k).values})
            rows.append(frame.assign(run=name, text=design["domains"][k]))
    if not rows:
        return pd.DataFrame(columns=["run", "text", "tokens", "other", "loss", "n_params", "offset"])
    facts = table[["run", "tokens", "loss", "n_params", "warm", "seed"]]
    joined = pd.concat(rows, ignore_index=True).dropna().merge(facts, on=["run", "tokens"])
    joined = joined[joined.warm & (joined.seed == joined.groupby("n_params").seed.transform("min"))]
    return joined.assign(offset=joined.other - joined.loss).reset_index(drop=True)


def transfer(pairs: pd.DataFrame) -> pd.DataFrame:
    """Whether the offset depends on the phase of training, for each text: a row a text.

    Two neighbouring sizes at the same loss on id are in different phases: the smaller at its end, the larger earlier.
    phase_difference: offset of the larger minus that of the smaller, mean over neighbours, tested for equivalence.
    slope: of the other loss on the loss on id over the ends of the sizes (1: a constant offset).
    """
    rows = []
    for text, part in pairs.groupby("text", sort=False):
        differences = []
        sizes = [curve.sort_values("tokens") for _, curve in part.groupby("n_params")]
        for small, large in pairwise(sizes):
            at = float(small.loss.iloc[-1])
            if large.loss.min() <= at <= large.loss.max():
                order = np.argsort(large.loss.to_numpy())
                differences.append(
                    float(np.interp(at, large.loss.to_numpy()[order], large.offset.to_numpy()[order]))
                    - float(small.offset.iloc[-1])
                )
        last = part.loc[part.groupby("n_params").tokens.idxmax()]
        slope = float(np.polyfit(last.loss, last.other, 1)[0]) if len(last) > 2 else np.nan
        test = equivalence(differences, MARGIN)
        rows.append(
            {"text": text, "offset": float(last.offset.mean()), **test.columns("phase_difference"), "slope": slope}
        )
    return pd.DataFrame(rows)


# ----------------------------------------------------------------------------------------------- how sizes use tokens


def tokens_to_losses(table: pd.DataFrame) -> pd.DataFrame:
    """Tokens that neighbouring sizes take to the same losses: those both reach warm, even in the logarithm.

    Columns: n_params, n_params_larger, loss, tokens, tokens_larger, ratio (of the larger to the smaller).
    """
    sizes = curves_of_sizes(table)
    curves = [curve[curve.warm].sort_values("tokens") for _, curve in sizes.groupby("n_params")]
    rows = []
    for small, large in pairwise(curves):
        high = min(small.loss.iloc[0], large.loss.iloc[0])
        low = max(small.loss.min(), large.loss.min())
        for loss in np.geomspace(high, low, PAIRS_AT + 2)[1:-1] if high > low else []:
            tokens = [reached(curve, loss) for curve in (small, large)]
            facts = {"n_params": small.n_params.iloc[0], "n_params_larger": large.n_params.iloc[0], "loss": loss}
            rows.append({**facts, "tokens": tokens[0], "tokens_larger": tokens[1], "ratio": tokens[1] / tokens[0]})
    return pd.DataFrame(rows)


def reached(curve: pd.DataFrame, loss: float) -> float:
    """Tokens at which a curve first came to a loss, linear in log tokens between two checkpoints."""
    values, logs = curve.loss.to_numpy(float), np.log(curve.tokens.to_numpy(float))
    after = int(np.flatnonzero(values <= loss)[0])
    if not after:
        return float(np.exp(logs[0]))
    share = (values[after - 1] - loss) / (values[after - 1] - values[after])
    return float(np.exp(logs[after - 1] + share * (logs[after] - logs[after - 1])))


def convergence(fits: Fits) -> pd.DataFrame:
    """How far from converged the best size of each budget is: its loss over L(N, inf) of the fitted law, minus one."""
    params: Mapping[str, Any] = fits.size_steps.fit.params.to_series().to_dict()
    floor = (params["N_c"] / fits.optima.n_params) ** params["alpha_N"]
    return fits.optima.assign(above_convergence=fits.optima.loss / floor - 1)
