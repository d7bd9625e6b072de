"""The checks: what is drawn, how it is judged, which rules it exercises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from . import strategies
from .answers import read_greedy, read_selection, read_tokens
from .cases import Case, DecoderCase, LlavaCase, Row, SelectCase, decoder_config
from .judge import judge
from .protocol import Target
from .selection import judge_selection
from .verdict import Verdict


@dataclass(frozen=True)
class Check:
    """One family of cases.

    Attributes:
        name: shown in the report.
        kind: ``select``, ``route`` or ``trace``.
        profile: the profile it belongs to.
        rules: MUST rules that a whole run of it has to exercise.
        cases: strategy, or the fixed cases themselves.
        examples: how many cases the default run draws.
        judge: compares a target with the specification on one case.
    """

    name: str
    kind: str
    profile: str
    rules: tuple[str, ...]
    cases: st.SearchStrategy[Any] | tuple[Case, ...]
    examples: int
    judge: Callable[[Any, Target], Verdict]


def judge_select(case: SelectCase, target: Target) -> Verdict:
    """Integers must match exactly."""
    verdict, scores = Verdict(), case.scores().tolist()
    rows = read_selection(target.select(case.scores(), case.k), len(scores))
    where, detail = f"select, k = {case.k} of {len(scores)}", f"{len(rows)} rows selected, k is {case.k}"
    counted: dict[str, Any] = {"keep": case.k, "min_keep": 0, "N": len(scores), "pool": scores}
    if verdict.require("RR-BUD-001", where, detail, selected=rows, **counted):
        judge_selection(verdict, where, scores, rows)
    return verdict


def judge_nan(case: SelectCase, target: Target) -> Verdict:
    """NaN is an error, never a selection."""
    verdict, scores, rows, raised = Verdict(), case.scores(), None, False
    try:
        rows = target.select(case.scores(), case.k)
    except Exception:
        raised = True
    detail = (
        f"score {int(scores.isnan().int().argmax())} is NaN, yet {rows!r} was selected: NaN must be an error"
    )
    verdict.require("RR-SEL-005", "select", detail, raised=raised, s=scores.tolist())
    return verdict


def judge_requests(case: LlavaCase, target: Target) -> Verdict:
    """A text-only request, one with images, then both again on the same model: nothing of one reaches the next."""
    text_only = LlavaCase(case.schedule, [Row("tttt", 5)], 2, None, None, case.seed, case.attention)
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


def judge_generation(case: LlavaCase, target: Target) -> Verdict:
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


def _pictures() -> tuple[LlavaCase, ...]:
    question = "user : <image> where is the red ball ? assistant :"
    two = "user : <image> <image> what colour is the box ? assistant :"
    schedule = {
        "reroute": [
            {"layer": 1, "keep": "0.2644"},
            {"layer": 3, "keep": "0.2644"},
            {"layer": 6, "keep": "0.1"},
        ],
        "delete": [{"layer": 1, "keep": "0.5965"}, {"layer": 4, "keep": "0.1266"}],
    }
    return tuple(
        LlavaCase(
            schedule={"action": action, "decisions": decisions},
            rows=[Row("t")],
            new_tokens=2,
            attention=attention,
            text=text,
        )
        for action, decisions in schedule.items()
        for text in (question, two)
        for attention in ("sdpa", "eager")
    )


def _budgets() -> tuple[DecoderCase, ...]:
    """Ratios whose product with N a binary float gets wrong (0.29 of 100), and halves that rounding gets wrong."""
    config = decoder_config(2, heads=2, kv_heads=2)
    pairs = (
        ("0.29", 100),
        ("0.57", 100),
        ("0.58", 50),
        ("0.5", 7),
        ("0.35", 10),
        ("1", 9),
        ("0.001", 9),
        ("1/3", 9),
    )
    unrouted = DecoderCase({"action": "reroute", "decisions": []}, [Row("tvvt")], config=config)
    routed = [
        DecoderCase(
            {"action": action, "decisions": [{"layer": 1, "keep": keep}]},
            [Row(f"t{'v' * n}t")],
            config=config,
        )
        for keep, n in pairs
        for action in ("reroute", "delete")
    ]
    return (*routed, unrouted)


def checks() -> tuple[Check, ...]:
    """All checks, in the order of the report."""
    blocks = (
        "RR-EQV-001",
        "RR-BLOCK-001",
        "RR-BLOCK-002",
        "RR-BLOCK-003",
        "RR-BLOCK-007",
        "RR-BLOCK-008",
        "RR-KV-001",
        "RR-NUM-001",
    )
    scores = (
        "RR-SCORE-001",
        "RR-SCORE-002",
        "RR-POOL-003",
        "RR-SCORE-003",
        "RR-POOL-004",
        "RR-BUD-001",
        "RR-POOL-001",
        "RR-POOL-005",
        "RR-POOL-006",
    )
    d, routed = strategies.decoder_cases, judge
    return (
        Check(
            "select",
            "select",
            "core",
            ("RR-SEL-001", "RR-SEL-002", "RR-SEL-003", "RR-SEL-004"),
            strategies.select_cases(),
            400,
            judge_select,
        ),
        Check("select-nan", "select", "core", ("RR-SEL-005",), strategies.nan_select_cases(), 50, judge_nan),
        Check("trace", "trace", "core", (*scores, *blocks, "RR-BUD-002"), d(), 150, routed),
        Check("budgets", "trace", "core", ("RR-BUD-001", "RR-EQV-002", "RR-CFG-009"), _budgets(), 17, routed),
        Check("trace-nan", "trace", "core", ("RR-SEL-005",), strategies.poisoned_cases(), 15, routed),
        Check("route", "route", "stagewise", blocks, d(replay=True), 120, routed),
        Check("trace-gqa", "trace", "gqa", (*scores, *blocks), d(gqa=True), 120, routed),
        Check(
            "trace-batch",
            "trace",
            "batch",
            ("RR-EQV-004", "RR-EQV-005", "RR-BUD-002"),
            d(batch=True),
            100,
            routed,
        ),
        Check(
            "trace-cache", "trace", "cache", ("RR-KV-002", "RR-KV-004"), d(batch=True, cache=True), 80, routed
        ),
        Check(
            "llava",
            "trace",
            "hf",
            ("RR-POOL-002", "RR-KV-006", "RR-BUD-003"),
            strategies.llava_cases(),
            30,
            judge_requests,
        ),
        Check("llava-picture", "trace", "hf", ("RR-POOL-002", "RR-KV-002"), _pictures(), 8, judge_generation),
    )
