"""The gradient noise scale, from a batch and parts of it (McCandlish et al., arXiv 1812.06162).

With G the gradient of the expected loss and Sigma the covariance of the gradient of one token, the mean gradient G_n of
n tokens has E|G_n|^2 = |G|^2 + tr Sigma / n. A step that takes its batch of B tokens in microbatches of b tokens has
both squares, and so has one that shares it over D devices along the mesh's axis data, b = B/D; from them, without bias
(appendix A.1 there),

    |G|^2    ~ (B |G_B|^2 - b |G_b|^2) / (B - b)         "grad_square"
    tr Sigma ~ (|G_b|^2 - |G_B|^2) / (1/b - 1/B)         "grad_variance"
    B_simple = <tr Sigma> / <|G|^2>                      "noise_scale", tokens

|G_b|^2 is the mean over the microbatches of the step, or over the D parts where there is one microbatch. The averages
<> over steps are exponential and bias-corrected, sum_s d^(t-s) x_s / sum_s d^(t-s); their ratio is taken, as the mean
of ratios is biased and |G|^2 of one step may even be negative. B_simple estimates the critical batch size (Kaplan et
al., arXiv 2001.08361, section 5.1).

Gradients are those of the loss that is trained on, weights of positions and what the model adds included, before
clipping. Tokens of one sequence are not independent: Sigma is the covariance over sequences times their length, so
that B_simple counts whole sequences, in tokens. Steps are those of a run without, up to rounding: with more to give,
the compiler fuses sums in another way. Parts of a mesh are like microbatches in the rest: each has its own random
numbers of dropout, and what a model adds to the loss, as the balance of experts, is the mean of that of the parts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from tsl_jax.models.sharding import constrain_tree
from tsl_jax.training import hosts, run_dir

if TYPE_CHECKING:
    import xarray as xr

DECAY = 0.99  # of the averages that are logged: about the last hundred steps
SQUARE, VARIANCE, SCALE = "grad_square", "grad_variance", "noise_scale"
AVERAGED = (SQUARE, VARIANCE, "loss")

Squares = dict[str, jax.Array]  # "" for all parameters, "/GROUP" for a group -> |gradient|^2


def squared_norms(gradient: Any, by_layer: bool) -> Squares:
    """|gradient|^2 of all parameters and, by layer, of each group: a layer ("/layer_1", ...), or what is no layer.

    Args:
        gradient: nested dictionaries, where what is under "blocks" has the layers as its first axis.
    """
    groups: Squares = {}

    def add(group: str, square: jax.Array) -> None:
        groups[group] = groups[group] + square if group in groups else square

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        square = jnp.square(leaf.astype(jnp.float32))
        if path[0].key != "blocks":
            add(f"/{path[0].key}", square.sum())
            continue
        for layer, sum_of_layer in enumerate(square.reshape(len(square), -1).sum(axis=1), 1):
            add(f"/layer_{layer}", sum_of_layer)
    total: jax.Array = jnp.stack(list(groups.values())).sum()
    return {"": total, **(groups if by_layer else {})}


def with_squares(gradient_and_metrics: Callable[..., Any], by_layer: bool) -> Callable[..., Any]:
    """The same function with the squared norms of the gradient as the metric "squares": a mean like the others."""

    def measured(*args: Any) -> Any:
        gradient, metrics = gradient_and_metrics(*args)
        gradient = constrain_tree(gradient)
        return gradient, metrics | {"squares": squared_norms(gradient, by_layer)}

    return measured


def estimates(small: Squares, whole: Squares, small_tokens: float, tokens: float) -> dict[str, jax.Array]:
    """|G|^2 and tr Sigma of each group, without bias, as metrics of a step.

    Args:
        small: mean |G_b|^2 over gradients of `small_tokens` tokens. whole: |G_B|^2 of their mean, of `tokens` tokens.
    """
    estimated = {}
    for group, square in small.items():
        signal = (tokens * whole[group] - small_tokens * square) / (tokens - small_tokens)
        variance = (square - whole[group]) / (1 / small_tokens - 1 / tokens)
        estimated |= {SQUARE + group: signal, VARIANCE + group: variance}
    return estimated


@dataclass
class NoiseAverages:
    """Exponential averages, bias-corrected, of the estimates of steps and of the loss; and the noise scale from them.

    Attributes:
        decay: d, at least 0 and below 1. steps: that are averaged. means: the averages, by the names of the estimates.
    """

    decay: float = DECAY
    steps: int = 0
    means: dict[str, float] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take a step in; B_simple in tokens by "noise_scale" and group, left out where <|G|^2> is not positive."""
        self.steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.steps)  # of the newest step, in a bias-corrected average
        for name, value in metrics.items():
            if name.partition("/")[0] in AVERAGED:
                before = self.means.get(name, 0.0)
                self.means[name] = before + share * (value - before)
        groups = [
            name.removeprefix(SQUARE) for name, mean in self.means.items() if name.startswith(SQUARE) and mean > 0
        ]
        return {SCALE + group: self.means[VARIANCE + group] / self.means[SQUARE + group] for group in groups}


