"""Small pieces of HTML. Every string that comes from data is escaped here, before it meets any markup."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tsl_jax.reporting.figures import Figure


@dataclass(frozen=True)
class Html:
    """Markup that is safe to put into the page as it is."""

    text: str


def text(value: Any) -> str:
    """Markup of a value: `Html` as it is, anything else escaped."""
    return value.text if isinstance(value, Html) else escape(str(value))


def paragraph(value: Any, kind: str = "") -> str:
    """One paragraph."""
    return f"<p{_class(kind)}>{text(value)}</p>"


def section(name: str, title: str, *parts: str) -> str:
    """A section with its heading."""
    return f'<section id="{name}"><h2>{text(title)}</h2>\n' + "\n".join(part for part in parts if part) + "</section>\n"


def folded(summary: Any, inner: str) -> str:
    """What is shown on demand."""
    return f"<details><summary>{text(summary)}</summary>{inner}</details>"


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]], caption: Any = "", kind: str = "") -> str:
    """A table whose first column names its rows."""
    top = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    head_row = f"<thead><tr>{top}</tr></thead>" if head else ""
    body = ""
    for name, *cells in rows:
        body += f'<tr><th scope="row">{text(name)}</th>' + "".join(f"<td>{text(cell)}</td>" for cell in cells) + "</tr>"
    inner = f"<table{_class(kind)}>{title}{head_row}<tbody>{body}</tbody></table>"
    described = escape(str(caption)) if caption and not isinstance(caption, Html) else "table"
    return f'<div class="wide" tabindex="0" role="region" aria-label="{described}">{inner}</div>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def figure(drawing: Figure, caption: Any) -> str:
    """A figure: its choices, the drawing, its legend, its caption, and its data for the page's script."""
    choices = ""
    for k, (name, options) in enumerate(drawing.choices.items()):
        if len(options) > 1:
            chosen = drawing.start.get(name, options[0])
            buttons = "".join(
                f'<label><input type="radio" name="{drawing.name}-{k}" value="{number}"'
                f"{' checked' if option == chosen else ''}><span>{escape(option)}</span></label>"
                for number, option in enumerate(options)
            )
            choices += f"<fieldset><legend>{escape(name)}</legend>{buttons}</fieldset>"
    size = next(iter(drawing.views.values()))["layout"]["height"]
    return (
        f'<figure id="figure-{drawing.name}"><div class="choices">{choices}</div>'
        f'<div class="plot" role="img" aria-label="{escape(drawing.alt)}" style="min-height:{size}px"></div>'
        f'<div class="legend{" strip" if drawing.strip else ""}"></div>'
        f"<figcaption>{text(caption)}</figcaption>"
        f'<script type="application/json">{data(drawing.as_json())}</script></figure>'
    )


def data(value: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    plain = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
