"""How a page says things: numbers, names of methods and parameters, and the result in a sentence."""

from __future__ import annotations

import math
import re
from html import escape

import pandas as pd

from tsl_jax.forecasting.methods import METHODS
from tsl_jax.reporting.standing import how_far, last_loss, percent

CONTINUED = tuple(name for name, info in METHODS.items() if info.family == "lr_aware")
BY_POSITION = tuple(name for name, info in METHODS.items() if info.by_position)
SUPERSCRIPTS = str.maketrans("0123456789−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
GREEK = dict(alpha="α", beta="β", gamma="γ", delta="δ", epsilon="ε", zeta="ζ", **{"lambda": "λ"})


def label(method: str) -> str:
    """A method's name in legends and tables."""
    return METHODS[method].label if method in METHODS else method.replace("_", " ")


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
    """An error with its sign, a true minus; three decimals, fewer where it is wild."""
    decimals = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:+.{decimals}f}".replace("-", "−") if math.isfinite(value) else "–"


def compact(value: float, figures: int = 4) -> str:
    """Any number, very large and small ones as powers of ten."""
    digits, _, power = f"{value:.{figures}g}".replace("-", "−").partition("e")
    raised = f" × 10{power.lstrip('+').replace('−0', '−').lstrip('0').translate(SUPERSCRIPTS)}" if power else ""
    return digits + raised if math.isfinite(value) else "–"


def mathematics(text: str) -> str:
    """Escaped markup of a formula or a parameter's name, with Greek letters, subscripts and superscripts."""
    named = re.sub(r"[A-Za-z]+", lambda word: GREEK.get(word[0], word[0]), escape(text, quote=False))
    named = re.sub(r"\^(-?[\wα-ω]+)", r"<sup>\1</sup>", re.sub(r"\^\(([^()]*)\)", r"<sup>\1</sup>", named))
    named = named.replace("-", "−")
    named = re.sub(r"(?<=[A-Za-zα-ω])(\d+)\b", r"<sub>\1</sub>", named)
    return re.sub(r"_(\w+)", r"<sub>\1</sub>", named)


def winners(scores: pd.DataFrame, split: str) -> pd.DataFrame:
    """The row with the smallest error of the final loss at each cut-off: cutoff -> method, final, observed, error."""
    known = scores.xs(split, level="split").reset_index().dropna(subset=["error"])
    if known.empty:
        return known.set_index("cutoff")
    best = known.loc[known.groupby("cutoff").error.apply(lambda error: error.abs().idxmin())]
    return best.set_index("cutoff").sort_index()


def headline(scores: pd.DataFrame, share: float | None = None) -> list[str]:
    """The result in plain words, one string a paragraph, the first a single sentence; empty where nothing is judged.

    Args:
        scores: as in a backtest. share: how much of the plan an unfinished run has reached, which is then said first.
    """
    first = "" if share is None else f"{how_far(share).capitalize()}. "
    splits = [split for split in scores.index.unique("split") if len(winners(scores, split))]
    if not splits:
        return [first.strip()] if first else []
    largest = max(float(winners(scores, split).index[-1]) for split in splits)
    said = [_told(scores, split, largest, share) for split in splits if largest in winners(scores, split).index]
    lead = f"{first}From the first {percent(largest)} of the {whole(share)}, {said[0][0]}"
    rest = [said[0][1], *(f"{sentence[:1].upper()}{sentence[1:]} {more}" for sentence, more in said[1:])]
    return [lead, *filter(str.strip, [" ".join(filter(None, rest)), _earlier(scores, splits[0], largest)])]


def whole(share: float | None) -> str:
    """What cut-offs are shares of: an unfinished run is not there as a whole, its plan is."""
    return "run" if share is None else "plan"


def _told(scores: pd.DataFrame, split: str, cutoff: float, share: float | None) -> tuple[str, str]:
    """Who won and by how much; and how the other side fared."""
    end, article = last_loss(share), "a" if share is None else "the"
    row = winners(scores, split).loc[cutoff]
    name, where = (
        METHODS[row.method].phrase if row.method in METHODS else label(row.method),
        f" on {split}" if split else "",
    )
    if len(scores.xs((split, cutoff), level=("split", "cutoff")).error.dropna()) == 1:
        said = f"{name} forecast {article} {end}{where} of {nats(row.final)} nats; {nats(row.observed)} was observed"
        return f"{said}, an error of {signed(row.error)}.", ""
    won = (
        f"{name} came closest to the {end}{where}: {nats(row.final)} nats forecast, {nats(row.observed)} "
        f"observed, an error of {signed(row.error)}."
    )
    return won, _beaten(scores, split, cutoff, row.method)


def _beaten(scores: pd.DataFrame, split: str, cutoff: float, winner: str) -> str:
    """How the other side fared: the route by position if a law of the mean won, and the other way round."""
    rows = scores.xs((split, cutoff), level=("split", "cutoff")).error.dropna()
    mine = winner in BY_POSITION
    rows = rows[[(method in BY_POSITION) != mine for method in rows.index]]
    if not len(rows):
        return ""
    best = rows.abs().idxmin()
    side = "The laws that know the mean loss alone" if mine else "The law by position"
    return f"{side} missed by {signed(rows[best])}{' at best' if len(rows) > 1 else ''}."


def _earlier(scores: pd.DataFrame, split: str, largest: float) -> str:
    table = winners(scores, split)
    table = table[table.index < largest]
    if not len(table):
        return ""
    parts = [
        f"{percent(cutoff)}: {label(method)} ({signed(error)})"
        for cutoff, method, error in zip(table.index.tolist(), table.method, table.error, strict=True)
    ]
    where = f" on {split}" if split else ""
    return f"Closest{where} from less of the run: " + "; ".join(parts) + "."
