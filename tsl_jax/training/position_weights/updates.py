"""Adaptive weights in a run: when they are updated, how they are written, and how a stopped run goes on with them.

RUN/weights.jsonl    one line an update: step, tokens, weights, loss (smoothed), noise (smoothed, or null), said

At an update the model is measured on the next batches (`gradient_noise`), and the measures are smoothed over updates,

    smoothed = KEEP * smoothed before + (1 - KEEP) * measured,    the first one as it is measured,

and the rule gives the weights until the next update. The first comes after the warm-up (but after one step at least),
the others every total_steps / weight_updates steps; until the first all positions weigh one. An update is a pure
function of seed, step, parameters and the line before, so that a run that was stopped makes it again bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh

from tsl_jax.atomic_write import append_text, write_atomically
from tsl_jax.models.build import Params
from tsl_jax.training import hosts, mesh, run_dir
from tsl_jax.training.bad_losses import ADVICE, BadLossError
from tsl_jax.training.evaluation import Forward
from tsl_jax.training.position_weights import adaptive, gradient_noise, sources
from tsl_jax.training.position_weights.weights import PositionWeights
from tsl_jax.training.timeline import RunTimeline

WEIGHTS = "weights.jsonl"
KEEP = 0.5  # of the measures before: about three count, and their mean age is one interval between updates
POSITIONS = 16  # of the weights in the record


class AdaptiveWeights:
    """The weights of a run with an adaptive rule, now and at its updates."""

    def __init__(
        self,
        weights: PositionWeights,
        timeline: RunTimeline,
        path: Path,
        evaluation_batch: int,
        batch_of: Callable[[int], np.ndarray],
        forward: Forward,
        noise: gradient_noise.Noise | None,
        devices: Mesh | None,
    ):
        """The weights before the first update.

        Args:
            weights: of an adaptive kind. timeline, path, devices: of the run. batch_of: the batch of a step.
            forward: the compiled losses of `evaluation_batch` windows.
            noise: the compiled gradient noise where the rule asks for it, otherwise None.
        """
        self.weights, self.timeline, self.path, self._evaluation_batch = weights, timeline, path, evaluation_batch
        self._batch_of, self._forward, self._noise, self._devices = batch_of, forward, noise, devices
        self._rule, self._name = sources.load_rule(weights.kind, weights.source), weights.source or weights.kind
        self._noise_sequences = gradient_noise.MICROBATCHES * gradient_noise.ROWS if noise else 0
        self._set_lines([])

    def resume(self, step: int) -> None:
        """Go on after `step` steps: what was written of later updates is dropped, and they are made again.

        Raises:
            ValueError: where an update before it is missing.
        """
        lines = [line for line in read_lines(self.path) if line["step"] < step]
        expected = [update for update in self.timeline.weight_updates if update < step]
        if [line["step"] for line in lines] != expected:
            steps = f"updates at steps {[line['step'] for line in lines]}, expected {expected}"
            raise ValueError(f"training: {self.path / WEIGHTS} has {steps}; restore it from a copy, or train anew")
        hosts.together()  # all have read it
        if (self.path / WEIGHTS).exists() and hosts.is_writer():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            write_atomically(self.path / WEIGHTS, text)
        self._set_lines(lines)

    def update(self, params: Params, step: int) -> None:
        """Measure the model after `step` steps, and take the rule's weights from here on.

        Raises:
            ValueError: for losses that are not finite, or a rule that fails. OSError: where it cannot be written.
        """
        last = self._lines[-1] if self._lines else {"loss": None, "noise": None}
        sequences = max(gradient_noise.SEQUENCES, self._noise_sequences)
        windows = gradient_noise.next_sequences(self._batch_of, step, sequences)
        measured = {
            "loss": gradient_noise.mean_losses(
                self._forward, params, windows[: gradient_noise.SEQUENCES], self._evaluation_batch
            )
        }
        if self._noise:
            noise_windows = windows[: self._noise_sequences]
            measured["noise"] = gradient_noise.noise_by_position(self._noise, params, noise_windows, self._devices)
        for name, values in measured.items():
            if not np.isfinite(values).all():
                what = {"noise": "gradient noise"}.get(name, name)
                problem = f"{what} at position {np.flatnonzero(~np.isfinite(values))[0] + 1} is not finite"
                found = f"at the update of the weights after step {step} the {problem}"
                raise BadLossError(f"training: {found}. {ADVICE}", found, step)
            if last[name] is not None:
                measured[name] = KEEP * np.array(last[name]) + (1 - KEEP) * values

        loss, noise = measured["loss"], measured.get("noise")
        tokens, positions = self.timeline.tokens_at(step), np.arange(1, self.timeline.context + 1)
        losses = np.array([*(line["loss"] for line in self._lines), loss])
        observed = adaptive.Observed(positions, loss, tokens, self.timeline.total_tokens, noise, self._weights, losses)
        weights, sentence = adaptive.apply_rule(self._rule, self._name, observed)
        line = {"step": step, "tokens": tokens, "weights": weights.tolist(), "loss": loss.tolist()}
        line |= {"noise": None if noise is None else noise.tolist(), "said": sentence}
        line = hosts.from_writer(lambda: line)  # a rule may not be a pure function
        # On the disk before the next checkpoint, which must not be there without the updates before it.
        append = hosts.writer_only(append_text)
        append(self.path / WEIGHTS, json.dumps(line) + "\n", synced=True)
        self._set_lines([*self._lines, line])

    def summary(self) -> dict[str, Any]:
        """For the record: the weights of some positions at each update, and the tokens that were measured on."""
        n, context = len(self._lines), self.timeline.context
        positions = np.unique(np.round(np.geomspace(1, context, POSITIONS)).astype(int))
        return {
            "rule": str(self.weights),
            "tokens": [line["tokens"] for line in self._lines],
            "position": positions.tolist(),
            "weights": [[round(line["weights"][i - 1], 5) for i in positions] for line in self._lines],
            "said": [line["said"] for line in self._lines],
            "tokens_forward": n * gradient_noise.SEQUENCES * context,
            "tokens_forward_and_backward": n * len(gradient_noise.bands(context)) * self._noise_sequences * context,
        }

    def _set_lines(self, lines: list[dict[str, Any]]) -> None:
        """Take the weights of the last update, also on the devices, where the step takes them."""
        self._lines = lines
        self._weights = np.array(lines[-1]["weights"]) if lines else np.ones(self.timeline.context)
        self.now: jax.Array = mesh.put_everywhere(self._weights.astype(np.float32), self._devices)


def read_lines(run: Path) -> list[dict[str, Any]]:
    """The updates that were written, without a last line that a kill cut short; none where there is no file.

    Raises:
        ValueError: for a line that is damaged.
    """
    try:
        text = (run / WEIGHTS).read_text()
    except FileNotFoundError:
        return []
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except ValueError as error:
        raise ValueError(f"training: {run / WEIGHTS} is damaged ({error}); restore it from a copy") from None


def read(run: Path | str) -> xr.DataArray:
    """The weights of a run, (tokens, position): row t holds from `tokens` on; of static rules there is one row, at 0.

    Raises:
        FileNotFoundError: where there is no run. ValueError: for a damaged file.
    """
    run = Path(run)
    config = run_dir.read_config(run)
    lines = read_lines(run)
    rows = [config.position_weights.values(config.context), *(line["weights"] for line in lines)]
    coords = {"tokens": [0, *(line["tokens"] for line in lines)], "position": np.arange(1, config.context + 1)}
    attrs = {"rule": str(config.position_weights)}
    return xr.DataArray(np.array(rows), coords=coords, dims=("tokens", "position"), name="weight", attrs=attrs)
