"""Interventions: what changes in the middle of a run, and the segments of steps between. Standard library only.

An entry of `changes` is

    AT:WHAT=VALUE        .5:lr=.3     .5:batch=16     .5:mixture=code@.5,docs@.5     .5:skip=8

AT is a share of the run's tokens. The change begins after the last whole step within it, and holds until another
entry says otherwise:

    lr       the learning rate is that many times the planned one
    batch    sequences in a step; in tokens, the plan of the learning rate stays as it is
    mixture  shares of the run's domains in the training batches; each domain goes on where it was in its order
    skip     the batches of that many steps (of the size from there on) are passed over, once, in the order of the data

A spike is a high lr for a few steps (.5:lr=30 .505:lr=1). A rollback goes back to a checkpoint and on without the data
that followed it; a batch is a function of seed and step alone, so that what is left is the run that skips that data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tsl_jax.data.config import validate_weights

KINDS = ("lr", "batch", "mixture", "skip")
MOST = {"lr": 1e9, "batch": 1 << 24, "skip": 10**12}
_ENTRY = re.compile(r"(?P<at>\d*\.?\d+):(?P<kind>[a-z]+)=(?P<value>.+)", re.DOTALL)


@dataclass(frozen=True)
class Segment:
    """Steps between two interventions, in which nothing changes."""

    step: int  # optimizer steps done when it begins
    tokens: int  # tokens seen by then
    sequence: int  # place of its first sequence in the order of the data
    batch_size: int
    lr_factor: float = 1.0  # times the planned learning rate
    mixture: tuple[tuple[str, float], ...] = ()  # domain and weight; empty: as the run began


def run_segments(entries: Sequence[str], tokens: int, context: int, batch_size: int) -> tuple[Segment, ...]:
    """The segments of a run of so many tokens, in order; one where nothing changes.

    Args:
        entries: `TrainConfig.changes`. tokens: of the run. context, batch_size: of a step as the run begins.

    Raises:
        ValueError: for an entry that cannot be read, two that say the same of one place, or a segment without a step.
    """
    changes: dict[Fraction, dict[str, Any]] = {}  # share of the run -> kind -> value
    for entry in entries:
        at, kind, value = _parse(entry)
        if kind in changes.setdefault(at, {}):
            raise ValueError(f"training: changes say the same thing twice at {float(at):g}; leave one of them out")
        changes[at][kind] = value
    segments = [Segment(0, 0, 0, batch_size)]
    for at in sorted(changes):
        last, change = segments[-1], changes[at]
        steps = (int(at * tokens) - last.tokens) // (last.batch_size * context)
        _need_step(steps, f"before the change at {float(at):g}")
        size = change.get("batch", last.batch_size)
        segments.append(
            Segment(
                step=last.step + steps,
                tokens=last.tokens + steps * last.batch_size * context,
                sequence=last.sequence + steps * last.batch_size + change.get("skip", 0) * size,
                batch_size=size,
                lr_factor=change.get("lr", last.lr_factor),
                mixture=change.get("mixture", last.mixture),
            )
        )
    last = segments[-1]
    if entries:
        _need_step((tokens - last.tokens) // (last.batch_size * context), "after the last change")
    return tuple(segments)


def _need_step(steps: int, where: str) -> None:
    if steps < 1:
        raise ValueError(f"training: there is no whole step {where}; move it, or take smaller batches or more tokens")


def _parse(entry: Any) -> tuple[Fraction, str, Any]:
    """Share of the run, kind and value of an entry."""
    if not isinstance(entry, str):
        raise ValueError(f"training: changes are texts AT:WHAT=VALUE (in YAML within quotes), found {entry!r}")
    match = _ENTRY.fullmatch(entry.strip())
    if not match or match["kind"] not in KINDS:
        kinds = ", ".join(f".5:{kind}=..." for kind in KINDS)
        raise ValueError(f"training: changes are of the form AT:WHAT=VALUE ({kinds}), found {entry!r}")
    at = Fraction(match["at"])
    if not 0 < at < 1:
        raise ValueError(f"training: the change {entry!r} is at {match['at']}, expected a share between 0 and 1")
    try:
        parse_value = _parse_mixture if match["kind"] == "mixture" else _parse_number
        return at, match["kind"], parse_value(match["kind"], match["value"])
    except ValueError as error:
        raise ValueError(f"training: the change {entry!r}: {str(error).removeprefix('data: ')}") from None


def _parse_number(kind: str, text: str) -> float | int:
    try:
        value = float(text) if kind == "lr" else int(text)
    except ValueError:
        expected = "number" if kind == "lr" else "whole number"
        advice = "; separate entries by spaces" if "," in text else ""
        raise ValueError(f"{kind} needs a {expected}, found {text!r}{advice}") from None
    if not 0 < value < float("inf"):
        raise ValueError(f"{kind} must be positive, found {text:.40}")
    if value > MOST[kind]:
        raise ValueError(f"{kind} must be at most {MOST[kind]:g}, found {text:.40}")
    return value


def _parse_mixture(kind: str, text: str) -> tuple[tuple[str, float], ...]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("@")
        try:
            number = float(weight)
        except ValueError:
            raise ValueError(f"{kind} needs DOMAIN@WEIGHT,..., found {part!r}") from None
        if name in weights:
            raise ValueError(f"{kind} names {name!r} twice")
        weights[name] = number
    validate_weights(weights)
    return tuple(weights.items())
