"""Adaptive weights in a run: when they are updated, what is kept of them, and how a stopped run goes on with them.

RUN/weights.jsonl    one line an update: step, tokens, weights, loss (smoothed), noise (smoothed, or null), said

At an update the model is measured on the next batches (`gradient_noise`), and the measures are smoothed over updates,

    smoothed = KEEP * smoothed before + (1 - KEEP) * seen,    the first one as it is seen,

and the rule gives the weights until the next update. The first comes after the warm-up (but after one step at least),
the others every total_steps / weight_updates steps; until the first all positions weigh one. An update is a pure
function of seed, step, parameters and the line before, so that a run that was stopped makes it again bit for bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh

from tsl_jax.atomic_write import write_atomically
from tsl_jax.models.build import Params
from tsl_jax.training import mesh, run_dir
from tsl_jax.training.config import TrainConfig, phases, planned_steps, tokens_at, total_steps
from tsl_jax.training.evaluation import Forward
from tsl_jax.training.position_weights import adaptive, gradient_noise, sources

WEIGHTS = "weights.jsonl"
KEEP = 0.5  # of what was seen before: about three looks count, and the mean age is one interval between updates
POSITIONS = 16  # of the weights in the record


def update_steps(config: TrainConfig) -> frozenset[int]:
    """Steps after which the weights are updated: none for rules that do not follow the run."""
    if not config.position_weights.adaptive:
        return frozenset()
    total, n = total_steps(config), config.weight_updates
    first = max(1, phases(config.optimizer, planned_steps(config))[0])
    return frozenset(step for step in (first + round(i * total / n) for i in range(n)) if step < total)


class Weighting:
    """The weights of a run, now and at its updates."""

    def __init__(
        self,
        config: TrainConfig,
        path: Path,
        batch_of: Callable[[int], np.ndarray],
        forward: Forward,
        noise: gradient_noise.Noise | None,
        devices: Mesh | None,
    ):
        """The weights before the first update; `noise` where the rule asks for it."""
        self.config, self.path, self.steps = config, path, update_steps(config)
        self._batch_of, self._forward, self._noise, self._devices = batch_of, forward, noise, devices
        told = config.position_weights
        self._rule, self._name = sources.load(told.kind, told.source), told.source or told.kind
        self._lines: list[dict[str, Any]] = []
        self._place()

    def resume(self, step: int) -> None:
        """Go on after `step` steps: what was written of later updates is forgotten, and they are made again.

        Raises:
            ValueError: where an update before it is missing.
        """
        lines = [line for line in read_lines(self.path) if line["step"] < step]
        expected = sorted(one for one in self.steps if one < step)
        if [line["step"] for line in lines] != expected:
            found = f"updates at steps {[line['step'] for line in lines]}, expected {expected}"
            raise ValueError(f"training: {self.path / WEIGHTS} has {found}; restore it from a copy, or train anew")
        if (self.path / WEIGHTS).exists():
            text = "".join(json.dumps(line) + "\n" for line in lines).encode()
            write_atomically(self.path / WEIGHTS, lambda file: file.write(text))
        self._lines = lines
        self._place()

    def update(self, params: Params, step: int) -> None:
        """Look at the model after `step` steps, and weigh as the rule says from here on.

        Raises:
            ValueError: for losses that are not finite, or a rule that fails. OSError: where it cannot be written.
        """
        loss, noise = self._seen(params, step)
        before = self._lines[-1] if self._lines else {"loss": None, "noise": None}
        loss, noise = _smoothed(before["loss"], loss), None if noise is None else _smoothed(before["noise"], noise)
        tokens, total = (tokens_at(self.config, n) for n in (step, total_steps(self.config)))
        position = np.arange(1, self.config.context + 1)
        observed = adaptive.Observed(position, loss, tokens, total, noise, self._weights())
        weights, said = adaptive.answer(self._rule, self._name, observed)
        line = {"step": step, "tokens": tokens, "weights": weights.tolist(), "loss": loss.tolist()}
        self._write(line | {"noise": None if noise is None else noise.tolist(), "said": said})
        self._place()

    def summary(self) -> dict[str, Any]:
        """For the record: the weights of some positions at each update, and the tokens that were looked at."""
        n = len(self._lines)
        some = np.unique(np.round(np.geomspace(1, self.config.context, POSITIONS)).astype(int))
        bands = gradient_noise.bands(self.config.context)
        gradients = len(bands) * self._noisy() * self.config.context if self._noise else 0
        return {
            "rule": str(self.config.position_weights),
            "tokens": [line["tokens"] for line in self._lines],
            "position": some.tolist(),
            "weights": [[round(line["weights"][i - 1], 5) for i in some] for line in self._lines],
            "said": [line["said"] for line in self._lines],
            "tokens_forward": n * gradient_noise.SEQUENCES * self.config.context,
            "tokens_forward_and_backward": n * gradients,
        }

    def _seen(self, params: Params, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        tokens = gradient_noise.coming(self._batch_of, step, max(gradient_noise.SEQUENCES, self._noisy()))
        batch = self.config.evaluation_batch
        loss = gradient_noise.losses(self._forward, params, tokens[: gradient_noise.SEQUENCES], batch)
        noise = None
        if self._noise:
            noise = gradient_noise.noise_by_position(self._noise, params, tokens[: self._noisy()], self._devices)
        for name, values in (("loss", loss), ("gradient noise", noise)):
            if values is not None and not np.isfinite(values).all():
                found = f"{name} at position {np.flatnonzero(~np.isfinite(values))[0] + 1} is not finite"
                mend = "Lower peak_lr, or raise warmup or clip"
                raise ValueError(f"training: at the update of the weights after step {step} the {found}. {mend}")
        return loss, noise

    def _noisy(self) -> int:
        """Sequences that the noise is measured on."""
        return gradient_noise.MICROBATCHES * gradient_noise.ROWS if self._noise else 0

    def _weights(self) -> np.ndarray:
        return np.array(self._lines[-1]["weights"]) if self._lines else np.ones(self.config.context)

    def _place(self) -> None:
        """The weights of now on the devices, as the step takes them."""
        self.now: jax.Array = mesh.put_everywhere(self._weights().astype(np.float32), self._devices)

    def _write(self, line: Mapping[str, Any]) -> None:
        """Add a line, durably: a checkpoint must not be there without the updates before it."""
        with open(self.path / WEIGHTS, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines.append(dict(line))


def _smoothed(before: list[float] | None, seen: np.ndarray) -> np.ndarray:
    return seen if before is None else KEEP * np.array(before) + (1 - KEEP) * seen


def read_lines(run: Path) -> list[dict[str, Any]]:
    """What is kept of the updates, without a last line that a kill cut short; none where nothing is.

    Raises:
        ValueError: for a line that is damaged.
    """
    try:
        text = (run / WEIGHTS).read_text()
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1].splitlines()
    try:
        return [json.loads(line) for line in whole]
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
