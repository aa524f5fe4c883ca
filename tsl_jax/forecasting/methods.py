"""Every way to forecast, once: its name, its family, what carries it out, and what it is in words.

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
REPORTED = (MAIN, "temporal", "paper", "power", "last")  # of a report: the default, the paper's, what is tried by hand


@dataclass(frozen=True)
class MethodInfo:
    """A method of `forecast`.

    Attributes:
        family: "lr_aware", "position" or "mean", as above. description: what it is, as a part of a sentence.
        implementation: what `forecast` runs; two methods of `position_route` are their names.
    """

    family: Literal["lr_aware", "position", "mean"]
    implementation: str | Paper | Baseline | ForecastMethod
    description: str

    @property
    def name(self) -> str:
        """As in `method=`, on the command line, on pages and in tables."""
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
        MethodInfo("lr_aware", lr_aware.ANNEALING, "area annealing of a0, a1 and a2, by position"),
        MethodInfo("lr_aware", lr_aware.MEAN_ANNEALING, "saturating annealing of the mean loss"),
        MethodInfo("lr_aware", lr_aware.MEAN_MULTI_POWER, "multi-power law of the mean loss"),
        MethodInfo("lr_aware", lr_aware.MEAN_AREA_POWER, "power law of the mean loss in the learning rate’s area"),
        MethodInfo("position", "temporal", "temporal laws of a0, a1 and a2, by position"),
        MethodInfo("position", "temporal_joint", "temporal laws of a0, a1 and a2, fitted jointly, by position"),
        MethodInfo("position", Paper(), "the paper’s temporal laws along the cosine, by position"),
        MethodInfo("mean", baselines.POWER_LAW, "power law with a constant, of the mean loss"),
        MethodInfo("mean", baselines.POWER_PURE, "power law without a constant, of the mean loss"),
        MethodInfo("mean", baselines.RECIPROCAL, "reciprocal law of the mean loss"),
        MethodInfo("mean", baselines.LOGARITHMIC, "logarithm of the mean loss"),
        MethodInfo("mean", baselines.LAST, "the last mean loss seen"),
        MethodInfo("mean", baselines.MEAN_LOG, "temporal log law of the mean loss"),
        MethodInfo("mean", baselines.MEAN_COSINE, "temporal cosine law of the mean loss"),
    )
}
