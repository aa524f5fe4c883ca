"""Changes in mid-run: how a run is told of them, and the stretches of steps between them. Standard library only.

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
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from typing import Any

from tsl_jax.data.config import validate_weights

KINDS = ("lr", "batch", "mixture", "skip")
_ENTRY = re.compile(r"(?P<at>\d*\.?\d+):(?P<what>[a-z]+)=(?P<value>.+)", re.DOTALL)


@dataclass(frozen=True)
class Stretch:
    """Steps in which nothing changes."""

    step: int  # optimizer steps done when it begins
    tokens: int  # tokens seen by then
    sequence: int  # place of its first sequence in the order of the data
    batch_size: int
    lr: float = 1.0  # times the planned learning rate
    mixture: tuple[tuple[str, float], ...] = ()  # domain and weight; empty: as the run began


@dataclass(frozen=True)
class _Change:
    at: Fraction
    what: str
    value: Any


def stretches(entries: Sequence[str], tokens: int, context: int, batch_size: int) -> tuple[Stretch, ...]:
    """The stretches of a run of so many tokens, in order; one where nothing changes.

    Raises:
        ValueError: for an entry that cannot be read, two that say the same of one place, or a stretch without a step.
    """
    found = [Stretch(0, 0, 0, batch_size)]
    changes = sorted((_read(entry) for entry in entries), key=lambda one: one.at)
    for at, together in groupby(changes, key=lambda one: one.at):
        told = _once(at, list(together))
        last = found[-1]
        steps = (int(at * tokens) - last.tokens) // (last.batch_size * context)
        _need_step(steps, f"before the change at {float(at):g}")
        size = told.get("batch", last.batch_size)
        new = replace(
            last,
            step=last.step + steps,
            tokens=last.tokens + steps * last.batch_size * context,
            sequence=last.sequence + steps * last.batch_size + told.get("skip", 0) * size,
            batch_size=size,
            lr=told.get("lr", last.lr),
            mixture=told.get("mixture", last.mixture),
        )
        found.append(new)
    if entries:
        _need_step(steps_of(found, tokens, context) - found[-1].step, "after the last change")
    return tuple(found)


def _need_step(steps: int, where: str) -> None:
    if steps < 1:
        raise ValueError(f"training: there is no whole step {where}; move it, or take smaller batches or more tokens")


def steps_of(found: Sequence[Stretch], tokens: int, context: int) -> int:
    """Whole steps of the run."""
    last = found[-1]
    return last.step + (tokens - last.tokens) // (last.batch_size * context)


def at_step(found: Sequence[Stretch], step: int) -> Stretch:
    """The stretch in which the step after `step` steps is made."""
    return next(one for one in reversed(found) if one.step <= step)


def tokens_after(found: Sequence[Stretch], step: int, context: int) -> int:
    """Tokens seen after so many steps."""
    one = at_step(found, max(step - 1, 0))
    return one.tokens + (step - one.step) * one.batch_size * context


def step_near(found: Sequence[Stretch], tokens: int, context: int) -> int:
    """The number of steps after which the tokens seen are nearest to these."""
    one = next(one for one in reversed(found) if one.tokens <= tokens)
    return one.step + round((tokens - one.tokens) / (one.batch_size * context))


def _read(entry: Any) -> _Change:
    if not isinstance(entry, str):
        raise ValueError(f"training: changes are texts AT:WHAT=VALUE (in YAML within quotes), found {entry!r}")
    match = _ENTRY.fullmatch(entry.strip())
    if not match or match["what"] not in KINDS:
        kinds = ", ".join(f".5:{kind}=..." for kind in KINDS)
        raise ValueError(f"training: changes are of the form AT:WHAT=VALUE ({kinds}), found {entry!r}")
    at = Fraction(match["at"])
    if not 0 < at < 1:
        raise ValueError(f"training: the change {entry!r} is at {match['at']}, expected a share between 0 and 1")
    try:
        return _Change(at, match["what"], _value(match["what"], match["value"]))
    except ValueError as error:
        raise ValueError(f"training: the change {entry!r}: {str(error).removeprefix('data: ')}") from None


def _value(what: str, text: str) -> Any:
    if what == "mixture":
        return _mixture(text)
    try:
        value = float(text) if what == "lr" else int(text)
    except ValueError:
        kind, more = "number" if what == "lr" else "whole number", "; separate entries by spaces" if "," in text else ""
        raise ValueError(f"{what} needs a {kind}, found {text!r}{more}") from None
    if not 0 < value < float("inf"):
        raise ValueError(f"{what} must be positive, found {text}")
    return value


def _mixture(text: str) -> tuple[tuple[str, float], ...]:
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("@")
        try:
            number = float(weight)
        except ValueError:
            raise ValueError(f"mixture needs DOMAIN@WEIGHT,..., found {part!r}") from None
        if name in shares:
            raise ValueError(f"mixture names {name!r} twice")
        shares[name] = number
    validate_weights(shares)
    return tuple(shares.items())


def _once(at: Fraction, together: list[_Change]) -> dict[str, Any]:
    told = {one.what: one.value for one in together}
    if len(told) < len(together):
        raise ValueError(f"training: changes say the same thing twice at {float(at):g}; leave one of them out")
    return told
