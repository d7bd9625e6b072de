"""Judges requests that are served from a shared prefix: each must be what it is without the prefix (RR-EQV-009)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from reroute_reference import run

from ..cases.prefix import PrefixCase
from ..protocol import Target
from ..targets.answers import Answer, MalformedError, read_answers, refused
from ..verdicts.tolerance import Measured, close, describe
from ..verdicts.verdict import Verdict
from .routed_batch import check_trace, read_case


def judge_prefix(case: PrefixCase, target: Target) -> Verdict:
    """Every request served from the prefix is what it is without; one that begins otherwise is not served."""
    verdict, batches = Verdict(), case.batches()
    honest = batches if case.stranger is None else batches[:-1]
    served = target.run_prefix(case.model(), [dict(batch) for batch in honest], case.routing(), case.shared)
    if not isinstance(served, (list, tuple)) or len(served) != len(honest):
        raise MalformedError(f"run_prefix returned {type(served).__name__}, expected {len(honest)} answers")
    for index, (batch, answers) in enumerate(zip(honest, served, strict=True)):
        _judge_served(replace(case, rows=[case.rows[index]]), index, batch, answers, verdict)
    if case.stranger is not None:
        _, raised = refused(
            lambda: target.run_prefix(case.model(), [batches[0], batches[-1]], case.routing(), case.shared)
        )
        verdict.exercised["RR-EQV-009"] += 1
        if not raised:
            detail = f"row {case.stranger} is not the prefix's, yet it was served from it"
            verdict.violate("RR-EQV-009", f"request {len(batches) - 1}", detail)
    return verdict


def _judge_served(
    case: PrefixCase, index: int, batch: dict[str, Any], answers: Any, verdict: Verdict
) -> None:
    prompts, plans = read_case(case, batch)
    answer: Answer = read_answers(answers, plans, decoded=False)[0]
    if not check_trace(0, case, plans[0], prompts[0].visual, answer.trace, verdict):
        return
    replay = [[record.selected for record in answer.trace.decisions]]
    plain, oracle = (
        run(case.reference_model(dtype), batch, case.routing(), decisions=replay)
        for dtype in (torch.float32, torch.float64)
    )
    scores = Measured(
        torch.tensor([s for record in answer.trace.decisions for s in record.scores], dtype=torch.float64),
        *(
            torch.tensor([s for record in output.traces[0].decisions for s in record.scores], dtype=dtype)
            for output, dtype in ((plain, torch.float32), (oracle, torch.float64))
        ),
    )
    logits = Measured(answer.logits, *(x.logits[0][~x.logits[0].isnan().all(-1)] for x in (plain, oracle)))
    verdict.require(
        "RR-EQV-009",
        f"request {index}, served from {case.shared} rows",
        lambda: f"scores: {describe(scores)}; logits: {describe(logits)}",
        close=close,
        scores=scores,
        logits=logits,
    )
