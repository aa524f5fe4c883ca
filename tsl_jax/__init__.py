"""tsl_jax: loss dynamics of language-model pre-training.

The names below are loaded when first used, so that importing tsl_jax costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers, which cannot read the table; a test compares the two
    from tsl_jax import diagnostics as diagnostics
    from tsl_jax import laws as laws
    from tsl_jax import scaling as scaling
    from tsl_jax import selection as selection
    from tsl_jax.curve_tables import fit_table as fit_table
    from tsl_jax.diagnostics.law_comparison import compare_laws as compare_laws
    from tsl_jax.fitting import Fit as Fit
    from tsl_jax.fitting import Status as Status
    from tsl_jax.fitting import fit as fit
    from tsl_jax.forecasting import Forecast as Forecast
    from tsl_jax.forecasting import backtest as backtest
    from tsl_jax.forecasting import baselines as baselines
    from tsl_jax.forecasting import compare_plans as compare_plans
    from tsl_jax.forecasting import forecast as forecast
    from tsl_jax.forecasting import score as score
    from tsl_jax.importers import PositionLosses as PositionLosses
    from tsl_jax.importers import from_losses as from_losses
    from tsl_jax.importers import read_log as read_log
    from tsl_jax.importers import read_table as read_table
    from tsl_jax.pretrained.callables import evaluate as evaluate
    from tsl_jax.pretrained.evaluation_text import text_windows as text_windows
    from tsl_jax.reporting import report as report
    from tsl_jax.schedules import Schedule as Schedule
    from tsl_jax.surface import load_surface as load_surface
    from tsl_jax.surface import pack as pack
    from tsl_jax.surface import save_surface as save_surface
    from tsl_jax.training.noise_scale import noise_scale as noise_scale

__version__ = "0.1.0"

_NAMES = {  # module: the public names it holds; "tsl_jax" holds packages
    "tsl_jax": ("diagnostics", "laws", "scaling", "selection"),
    "tsl_jax.curve_tables": ("fit_table",),
    "tsl_jax.diagnostics.law_comparison": ("compare_laws",),
    "tsl_jax.fitting": ("Fit", "Status", "fit"),
    "tsl_jax.forecasting": ("Forecast", "backtest", "baselines", "compare_plans", "forecast", "score"),
    "tsl_jax.importers": ("PositionLosses", "from_losses", "read_log", "read_table"),
    "tsl_jax.pretrained.callables": ("evaluate",),
    "tsl_jax.pretrained.evaluation_text": ("text_windows",),
    "tsl_jax.reporting": ("report",),
    "tsl_jax.schedules": ("Schedule",),
    "tsl_jax.surface": ("load_surface", "pack", "save_surface"),
    "tsl_jax.training.noise_scale": ("noise_scale",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tsl_jax' has no attribute {name!r}")
    module = _MODULE_OF[name]
    return import_module(f"tsl_jax.{name}") if module == "tsl_jax" else getattr(import_module(module), name)


def __dir__() -> list[str]:
    return __all__
