"""What changed since an earlier run, beyond what the spread of both explains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .timing import MOST_SPREAD

_LEAST = 0.03
"""A smaller change is not told: machines differ by as much from boot to boot."""


@dataclass(frozen=True)
class Change:
    """A figure that moved.

    Attributes:
        suite, case, name: whose it is.
        what: ``times the base's speed``, ``of the floor`` or ``seconds``.
        before, after: medians.
        better: whether it is.
    """

    suite: str
    case: str
    name: str
    what: str
    before: float
    after: float
    better: bool


def same_machine(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether seconds can be compared: ratios within a run always can."""
    keys = ("processor", "threads", "device", "dtype", "gpu")
    return all(old["machine"].get(key) == new["machine"].get(key) for key in keys)


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Figures of both runs whose quartiles are apart, and whose medians differ by more than 3%.

    Ratios are compared on any machine, seconds only on the same one; no case in which either machine was not idle.
    """
    before = {(case["suite"], case["case"]): case for case in old["cases"]}
    seconds = same_machine(old, new)
    found = []
    for case in new["cases"]:
        earlier = before.get((case["suite"], case["case"]))
        if earlier is not None and max(own.get("spread", 0.0) for own in (case, earlier)) > MOST_SPREAD:
            continue
        for name, own in case["measured"].items():
            past = None if earlier is None else earlier["measured"].get(name)
            if past is None or "median_s" not in own:
                continue
            for what, larger, was, now in _pairs(past, own, seconds, earlier, case, name):
                if _apart(was, now):
                    better = (now[0] > was[0]) == larger
                    found.append(Change(case["suite"], case["case"], name, what, was[0], now[0], better))
    return found


_Triple = tuple[float, float, float]


def _pairs(
    past: dict[str, Any],
    own: dict[str, Any],
    seconds: bool,
    earlier: Any,
    case: dict[str, Any],
    name: str,
) -> Iterator[tuple[str, bool, _Triple, _Triple]]:
    """What of a figure can be compared: in words, whether more is better, median and quartiles before and after."""
    if earlier["base"] == case["base"] and name != case["base"]:
        yield f"times {case['base']}'s speed", True, _triple(past["faster"]), _triple(own["faster"])
    if "of_floor" in past and "of_floor" in own and name != "floor":
        yield "of the floor's speed", True, _triple(past["of_floor"]), _triple(own["of_floor"])
    if seconds:
        was, now = (_triple([entry["median_s"], *entry["quartiles_s"]]) for entry in (past, own))
        yield "seconds", False, was, now


def _triple(values: Sequence[float]) -> _Triple:
    median, low, high = values
    return median, low, high


def _apart(was: _Triple, now: _Triple) -> bool:
    disjoint = now[1] > was[2] or now[2] < was[1]
    return disjoint and abs(now[0] / was[0] - 1) > _LEAST
