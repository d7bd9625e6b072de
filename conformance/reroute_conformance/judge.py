"""Judging one routed case: decisions against the oracle, then outputs under the target's own decisions.

The order of comparisons follows the data, so that the first difference names the rule that broke, and a near-tie in one
decision never hides or blames what follows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from reroute_reference import run
from reroute_reference.inputs import read_prompts
from reroute_reference.model import as_decoder
from reroute_spec import Plan, RerouteError, RoutingTrace, plan
from reroute_spec.trace import check_selection

from .answers import MalformedError, first_difference, read_answers
from .cases import RoutedCase
from .protocol import Target
from .requests import RequestJudge


@dataclass(frozen=True)
class Violation:
    """A rule that a target broke.

    Attributes:
        rule: its id.
        where: request, block, decision.
        detail: expected, found, the first differing ordinal or element.
        request: batch row, where it is one request's.
    """

    rule: str
    where: str
    detail: str
    request: int | None = None


@dataclass
class Verdict:
    """What one case showed."""

    violations: list[Violation] = field(default_factory=list)
    exercised: Counter[str] = field(default_factory=Counter)
    decisions: int = 0
    ambiguous: int = 0

    def violate(self, rule: str, where: str, detail: str, request: int | None = None) -> None:
        """Note a broken rule."""
        self.violations.append(Violation(rule, where, detail, request))


def judge(case: RoutedCase, target: Target) -> Verdict:
    """Run a case and compare. A violation of a padded or batched request is blamed on padding or batch if the request
    alone is right.
    """
    if case.poison is not None:
        return _judge_poison(case, target)
    verdict = _judge(case, target)
    if verdict.violations and (first := verdict.violations[0]).request is not None:
        request, row = first.request, case.rows[first.request]
        for rule, applies, padded in (
            ("RR-EQV-004", len(case.rows) > 1, True),
            ("RR-EQV-005", row.pad_left or row.pad_right, False),
        ):
            if applies and not _judge(case.only(request, padded=padded), target).violations:
                without = "" if padded else " and unpadded"
                detail = f"{first.detail} [{first.rule}]; the same request alone{without} is right"
                verdict.violations[0] = Violation(rule, first.where, detail, request)
                break
    verdict.exercised.update(("RR-ERR-003", *case.network_rules))
    verdict.exercised["RR-CFG-009"] += not case.routing().decisions
    verdict.exercised["RR-EQV-004"] += len(case.rows) > 1
    verdict.exercised["RR-EQV-005"] += any(row.pad_left or row.pad_right for row in case.rows)
    return verdict


def _judge(case: RoutedCase, target: Target) -> Verdict:
    verdict = Verdict()
    inputs, schedule, continuation = case.inputs(), case.routing(), case.continuation()
    given = None if continuation is None else continuation.clone()
    observed: Any = target.run(
        case.model(), case.inputs(), schedule, decisions=deepcopy(case.decisions), continuation=given
    )
    narrow, wide = case.reference_model(torch.float32), case.reference_model(torch.float64)
    decoder = as_decoder(narrow, None)
    prompts = read_prompts(decoder, inputs)
    plans = [plan(schedule, decoder.num_layers, prompt.visual, prompt.images) for prompt in prompts]
    answers = read_answers(observed, plans, decoded=continuation is not None)
    if not all(_check_trace(b, case, plans[b], answer.trace, verdict) for b, answer in enumerate(answers)):
        return verdict
    replay = [[record.selected for record in answer.trace.decisions] for answer in answers]
    models = narrow, wide
    outputs = run(narrow, inputs, schedule, decisions=replay), run(wide, inputs, schedule, decisions=replay)
    for b, answer in enumerate(answers):
        tokens = None if continuation is None else continuation[b]
        RequestJudge(b, case, answer, plans[b], models, outputs, verdict).judge(tokens)
    return verdict


def _judge_poison(case: RoutedCase, target: Target) -> Verdict:
    """NaN in the input is an error, never a selection (RR-SEL-005)."""
    verdict = Verdict()
    verdict.exercised["RR-SEL-005"] += 1
    try:
        target.run(case.model(), case.inputs(), case.routing())
    except Exception:
        return verdict
    detail = "the input holds NaN, yet decisions were made: NaN must be an error"
    verdict.violate("RR-SEL-005", "prefill", detail)
    return verdict


def _check_trace(b: int, case: RoutedCase, request: Plan, trace: RoutingTrace, verdict: Verdict) -> bool:
    """Whether rows, pools and budgets are the plan's: only then can the target's decisions be replayed."""
    before = len(verdict.violations)
    decided = [stage for stage in request.stages if stage.index > 0]
    verdict.exercised.update((case.routable_rule, "RR-POOL-001"))
    verdict.exercised["RR-BUD-002"] += not decided
    if trace.num_rows != request.num_rows:
        verdict.violate(
            "RR-POOL-006", f"request {b}", f"{trace.num_rows} rows, expected {request.num_rows}", b
        )
    elif trace.visual_rows != request.visual_rows:
        difference = first_difference(request.visual_rows, trace.visual_rows)
        verdict.violate(case.routable_rule, f"request {b}", f"routable rows: {difference}", b)
    schedule = case.routing()
    pool_rule = "RR-POOL-003" if schedule.pool == "all" else "RR-POOL-004"
    budget_rule = "RR-BUD-003" if schedule.scope == "image" else "RR-BUD-001"
    pool: Sequence[int] = tuple(range(request.num_visual))
    for stage, record in zip(decided, trace.decisions, strict=True):
        where = f"request {b}, decision {stage.index} at block {stage.first}"
        verdict.exercised.update((pool_rule, budget_rule))
        if record.pool != pool:
            verdict.violate(pool_rule, where, f"candidates: {first_difference(pool, record.pool)}", b)
            break
        if len(record.selected) != stage.kept:
            detail = f"{len(record.selected)} rows selected, the budget is {stage.kept}"
            verdict.violate(budget_rule, where, detail, b)
            break
        try:
            check_selection(request, stage.index, pool, record.selected, "selected")
        except RerouteError as error:
            verdict.violate(
                budget_rule if "does not hold" in error.problem else pool_rule, where, str(error), b
            )
            break
        given = None if case.decisions is None else tuple(case.decisions[b][stage.index - 1])
        if given is not None and record.selected != given:
            difference = first_difference(given, record.selected)
            raise MalformedError(f"{where}: a given decision was not replayed: {difference}")
        if schedule.pool == "survivors":
            pool = record.selected
    if len(verdict.violations) == before and trace.kv_rows != request.kv_rows:
        difference = first_difference(request.kv_rows, trace.kv_rows)
        verdict.violate("RR-KV-001", f"request {b}", f"rows cached per block: {difference}", b)
    return len(verdict.violations) == before
