"""From the beginning of a run to its end: forecasts with intervals, baselines, scores and backtests.

forecast_run     `forecast`: the one verb; what speaks against a forecast whatever its method
methods          METHODS: every method, its family, label and implementation
result           Forecast, ForecastStatus, ForecastFlag, and quantiles of draws
lr_aware         laws that know the learning rate, of the mean loss or of a0, a1 and a2
extrapolation    one curve from its past and reference runs; backtests within; stacking of laws
mixed_model      the Bayesian mixed model beneath: Kalman filter, effects integrated out
importance_sampling   its sampler: proposals and tempered weights
priors           its priors
lr_history       the learning rate of a run as laws read it: area and decreases
assumed_rate     what is taken for the learning rate to come where no plan is known
position_route   temporal laws of a0, a1 and a2: the paper's route
joint_surface    the same, all parameters at once
baselines        laws of the mean loss alone
rolling_origin   intervals for methods that give points
scoring          `score`: how good a forecast was
backtesting      `backtest` from several cut-offs, `coverage` over many runs
loss_crossing    when the loss comes down to a value
recorded_pace    the time of day of so many tokens, from the times of a log
watching         a running job: its end as known now, and the rule to stop it
course           where it left its course: spikes, divergence, other data, plateaus, restarts
registered       forecasts written down before the end is seen, and judged
plan_comparison  `compare_plans`: where one run would end under several plans
size_ladder      `fit_size_ladder`: every position at a size and a time that no run has reached
"""

from tsl_jax.forecasting import baselines
from tsl_jax.forecasting.backtesting import Backtest, backtest, coverage
from tsl_jax.forecasting.forecast_run import forecast
from tsl_jax.forecasting.loss_crossing import crossing
from tsl_jax.forecasting.lr_aware import ForecastMethod
from tsl_jax.forecasting.methods import MAIN, METHODS, MethodInfo
from tsl_jax.forecasting.plan_comparison import Comparison, compare_plans
from tsl_jax.forecasting.position_route import Paper
from tsl_jax.forecasting.result import Forecast, ForecastFlag, ForecastStatus
from tsl_jax.forecasting.scoring import covered, score, winkler
from tsl_jax.forecasting.size_ladder import SizeLadder, fit_size_ladder

__all__ = [
    "MAIN",
    "METHODS",
    "Backtest",
    "Comparison",
    "Forecast",
    "ForecastFlag",
    "ForecastMethod",
    "ForecastStatus",
    "MethodInfo",
    "Paper",
    "SizeLadder",
    "backtest",
    "baselines",
    "compare_plans",
    "coverage",
    "covered",
    "crossing",
    "fit_size_ladder",
    "forecast",
    "score",
    "winkler",
]