def resumed(run: Path, step: int) -> NoiseAverages:
    """The averages after so many steps of a run, from its metrics.jsonl: those of a run that was not interrupted."""

    def state() -> list[Any]:
        averages = NoiseAverages()
        for line in run_dir.metrics_until(run, step):
            averages.add(json.loads(line))
        return [averages.steps, averages.means]

    return NoiseAverages(DECAY, *hosts.from_writer(state))


def noise_scale(run: Path | str, decay: float = DECAY) -> xr.Dataset:
    """The gradient noise scale of a run that was trained with `--noise-scale`, after each of its steps.

        noise_scale = <tr Sigma> / <|G|^2>,   <x>_t = sum_{s <= t} d^(t-s) x_s / sum_{s <= t} d^(t-s)

    McCandlish et al., arXiv 1812.06162, appendix A.1; an estimate of the critical batch size, B_crit(L) of Kaplan et
    al., arXiv 2001.08361, section 5.1.

    Args:
        run: its folder. decay: d; .99 gives the averages that metrics.jsonl has.

    Returns:
        Dimensions tokens (seen) and group: "total" and, by layer, the groups of parameters. Variables noise_scale
        (tokens; NaN where <|G|^2> is not positive: average over more steps), grad_square and grad_variance (the
        averages), and loss (nats, over tokens alone), averaged in the same way, so that noise_scale against loss is
        a curve B(L).

    Raises:
        ValueError: for a decay out of range, or a run that has no such metrics. FileNotFoundError: where there is none.
    """
    import numpy as np
    import xarray as xr

    if not 0 <= decay < 1:
        raise ValueError(f"training: decay must be at least 0 and below 1, found {decay}")
    run = Path(run)
    if run_dir.read_config(run).noise_scale == "off":
        raise ValueError(f"training: {run} has no gradient noise; train with --noise-scale total, or by_layer")
    averages, tokens, rows = NoiseAverages(decay), [], []
    for line in map(json.loads, run_dir.metrics_until(run, sys.maxsize)):
        rows.append(averages.add(line) | averages.means)
        tokens.append(line["tokens"])
    if not rows:
        raise ValueError(f"training: {run} has made no step yet; go on with it first")
    groups = [name.removeprefix(SQUARE) for name in averages.means if name.startswith(SQUARE)]
    variables: dict[str, Any] = {
        name: (("tokens", "group"), np.array([[row.get(name + group, np.nan) for group in groups] for row in rows]))
        for name in (SCALE, SQUARE, VARIANCE)
    }
    variables["loss"] = ("tokens", np.array([row["loss"] for row in rows]))
    names = [group.removeprefix("/") or "total" for group in groups]
    return xr.Dataset(variables, {"tokens": tokens, "group": names}, {"decay": decay})
