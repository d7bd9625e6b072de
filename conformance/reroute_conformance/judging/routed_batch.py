"""Judges a batch that ran routed: its decisions against the oracle, then its outputs under the target's own decisions.

The comparisons follow the order of the data, so that the first difference names the rule that broke. A near-tie in one
decision never hides what follows it, and what follows is never blamed for it. Where a request is wrong in its batch and
right alone, the batch or the padding is blamed (RR-EQV-004, RR-EQV-005).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import isnan
from typing import Any

import torch
from reroute_reference import run
from reroute_reference.check_request import Decoder
from reroute_reference.families import PLAIN_ATTENTION
from reroute_reference.inputs import Prompt, read_prompts
from reroute_reference.model import as_decoder
from reroute_spec import DecisionRecord, Plan, RoutingTrace, Schedule, Stage, plan
from reroute_spec.trace import select_in_spans

from ..cases.case import RoutedCase
from ..protocol import Target
from ..targets.answers import first_difference, read_answers, refused
from ..verdicts.verdict import Verdict
from .one_request import RequestJudge

_NO_DECISION = {"margin": None, "margin_of_scores": None, "would_select": None, "replayed": False}


def judge(case: RoutedCase, target: Target) -> Verdict:
    """Run a case and compare with the reference."""
    if case.poison is not None:
        return _judge_poison(case, target)
    return judge_batch(case, target, _judge)


def judge_batch(
    case: RoutedCase, target: Target, judge_requests: Callable[[Any, Target], Verdict]
) -> Verdict:
    """Run a case and compare by ``judge_requests``.

    A violation of a batched or padded request is blamed on the batch or the padding if the request alone is right.
    """
    verdict = judge_requests(case, target)
    first = next(iter(verdict.violations), None)
    for rule, applies, padded in (
        ("RR-EQV-004", len(case.rows) > 1, True),
        ("RR-EQV-005", any(row.pad_left or row.pad_right for row in case.rows), False),
    ):
        if first is None or first.request is None:
            verdict.require(rule, "batch", "", counts=applies, right=True, right_alone=True)
            continue
        row = case.alone(first.request)
        if not (len(case.rows) > 1 if padded else row.pad_left or row.pad_right):
            continue
        alone = judge_requests(case.only(first.request, padded=padded), target)
        without = "" if padded else " and unpadded"
        detail = f"{first.detail} [{first.rule}]; the same request alone{without} is right"
        if not verdict.require(
            rule, first.where, detail, request=first.request, right=False, right_alone=not alone.violations
        ):
            verdict.violations.insert(0, verdict.violations.pop())  # this is the one to act on
            break
    verdict.exercised.update(("RR-ERR-003", *case.network_rules))
    return verdict


def _judge(case: RoutedCase, target: Target) -> Verdict:
    continuation = case.continuation()
    given = None if continuation is None else continuation.clone()
    observed: Any = target.run(
        case.model(), case.inputs(), case.routing(), decisions=deepcopy(case.decisions), continuation=given
    )
    return judge_answers(case, observed)


def judge_answers(case: RoutedCase, observed: Any) -> Verdict:
    """Compare what ``Target.run`` returned with the reference under the same decisions."""
    verdict, inputs, continuation = Verdict(), case.inputs(), case.continuation()
    prompts, plans = read_case(case)
    answers = read_answers(observed, plans, decoded=continuation is not None)
    if not all(
        check_trace(b, case, plans[b], prompts[b].visual, answer.trace, verdict)
        for b, answer in enumerate(answers)
    ):
        return verdict
    replay = [[record.selected for record in answer.trace.decisions] for answer in answers]
    models = narrow, wide = case.reference_model(case.precision), case.reference_model(torch.float64)
    schedule = case.routing()
    outputs = run(narrow, inputs, schedule, decisions=replay), run(wide, inputs, schedule, decisions=replay)
    for b, answer in enumerate(answers):
        tokens = None if continuation is None else continuation[b]
        RequestJudge(b, case, answer, plans[b], models, outputs, (), verdict).judge(tokens)
    return verdict


def read_case(case: RoutedCase, inputs: Mapping[str, Any] | None = None) -> tuple[list[Prompt], list[Plan]]:
    """Every request of a batch, the case's own unless given, and its plan."""
    decoder = as_decoder(case.reference_model(case.precision), None)
    prompts = read_prompts(decoder, case.inputs() if inputs is None else inputs)
    return prompts, [planned(decoder, case.routing(), prompt) for prompt in prompts]


def planned(decoder: Decoder, schedule: Schedule, prompt: Prompt) -> Plan:
    """The plan of a request; blocks of linear attention cache no rows (RR-BLOCK-011)."""
    request = plan(schedule, decoder.num_layers, prompt.visual, prompt.images)
    rows = zip(request.kv_rows, decoder.kinds, strict=True)
    return replace(request, kv_rows=tuple(ran if kind == PLAIN_ATTENTION else 0 for ran, kind in rows))


def _judge_poison(case: RoutedCase, target: Target) -> Verdict:
    """NaN in the input is an error, never a selection."""
    verdict = Verdict()
    _, raised = refused(lambda: target.run(case.model(), case.inputs(), case.routing()))
    detail = "the input holds NaN, yet decisions were made: NaN must be an error"
    verdict.require("RR-SEL-005", "prefill", detail, raised=raised, s=[float("nan")])
    return verdict


