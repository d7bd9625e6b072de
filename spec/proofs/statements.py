"""What the enumeration runs over, and the rules in their own words: nothing here calls what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import combinations, product

from reroute_spec import Decision, Keep, Plan, RerouteError, Schedule, plan
from reroute_spec.plan import visual_flags

ROWS = 7
DECISIONS = 3
KINDS = (("reroute", "all"), ("reroute", "survivors"), ("delete", "survivors"))

Scores = Sequence[float] | Mapping[int, float]
"""By row."""


class PropertyError(AssertionError):
    """A statement that does not hold, with what it was found on."""


def require(holds: bool, statement: str, **witness: object) -> None:
    """Raise where a statement fails."""
    if not holds:
        raise PropertyError(f"{statement}: {', '.join(f'{key} = {value}' for key, value in witness.items())}")


def refused(call: Callable[..., object], *arguments: object) -> bool:
    """Whether a call ends in the one error of the specification."""
    try:
        call(*arguments)
    except RerouteError:
        return True
    return False


@cache
def weak_orders(n: int) -> tuple[tuple[int, ...], ...]:
    """Every rank pattern of n rows (higher rank, higher score), as many as the Fubini numbers say."""
    patterns = tuple(
        ranks
        for ranks in product(range(n), repeat=n)
        if len(set(ranks)) == max(ranks, default=-1) + 1  # no rank is skipped
    )
    require(len(patterns) == _fubini(n), "all weak orders are here", n=n, found=len(patterns))
    return patterns


def _fubini(n: int) -> int:
    return sum(math.comb(n, top) * _fubini(n - top) for top in range(1, n + 1)) if n else 1


def subsets(rows: Sequence[int], least: int = 0) -> Iterator[tuple[int, ...]]:
    """Every ascending choice of at least ``least`` of ``rows``."""
    for size in range(least, len(rows) + 1):
        yield from combinations(rows, size)


@cache
def compositions(n: int) -> tuple[tuple[int, ...], ...]:
    """Every ordered division of n into positive parts."""
    return tuple((first, *rest) for first in range(1, n + 1) for rest in compositions(n - first)) or ((),)


def scores_of(ranks: Sequence[int]) -> list[float]:
    """Scores that realise a rank pattern: below, at and above zero."""
    return [float(rank - 2) for rank in ranks]


def schedule(kind: tuple[str, str], layers: Sequence[int], keeps: Sequence[Keep], **rest: object) -> Schedule:
    """A schedule of one of the three kinds."""
    decisions = tuple(Decision(layer, keep) for layer, keep in zip(layers, keeps, strict=True))
    return Schedule(action=kind[0], decisions=decisions, pool=kind[1], **rest)  # type: ignore[arg-type]


def with_budgets(images: Sequence[int], budgets: tuple[int, ...]) -> Plan:
    """A plan of one decision whose spans have these sizes and budgets."""
    given = schedule(KINDS[0], (0,), (1,), scope="image")
    request = plan(given, 1, visual_flags(sum(images), 1), images)
    return replace(request, stages=(replace(request.stages[0], budgets=budgets),))


def precedes(scores: Scores, u: int, v: int) -> bool:
    """The total order of RR-SEL-001 and RR-SEL-003: score descending, then ordinal ascending."""
    return scores[u] > scores[v] or (scores[u] == scores[v] and u < v)


def best(scores: Scores, rows: Sequence[int], k: int) -> list[int]:
    """The rows that fewer than k others precede, ascending."""
    return [v for v in rows if sum(precedes(scores, u, v) for u in rows) < k]


def is_floor(rows: int, keep: Fraction, n: int) -> bool:
    """Whether ``rows`` is the largest integer that is at most ``keep * n``, by integers alone."""
    return rows * keep.denominator <= keep.numerator * n < (rows + 1) * keep.denominator
