"""`tsl fit CURVES`: fit a law to every curve of a file or run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Command:
    """Fit a law to every curve; write one row a curve: parameters, standard errors, sse, r2, status."""

    curves: tyro.conf.Positional[Path]
    """.npy of (curves, positions); .csv or .parquet with columns curve,x,y[,weight]; or a run's folder."""
    law: str = "hyperbolic"
    """Name of the law; a wrong one lists them."""
    out: Path = Path("fits.parquet")
    """Where the rows go (.parquet or .csv)."""
    method: Annotated[
        Literal["auto", "varpro", "lm"], tyro.conf.arg(help="varpro: global; lm: Levenberg-Marquardt")
    ] = "auto"
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of the fit."""


def run(command: Command) -> None:
    """Fit, write, and say how it went."""
    import json

    from tsl_jax import laws
    from tsl_jax.commands import options
    from tsl_jax.fitting import fit, table

    if command.law not in laws.BY_NAME:
        raise ValueError(f"fit: --law {command.law!r} is unknown; expected one of {', '.join(laws.BY_NAME)}")
    table.check_output(command.out)
    law = laws.BY_NAME[command.law]
    if command.curves.is_dir():
        from tsl_jax.surface import load_surface

        surface = load_surface(command.curves)
        over = "position" if "position" in law.covariates else "tokens"
        found = table.rows(fit(law, surface.loss, over=over, method=command.method, dtype=command.dtype))
    else:
        found = table.fit_file(law, command.curves, method=command.method, dtype=command.dtype)
    table.write(found, command.out, {"tsl_jax": json.dumps(options.stamp(command))})
    counts = ", ".join(f"{count} {name}" for name, count in found.status.value_counts().items())
    print(f"{law.formula}: {len(found)} curves, {counts}\nrows: {command.out}")
