"""Judging a selection given the scores: integers, exactly (RR-SEL). Used for `select` cases and for every decision of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reroute_spec import select

from ..verdicts.verdict import Verdict


def judge_selection(
    verdict: Verdict, where: str, scores: Sequence[float], selected: Sequence[int], request: int | None = None
) -> bool:
    """Whether ``selected``, as many rows as are due, is what the scores say.

    Args:
        verdict: filled.
        where, request: of a violation.
        scores: no NaN among them.
        selected: places in ``scores``, in the order in which the target gave them.
    """
    chosen = set(selected)
    left_out = [place for place in range(len(scores)) if place not in chosen]
    best_out = max((scores[place] for place in left_out), default=None)
    at_threshold = [scores[place] for place in selected if scores[place] == best_out]
    exotic = any(score in (0, float("inf"), float("-inf")) for score in scores)

    def detail() -> str:
        expected = select(scores, len(chosen))
        if sorted(chosen) == expected:
            return f"{list(selected)} is not ascending"
        first = min(chosen ^ set(expected))
        verb = "was selected, but should not be" if first in chosen else "should be selected, but was not"
        return (
            f"first differing ordinal {first}: it {verb} (score {scores[first]!r}); expected {expected}, got "
            f"{sorted(chosen)}"
        )

    names: dict[str, Any] = {"s": scores, "selected": selected, "left_out": left_out}
    return (
        verdict.require("RR-SEL-004", where, detail, request=request, selected=selected)
        and verdict.require("RR-SEL-001", where, detail, request=request, **names)
        and verdict.require("RR-SEL-002", where, detail, request=request, counts=exotic, **names)
        and verdict.require("RR-SEL-003", where, detail, request=request, counts=bool(at_threshold), **names)
    )
