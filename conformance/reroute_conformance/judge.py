"""Judging one routed case: decisions against the oracle, then outputs under the target's own decisions.

The order of comparisons follows the data, so that the first difference names the rule that broke, and a near-tie in one
decision never hides or blames what follows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from reroute_reference import CanonicalDecoder, forced_logits, run
from reroute_reference.inputs import read_prompts
from reroute_reference.model import RoutedOutput, as_decoder
from reroute_spec import DecisionRecord, Plan, RerouteError, RoutingTrace, plan
from reroute_spec.trace import check_selection
from torch import Tensor

from .cases import RoutedCase
from .protocol import Target
from .tolerance import ambiguous_rows, excess, score_tau


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


class MalformedError(Exception):
    """A target's answer that is not of the protocol's form."""


def judge(case: RoutedCase, target: Target) -> Verdict:
    """Run a case and compare. A violation of a padded or batched request is blamed on padding or batch if the request
    alone is right.
    """
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
    for rule, applies in (
        ("RR-EQV-004", len(case.rows) > 1),
        ("RR-EQV-005", any(row.pad_left or row.pad_right for row in case.rows)),
    ):
        verdict.exercised[rule] += bool(applies)
    return verdict


def _judge(case: RoutedCase, target: Target) -> Verdict:
    verdict = Verdict()
    inputs, schedule, continuation = case.inputs(), case.routing(), case.continuation()
    if case.poison is not None:
        return _judge_poison(case, target, verdict)
    observed = target.run(case.model(), inputs, schedule, decisions=case.decisions, continuation=continuation)
    narrow, wide = case.reference_model(torch.float32), case.reference_model(torch.float64)
    decoder = as_decoder(narrow, None)
    prompts = read_prompts(decoder, inputs)
    plans = [plan(schedule, decoder.num_layers, prompt.visual, prompt.images) for prompt in prompts]
    _check_form(observed, plans)
    if not all(_check_decisions(b, case, plans[b], observed[b]["trace"], verdict) for b in range(len(plans))):
        return verdict
    replay = [[record.selected for record in row["trace"].decisions] for row in observed]
    oracle = run(wide, inputs, schedule, decisions=replay)
    plain = run(narrow, inputs, schedule, decisions=replay)
    for b, row in enumerate(observed):
        _judge_prefill(b, case, row, plain, oracle, plans[b], verdict)
        if continuation is not None:
            _judge_decode(b, row, (narrow, plain), (wide, oracle), continuation[b], plans[b], verdict)
    return verdict


def _check_form(observed: Any, plans: list[Plan]) -> None:
    """Refuse an answer that is not of the protocol's form (:meth:`Target.run`)."""
    if not isinstance(observed, list) or len(observed) != len(plans):
        raise MalformedError(f"run returned {type(observed).__name__}, expected a list of {len(plans)} dicts")
    for b, (row, request) in enumerate(zip(observed, plans, strict=True)):
        if not isinstance(row, dict):
            raise MalformedError(f"request {b} is a {type(row).__name__}, expected a dict")
        if not isinstance(row.get("trace"), RoutingTrace):
            raise MalformedError(
                f"request {b}: trace is a {type(row.get('trace')).__name__}, expected a RoutingTrace"
            )
        for name in ("keys", "values"):
            if not isinstance(row.get(name), list) or len(row[name]) != request.num_layers:
                raise MalformedError(f"request {b}: {name} is not a list of {request.num_layers} tensors")
        if not isinstance(row.get("residuals"), dict):
            raise MalformedError(f"request {b}: residuals is not a dict of tensors by layer")


def _judge_poison(case: RoutedCase, target: Target, verdict: Verdict) -> Verdict:
    verdict.exercised["RR-SEL-005"] += 1
    try:
        target.run(case.model(), case.inputs(), case.routing())
    except Exception:
        return verdict
    verdict.violate(
        "RR-SEL-005", "prefill", "the input holds NaN, yet decisions were made: NaN must be an error"
    )
    return verdict


