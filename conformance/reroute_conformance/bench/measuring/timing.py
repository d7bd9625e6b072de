"""Times calls that take turns (A B A B), so that whatever else the machine does meets all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Call = Callable[[], object]
_T = TypeVar("_T")
MOST_SPREAD, MOST_TRIES = 0.10, 3
"""Times that spread by more than this were disturbed. The case is then timed again, up to so many times."""
_LEAST_SECONDS = 2e-3  # of a timed sample: a clock's tick is far below
_LEAST_ROUNDS = 3
_LONG = 0.1  # seconds of a call that a cold cache does not make much longer


@dataclass(frozen=True)
class Times:
    """The times of one call.

    Attributes:
        seconds: seconds of one call in every round, in order.
        calls: how many calls the sample of a round is the mean of.
    """

    seconds: tuple[float, ...]
    calls: int = 1

    @property
    def median(self) -> float:
        """The median over the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        """The least of the rounds, in seconds."""
        return min(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third, in seconds."""
        return quartiles(self.seconds)

    @property
    def spread(self) -> float:
        """Distance of the quartiles relative to the median."""
        low, high = self.quartiles
        return (high - low) / self.median


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third; the least and largest of fewer than four values."""
    if len(values) < 4:
        return min(values), max(values)
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def times_faster(base: Times, own: Times) -> tuple[float, float, float]:
    """How many times faster ``own`` is than ``base``, round by round: median, first and third quartile.

    A ratio within a round is what a slow minute of the machine leaves alone.
    """
    ratios = [b / o for b, o in zip(base.seconds, own.seconds, strict=True)]
    return statistics.median(ratios), *quartiles(ratios)


def measure(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    settle: Call = lambda: None,
    limit: float = math.inf,
) -> dict[str, Times]:
    """Every call once per round, in turns (A B A B), after all of them ran.

    Args:
        calls: by name.
        rounds: samples of each.
        settle: waits until a call's work is done, where calls return before.
        limit: seconds after which no round begins, once there are three.

    Raises:
        CallError: one of them raised.
    """
    calls = {name: _named(call, name) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        counts = {name: _calls(call, settle) for name, call in calls.items()}
        begun = time.perf_counter()
        for done in range(rounds):
            if done >= _LEAST_ROUNDS and time.perf_counter() - begun > limit:
                break
            for name, call in calls.items():
                seconds[name].append(_sample(call, counts[name], settle))
    return {name: Times(tuple(own), counts[name]) for name, own in seconds.items()}


class CallError(Exception):
    """The exception that says which of the timed calls raised, and what it raised.

    Attributes:
        name: the name of the call.
    """

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"it raised {type(error).__name__}: {error}")
        self.name = name


def _named(call: Call, name: str) -> Call:
    def named() -> object:
        try:
            return call()
        except Exception as error:
            raise CallError(name, error) from error

    return named


def _sample(call: Call, count: int, settle: Call) -> float:
    settle()
    start = time.perf_counter()
    for _ in range(count):
        call()
    settle()
    return (time.perf_counter() - start) / count


def _calls(call: Call, settle: Call) -> int:
    """Calls that a sample needs, so that it is long for the clock. The first call warms up; a short one is timed again."""
    first = _sample(call, 1, settle)
    again = first if first > _LONG else _sample(call, 1, settle)
    return max(1, math.ceil(_LEAST_SECONDS / max(again, 1e-9)))


def until_calm(
    attempt: Callable[[], _T],
    spread: Callable[[_T], float],
    *,
    patience: float = math.inf,
    noisy: Callable[[float, int], None] = lambda spread, tries: None,
) -> tuple[_T, int]:
    """Measure, and again where the machine was not idle.

    Args:
        attempt: one measurement.
        spread: of its times, relative.
        patience: seconds that the attempts may take together, as far as the last one tells.
        noisy: told the spread and the number of every attempt that was disturbed.

    Returns:
        The attempt with the least spread, and how many there were.
    """
    begun, tried = time.perf_counter(), list[_T]()
    while True:
        before = time.perf_counter()
        tried.append(attempt())
        ended = time.perf_counter()
        found = spread(tried[-1])
        if found <= MOST_SPREAD:
            return tried[-1], len(tried)
        noisy(found, len(tried))
        if len(tried) == MOST_TRIES or 2 * ended - begun - before > patience:
            return min(tried, key=spread), len(tried)
