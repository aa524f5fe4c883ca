"""Numbers at many places of a block of bytes, parsed side by side, exactly as `float` parses each."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Float, Int, UInt8

from tsl_jax.importers.log_rows import number_of

WIDEST = 28  # characters of a number

_DIGIT = np.zeros(256, bool)
_DIGIT[np.frombuffer(b"0123456789", np.uint8)] = True
_LETTER = np.zeros(256, bool)  # of nan and inf
_LETTER[np.frombuffer(b"nNaAiIfF", np.uint8)] = True
_SUFFIX = np.zeros(256, bool)
_SUFFIX[np.frombuffer(b"KMBT", np.uint8)] = True
_SKIPPED = np.zeros(256, bool)
_SKIPPED[np.frombuffer(b" \t'\"", np.uint8)] = True
_POWERS = 10.0 ** np.arange(23)
_ANY = re.compile(r"[-+]?(?:nan|inf(?:inity)?|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)
_GROUPED = re.compile(r"[-+]?(?i:nan|inf(?:inity)?|(?:\d+(?:,\d{3})+|\d+)\.?\d*(?:e[-+]?\d+)?)[KMBT]?")


def numbers_at(
    block: UInt8[np.ndarray, " byte"], at: Int[np.ndarray, " hit"], grouped: bool
) -> Float[np.ndarray, " hit"]:
    """The numbers that begin at some positions, after blanks and quotes: NaN where none does, SAYS_NAN where nan does.

    All are read a character at a time, side by side. A decimal m/10^d and m 10^e with m below 2^53 and a power up to
    10^22 are rounded once, so that they are what `float` makes of them; others are left to `float`.
    """
    if not len(at):
        return np.zeros(0)
    for _ in range(8):
        blank = _SKIPPED[block[at]]
        if not blank.any():
            break
        at = at + blank
    first = block[at]
    negative = first == ord("-")
    signed = negative | (first == ord("+"))
    mantissa, power = np.zeros(len(at), np.int64), np.zeros(len(at), np.int64)
    digits = np.zeros(len(at), np.int64)
    alive, odd = np.ones(len(at), bool), np.zeros(len(at), bool)
    point, exponent = np.zeros(len(at), bool), np.zeros(len(at), bool)
    for k in range(WIDEST):
        character = block[at + k]
        digit = character - np.uint8(48)  # others wrap to 10 and more
        is_digit = (digit < 10) & alive & ~exponent
        mantissa = np.where(is_digit, mantissa * 10 + digit, mantissa)
        digits += is_digit
        power -= is_digit & point
        is_point = alive & ~is_digit & (character == ord(".")) & ~point & ~exponent
        point |= is_point
        other = alive & ~(is_digit | is_point)
        if k == 0:
            other &= ~signed
        if grouped:  # a comma parts thousands where three digits follow
            comma = other & (character == ord(","))
            if comma.any():
                after = [_DIGIT[block[at + k + offset]] for offset in range(1, 5)]
                other &= ~(comma & after[0] & after[1] & after[2] & ~after[3])
        if not other.any():
            continue
        alive &= ~other
        is_e = other & ((character | 32) == ord("e")) & (digits > 0) & ~exponent
        if is_e.any():
            exponent |= is_e
        # Letters of nan and inf, commas between digits, suffixes.
        strange = other & _LETTER[character] & ~is_e
        if grouped:
            strange |= other & _SUFFIX[character]
        odd |= strange
        if not alive.any():
            break
    odd |= alive | (digits > 15)
    if exponent.any():
        _add_exponents(block, at, exponent, power, odd)
    values = np.full(len(at), np.nan)
    plain = (digits > 0) & ~odd & (np.abs(power) <= 22)
    scale = _POWERS[np.minimum(np.abs(power), 22)]
    values[plain] = np.where(power[plain] < 0, mantissa[plain] / scale[plain], mantissa[plain] * scale[plain])
    values[plain & negative] *= -1
    for k in np.flatnonzero(odd | ((digits > 0) & ~plain)).tolist():
        values[k] = _odd_number(block[at[k] : at[k] + WIDEST].tobytes(), grouped)
    return values


def _add_exponents(block: np.ndarray, at: np.ndarray, exponent: np.ndarray, power: np.ndarray, odd: np.ndarray) -> None:
    """Read the exponents of some numbers, of up to two digits, and add them to their powers of ten."""
    rows = np.flatnonzero(exponent)
    window = block[at[rows, None] + np.arange(WIDEST)] | 32
    begin = at[rows] + np.argmax(window == ord("e"), axis=1) + 1
    sign = np.where(block[begin] == ord("-"), -1, 1)
    begin = begin + ((block[begin] == ord("-")) | (block[begin] == ord("+")))
    ten, one, next_one = (block[begin + k] - np.uint8(48) for k in range(3))
    single = (ten < 10) & (one >= 10)
    double = (ten < 10) & (one < 10)
    value = np.where(single, ten, np.where(double, ten * np.int64(10) + one, 0))
    power[rows] += sign * value
    odd[rows[~(single | double) | (double & (next_one < 10))]] = True


def _odd_number(window: bytes, grouped: bool) -> float:
    """The number that bytes begin with, such as nan, 41M, 1,234, 17 digits, 3e-320; NaN where they begin with none."""
    match = (_GROUPED if grouped else _ANY).match(window.decode("latin-1"))
    if match is None:
        return np.nan
    value = number_of(match[0])
    return np.nan if value is None else value
