"""Numbers at many places of a block of bytes, parsed side by side, exactly as `float` parses each."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Float, Int, UInt8

from tsl_jax.importers.log_rows import number_of

WIDEST = 28  # characters of a number
BLANKS = 24  # before a number: Megatron-LM writes `consumed samples:         2560`, to twelve places
TOGETHER = 1 << 14  # numbers: what is kept of them on the way stays in the processor's cache

_DIGIT = np.zeros(256, bool)
_DIGIT[np.frombuffer(b"0123456789", np.uint8)] = True
_LETTER = np.zeros(256, bool)  # of nan and inf
_LETTER[np.frombuffer(b"nNaAiIfF", np.uint8)] = True
_SUFFIX = np.zeros(256, bool)
_SUFFIX[np.frombuffer(b"KMBTk", np.uint8)] = True
_SKIPPED = np.zeros(256, bool)
_SKIPPED[np.frombuffer(b" \t'\"", np.uint8)] = True
_POWERS = 10.0 ** np.arange(23)
_WHOLE_POWERS = 10 ** np.arange(17, dtype=np.int64)
# After these a plain number may not be over, or is another: letters of nan and inf, an exponent.
_ODD_END = _LETTER.copy()
_ODD_END[np.frombuffer(b"eEdD", np.uint8)] = True  # Fortran writes 6.00D-04
_ODD_GROUPED = _ODD_END | _SUFFIX
_ODD_GROUPED[ord(",")] = True
_ZEROS, _HIGH, _CARRY = (np.uint64(int(f"0x{byte}" * 1 + byte * 7, 16)) for byte in ("30", "80", "76"))
_PAIRS = np.uint64(0x000000FF000000FF)
_ANY = re.compile(r"[-+]?(?:nan|inf(?:inity)?|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+|[dD][-+]\d+)?)", re.IGNORECASE)
_GROUPED = re.compile(r"[-+]?(?i:nan|inf(?:inity)?|(?:\d+(?:,\d{3})+|\d+)\.?\d*(?:e[-+]?\d+|[dD][-+]\d+)?)[KMBTk]?")


def numbers_at(
    block: UInt8[np.ndarray, " byte"], at: Int[np.ndarray, " hit"], grouped: bool
) -> Float[np.ndarray, " hit"]:
    """The numbers that begin at some positions, after blanks and quotes: NaN where none does, SAYS_NAN where nan does.

    All are read a character at a time, side by side. A decimal m/10^d and m 10^e with m below 2^53 and a power up to
    10^22 are rounded once, so that they are what `float` makes of them; others are left to `float`.
    """
    values = np.empty(len(at))
    for start in range(0, len(at), TOGETHER):
        here = at[start : start + TOGETHER]
        for _ in range(BLANKS):
            blank = _SKIPPED[block[here]]
            if not blank.any():
                break
            here = here + blank
        some, plain = _plain_decimals(block, here, grouped)
        if not plain.all():
            rest = np.flatnonzero(~plain)
            some[rest] = _any_numbers(block, here[rest], grouped)
        values[start : start + TOGETHER] = some
    return values


def words(block: UInt8[np.ndarray, " byte"]) -> np.ndarray:
    """The eight bytes from each place on, as little-endian uint64: a view, of places that overlap."""
    return np.ndarray((len(block) - 7,), "<u8", block, strides=(1,))


def _plain_decimals(
    block: UInt8[np.ndarray, " byte"], at: Int[np.ndarray, " hit"], grouped: bool
) -> tuple[Float[np.ndarray, " hit"], np.ndarray]:
    """The numbers d.d and d.dE+dd without a sign, of 15 digits at most, and which are such.

    Eight digits are one word of memory, and become a number in three products (Lemire, arXiv 2101.11408, section 8).
    """
    eight = words(block)
    whole, length = _digits(eight, at)
    end = at + length
    has_point = block[end] == ord(".")
    mantissa, decimals = whole, np.zeros(len(at), np.int64)
    if has_point.any():
        fraction, decimals = _digits(eight, end + has_point)
        fraction *= has_point
        decimals *= has_point
        end += has_point + decimals
        mantissa = whole * _WHOLE_POWERS[decimals] + fraction
    small = (length > 0) & (length + decimals <= 15)
    after = block[end]
    plain = small & ~(_ODD_GROUPED if grouped else _ODD_END)[after]
    exponents = np.flatnonzero(small & ((after | 32) == ord("e")))
    if not len(exponents):
        return mantissa / _POWERS[decimals], plain
    power = -decimals
    sign = block[end[exponents] + 1]
    signed = (sign == ord("-")) | (sign == ord("+"))
    size, width = _digits(eight, end[exponents] + 1 + signed)
    fine = (width == 1) | (width == 2)
    if grouped:
        fine &= ~_ODD_GROUPED[block[end[exponents] + 1 + signed + width]]
    power[exponents[fine]] += np.where(sign == ord("-"), -size, size)[fine]
    plain[exponents[fine]] = True
    plain &= np.abs(power) <= 22
    scale = _POWERS[np.minimum(np.abs(power), 22)]
    return np.where(power < 0, mantissa / scale, mantissa * scale), plain


def _digits(eight: np.ndarray, at: Int[np.ndarray, " hit"]) -> tuple[np.ndarray, np.ndarray]:
    """The whole number that the digits from each place on make, and how many they are, sixteen at most."""
    value, count = _up_to_eight(eight, at)
    more = np.flatnonzero(count == 8)
    if len(more):
        rest, digits = _up_to_eight(eight, at[more] + 8)
        value[more] = value[more] * _WHOLE_POWERS[digits] + rest
        count[more] += digits
    return value, count


def _up_to_eight(eight: np.ndarray, at: Int[np.ndarray, " hit"]) -> tuple[np.ndarray, np.ndarray]:
    word = eight[at] ^ _ZEROS  # digits become 0 to 9, other bytes more
    other = (word | (word + _CARRY)) & _HIGH  # a byte's high bit: no digit; below the first of these no carry reaches
    first = other & (~other + np.uint64(1))
    bits = np.bitwise_count(first - np.uint64(1)) & np.uint8(0x78)  # below the first other byte; 64 where there is none
    word <<= np.uint64(64) - bits  # by 64, in numpy, leaves nothing
    word = word * np.uint64(10) + (word >> np.uint64(8))
    high = (word & _PAIRS) * np.uint64(0x000F424000000064)
    low = ((word >> np.uint64(16)) & _PAIRS) * np.uint64(0x0000271000000001)
    return ((high + low) >> np.uint64(32)).astype(np.int64), (bits >> np.uint8(3)).astype(np.int64)


def _any_numbers(
    block: UInt8[np.ndarray, " byte"], at: Int[np.ndarray, " hit"], grouped: bool
) -> Float[np.ndarray, " hit"]:
    """The numbers that begin at these places, whatever their shape."""
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
        odd |= strange | (other & ((character | 32) == ord("d")))
        if not alive.any():
            break
    odd |= alive | (digits > 15)
    if exponent.any():
        _add_exponents(block, at, exponent, power, odd)
        if grouped:  # a suffix may follow: 1.01e+03M
            odd |= exponent
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
