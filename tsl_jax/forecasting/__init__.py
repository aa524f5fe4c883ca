"""From the beginning of a run to its end: forecasts, baselines, scores."""

from tsl_jax.forecasting import baselines
from tsl_jax.forecasting.backtesting import Backtest, backtest
from tsl_jax.forecasting.calibration import coverage
from tsl_jax.forecasting.forecast_run import forecast
from tsl_jax.forecasting.lr_aware import ForecastMethod
from tsl_jax.forecasting.methods import MAIN, METHODS, MethodInfo
from tsl_jax.forecasting.plan_comparison import Comparison, compare_plans
from tsl_jax.forecasting.position_route import Paper
from tsl_jax.forecasting.result import Forecast, ForecastFlag, ForecastStatus
from tsl_jax.forecasting.scoring import covered, score, winkler

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
    "backtest",
    "baselines",
    "compare_plans",
    "coverage",
    "covered",
    "forecast",
    "score",
    "winkler",
]
