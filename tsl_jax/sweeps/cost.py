"""What runs will take, before they begin: tokens, FLOPs of training and of evaluation, and a guess of the time here."""

from __future__ import annotations

from dataclasses import dataclass

from tsl_jax.data.config import EvalConfig
from tsl_jax.data.corpora import vocabulary as of_text
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
        """A guess, where matrix products reach `rate` FLOPs a second (`training.estimate.matrix_rate`)."""
        return (self.training + self.evaluation) / (UTILISATION * rate) + START_UP * self.runs

    def __str__(self) -> str:
        trained = f"{self.tokens:.3g} tokens in {self.training:.2g} FLOPs"
        return f"{self.runs} runs: {trained} of training, {self.evaluated:.3g} in {self.evaluation:.2g} of evaluation"


def cost(config: TrainConfig) -> Cost:
    """Of one run; a forward pass is a third of a training step."""
    vocabulary = config.model.vocabulary or of_text(config.data)
    model = resolve(config.model, vocabulary=vocabulary, context=config.context)
    each = flops_per_token(model, config.context)
    evaluated = config.evaluations * windows(config.evaluation) * config.context
    return Cost(1, config.tokens, evaluated, float(each) * config.tokens, each / 3 * evaluated)


def windows(config: EvalConfig) -> int:
    """Evaluation windows of both splits; text without a second kind of domain has only the first."""
    return config.id_stretches * config.id_offsets + config.ood_stretches * config.ood_offsets
