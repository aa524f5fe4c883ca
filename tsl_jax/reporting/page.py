"""`report`: one self-contained HTML file of a run, its fits and its forecasts; plots by plotly.js, embedded.

The page needs no network, and its content-security policy forbids it any. A reader never meets half of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import xarray as xr

from tsl_jax.atomic_write import write_atomically
from tsl_jax.reporting import forecast_sections, sections
from tsl_jax.reporting.facts import facts as facts_section
from tsl_jax.reporting.fitted import other_fits
from tsl_jax.reporting.inputs import Material, sort


def report(
    path: str | Path,
    *results: Any,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    r2: xr.Dataset | None = None,
) -> Path:
    """Write a page about a run that a person likes to read.

    Args:
        path: the HTML file to write; its folder is made if absent.
        results: in any order: a loss surface, fits (over position, or of any other law), forecasts, a backtest.
        title: heading of the page; default from the run's name.
        facts: what else to say about the run, name -> value; the surface's own facts are shown anyway.
        r2: R2 of the position law, variables `plain`, `additive`, `ceiling` over (split, tokens), any of them.

    Returns:
        The path.

    Raises:
        ValueError: for no result, one of a type that cannot be shown, or two surfaces or backtests.
        OSError: if the file cannot be written; a page that was there before is untouched.
    """
    material = sort(results)
    page = render(material, title or _title(material), facts, r2)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def render(material: Material, title: str, facts: Mapping[str, str] | None, r2: xr.Dataset | None) -> str:
    """The page as text."""
    body = [
        sections.by_position(material),
        sections.parameters(material),
        forecast_sections.forecast(material),
        forecast_sections.errors(material),
        sections.quality(material, r2),
        other_fits(material),
        facts_section(facts, material.attrs),
    ]
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        style=_asset("page.css"),
        head=sections.head(material, title, r2),
        body="".join(body),
        plotly=_plotly() if any("<figure" in part for part in body) else "",
        script=_asset("page.js"),
    )


def _title(material: Material) -> str:
    run = material.attrs.get("run")
    return f"Loss dynamics of {run}" if run else "Loss dynamics"


def _asset(name: str) -> str:
    return files("tsl_jax.reporting").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # late: half of the time to write a page

    return get_plotlyjs()
