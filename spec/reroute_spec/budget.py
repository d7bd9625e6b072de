"""How many visual rows a decision keeps: the only place where a ratio becomes a count (RR-BUD)."""

from __future__ import annotations

import re
from fractions import Fraction

from .errors import RerouteError

Keep = Fraction | int
"""A ratio of the request's visual rows (Fraction in (0, 1]) or a row count (int >= 1)."""

_RATIO = re.compile(r"(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,3})?|\d{1,41}/\d{1,41}", re.ASCII)
_LARGEST_DENOMINATOR = 10**40  # what parses also prints and parses again


def parse_keep(value: object, field: str = "keep") -> Keep:
    """A keep as data: a string or Fraction is a ratio, an integer is a count (RR-CFG-004, RR-CFG-005).

    Raises:
        RerouteError: a binary float, a bool, a ratio outside (0, 1] or a count below 1.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Fraction)):
        raise RerouteError(
            field,
            f"{value!r} is a {type(value).__name__}",
            'write a ratio as a string ("0.25") or a row count as an integer (64)',
        )
    if isinstance(value, float):  # RR-CFG-005
        if not value.is_integer():
            remedy = (
                f'write it as the string "{value!r}"'
                if 0 < value < 1
                else 'a ratio is a string in (0, 1], "1" keeps all'
            )
            raise RerouteError(
                field, f"{value!r} is a binary float, which holds no decimal ratio exactly", remedy
            )
        value = int(value)  # JSON 1.0 reads as 1
    if isinstance(value, int):
        if value < 1:
            raise RerouteError(field, f"{value} is no row count", "a row count is an integer >= 1")
        return value
    if isinstance(value, str):
        ratio = _parse_ratio(value)
        if ratio is None:
            raise RerouteError(
                field, f"{value!r} is no ratio", 'write a decimal ("0.2644", "1e-05") or a fraction ("1/2")'
            )
    else:
        ratio = value
    if not 0 < ratio <= 1:  # RR-CFG-004
        raise RerouteError(
            field, f"the ratio {value} is outside (0, 1]", 'a ratio is a string in (0, 1], "1" keeps all'
        )
    if ratio.denominator > _LARGEST_DENOMINATOR:
        raise RerouteError(field, f"the ratio {value} has too many digits", "give at most 40 digits")
    return ratio


def _parse_ratio(text: str) -> Fraction | None:
    if _RATIO.fullmatch(text) is None:
        return None
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None


def format_keep(keep: Keep) -> str | int:
    """The data form of a keep, exact: a decimal string where the ratio has one, else ``"p/q"``."""
    if isinstance(keep, int):
        return keep
    digits, rest = 0, keep.denominator
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        digits = max(digits, power)
    if rest != 1 or digits > 40:
        return f"{keep.numerator}/{keep.denominator}"
    if digits == 0:
        return str(keep.numerator)
    shifted = str(keep.numerator * 10**digits // keep.denominator).rjust(digits + 1, "0")
    return f"{shifted[:-digits]}.{shifted[-digits:]}"


def budget(keep: Keep | str, n: int, *, min_keep: int = 1, pool: int | None = None) -> int:
    """Rows kept at a decision: ``min(pool, max(min_keep, floor(keep * n)))`` (RR-BUD-001).

    Args:
        keep: ratio of ``n`` (Fraction, or a string such as ``"0.2644"``) or a row count (int).
        n: visual rows of the request (of the span under ``scope = image``), before any decision.
        min_keep: rows a ratio never falls below.
        pool: candidates at this decision; ``n`` if omitted.

    Returns:
        The row count, exact: a ratio is never turned into a binary float.
    """
    exact = parse_keep(keep)
    for name, value, least in (
        ("n", n, 0),
        ("min_keep", min_keep, 1),
        ("pool", n if pool is None else pool, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RerouteError(name, f"{value!r} is no row count", f"give an integer >= {least}")
    # RR-BUD-001 RR-BUD-004
    rows = exact if isinstance(exact, int) else exact.numerator * n // exact.denominator
    return min(n if pool is None else pool, max(min_keep, rows))
