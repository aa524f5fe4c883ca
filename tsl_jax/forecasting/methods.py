"""Every way to forecast, once: its family, what carries it out, and what to call it.

Three families. "lr_aware": laws that read the learning rate and are sampled, so that intervals come from the model.
"position": temporal laws of a0, a1 and a2, the paper's route. "mean": laws of the mean loss alone, the baselines. The
last two give points; their intervals come from earlier origins within the past.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tsl_jax.forecasting import baselines, lr_aware
from tsl_jax.forecasting.baselines import Baseline
from tsl_jax.forecasting.lr_aware import ForecastMethod
from tsl_jax.forecasting.position_route import Paper

MAIN = "mean_annealing"  # the method that held best on the development data of `priors.py`


@dataclass(frozen=True)
class MethodInfo:
    """A method of `forecast`.

    Attributes:
        family: "lr_aware", "position" or "mean", as above. label: in legends. phrase: as the subject of a sentence.
        implementation: what `forecast` runs; two methods of `position_route` are their names.
    """

    family: Literal["lr_aware", "position", "mean"]
    implementation: str | Paper | Baseline | ForecastMethod
    label: str
    phrase: str

    @property
    def name(self) -> str:
        """As in `method=` and in tables."""
        return self.implementation if isinstance(self.implementation, str) else self.implementation.name

    @property
    def by_position(self) -> bool:
        """Whether it forecasts the loss of every position, and not of their mean alone."""
        return self.family == "position" or getattr(self.implementation, "by_position", False)

    @property
    def is_baseline(self) -> bool:
        """Whether tables rank it among the baselines."""
        return self.family == "mean"


METHODS = {
    info.name: info
    for info in (
        MethodInfo("lr_aware", lr_aware.ANNEALING, "by position, annealing", "the law by position with annealing"),
        MethodInfo("lr_aware", lr_aware.MEAN_ANNEALING, "annealing law", "the annealing law on the mean loss"),
        MethodInfo("lr_aware", lr_aware.MEAN_MULTI_POWER, "multi-power law", "the multi-power law on the mean loss"),
        MethodInfo(
            "lr_aware",
            lr_aware.MEAN_AREA_POWER,
            "power law in area",
            "the power law in the learning rate’s area on the mean loss",
        ),
        MethodInfo("lr_aware", lr_aware.MEAN_STACK, "stacked laws", "the stack of three laws on the mean loss"),
        MethodInfo("position", "temporal", "by position", "the law by position"),
        MethodInfo("position", "temporal_joint", "by position, joint", "the law by position, fitted jointly,"),
        MethodInfo("position", Paper(), "paper’s law", "the paper’s law along the cosine"),
        MethodInfo("mean", baselines.POWER_LAW, "power law", "the power law on the mean loss"),
        MethodInfo("mean", baselines.POWER_PURE, "pure power law", "the power law without constant on the mean loss"),
        MethodInfo("mean", baselines.RECIPROCAL, "reciprocal law", "the reciprocal law on the mean loss"),
        MethodInfo("mean", baselines.LOGARITHMIC, "logarithm", "the logarithm on the mean loss"),
        MethodInfo("mean", baselines.LAST, "last value", "simply repeating the last value"),
        MethodInfo("mean", baselines.MEAN_LOG, "log law on mean", "the temporal log law on the mean loss"),
        MethodInfo("mean", baselines.MEAN_COSINE, "cosine law on mean", "the temporal cosine law on the mean loss"),
    )
}
