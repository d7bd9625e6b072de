"""Judges runs whose heads a target divides among processes of its own: all processes must decide alike (RR-EQV-008)."""

from __future__ import annotations

from ..cases.shards import ShardsCase
from ..protocol import Target
from ..targets.answers import MalformedError, read_answers
from ..verdicts.verdict import Verdict
from .routed_batch import judge_answers, read_case


def judge_shards(case: ShardsCase, target: Target) -> Verdict:
    """Every process decides alike, and what each of them returns is right."""
    verdict = Verdict()
    ranks = target.run_shards(case.model(), case.inputs(), case.routing(), case.shards)
    if not isinstance(ranks, (list, tuple)) or len(ranks) != case.shards:
        raise MalformedError(f"run_shards returned {type(ranks).__name__}, expected {case.shards} lists")
    plans = read_case(case)[1]
    read = [read_answers(answers, plans, decoded=False) for answers in ranks]
    selected, scores = (
        [[[list(getattr(r, name)) for r in answer.trace.decisions] for answer in answers] for answers in read]
        for name in ("selected", "scores")
    )
    other = next((rank for rank in range(case.shards) if scores[rank] != scores[0]), 0)
    if verdict.require(
        "RR-EQV-008",
        f"process {other}",
        f"it scores {scores[other]} and selects {selected[other]}; process 0 {scores[0]} and {selected[0]}",
        counts=any(selected[0]),
        selected_by_rank=selected,
        scores_by_rank=scores,
    ):
        for answers in ranks:
            verdict.add(judge_answers(case, answers))
    return verdict
