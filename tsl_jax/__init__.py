"""tsl_jax: loss dynamics of language-model pre-training.

The names below are loaded when first used, so that importing tsl_jax costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsl_jax import laws as laws
    from tsl_jax.fitting import Fit as Fit
    from tsl_jax.fitting import Status as Status
    from tsl_jax.fitting import fit as fit
    from tsl_jax.forecasting import Forecast as Forecast
    from tsl_jax.forecasting import baselines as baselines
    from tsl_jax.forecasting import forecast as forecast
    from tsl_jax.forecasting import score as score
    from tsl_jax.importers.arrays import from_losses as from_losses
    from tsl_jax.importers.table import read_table as read_table
    from tsl_jax.reporting import report as report
    from tsl_jax.surface import load_surface as load_surface
    from tsl_jax.surface import pack as pack
    from tsl_jax.surface import save_surface as save_surface

__version__ = "0.1.0"

_HOMES = {
    "Fit": "tsl_jax.fitting",
    "Forecast": "tsl_jax.forecasting",
    "Status": "tsl_jax.fitting",
    "baselines": "tsl_jax.forecasting",
    "fit": "tsl_jax.fitting",
    "forecast": "tsl_jax.forecasting",
    "from_losses": "tsl_jax.importers.arrays",
    "laws": "tsl_jax",
    "load_surface": "tsl_jax.surface",
    "pack": "tsl_jax.surface",
    "read_table": "tsl_jax.importers.table",
    "report": "tsl_jax.reporting",
    "save_surface": "tsl_jax.surface",
    "score": "tsl_jax.forecasting",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tsl_jax' has no attribute {name!r}")
    home = _HOMES[name]
    return import_module(f"tsl_jax.{name}") if home == "tsl_jax" else getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
