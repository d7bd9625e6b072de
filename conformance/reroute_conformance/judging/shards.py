"""Judges runs whose heads a target divides among processes of its own: all processes must decide alike (RR-EQV-008)."""

from __future__ import annotations

from ..cases.shards import ShardsCase
from ..protocol import Target
from ..targets.answers import MalformedError, read_answers
from ..verdicts.verdict import Verdict
from .ranks import judge_agreement
from .routed_batch import judge_answers, read_case


def judge_shards(case: ShardsCase, target: Target) -> Verdict:
    """Every process decides alike, and what each of them returns is right."""
    verdict = Verdict()
    ranks = target.run_shards(case.model(), case.inputs(), case.routing(), case.shards)
    if not isinstance(ranks, (list, tuple)) or len(ranks) != case.shards:
        raise MalformedError(f"run_shards returned {type(ranks).__name__}, expected {case.shards} lists")
    plans = read_case(case)[1]
    for answers in ranks:
        read_answers(answers, plans, decoded=False)  # refuses another form
    if judge_agreement(verdict, ranks):
        for answers in ranks:
            verdict.add(judge_answers(case, answers))
    return verdict
