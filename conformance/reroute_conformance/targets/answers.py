"""Reads a target's answer in every form that the protocol allows, and raises an error for every other form.

It checks the form of an answer only. The content is judged elsewhere.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema
import torch
from reroute_spec import DecisionRecord, Plan, RoutingTrace
from reroute_spec.schemas import schema
from torch import Tensor

_TRACE = jsonschema.Draft202012Validator(schema("trace"))
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class MalformedError(Exception):
    """A target's answer does not have the form of the protocol (RR-ERR-003)."""


class UnansweredError(MalformedError):
    """A target gave no answer at all: it died, hung, or said something that is no message.

    This is never taken for a refusal.

    Attributes:
        hung: whether time was up. Trying again then costs as much time again.
    """

    def __init__(self, problem: str, *, hung: bool = False) -> None:
        super().__init__(problem)
        self.hung = hung


class SkippedError(Exception):
    """A target does not take a case and says why. The case is then neither right nor wrong, and never a pass."""


def refused(call: Callable[[], Any]) -> tuple[Any, bool]:
    """Return what a target answered, and whether it raised an error instead.

    A malformed answer is no answer, and it is no refusal either.

    Raises:
        UnansweredError, SkippedError: a crash is no refusal, nor is a case that was not taken.
    """
    try:
        return call(), False
    except (UnansweredError, SkippedError):
        raise
    except MalformedError:
        return None, False
    except Exception:
        return None, True


@dataclass(frozen=True)
class Answer:
    """One request's part of what ``Target.run`` returned, after its form has been checked against the request's plan.

    The fields are those that :meth:`~reroute_conformance.protocol.Target.run` lists. ``decode_logits`` is None where no
    continuation was given.
    """

    trace: RoutingTrace
    residuals: dict[int, Tensor]
    logits: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    decode_logits: Tensor | None

    def record(self, stage: int) -> DecisionRecord:
        """The record of a decision, 1 for the first."""
        return self.trace.decisions[stage - 1]


def read_answers(answers: Any, plans: Sequence[Plan], *, decoded: bool) -> list[Answer]:
    """What ``Target.run`` returned for a batch.

    Args:
        answers: whatever it was.
        plans: one per request.
        decoded: whether there was a continuation.

    Raises:
        MalformedError: an answer of another form, naming the request and the entry.
    """
    if not isinstance(answers, (list, tuple)) or len(answers) != len(plans):
        found = f"{len(answers)} of them" if isinstance(answers, (list, tuple)) else type(answers).__name__
        raise MalformedError(f"run returned {found}, expected a list of {len(plans)} dicts")
    return [
        _read_answer(b, answer, request, decoded)
        for b, (answer, request) in enumerate(zip(answers, plans, strict=True))
    ]


def _read_answer(b: int, answer: Any, request: Plan, decoded: bool) -> Answer:
    if not isinstance(answer, dict):
        raise MalformedError(f"request {b} is a {type(answer).__name__}, expected a dict")
    caches = {
        name: _tables(f"request {b}", name, answer.get(name), request.num_layers)
        for name in ("keys", "values")
    }
    residuals = answer.get("residuals")
    if not isinstance(residuals, dict):
        raise MalformedError(
            f"request {b}: residuals is a {type(residuals).__name__}, expected a dict by layer"
        )
    ends = [stage.first for stage in request.stages if stage.index > 0] + [request.num_layers]
    return Answer(
        trace=_trace(b, answer.get("trace"), request),
        residuals={
            layer: _tensor(residuals.get(layer), 2, f"request {b}: residuals[{layer}]") for layer in ends
        },
        logits=_tensor(answer.get("logits"), 2, f"request {b}: logits"),
        decode_logits=_tensor(answer.get("decode_logits"), 2, f"request {b}: decode_logits")
        if decoded
        else None,
        **caches,
    )


