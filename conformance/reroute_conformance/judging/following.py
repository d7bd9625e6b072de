"""Judges requests that follow each other on one model (RR-KV-006), and greedy decoding by ``generate`` (RR-KV-002).

Nothing of one request may reach the next, and every generated token must have the largest of the target's own logits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..cases.case import Row
from ..cases.models import ModelCase
from ..protocol import Target
from ..targets.answers import read_greedy, read_tokens
from ..verdicts.verdict import Verdict
from .routed_batch import judge


def judge_requests(case: ModelCase, target: Target) -> Verdict:
    """A text-only request, one with images, then both again on the same model: nothing of one reaches the next."""
    text_only = replace(case, rows=[Row("tttt", 5)], new_tokens=2)
    verdict = judge(text_only, target)
    verdict.add(judge(case, target))
    if verdict.violations:
        return verdict  # alone it is wrong already
    for follow_up in (text_only, case):
        again = judge(follow_up, target)
        first = next(iter(again.violations), None)
        where, detail = ("", "") if first is None else (first.where, f"{first.detail} [{first.rule}]")
        verdict.require(
            "RR-KV-006", f"a later request: {where}", detail, right=first is None, right_alone=True
        )
        verdict.add(Verdict(exercised=again.exercised, decisions=again.decisions, ambiguous=again.ambiguous))
    return verdict


def judge_generation(case: ModelCase, target: Target) -> Verdict:
    """Greedy tokens are the teacher-forced argmax of the target itself, prefill and decode already judged."""
    verdict = judge(case, target)
    if verdict.violations:
        return verdict  # the first difference is the one to act on
    model, inputs, count = case.model(), case.inputs(), 6
    new = read_tokens(target.generate(model, inputs, case.routing(), count), inputs["input_ids"], count)
    rows: Any = target.run(model, inputs, case.routing(), continuation=new[:, :-1].clone())
    greedy = read_greedy(rows, count)
    step = int((greedy != new[0]).int().argmax())
    detail = f"first differing step {step}: generated token {int(new[0, step])}, its own logits say {int(greedy[step])}"
    names: dict[str, Any] = {"close": lambda _: True, "decode_logits": None}  # judged before
    tokens: dict[str, Any] = {"generated": new[0].tolist(), "greedy": greedy.tolist()}
    verdict.require("RR-KV-002", "generation", detail, **names, **tokens)
    return verdict
