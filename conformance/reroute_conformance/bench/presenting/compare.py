"""Compares a run with an earlier one, and finds what changed beyond what the spread of both explains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..measuring.timing import MOST_SPREAD

_LEAST = 0.03
"""A smaller change is not reported, because machines differ by as much from boot to boot."""
Ratio = tuple[float, float, float]
"""A median, and first and third quartile."""


@dataclass(frozen=True)
class Change:
    """One figure that moved between two runs.

    Attributes:
        suite, case, name: the suite, the case and the one who was measured.
        what: the figure in words. It is ``times BASE's speed``, where ``BASE`` is the one that the case is compared
            with, ``of the floor's speed``, ``seconds`` or ``KV bytes``.
        before, after: the medians with their quartiles. Bytes do not spread, so there the same number stands three
            times.
        better: whether the later figure is the better one.
    """

    suite: str
    case: str
    name: str
    what: str
    before: Ratio
    after: Ratio
    better: bool


@dataclass(frozen=True)
class Unpaired:
    """Something that only one of two runs has.

    It is a suite, a case of a suite that both have, or somebody who was measured in a case that both have.

    Attributes:
        suite, case, name: what it is. ``case`` is empty for a whole suite, and ``name`` for a whole case.
        new: whether the later run has it.
    """

    suite: str
    case: str
    name: str
    new: bool


@dataclass(frozen=True)
class Comparison:
    """Everything that is to be said of a run beside an earlier one.

    Attributes:
        since: the date of the earlier run.
        changes: the figures that moved.
        unpaired: what only one of the runs has.
        disturbed: suite and case of what is not compared, because a machine was not idle.
        same_machine: whether both runs are of one machine, so that seconds were compared.
    """

    since: str
    changes: Sequence[Change]
    unpaired: Sequence[Unpaired]
    disturbed: Sequence[tuple[str, str]]
    same_machine: bool


def compare(old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    """Everything that is to be said of a run beside an earlier one."""
    pairs = [(earlier, case) for earlier, case in _pairs(old, new) if _disturbed(earlier, case)]
    return Comparison(
        old["date"],
        changes(old, new),
        unpaired(old, new),
        [(case["suite"], case["case"]) for _, case in pairs],
        same_machine(old, new),
    )


def same_machine(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether seconds can be compared: ratios within a run always can."""
    keys = ("processor", "threads", "device", "dtype", "gpu")
    return all(old["machine"].get(key) == new["machine"].get(key) for key in keys)


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Figures of both runs whose quartiles are apart, and whose medians differ by more than 3%; and bytes that differ at all.

    Ratios are compared on any machine, seconds only on the same one, bytes in the same dtype; no time of a case in which either
    machine was not idle.
    """
    seconds = same_machine(old, new)
    bytes_too = old["machine"]["dtype"] == new["machine"]["dtype"]
    found = []
    for earlier, case in _pairs(old, new):
        if _disturbed(earlier, case):
            continue
        for name, own in case["measured"].items():
            past = earlier["measured"].get(name)
            if past is None:
                continue
            if case["suite"] == "memory":
                figures = _bytes(past, own) if bytes_too else iter(())
            else:
                figures = _times(past, own, seconds, earlier, case, name)
            for what, larger, was, now in figures:
                if _apart(was, now) if what != _KV else was != now:
                    better = (now[0] > was[0]) == larger
                    found.append(Change(case["suite"], case["case"], name, what, was, now, better))
    return found


def unpaired(old: dict[str, Any], new: dict[str, Any]) -> list[Unpaired]:
    """What only one run has, the largest part of it named once."""
    found = []
    for one, other, is_new in ((old, new, False), (new, old, True)):
        suites = {case["suite"] for case in other["cases"]}
        cases = {(case["suite"], case["case"]): case for case in other["cases"]}
        found += [
            Unpaired(suite, "", "", is_new)
            for suite in dict.fromkeys(case["suite"] for case in one["cases"])
            if suite not in suites
        ]
        for case in one["cases"]:
            suite, title = case["suite"], case["case"]
            if suite not in suites:
                continue
            if (suite, title) not in cases:
                found.append(Unpaired(suite, title, "", is_new))
                continue
            known = cases[suite, title]["measured"]
            found += [Unpaired(suite, title, name, is_new) for name in case["measured"] if name not in known]
    return found


_KV = "KV bytes"
_Figures = Iterator[tuple[str, bool, Ratio, Ratio]]
"""A figure that can be compared: its words, whether more is better, and its median with quartiles before and after."""


def _pairs(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Cases that both runs have."""
    before = {(case["suite"], case["case"]): case for case in old["cases"]}
    for case in new["cases"]:
        earlier = before.get((case["suite"], case["case"]))
        if earlier is not None:
            yield earlier, case


def _disturbed(*cases: dict[str, Any]) -> bool:
    return any(case.get("spread", 0.0) > MOST_SPREAD for case in cases)


def _bytes(past: dict[str, Any], own: dict[str, Any]) -> _Figures:
    if "kv_bytes" in past and "kv_bytes" in own:
        yield _KV, False, (past["kv_bytes"],) * 3, (own["kv_bytes"],) * 3


def _times(
    past: dict[str, Any],
    own: dict[str, Any],
    seconds: bool,
    earlier: dict[str, Any],
    case: dict[str, Any],
    name: str,
) -> _Figures:
    if earlier["base"] == case["base"] and name != case["base"]:
        yield f"times {case['base']}'s speed", True, _triple(past["faster"]), _triple(own["faster"])
    if "of_floor" in past and "of_floor" in own and name != "floor":
        yield "of the floor's speed", True, _triple(past["of_floor"]), _triple(own["of_floor"])
    if seconds:
        was, now = (_triple([entry["median_s"], *entry["quartiles_s"]]) for entry in (past, own))
        yield "seconds", False, was, now


def _triple(values: Sequence[float]) -> Ratio:
    median, low, high = values
    return median, low, high


def _apart(was: Ratio, now: Ratio) -> bool:
    disjoint = now[1] > was[2] or now[2] < was[1]
    return disjoint and abs(now[0] / was[0] - 1) > _LEAST
