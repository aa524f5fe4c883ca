"""A forecast that is written down before the end is seen, and judged when it is: dated, hashed, with its assumptions.

The file is JSON: what was forecast at which tokens with its 50 and 90 % intervals, by which method, from which
checkpoints (a hash of their tokens and losses), when, under which assumptions; `sha256` is that of all the rest. A
changed file is refused when it is judged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.forecasting.baselines import mean_loss
from tsl_jax.forecasting.result import Forecast
from tsl_jax.forecasting.scoring import winkler
from tsl_jax.forecasting.watching import RUN_LENGTH

KIND = "tsl forecast, registered"
COLUMNS = ("split", "tokens", "mean", "low90", "low50", "high50", "high90")
SHOWN = ("split", "tokens", "observed", "mean", "low90", "high90", "inside", "score")


@dataclass(frozen=True)
class Outcome:
    """What came of a registered forecast.

    Attributes:
        table: a row a split and token count that has been reached: observed, mean, low90, high90, inside, and score,
            the interval score of the 90 % interval in nats (its width, and 20 times what lies outside).
        inside: whether no RUN_LENGTH of them in a row lie outside on one side, nor is a loss not finite. ahead: token
            counts not reached yet.
    """

    table: pd.DataFrame
    inside: bool
    ahead: int

    def report(self) -> str:
        """The table, and whether the run is still inside."""
        if self.table.empty:
            return f"none of the {self.ahead} token counts has been reached yet"
        share = float(self.table.inside.mean())
        lines = [self.table.to_string(index=False, float_format="{:.4f}".format)]
        lines.append(f"{share:.0%} of {len(self.table)} inside the 90 % interval; {self.ahead} still ahead")
        off = f"off its forecast: {RUN_LENGTH} in a row outside, or a loss that is not finite"
        lines.append("inside its forecast" if self.inside else off)
        return "\n".join(lines)


def register(past: xr.Dataset, made: Forecast, run: str) -> dict[str, Any]:
    """The content of the file; `made` at tokens beyond `past`."""
    table = made.to_dataframe()
    rows = [{name: _plain(row[name]) for name in COLUMNS if name in row} for _, row in table.iterrows()]
    content = {
        "kind": KIND,
        "registered": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run,
        "method": made.method,
        "cutoff": made.cutoff,
        "past_sha256": _hash_of_past(past),
        "assumes": list(made.notes),
        "status": {split: str(status) for split, status in made.status.items()},
        "intervals_rest_on": dict(made.intervals),
        "forecast": rows,
    }
    return {**content, "sha256": _hash(content)}


def judge(content: Any, seen: xr.Dataset, split: str = "") -> Outcome:
    """What came of a registered forecast, from the run as far as it is there.

    Args:
        split: default all that are forecast.

    Raises:
        ValueError: for content that is none, was changed since, or is of another run's past.
    """
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise ValueError("score: expected a file of tsl forecast --register, found another")
    if content.get("sha256") != _hash({name: value for name, value in content.items() if name != "sha256"}):
        raise ValueError("score: the file was changed after it was registered: its hash does not fit its content")
    past = seen.sel(tokens=seen.tokens <= content["cutoff"])
    if _hash_of_past(past) != content["past_sha256"]:
        raise ValueError(
            f"score: the losses up to {content['cutoff']:,.0f} tokens are not those that the forecast was made from"
        )
    asked = [row for row in content["forecast"] if split in ("", row["split"])]
    losses, reached = mean_loss(seen), []
    for row in asked:
        row = {name: np.nan if row.get(name) is None else row[name] for name in COLUMNS}
        if row["split"] not in losses.split.values:
            continue
        curve = losses.sel(split=row["split"]).dropna("tokens")
        if not curve.sizes["tokens"] or float(curve.tokens[-1]) < row["tokens"]:
            continue
        observed = float(np.interp(row["tokens"], curve.tokens, curve.values))
        ends = row["low90"], row["high90"]
        inside, score = ends[0] <= observed <= ends[1], float(winkler(np.array(ends[0]), np.array(ends[1]), observed))
        reached.append(
            {"split": row["split"], "tokens": row["tokens"], "observed": observed, "mean": row["mean"],
             "low90": ends[0], "high90": ends[1], "inside": inside, "score": score}
        )  # fmt: skip
    known = pd.DataFrame(reached, columns=list(SHOWN))
    side = np.where(known.observed > known.high90, 1, np.where(known.observed < known.low90, -1, 0))
    off = False
    for name in set(known["split"]):
        own = side[(known["split"] == name).to_numpy()]
        length = min(RUN_LENGTH, sum(row["split"] == name for row in asked))
        off |= any(abs(own[k : k + length].sum()) == length for k in range(len(own) - length + 1))
    later = losses.sel(tokens=losses.tokens > content["cutoff"]).values
    off |= bool((~np.isfinite(later)).all(axis=0).any()) if later.size else False
    return Outcome(known, not off, len(asked) - len(known))


def _plain(value: Any) -> Any:
    """As JSON has it: eight digits, null for what is no number."""
    if isinstance(value, str):
        return value
    return float(f"{value:.8g}") if np.isfinite(value) else None


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash_of_past(past: xr.Dataset) -> str:
    """Of tokens and mean losses, to seven digits: as a log gives them."""
    losses = mean_loss(past).transpose("split", "tokens").values
    text = ";".join(f"{tokens:.0f}" for tokens in past.tokens.values)
    return hashlib.sha256((text + "|" + ";".join(f"{loss:.7g}" for loss in losses.ravel())).encode()).hexdigest()