def check_trace(
    b: int,
    case: RoutedCase,
    request: Plan,
    visual: Sequence[bool],
    trace: RoutingTrace,
    verdict: Verdict,
    earlier: Sequence[int] | None = None,
) -> bool:
    """Whether rows, pools and budgets are the plan's: only then can the target's decisions be replayed.

    ``earlier`` are the rows that every block held before this turn.
    """
    schedule, where, rows = case.routing(), f"request {b}", request.num_rows
    earlier = earlier or [0] * request.num_layers
    cached_now = [held - before for held, before in zip(trace.kv_rows, earlier, strict=False)]
    made = [(record.stage, record.layer) for record in trace.decisions]
    due = [(stage.index, stage.first) for stage in request.stages if stage.index > 0]
    layers = [decision.layer for decision in schedule.decisions]
    unrouted = [rows if ran else 0 for ran in request.kv_rows]
    ran = {"decisions": trace.decisions, "kv_rows": cached_now, "unrouted_rows": unrouted}
    found = first_difference(request.visual_rows, trace.visual_rows)
    decided = f"decisions at (stage, layer) {made}, the plan has {due}; rows cached per block {cached_now}"
    counted = f"{trace.num_rows} rows, expected {rows}; {decided}"
    rules: list[tuple[str, str, bool, dict[str, Any]]] = [
        ("RR-CFG-009", decided, not layers, {"layers": layers, **ran}),
        ("RR-BUD-002", decided, not request.num_visual, {"N": request.num_visual, **ran}),
        (
            "RR-POOL-006",
            counted,
            False,
            {"num_rows": trace.num_rows, "recorded": made, "planned": due, **_NO_DECISION, "S": rows},
        ),
        ("RR-POOL-001", f"routable rows: {found}", True, {"S": rows, "visual_rows": trace.visual_rows}),
        (
            "RR-POOL-002",
            f"routable rows: {found}",
            True,
            {"S": rows, "visual_rows": trace.visual_rows, "visual": visual},
        ),
    ]
    for rule, detail, applies, names in rules:
        if not verdict.require(rule, where, detail, request=b, counts=applies, **names):
            return False
    previous: Sequence[int] = range(request.num_visual)
    stages = [stage for stage in request.stages if stage.index > 0]
    for stage, record in zip(stages, trace.decisions, strict=True):
        if not _check_decision(b, case, request, stage, record, previous, verdict):
            return False
        previous = record.selected
    detail = f"rows cached per block: {first_difference(request.kv_rows, cached_now)}"
    for cached, run_ in zip(cached_now, request.kv_rows, strict=True):
        rule, names = "RR-KV-001", {"cached_rows": cached, "rows_run": run_}
        if not run_:  # a block of linear attention; what it computes is judged after its stage
            rule = "RR-BLOCK-011"
            names = {"cached_rows": cached, "close": lambda _: True, "residual": None}
        if not verdict.require(rule, where, detail, request=b, **names):
            return False
    return True


def _check_decision(
    b: int,
    case: RoutedCase,
    request: Plan,
    stage: Stage,
    record: DecisionRecord,
    previous: Sequence[int],
    verdict: Verdict,
) -> bool:
    """Whether a decision could have been made: its candidates, how many it keeps, and that it keeps candidates."""
    schedule = case.routing()
    where = f"request {b}, decision {stage.index} at block {stage.first}"
    everyone = range(request.num_visual)
    survivors = schedule.pool == "survivors"
    detail = f"candidates: {first_difference(previous if survivors else everyone, record.pool)}"
    pool_rule = "RR-POOL-004" if survivors else "RR-POOL-003"
    bound: dict[str, Any] = {"previous": previous} if survivors else {"N": request.num_visual}
    if not verdict.require(pool_rule, where, detail, request=b, pool=record.pool, **bound):
        return False
    strangers = sorted(set(record.selected) - set(record.pool))
    if strangers:
        verdict.violate(pool_rule, where, f"{strangers} were selected and are no candidates", b)
        return False
    detail = f"{list(record.selected)} is not ascending"
    if not verdict.require("RR-SEL-004", where, detail, request=b, selected=record.selected):
        return False
    detail = f"{len(record.selected)} rows selected, the budget is {stage.kept}"
    if schedule.scope == "image":
        detail = f"{detail}: {list(stage.budgets)} of the spans {[len(span) for span in request.spans]}"
    keep = schedule.decisions[stage.index - 1].keep
    budgeted: dict[str, Any] = {
        "selected": record.selected,
        "pool": record.pool,
        "keep": keep,
        "min_keep": schedule.min_keep,
    }
    if schedule.scope == "image":
        right = verdict.require("RR-BUD-003", where, detail, request=b, spans=request.spans, **budgeted)
    elif len(record.pool) < request.num_visual and not isinstance(keep, int):
        # of fewer candidates than N a wrong count is first of all a ratio of the wrong number
        right = verdict.require(
            "RR-BUD-004", where, detail, request=b, visual_rows=request.visual_rows, **budgeted
        )
    else:
        right = verdict.require("RR-BUD-001", where, detail, request=b, N=request.num_visual, **budgeted)
    if right and case.decisions is not None:
        given = case.decisions[b][stage.index - 1]
        detail = f"a given decision was not replayed: {first_difference(given, record.selected)}"
        own: Sequence[int] = ()
        if not any(isnan(score) for score in record.scores):
            own = select_in_spans(request, stage.index, record.pool, record.scores)
            if tuple(given) == record.selected and list(own) != list(record.would_select or ()):
                detail = f"would_select is {record.would_select}, its own scores would select {list(own)}"
        right = verdict.require(
            "RR-NUM-003",
            where,
            detail,
            request=b,
            given=given,
            selected=record.selected,
            would_select=record.would_select or (),
            own_selection=own,
        )
    return right
