"""The inverse of a plan's average: the one factor on a schedule's ratios that makes its average what was asked for.

Names such as "avg64" are labels. What a schedule runs on average follows from its blocks and from floors, so a target is met by
searching the plans themselves. Everything is exact; the same input gives the same digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor, lcm

from .budget import format_keep
from .errors import RerouteError
from .plan import Plan, plan, visual_flags
from .schedule import Decision, Schedule

_AVERAGE = re.compile(r"\d{1,9}(\.\d{0,40})?", re.ASCII)
_HALF = Fraction(1, 2)
_FEWEST_DIGITS = 4  # of a ratio, as the published ones have


@dataclass(frozen=True)
class Fit:
    """A schedule scaled to an average.

    Attributes:
        schedule: with the scaled ratios; its label says from what, by which factor and to which average.
        factor: what every ratio was multiplied by, before it was capped at 1 and written in few digits.
        asked: the average that was asked for, in routable rows per block.
        before, after: plans of the given and of the scaled schedule.
    """

    schedule: Schedule
    factor: Fraction
    asked: Fraction
    before: Plan
    after: Plan


def fit_average(schedule: Schedule, num_layers: int, num_visual: int, average: Fraction | int | str) -> Fit:
    """Scale a schedule's ratios by one factor so that ``average_visual`` is ``average``, as near as whole rows allow.

    Of two averages equally near, the smaller is taken. A schedule that already has the nearest average keeps its ratios.

    Args:
        schedule: with ratios, over the request (``scope = request``).
        num_layers: blocks of the decoder.
        num_visual: N, routable visual rows.
        average: routable rows per block, over all blocks; a string is read exactly (``"64"``, ``"64.5"``).

    Returns:
        The fit. Its average is within half a step of ``average``; a step of one factor is at most one row per block.

    Raises:
        RerouteError: an average that no factor reaches, or a schedule without a ratio to scale.
    """
    asked = _read_average(average)
    _check(schedule, num_visual)
    schedule.validate(num_layers)
    flags = visual_flags(num_visual, 1)
    ratios = [Fraction(decision.keep) for decision in schedule.decisions]

    def planned(factor: Fraction) -> Plan:
        rows = [min(num_visual, floor(factor * ratio * num_visual)) for ratio in ratios]
        # a ratio that keeps these rows, with few digits whatever the factor's; half a row stands for none
        return plan(
            _with_ratios(schedule, [max(Fraction(row), _HALF) / num_visual for row in rows]),
            num_layers,
            flags,
        )

    # rows change only where factor * ratio * N is whole: at multiples of 1 / (N * lcm of the numerators)
    grid = num_visual * lcm(*(ratio.numerator for ratio in ratios))
    top = ceil(grid / min(ratios))  # every ratio is 1
    lowest, highest = planned(Fraction(0)).average_visual, planned(Fraction(top, grid)).average_visual
    if not lowest <= asked <= highest:
        raise RerouteError(
            "average",
            f"{_decimal(asked)} rows per block cannot be reached by scaling this schedule",
            f"ask for {_decimal(lowest, ceil)} to {_decimal(highest, floor)}: blocks before the first decision run "
            f"all {num_visual} rows, and a decision keeps at least min_keep = {schedule.min_keep}",
        )

    def last_at_most(bound: Fraction) -> int:
        """The last step on the grid whose average is at most the bound; -1 where there is none."""
        low, high = -1, top + 1
        while high - low > 1:
            middle = (low + high) // 2
            at_most = planned(Fraction(middle, grid)).average_visual <= bound
            low, high = (middle, high) if at_most else (low, middle)
        return low

    below = last_at_most(asked)
    chosen = planned(Fraction(below, grid)).average_visual
    if below < top:
        above = planned(Fraction(below + 1, grid)).average_visual
        chosen = above if above - asked < asked - chosen else chosen
    end = last_at_most(chosen) + 1
    start = last_at_most(chosen - Fraction(1, 2 * num_layers)) + 1  # averages are multiples of 1 / num_layers
    factor = _shortest_between(Fraction(start, grid), Fraction(end if end <= top else 2 * top, grid))
    before = plan(schedule, num_layers, flags)
    if before.average_visual == chosen:
        factor = Fraction(1)
    return _fit(schedule, ratios, factor, asked, before, planned(factor), num_layers, flags)


def _fit(
    schedule: Schedule,
    ratios: list[Fraction],
    factor: Fraction,
    asked: Fraction,
    before: Plan,
    target: Plan,
    num_layers: int,
    flags: list[bool],
) -> Fit:
    """Write the ratios in as few digits as reproduce the target's rows."""
    origin = schedule.label or "a schedule"
    label = (
        f"{origin}, scaled by {_decimal(factor)} to average {_decimal(target.average_visual)} "
        f"of {before.num_visual} visual rows"
    )
    if factor == 1:
        return Fit(replace(schedule, label=label), factor, asked, before, before)
    digits = _FEWEST_DIGITS
    while True:
        rounded = [Fraction(round(min(Fraction(1), factor * r) * 10**digits), 10**digits) for r in ratios]
        if all(rounded):
            scaled = replace(_with_ratios(schedule, rounded), label=label)
            after = plan(scaled, num_layers, flags)
            if after.kv_rows == target.kv_rows:
                return Fit(scaled, factor, asked, before, after)
        digits += 1


def _read_average(average: Fraction | int | str) -> Fraction:
    remedy = 'give rows per block as an integer, a Fraction or a string ("64", "64.5")'
    if isinstance(average, bool) or not isinstance(average, (Fraction, int, str)):
        raise RerouteError("average", f"{average!r} is a {type(average).__name__}", remedy)
    if isinstance(average, str) and _AVERAGE.fullmatch(average) is None:
        raise RerouteError("average", f"{average!r} is no number of rows", remedy)
    return Fraction(average)


def _check(schedule: Schedule, num_visual: int) -> None:
    if isinstance(num_visual, bool) or not isinstance(num_visual, int) or num_visual < 1:
        raise RerouteError("num_visual", f"{num_visual!r} is no row count", "give an integer >= 1")
    if not schedule.decisions:
        raise RerouteError("decisions", "is empty: nothing to scale", "give a schedule that decides")
    for index, decision in enumerate(schedule.decisions):
        if isinstance(decision.keep, int):
            raise RerouteError(
                f"decisions[{index}].keep",
                f"{decision.keep} is a row count",
                "only ratios are scaled: write one",
            )
    if schedule.scope != "request":
        raise RerouteError(
            "scope", f"{schedule.scope!r} has an average per layout of images", "use 'request'"
        )


def _with_ratios(schedule: Schedule, ratios: list[Fraction]) -> Schedule:
    decisions = zip(schedule.decisions, ratios, strict=True)
    return replace(
        schedule, decisions=tuple(Decision(decision.layer, ratio) for decision, ratio in decisions)
    )


def _shortest_between(low: Fraction, high: Fraction) -> Fraction:
    """The decimal of fewest digits strictly between two fractions, the one nearest their middle."""
    digits = 0
    while True:
        scale = 10**digits
        first, last = floor(low * scale) + 1, ceil(high * scale) - 1
        if first <= last:
            return Fraction(min(max(round((low + high) / 2 * scale), first), last), scale)
        digits += 1


def _decimal(value: Fraction, rounding: Callable[[Fraction], int] = round) -> str:
    """A number for people: exact where it is a short decimal, else two places, rounded as told."""
    exact = format_keep(value)
    if isinstance(exact, str) and "/" not in exact and len(exact) <= 12:
        return exact
    return str(Decimal(rounding(value * 100)) / 100)
