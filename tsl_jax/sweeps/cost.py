"""What runs will take, before they begin: tokens, FLOPs of training and of evaluation, and a guess of the time here."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from tsl_jax.data.corpora import configured_domains, vocabulary_size
from tsl_jax.models.config import resolve
from tsl_jax.models.cost import flops_per_token
from tsl_jax.training.config import TrainConfig

UTILISATION = 0.35  # of the machine's matrix products, assumed: small models reach .3 to .55 on a CPU
START_UP = 8.0  # seconds of a run: imports, text, compiling with a warm cache


@dataclass(frozen=True)
class Cost:
    """Of one run or many.

    Attributes:
        runs: how many. tokens: trained on. evaluated: tokens scored on the evaluation windows.
        training, evaluation: FLOPs.
    """

    runs: int = 0
    tokens: int = 0
    evaluated: int = 0
    training: float = 0.0
    evaluation: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def seconds(self, rate: float) -> float:
        """A guess, where matrix products reach `rate` FLOPs a second (`machine_rate`)."""
        return (self.training + self.evaluation) / (UTILISATION * rate) + START_UP * self.runs

    def __str__(self) -> str:
        trained = f"{self.tokens:.3g} tokens in {self.training:.2g} FLOPs"
        return f"{self.runs} runs: {trained} of training, {self.evaluated:.3g} in {self.evaluation:.2g} of evaluation"


def cost(config: TrainConfig) -> Cost:
    """Of one run; a forward pass is a third of a training step.

    Raises:
        ValueError: where its vocabulary is that of a corpus which is not built yet.
    """
    vocabulary = config.model.vocabulary or vocabulary_size(config.data)
    model = resolve(config.model, vocabulary=vocabulary, context=config.context)
    each = flops_per_token(model, config.context)
    evaluated = config.evaluations * windows(config) * config.context
    return Cost(1, config.tokens, evaluated, float(each) * config.tokens, each / 3 * evaluated)


def windows(config: TrainConfig) -> int:
    """Evaluation windows of all splits; text without a domain that is not trained on has only the first."""
    told, data = config.evaluation, config.data
    other = any(domain.weight == 0 for domain in configured_domains(data))
    return told.id_stretches * told.id_offsets + (told.ood_stretches * told.ood_offsets if other else 0)


def machine_rate(dtype: str) -> float:
    """`training.estimate.matrix_rate` by a process of its own: a device that it took would be missing to the runs.

    Raises:
        OSError: where it cannot be measured.
    """
    program = f"from tsl_jax.training.memory import matrix_rate; print(matrix_rate({dtype!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"the speed of this machine could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout.split()[-1])
