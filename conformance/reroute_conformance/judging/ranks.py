"""Judges a target in several processes: by what each of them answers, and by whether all decided alike (RR-EQV-008)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..protocol import Target
from ..targets.ranks import RankedTarget
from ..verdicts.verdict import Verdict


def judge_ranks(judge: Callable[[Target], Verdict], target: RankedTarget) -> Verdict:
    """Judge a case by what every process answers, and whether they decided alike (RR-EQV-008)."""
    asked: list[tuple[bytes, list[Any]]] = []
    first, *others = map(judge, target.views(asked))
    verdict = Verdict()
    for _, answers in asked:
        judge_agreement(verdict, answers)
    verdict.add(first)
    for rank, seen in enumerate(others, 1):
        verdict.violations += [
            replace(broken, where=f"process {rank}: {broken.where}") for broken in seen.violations
        ]
    return verdict


def judge_agreement(verdict: Verdict, by_rank: Sequence[Any]) -> bool:
    """Whether all processes decided alike (RR-EQV-008).

    Args:
        verdict: filled.
        by_rank: what every process answered to one request.
    """
    records = [_records(answer) for answer in by_rank]
    selected, scores = (
        [[_listed(getattr(r, name)) for r in each] for each in records] for name in ("selected", "scores")
    )
    # a NaN is like itself here: whether there may be one, the rules about scores say
    alike = [[_comparable(each) for each in own] for own in scores]
    other = next((r for r in range(len(records)) if (alike[r], selected[r]) != (alike[0], selected[0])), 0)
    return verdict.require(
        "RR-EQV-008",
        f"process {other}",
        f"it scores {scores[other]} and selects {selected[other]}; process 0 {scores[0]} and {selected[0]}",
        counts=any(selected[0]),
        selected_by_rank=selected,
        scores_by_rank=alike,
    )


def _listed(values: Any) -> Any:
    """Values as a list, whether they came as a list or as a tuple; of another form as they are."""
    return list(values) if isinstance(values, (list, tuple)) else values


def _comparable(scores: Any) -> Any:
    """Scores with None for every NaN; of another form as they are."""
    return [None if x != x else x for x in scores] if isinstance(scores, list) else scores


def _records(answer: Any) -> list[Any]:
    """All decisions in an answer, in order; of another form none, which whoever reads it says."""
    if isinstance(answer, (list, tuple)):
        return [record for each in answer for record in _records(each)]
    trace = answer.get("trace") if isinstance(answer, dict) else None
    records = getattr(trace, "decisions", ())
    return [record for record in records if hasattr(record, "selected") and hasattr(record, "scores")]
