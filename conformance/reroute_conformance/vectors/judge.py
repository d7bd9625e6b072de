"""Judges a target by a vector: it gives the target the vector's inputs and compares the answer with what the vector holds.

The comparisons are the rules' own checks. The verdict does not rest on a run of the reference, which is made only where
a wrong value has to be told from a known misreading of a rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from reroute_reference import run
from reroute_reference.model import RoutedOutput
from reroute_spec import DecisionRecord
from torch import Tensor

from ..cases.case import ConfigCase, SelectCase
from ..judging.one_request import RequestJudge
from ..judging.refusals import refusal_of
from ..judging.routed_batch import check_trace, judge_batch
from ..judging.schedules import judge_config
from ..judging.selection import judge_select
from ..protocol import Target
from ..targets.answers import (
    MalformedError,
    UnansweredError,
    first_difference,
    read_answers,
    read_selection,
)
from ..verdicts.tolerance import close, describe
from ..verdicts.verdict import Verdict
from .case import Held, VectorCase, plans_of


def judge_vector(case: VectorCase, target: Target) -> Verdict:
    """Give a target what the vector gives, and compare with what it holds."""
    judged = {"select": _judge_select, "config": _judge_config}.get(case.vector.data["kind"], _judge_routed)
    verdict = judged(case, target)
    verdict.exercised["RR-ERR-003"] += 1
    return verdict


def _judge_select(case: VectorCase, target: Target) -> Verdict:
    inputs, expected = case.vector.data["inputs"], case.vector.data["expected"]
    given = inputs["scores"]
    bits = given["float32_bits"] if isinstance(given, dict) else _bits(given)
    select = SelectCase(bits=bits, k=inputs["k"])
    if "error" in expected:
        nan = bool(select.scores().isnan().any())
        return _judge_refusal(
            case, lambda: target.select(select.scores(), select.k), select.scores() if nan else None
        )
    verdict = judge_select(select, target)
    if not verdict.violations:
        right = expected["exact"]["selected"]
        rows = read_selection(target.select(select.scores(), select.k), len(bits))
        if rows != right:
            verdict.violate(_rule(case), "select", f"{first_difference(right, rows)} of {rows}")
    return verdict


def _judge_config(case: VectorCase, target: Target) -> Verdict:
    inputs, expected = case.vector.data["inputs"], case.vector.data["expected"]
    visual, images = inputs.get("visual", [False]), inputs.get("images", [])
    layout = "".join("v" if flag else "t" for flag in visual)
    verdict = judge_config(ConfigCase(inputs["schedule"], inputs["num_layers"], layout, images), target)
    if verdict.violations:
        return verdict

    def plan() -> Sequence[int]:
        return target.plan(deepcopy(inputs["schedule"]), inputs["num_layers"], list(visual), list(images))

    if "error" in expected:
        verdict.add(_judge_refusal(case, plan))
        return verdict
    right, planned = expected["exact"]["kv_rows"][0], [int(rows) for rows in plan()]
    for rule in case.vector.data["rules"]:  # what the plan shows is what they are about
        verdict.exercised[rule] += 1
    for layer, (rows, due) in enumerate(zip(planned, right, strict=True)):
        detail = f"{rows} rows planned, {due} are right; all: {planned}, expected {right}"
        verdict.require("RR-KV-001", f"block {layer}", detail, cached_rows=rows, rows_run=due)
    return verdict


def _judge_refusal(case: VectorCase, call: Callable[[], Any], nan: Tensor | None = None) -> Verdict:
    """Whether a target refuses what the vector says is refused, naming the field. ``nan`` are scores that hold one."""
    verdict, rule, due = Verdict(), _rule(case), case.vector.data["expected"]["error"]["field"]
    error: Any = None
    try:
        _, error = refusal_of(call)
    except UnansweredError:
        raise
    except MalformedError:
        pass  # neither accepted nor refused
    if rule == "RR-SEL-005":
        scores = [float("nan")] if nan is None else nan.tolist()
        detail = "a NaN was given, yet rows were selected: it must be an error"
        verdict.require(rule, "NaN", detail, raised=error is not None, s=scores)
    else:
        verdict.exercised[rule] += 1
        if error is None:
            verdict.violate(rule, "refusal", f"it was accepted, and has to be refused by {due!r}")
    said = str(getattr(error, "field", ""))
    if error is not None and not re.search(rf"(^|\.){re.escape(due)}($|[.\[])", said):
        verdict.violate(
            "RR-ERR-001", "refusal", f"the error names field {said!r}, the fault is in {due!r}: {error}"
        )
    return verdict


def _judge_routed(case: VectorCase, target: Target) -> Verdict:
    if "error" in case.vector.data["expected"]:
        return _judge_refusal(case, lambda: _asked(case, target))
    verdict = judge_batch(case, target, _judge_requests)
    verdict.exercised.update(case.network_rules)
    return verdict


def _asked(case: VectorCase, target: Target) -> Any:
    return target.run(
        case.model(),
        case.inputs(),
        case.routing(),
        decisions=deepcopy(case.decisions),
        continuation=case.continuation(),
    )


def _judge_requests(case: VectorCase, target: Target) -> Verdict:
    """Every request against what is held of it."""
    verdict, plans, tokens = Verdict(), plans_of(case), case.continuation()
    answers = read_answers(_asked(case, target), plans, decoded=tokens is not None)
    helds = [Held(case.vector, case.held_at(b)) for b in range(len(plans))]
    flags = [case.vector.data["inputs"]["requests"][held.request]["visual"] for held in helds]
    if not all(
        check_trace(b, case, plans[b], flags[b], answer.trace, verdict) for b, answer in enumerate(answers)
    ):
        return verdict
    replay = [[record.selected for record in answer.trace.decisions] for answer in answers]
    fresh = _Fresh(case, replay)
    for b, (answer, held) in enumerate(zip(answers, helds, strict=True)):
        judge = HeldJudge(b, case, answer, plans[b], fresh.models, fresh, (), verdict, held=held)
        judge.judge(None if tokens is None else tokens[b])
    return verdict


class _Fresh(Sequence[RoutedOutput]):
    """The reference's outputs under the target's decisions, in float32 and in float64.

    The reference runs only when an output is asked for, where a wrong value has to be told from a misreading.
    """

    def __init__(self, case: VectorCase, replay: list[list[tuple[int, ...]]]) -> None:
        self._case, self._replay = case, replay

    @cached_property
    def models(self) -> tuple[Any, Any]:
        """In float32 and in float64."""
        return self._case.reference_model(torch.float32), self._case.reference_model(torch.float64)

    @cached_property
    def _outputs(self) -> list[RoutedOutput]:
        inputs, schedule = self._case.inputs(), self._case.routing()
        return [run(model, inputs, schedule, decisions=self._replay) for model in self.models]

    def __getitem__(self, index: Any) -> Any:
        return self._outputs[index]

    def __len__(self) -> int:
        return 2


@dataclass(frozen=True)
class HeldJudge(RequestJudge):
    """Compares one request with what a vector holds of it, in the order and by the rules of its base class.

    Attributes:
        held: the values that the vector holds. They are those of the expected decisions, so once a decision differs, in
            ambiguous rows only, nothing that follows it is compared.
    """

    held: Held = field(kw_only=True)

    def records(self) -> Sequence[Sequence[DecisionRecord]]:
        """The decisions that the vector holds."""
        return self.held.records(self.request)

    def follows(self, exact: DecisionRecord, selected: Sequence[int]) -> bool:
        """Whether the decision is the expected one."""
        return tuple(selected) == exact.selected

    def computed(self, quantity: str, layer: int = 0) -> Sequence[Tensor] | None:
        """What the vector holds of a quantity."""
        place = f".{layer}" if quantity in ("residuals", "keys", "values") else ""
        return self.held.close(quantity + place)

    def judge_logits(self) -> None:
        """Logits of all rows, or of the last one alone, and what the rule that the vector is about says of the decisions."""
        super().judge_logits()
        if (last := self.held.close("last_logits")) is not None:
            logits = self.measured(self.answer.logits[-1], last)
            self.require(
                "RR-BLOCK-003",
                "logits of the last row",
                lambda: describe(logits),
                close=close,
                outputs=[logits],
            )
        if "RR-EQV-006" in self.held.vector.data["rules"]:
            action = self.case.routing().action
            selected = tuple(list(record.selected) for record in self.answer.trace.decisions)
            detail = f"`{action}` selects {selected} in the counterexample"
            self.require("RR-EQV-006", "decisions", detail, action=action, selected=selected)

    def judge_decode(self, tokens: Tensor, decoded: Tensor) -> None:
        """Logits of the continuation, and the tokens that are the largest."""
        super().judge_decode(tokens, decoded)
        greedy = self.held.exact("greedy")
        if greedy is None or decoded.shape[0] != len(tokens):
            return
        largest = torch.cat([self.answer.logits[-1:], decoded]).argmax(-1).tolist()
        self.require(
            "RR-KV-002",
            "greedy tokens",
            lambda: f"largest logits: {first_difference(greedy, largest)}",
            close=lambda _: True,  # compared above where they are held
            decode_logits=None,
            generated=largest,
            greedy=greedy,
        )


def _rule(case: VectorCase) -> str:
    """The rule that a vector is about."""
    return str(case.vector.data["rules"][0])


def _bits(scores: Sequence[float]) -> list[int]:
    bits: list[int] = torch.tensor(scores, dtype=torch.float32).view(torch.int32).tolist()
    return bits
