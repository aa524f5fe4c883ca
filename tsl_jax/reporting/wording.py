"""The wording of page, figures and terminal: numbers, shares of a run, formulas, and the names of methods."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from html import escape

from tsl_jax.forecasting.methods import METHODS

SUPERSCRIPTS = str.maketrans("0123456789−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
GREEK = dict(alpha="α", beta="β", gamma="γ", delta="δ", epsilon="ε", zeta="ζ", **{"lambda": "λ"})


SPLITS = {"id": "in-distribution text (id)", "ood": "out-of-distribution text (ood)"}


def described(method: str) -> str:
    """A method's name and, where it first stands, what it is; a method of the caller's own has its name alone."""
    return f"{method} ({METHODS[method].description})" if method in METHODS else method


def spelled_out(split: str) -> str:
    """A split of the validation text in words, for where it first stands."""
    return SPLITS.get(split, split)


def count(value: float) -> str:
    """A number of tokens or parameters: 16.4k, 2.5M, 20B."""
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def nats(value: float) -> str:
    """A loss."""
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def signed(value: float) -> str:
    """An error with its sign, a true minus; three decimals, fewer for large ones."""
    decimals = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:+.{decimals}f}".replace("-", "−") if math.isfinite(value) else "–"


def compact(value: float, figures: int = 4) -> str:
    """Any number, very large and small ones as powers of ten."""
    digits, _, power = f"{value:.{figures}g}".replace("-", "−").partition("e")
    raised = f" × 10{power.lstrip('+').replace('−0', '−').lstrip('0').translate(SUPERSCRIPTS)}" if power else ""
    return digits + raised if math.isfinite(value) else "–"


def mathematics(text: str) -> str:
    """Escaped markup of a formula or a parameter's name, with Greek letters, subscripts and superscripts."""
    # whole words only: the beta in "alphabeta" is none. Escaping comes first, as the tags are added afterwards
    markup = re.sub(r"[A-Za-z]+", lambda word: GREEK.get(word[0], word[0]), escape(text, quote=False))
    markup = re.sub(r"\^(-?[\wα-ω]+)", r"<sup>\1</sup>", re.sub(r"\^\(([^()]*)\)", r"<sup>\1</sup>", markup))
    markup = markup.replace("-", "−")
    markup = re.sub(r"(?<=[A-Za-zα-ω])(\d+)\b", r"<sub>\1</sub>", markup)
    return re.sub(r"_(\w+)", r"<sub>\1</sub>", markup)


def readable(status: object) -> str:
    """A status in words, without the underscores of its name."""
    return str(status).replace("_", " ")


# ----------------------------------------------------------------------------------------------------- shares of a run


def percent(share: float) -> str:
    """A single share of the run. Several that stand side by side are named by `percents`."""
    return f"{100 * share:.3g}%" if share < 0.095 else f"{100 * share:.0f}%"


def percents(shares: Iterable[float]) -> dict[float, str]:
    """Share -> its name, with as few decimals as keep them distinct: 40% beside 10%, but 40.0% beside 40.3%."""
    distinct = sorted(set(shares))
    names = [percent(share) for share in distinct]
    decimals = 0
    while len(set(names)) < len(distinct) and decimals < 15:  # two doubles agree in no more decimals
        decimals += 1
        names = [f"{100 * share:.{decimals}f}%" for share in distinct]
    return dict(zip(distinct, names, strict=True))


def last_loss(share: float | None) -> str:
    """What the loss of the last checkpoint is called; share: how much of the plan an unfinished run has reached."""
    return "final loss" if share is None else "last loss so far"


def whole(share: float | None) -> str:
    """What cut-offs are shares of: of an unfinished run the whole is not there, but its plan is."""
    return "run" if share is None else "plan"


def how_far(share: float) -> str:
    """An unfinished run in words."""
    return f"unfinished: {percent(min(share, 0.99))} of the plan"