def _check_decisions(b: int, case: RoutedCase, request: Plan, trace: RoutingTrace, verdict: Verdict) -> bool:
    """Whether the target's decisions are ones that its plan allows: only then can they be replayed."""
    before = len(verdict.violations)
    decided = [stage for stage in request.stages if stage.index > 0]
    verdict.exercised.update((case.routable_rule, "RR-POOL-001"))
    verdict.exercised["RR-BUD-002"] += not decided
    if tuple(trace.visual_rows) != request.visual_rows:
        difference = _first_difference(request.visual_rows, trace.visual_rows)
        verdict.violate(case.routable_rule, f"request {b}", f"routable rows: {difference}", b)
    elif len(trace.decisions) != len(decided):
        rule = "RR-POOL-005" if decided else "RR-BUD-002"
        detail = f"{len(trace.decisions)} decisions recorded, the plan has {len(decided)}"
        verdict.violate(rule, f"request {b}", detail, b)
    else:
        pool: Sequence[int] = range(request.num_visual)
        for stage, record in zip(decided, trace.decisions, strict=True):
            where = f"request {b}, decision {stage.index} at block {stage.first}"
            pool_rule = "RR-POOL-003" if case.routing().pool == "all" else "RR-POOL-004"
            verdict.exercised.update((pool_rule, "RR-BUD-001", "RR-POOL-005"))
            if tuple(record.pool) != tuple(pool):
                verdict.violate(pool_rule, where, f"candidates: {_first_difference(pool, record.pool)}", b)
                break
            if len(record.selected) != stage.kept:
                detail = f"{len(record.selected)} rows selected, the budget is {stage.kept}"
                verdict.violate("RR-BUD-001", where, detail, b)
                break
            try:
                check_selection(request, stage.index, tuple(pool), record.selected, "selected")
            except RerouteError as error:
                verdict.violate(pool_rule, where, str(error), b)
                break
            given = None if case.decisions is None else case.decisions[b][stage.index - 1]
            if given is not None and list(record.selected) != list(given):
                raise MalformedError(
                    f"{where}: a given decision was not replayed: {_first_difference(given, record.selected)}"
                )
            if case.routing().pool == "survivors":
                pool = record.selected
    return len(verdict.violations) == before


def judge_decision(
    b: int, record: DecisionRecord, exact: DecisionRecord, request: Plan, tau: float, verdict: Verdict
) -> None:
    """A decision may differ from the oracle's in ambiguous rows only (RR-NUM-002)."""
    verdict.exercised.update(("RR-SCORE-001", "RR-SCORE-002", "RR-SEL-001"))
    assert exact.would_select is not None
    right, chosen = set(exact.would_select), set(record.selected)
    ambiguous = _ambiguous(exact, request, tau)
    verdict.decisions += 1
    verdict.ambiguous += bool(ambiguous & right and ambiguous - right)
    wrong = sorted((chosen ^ right) - ambiguous)
    if wrong:
        first = wrong[0]
        score = exact.scores[exact.pool.index(first)]
        verb = "was selected, but should not be" if first in chosen else "should be selected, but was not"
        verdict.violate(
            "RR-SCORE-001",
            f"request {b}, decision {record.stage} at block {record.layer}",
            f"first differing ordinal {first}: it {verb} (oracle score {score:.6g}); expected {sorted(right)}, "
            f"got {sorted(chosen)}; ambiguous rows (τ = {tau:.2g}, RR-NUM-002): {sorted(ambiguous) or 'none'}",
            b,
        )


def _ambiguous(exact: DecisionRecord, request: Plan, tau: float) -> set[int]:
    rows: set[int] = set()
    assert exact.would_select is not None
    for span in request.spans:
        chosen = [exact.scores[exact.pool.index(o)] for o in exact.would_select if o in span]
        rows |= ambiguous_rows(exact, min(chosen), tau) & set(span)
    return rows


def _judge_prefill(
    b: int,
    case: RoutedCase,
    row: dict[str, Any],
    plain: RoutedOutput,
    oracle: RoutedOutput,
    request: Plan,
    verdict: Verdict,
) -> None:
    """Decisions, caches, residual stream and logits, in the order in which they come to be."""
    delete = case.routing().action == "delete"
    records = [
        {record.stage: record for record in trace.decisions} for trace in (row["trace"], oracle.traces[b])
    ]
    tau = score_tau(plain.traces[b].decisions, oracle.traces[b].decisions, torch.float32)
    for stage in request.stages:
        end = stage.last + 1
        where = f"request {b}, stage {stage.index} (blocks {stage.first} to {stage.last})"
        if stage.index > 0 and case.decisions is None:
            judge_decision(b, records[0][stage.index], records[1][stage.index], request, tau, verdict)
        for layer in range(stage.first, stage.last + 1):
            _judge_rows(b, layer, row, request, verdict)
            rule = "RR-BLOCK-002" if layer == stage.first else "RR-BLOCK-003"
            for name, index in (("keys", 0), ("values", 1)):
                actual = _tensor(row[name][layer], f"request {b}: {name}[{layer}]")
                expected = [output.cache[b].keys_values(layer)[index] for output in (plain, oracle)]
                _close(
                    b, rule, f"{where}, {name} of block {layer}", actual, expected[0], expected[1], verdict
                )
        actual = _tensor(row["residuals"].get(end), f"request {b}: residuals[{end}]")
        if stage.index > 0 and not delete:
            _judge_bypass(b, where, row, records[0][stage.index], end, request, verdict)
        rule = "RR-BLOCK-007" if delete and stage.index > 0 else "RR-BLOCK-003"
        _close(
            b,
            rule,
            f"{where}, residual stream after it",
            actual,
            plain.residuals[b][end],
            oracle.residuals[b][end],
            verdict,
        )
    kept = [output.logits[b][~output.logits[b].isnan().all(-1)] for output in (plain, oracle)]
    rule = "RR-BLOCK-007" if delete else "RR-BLOCK-008"
    _close(
        b,
        rule,
        f"request {b}, logits",
        _tensor(row["logits"], f"request {b}: logits"),
        kept[0],
        kept[1],
        verdict,
    )


