"""Judges requests that must be refused: by the field that is named, by what has changed, and by the request that follows.

A refusal has to name its field and a remedy, and has to leave model and inputs as they were (RR-ERR-001). The next
request has to be answered as if there had been no refusal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from reroute_reference.families import FAMILIES, block_kinds, text_decoder_of
from torch import Tensor, nn

from ..cases.models import ModelCase
from ..cases.mrope import MropeCase
from ..cases.refusals import FAULTS, LAYOUT, Fault, RefusalCase
from ..protocol import Target
from ..targets.answers import MalformedError, SkippedError
from ..tiny.zoo import forget_target_models
from ..verdicts.verdict import Verdict
from .routed_batch import judge


def refusal_of(call: Callable[[], Any]) -> tuple[Any, Any]:
    """A target's answer and None, or None and the error that it refused with.

    Raises:
        MalformedError, SkippedError: neither accepted nor refused.
    """
    try:
        return call(), None
    except (MalformedError, SkippedError):
        raise
    except Exception as refused:
        return None, refused.__cause__ if hasattr(refused.__cause__, "field") else refused


def judge_refusal(
    verdict: Verdict, where: str, error: Any, field: str | re.Pattern[str], touched: Sequence[str] = ()
) -> None:
    """Whether a refusal that is due names its field and a remedy, and has left all as it was (RR-ERR-001).

    Args:
        verdict: filled.
        where: of a violation.
        error: what the target refused with.
        field: that the error has to name, or a pattern of the fields that it may name.
        touched: what is not as it was before.
    """
    said = SimpleNamespace(field=getattr(error, "field", ""), remedy=getattr(error, "remedy", ""))
    detail = f"refused, but the error names field {said.field!r} and remedy {said.remedy!r}: {error}"
    if touched:
        detail = f"refused, and yet {', '.join(touched[:3])} is not what it was"
    if not verdict.require("RR-ERR-001", where, detail, accepted=False, error=said, touched=bool(touched)):
        return
    if isinstance(field, str):
        right, expected = said.field == field, f"not {field!r}"
    else:
        right, expected = field.search(str(said.field)), f"expected {field.pattern}"
    if not right:
        verdict.violate("RR-ERR-001", where, f"the error names field {said.field!r}, {expected}: {error}")


def judge_refused(case: RefusalCase, target: Target) -> Verdict:
    """Ask the wrong request and then the right one, and judge both answers."""
    verdict, fault, right = Verdict(), FAULTS[case.fault], case.right()
    if fault.answered:
        verdict = judge(right, cast(Target, _Putting(target, fault)))
        verdict.require(fault.rule, case.fault, "", accepted=True, **fault.given)
        return verdict
    model: Any = right.model() if fault.model is None else fault.model()
    model.train(fault.training)
    inputs = fault.put(model, right.inputs())
    schedule = ModelCase(schedule=dict(fault.schedule)).routing()
    before, kept = _state(model), {name: _contents(value) for name, value in inputs.items()}
    given = dict(inputs)

    def ask() -> Any:
        if fault.call == "generate":
            return target.generate(model, inputs, schedule, 2)
        if fault.call == "plan":
            return target.plan(dict(fault.schedule), 4, *LAYOUT)
        return target.run(model, inputs, schedule)

    _, error = refusal_of(ask)
    touched = _differences(before, _state(model))
    touched += [name for name in given.keys() | inputs.keys() if given.get(name) is not inputs.get(name)]
    touched += [name for name, value in given.items() if not _equal(kept[name], _contents(value))]
    model.eval()
    where = f"{fault.call}, {case.fault}"
    verdict.require(fault.rule, where, "it was accepted", accepted=error is None, **_known(fault, model))
    if error is not None:
        judge_refusal(verdict, where, error, re.compile(fault.fields), touched)
    if not verdict.violations:
        _judge_next(verdict, where, right, target)
    return verdict


def judge_renumber(case: MropeCase, target: Target) -> Verdict:
    """A schedule that renumbers is refused by its field ``positions``, whatever the rows."""
    verdict, schedule, where = Verdict(), case.routing(), "prefill"
    _, error = refusal_of(lambda: target.run(case.model(), case.inputs(), schedule))
    detail = "positions of three coordinates cannot be renumbered, yet the schedule was run"
    bound: dict[str, Any] = {"positions": schedule.positions, "coordinates": 3, "accepted": error is None}
    if verdict.require("RR-CFG-011", where, detail, **bound):
        judge_refusal(verdict, where, error, "positions")
    return verdict


def _judge_next(verdict: Verdict, where: str, right: ModelCase, target: Target) -> None:
    """The next request is served as if there had been no refusal."""
    after = judge(right, target)
    first = next(iter(after.violations), None)
    verdict.add(after)
    if first is None:
        return
    forget_target_models()
    if not judge(right, target).violations:  # on a model that has refused nothing
        detail = f"{first.detail} [{first.rule}]; on a fresh model the same request is right"
        verdict.violate("RR-ERR-001", f"the request after {where}: {first.where}", detail)
        verdict.violations.insert(0, verdict.violations.pop())


class _Putting:
    """A target that changes the inputs of every batch as a fault does, and passes it on to another target."""

    def __init__(self, target: Target, fault: Fault) -> None:
        self._target, self._fault = target, fault

    def run(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        return self._target.run(model, self._fault.put(model, inputs), *rest, **named)


def _known(fault: Fault, model: nn.Module) -> dict[str, Any]:
    """What the rule's check has to know of the case."""
    known = dict(fault.given)
    if fault.rule == "RR-ERR-002":
        known["described"] = [family.class_name for family in FAMILIES]
    if fault.rule == "RR-SCORE-006":
        known["kinds"] = block_kinds(text_decoder_of(model)[0])
    return known


def _state(model: nn.Module) -> dict[str, Any]:
    """All that a refusal must leave as it was: weights and buffers, classes and modes."""
    state: dict[str, Any] = {name: _contents(x) for name, x in model.named_parameters()}
    state |= {name: _contents(x) for name, x in model.named_buffers()}
    for name, module in model.named_modules():
        # no hooks: transformers adds some of its own as a model first runs
        state[f"module {name or 'model'}"] = (type(module), module.training, "forward" in vars(module))
    return state


def _contents(value: Any) -> Any:
    """What of a value can be compared later."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    layers = getattr(value, "layers", None)
    if isinstance(layers, list) and not isinstance(value, nn.Module):  # a cache
        parts = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
        return type(value), [_contents(x) for pair in parts for x in pair if isinstance(x, Tensor)]
    return value


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = [*before, *(name for name in after if name not in before)]
    return [name for name in names if not _equal(before.get(name), after.get(name))]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