def _tensor(value: Any, ndim: int, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise MalformedError(f"{what} is a {type(value).__name__}, expected a tensor of {ndim} axes")
    try:
        fits = value.ndim == ndim and value.dtype in _FLOATS and value.layout == torch.strided
        if fits and not value.is_meta:
            return value.detach().cpu()
        found = f"{value.dtype} {list(value.shape)}"
    except Exception as error:  # a subclass may do anything
        raise MalformedError(f"{what} is a {type(value).__name__} that cannot be read ({error})") from None
    raise MalformedError(f"{what} is {found}, expected a real tensor of {ndim} axes")


def _trace(b: int, trace: Any, request: Plan) -> RoutingTrace:
    if not isinstance(trace, RoutingTrace):
        raise MalformedError(f"request {b}: trace is a {type(trace).__name__}, expected a RoutingTrace")
    try:
        data = trace.to_dict()
        problem = next(_TRACE.iter_errors(data), None)
        read = RoutingTrace.from_dict(data)  # tuples, whatever sequences the target used
        for record in read.decisions:
            torch.tensor(record.scores, dtype=torch.float64)
    except Exception as error:
        raise MalformedError(f"request {b}: trace cannot be read as data ({error})") from None
    if problem is not None:
        raise MalformedError(f"request {b}: trace{problem.json_path[1:]}: {problem.message}")
    if len(read.kv_rows) != request.num_layers:
        counts = f"{len(read.kv_rows)} counts of kv_rows for {request.num_layers} blocks"
        raise MalformedError(f"request {b}: {counts}")
    for record in read.decisions:
        if len(record.scores) != len(record.pool):
            counts = f"{len(record.scores)} scores of {len(record.pool)} candidates"
            raise MalformedError(f"request {b}, decision {record.stage}: {counts}")
    return read


def read_held(where: str, entry: Any, num_layers: int) -> tuple[int, list[Tensor], list[Tensor]]:
    """Logical length, keys and values that an operation of a session showed of a request.

    Raises:
        MalformedError: another form.
    """
    if not isinstance(entry, dict):
        raise MalformedError(f"{where} is a {type(entry).__name__}, expected a dict")
    try:
        length = operator.index(entry.get("length"))  # type: ignore[arg-type]  # that is what is tried
    except TypeError:
        raise MalformedError(f"{where}: length is {entry.get('length')!r}, expected an integer") from None
    keys, values = (_tables(where, name, entry.get(name), num_layers) for name in ("keys", "values"))
    return length, keys, values


def read_logits(where: str, entry: dict[str, Any]) -> Tensor:
    """The logits [1, V] after a decoded token."""
    return _tensor(entry.get("logits"), 2, f"{where}: logits")


def _tables(where: str, name: str, tables: Any, num_layers: int) -> list[Tensor]:
    if not isinstance(tables, (list, tuple)) or len(tables) != num_layers:
        raise MalformedError(f"{where}: {name} is not a list of {num_layers} tensors")
    return [_tensor(entry, 3, f"{where}: {name}[{layer}]") for layer, entry in enumerate(tables)]


def read_selection(rows: Any, n: int) -> list[int]:
    """What ``Target.select`` returned: integers of any kind from 0 to ``n - 1``.

    Raises:
        MalformedError: anything else.
    """
    try:
        places = [operator.index(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)]
    except Exception:
        raise MalformedError(f"select returned {rows!r}, expected integers from 0 to {n - 1}") from None
    if not all(0 <= place < n for place in places):
        raise MalformedError(f"select returned {places}, expected integers from 0 to {n - 1}")
    return places


def read_tokens(tokens: Any, prompt: Tensor, count: int) -> Tensor:
    """The ``count`` new tokens of what ``Target.generate`` returned, [1, count].

    Raises:
        MalformedError: anything but the prompt [1, S] and ``count`` integers after it.
    """
    length = prompt.shape[1]
    if (
        not isinstance(tokens, Tensor)
        or tuple(tokens.shape) != (1, length + count)
        or tokens.is_floating_point()
    ):
        found = (
            f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        )
        raise MalformedError(f"generate returned {found}, expected integers [1, {length + count}]")
    if not torch.equal(tokens[:, :length], prompt):
        raise MalformedError("generate changed the prompt")
    return tokens[:, length:]


def read_greedy(answers: Any, count: int) -> Tensor:
    """The ``count`` tokens that a run with a continuation of ``count - 1`` would have chosen greedily.

    Raises:
        MalformedError: logits of another form.
    """
    row = (
        answers[0] if isinstance(answers, (list, tuple)) and answers and isinstance(answers[0], dict) else {}
    )
    prefill, decoded = (_tensor(row.get(name), 2, name) for name in ("logits", "decode_logits"))
    if len(prefill) < 1 or decoded.shape != (count - 1, prefill.shape[1]):
        shapes = f"logits {list(prefill.shape)} and decode_logits {list(decoded.shape)}"
        raise MalformedError(f"{shapes} after a continuation of {count - 1} tokens")
    return torch.cat([prefill[-1:], decoded]).argmax(-1)


def first_difference(expected: Sequence[Any], actual: Sequence[Any]) -> str:
    """Where two sequences part, in words."""
    for place, (a, b) in enumerate(zip(expected, actual, strict=False)):
        if a != b:
            return f"entry {place} is {b}, expected {a}"
    return f"{len(actual)} entries, expected {len(expected)}"