def _judge_rows(b: int, layer: int, row: dict[str, Any], request: Plan, verdict: Verdict) -> None:
    verdict.exercised["RR-KV-001"] += 1
    held = _tensor(row["keys"][layer], f"request {b}: keys[{layer}]").shape[-2]
    if held != request.kv_rows[layer]:
        detail = f"the cache holds {held} rows, block {layer} ran {request.kv_rows[layer]}"
        verdict.violate("RR-KV-001", f"request {b}, cache of block {layer}", detail, b)


def _judge_bypass(
    b: int, where: str, row: dict[str, Any], record: DecisionRecord, end: int, request: Plan, verdict: Verdict
) -> None:
    """Deferred rows leave the stage as they entered it, bit for bit (RR-BLOCK-001)."""
    deferred = [
        request.visual_rows[ordinal]
        for ordinal in range(request.num_visual)
        if ordinal not in record.selected
    ]
    verdict.exercised["RR-BLOCK-001"] += bool(deferred)
    before, after = (
        _tensor(row["residuals"][layer], f"request {b}: residuals[{layer}]") for layer in (record.layer, end)
    )
    if before.shape != after.shape or before.shape[0] != request.num_rows:
        return  # the shape is the next comparison's finding
    changed = (before[deferred] != after[deferred]).any(-1).tolist()
    if any(changed):
        place = deferred[changed.index(True)]
        ordinal = request.visual_rows.index(place)
        off = (before[place] - after[place]).abs().max().item()
        verdict.violate(
            "RR-BLOCK-001",
            where,
            f"first differing ordinal {ordinal} (prompt row {place}): it was deferred, yet its state changed by up to {off:.3g}",
            b,
        )


def _judge_decode(
    b: int,
    row: dict[str, Any],
    narrow: tuple[Any, RoutedOutput],
    wide: tuple[Any, RoutedOutput],
    tokens: Tensor,
    request: Plan,
    verdict: Verdict,
) -> None:
    """Teacher-forced decode after the prefill (RR-KV-002, RR-KV-004)."""
    plain, oracle = (_decode(model, output, b, tokens) for model, output in (narrow, wide))
    actual = _tensor(row["decode_logits"], f"request {b}: decode_logits")
    verdict.exercised["RR-KV-004"] += 1
    _close(b, "RR-KV-002", f"request {b}, decode logits [token, vocabulary]", actual, plain, oracle, verdict)


def _decode(model: CanonicalDecoder | Any, output: RoutedOutput, b: int, tokens: Tensor) -> Tensor:
    return forced_logits(model, output.cache[b], tokens)


def _close(
    b: int, rule: str, where: str, actual: Tensor, plain: Tensor, oracle: Tensor, verdict: Verdict
) -> None:
    verdict.exercised.update((rule, "RR-NUM-001"))
    if actual.shape != oracle.shape:
        verdict.violate(rule, where, f"shape {list(actual.shape)}, expected {list(oracle.shape)}", b)
    elif (found := excess(actual, plain, oracle)) is not None:
        verdict.violate(rule, where, str(found), b)


def _tensor(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise MalformedError(f"{what} is a {type(value).__name__}, expected a tensor")
    return value.detach()


def _first_difference(expected: Sequence[int], actual: Sequence[int]) -> str:
    for place, (a, b) in enumerate(zip(expected, actual, strict=False)):
        if a != b:
            return f"entry {place} is {b}, expected {a}"
    return f"{len(actual)} entries, expected {len(expected)}"
