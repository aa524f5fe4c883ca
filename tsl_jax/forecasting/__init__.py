"""From the beginning of a run to its end: forecasts, baselines, scores."""

from tsl_jax.forecasting import baselines
from tsl_jax.forecasting.backtest import Backtest, backtest
from tsl_jax.forecasting.compare import Comparison, compare_plans
from tsl_jax.forecasting.coverage import coverage
from tsl_jax.forecasting.forecast import forecast
from tsl_jax.forecasting.result import Forecast
from tsl_jax.forecasting.score import covered, score, winkler
from tsl_jax.forecasting.temporal import Paper

__all__ = [
    "Backtest",
    "Comparison",
    "Forecast",
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
