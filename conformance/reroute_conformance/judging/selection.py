"""Judges a selection, given the scores: the selected places must match exactly (RR-SEL), and NaN must be an error.

It is used for ``select`` cases and for every decision of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reroute_spec import select

from ..cases.case import SelectCase
from ..protocol import Target
from ..targets.answers import read_selection, refused
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


def judge_select(case: SelectCase, target: Target) -> Verdict:
    """Judge a selection by given scores; its integers must match exactly."""
    verdict, scores = Verdict(), case.scores().tolist()
    rows = read_selection(target.select(case.scores(), case.k), len(scores))
    where, detail = f"select, k = {case.k} of {len(scores)}", f"{len(rows)} rows selected, k is {case.k}"
    counted: dict[str, Any] = {"keep": case.k, "min_keep": 0, "N": len(scores), "pool": scores}
    if verdict.require("RR-BUD-001", where, detail, selected=rows, **counted):
        judge_selection(verdict, where, scores, rows)
    return verdict


def judge_nan(case: SelectCase, target: Target) -> Verdict:
    """NaN is an error, never a selection."""
    verdict, scores = Verdict(), case.scores()
    rows, raised = refused(lambda: target.select(case.scores(), case.k))
    detail = (
        f"score {int(scores.isnan().int().argmax())} is NaN, yet {rows!r} was selected: NaN must be an error"
    )
    verdict.require("RR-SEL-005", "select", detail, raised=raised, s=scores.tolist())
    return verdict
