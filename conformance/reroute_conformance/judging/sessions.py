"""Judges a session operation by operation, beside the reference's own session of the same operations.

What the target shows after each operation is compared: traces, states, logits, and all that its caches hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from reroute_reference.inputs import read_prompts
from reroute_reference.model import as_decoder
from torch import Tensor

from ..cases.sessions import SessionCase, rows_of
from ..protocol import Target
from ..targets.answers import MalformedError, read_answers, read_held, read_logits
from ..targets.reference_session import ReferenceSession
from ..verdicts.tolerance import Measured, close, describe, same
from ..verdicts.verdict import Verdict
from .one_request import RequestJudge
from .routed_batch import check_trace, planned


def judge_session(case: SessionCase, target: Target) -> Verdict:
    """Run a session and compare after every operation; the first difference is the one to act on."""
    operations = [case.step(index) for index in range(len(case.operations))]
    done: Any = target.session(case.model(), case.schedule(), operations)
    if not isinstance(done, (list, tuple)) or len(done) != len(operations):
        found = f"{len(done)} of them" if isinstance(done, (list, tuple)) else type(done).__name__
        raise MalformedError(
            f"session returned {found}, expected one entry for each of {len(operations)} operations"
        )
    judge = _SessionJudge(case)
    for index, answered in enumerate(done):
        judge.step(index, answered)
        again = index > 0 and case.operations[index]["op"] == "prefill"
        if judge.verdict.violations:
            if again:
                _blame_leak(case, index, target, judge.verdict)
            break
        judge.verdict.require("RR-KV-006", judge.where, "", counts=again, right=True, right_alone=True)
    judge.verdict.exercised["RR-ERR-003"] += 1
    return judge.verdict


def _blame_leak(case: SessionCase, index: int, target: Target, verdict: Verdict) -> None:
    """A request that is right on a fresh model suffers from those before it (RR-KV-006)."""
    alone = SessionCase(case.base, case.operations[index : index + 1])
    first = verdict.violations[0]
    detail = f"{first.detail} [{first.rule}]; the same request on a fresh model is right"
    right = not judge_session(alone, target).violations
    if not verdict.require("RR-KV-006", first.where, detail, right=False, right_alone=right):
        verdict.violations.insert(0, verdict.violations.pop())


@dataclass
class _Held:
    """The cache that a target showed of one request: its logical length, and keys and values per block."""

    length: int
    keys: list[Tensor]
    values: list[Tensor]

    def rows(self) -> list[int]:
        return [keys.shape[1] for keys in self.keys]

    def tensors(self) -> list[Tensor]:
        return [*self.keys, *self.values]

    def without(self, rows: int) -> list[Tensor]:
        """Its keys and values but for the newest rows."""
        return [x[:, : x.shape[1] - rows] for x in self.tensors()]


@dataclass
class _SessionJudge:
    """The judge of one session. It moves the reference's sessions, in float32 and in float64, on beside the target's.

    Attributes:
        case: the session.
        verdict: the verdict that is filled.
        shown: what the target showed of every request after the last operation.
        prompts: for each request, how many real rows its prefill had.
        fed: for each request, how many rows came since then and have not been cropped.
        where: names the operation that is being judged.
    """

    case: SessionCase
    verdict: Verdict = field(default_factory=Verdict)
    shown: list[_Held] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    fed: list[int] = field(default_factory=list)
    where: str = ""

    def __post_init__(self) -> None:
        base = self.case.routed([])
        self.sessions = [
            ReferenceSession(base.reference_model(dtype), self.case.schedule())
            for dtype in (torch.float32, torch.float64)
        ]
        self.decoder = as_decoder(self.sessions[0].model, None)

    def step(self, index: int, answered: Any) -> None:
        """Judge one operation."""
        operation, kind = self.case.step(index), self.case.operations[index]["op"]
        self.where = f"operation {index} ({kind})"
        accepted = not isinstance(answered, Exception)
        if kind == "crop" and not self._crop_allowed(operation["rows"], answered, accepted):
            return
        if not accepted:
            self._refused(answered)
            return
        count = self._count(index)
        if not isinstance(answered, (list, tuple)) or len(answered) != count:
            raise MalformedError(f"{self.where}: expected {count} requests")
        held = [
            _Held(*read_held(f"{self.where}, request {b}", entry, self.decoder.num_layers))
            for b, entry in enumerate(answered)
        ]
        before, self.shown = self.shown, held
        if kind in ("prefill", "turn"):
            self._forward(index, operation, list(answered), before)
        elif kind == "decode":
            self._decode(operation["tokens"], list(answered), before)
        else:
            self._moved(kind, operation, before)
        if not self.verdict.violations:
            self._lengths()

    def _count(self, index: int) -> int:
        """Requests after an operation."""
        operation = self.case.operations[index]
        if operation["op"] == "prefill":
            return len(operation["rows"])
        if operation["op"] in ("reorder", "select"):
            return len(operation["order"])
        return len(self.shown) * (operation["times"] if operation["op"] == "repeat" else 1)

    def _refused(self, error: Exception) -> None:
        field_, remedy = getattr(error, "field", ""), getattr(error, "remedy", "")
        words = f"{type(error).__name__}: {error}"
        if self.where.endswith("(crop)"):
            self.verdict.require(
                "RR-ERR-001",
                self.where,
                f"refused, but the error names field {field_!r} and remedy {remedy!r}: {words}",
                accepted=False,
                error=_Said(field_, remedy),
                touched=False,  # what it touched, the operations after it show
            )
        else:
            self.verdict.violate("RR-ERR-003", self.where, f"no rule refuses it, yet it was refused: {words}")

    def _crop_allowed(self, rows: int, error: Any, accepted: bool) -> bool:
        """Whether a crop may be judged further: refused or accepted as RR-KV-009 says."""
        since = min(len(cache.reach) - 1 for cache in self.sessions[0].caches)
        allowed = rows == 0 or (0 < rows <= since and "linear_attention" not in self.decoder.kinds)
        if not accepted and allowed:
            detail = f"{rows} rows, of {since} since the last routed turn, were not dropped: {error}"
            self.verdict.violate("RR-KV-009", self.where, detail)
            return False
        return self.verdict.require(
            "RR-KV-009",
            self.where,
            f"{rows} rows were dropped, of {since} since the last routed turn",
            accepted=accepted,
            n=rows,
            rows_since_routing=since,
            kinds=self.decoder.kinds,
        )

    def _forward(
        self, index: int, operation: dict[str, Any], answered: list[Any], before: list[_Held]
    ) -> None:
        """A prefill or a later turn."""
        case = self.case.case_of(index)
        later = operation["op"] == "turn"
        caches = self.sessions[0].caches if later else None
        prompts = read_prompts(self.decoder, operation["inputs"], caches)
        plans = [planned(self.decoder, case.routing(), prompt) for prompt in prompts]
        answers = read_answers(answered, plans, decoded=False)
        earlier = [tuple(held.rows()) for held in before] if later else [()] * len(prompts)
        for b, answer in enumerate(answers):
            new, visual = len(prompts[b].visual), prompts[b].visual
            if later and not plans[b].num_visual and not self._rows_added(b, before[b], new):
                return
            if not check_trace(b, case, plans[b], visual, answer.trace, self.verdict, earlier[b]):
                return
        if later and not any(request.num_visual for request in plans):
            by_rows = [self._by_rows(session, operation) for session in self.sessions]
            for b, answer in enumerate(answers):
                self._text_turn(b, Measured(answer.logits, by_rows[0][b], by_rows[1][b]))
        else:
            replay = [[record.selected for record in answer.trace.decisions] for answer in answers]
            for session in self.sessions:
                session.step(operation, replay)
            models: Any = tuple(session.model for session in self.sessions)
            outputs: Any = tuple(session.output for session in self.sessions)
            for b, answer in enumerate(answers):
                judge = RequestJudge(b, case, answer, plans[b], models, outputs, earlier[b], self.verdict)
                judge.judge(None)
        if later:
            self.fed = [fed + len(p.visual) for fed, p in zip(self.fed, prompts, strict=True)]
        else:
            self.prompts, self.fed = [len(p.visual) for p in prompts], [0] * len(prompts)

    def _by_rows(self, session: ReferenceSession, operation: dict[str, Any]) -> list[Tensor]:
        """Logits of a turn of text fed row by row, per request."""
        inputs = operation["inputs"]
        columns = next(x for x in inputs.values() if isinstance(x, Tensor)).shape[1]
        rows = [
            session.step({"op": "turn", "inputs": rows_of(inputs, column, column + 1)})
            for column in range(columns)
        ]
        return [torch.cat([row[b]["logits"] for row in rows]) for b in range(len(session.caches))]

    def _text_turn(self, b: int, logits: Measured) -> None:
        """Rows of text at once are the rows one by one (RR-KV-005)."""
        self._positions(b, logits)
        self._caches(b, "RR-KV-005")
        self._close("RR-KV-005", b, "logits [row, vocabulary]", logits)

    def _decode(self, tokens: Tensor, answered: list[Any], before: list[_Held]) -> None:
        logits = [
            [entry["logits"] for entry in session.step({"op": "decode", "tokens": tokens})]
            for session in self.sessions
        ]
        for b, entry in enumerate(answered):
            if not self._rows_added(b, before[b], 1):
                return
            decoded = Measured(
                read_logits(f"{self.where}, request {b}", entry), *(rows[b] for rows in logits)
            )
            self._positions(b, decoded)
            self._caches(b, "RR-KV-002")
            self._close("RR-KV-002", b, "logits [token, vocabulary]", decoded, generated=[], greedy=[])
            self._close("RR-KV-004", b, "logits [token, vocabulary]", decoded)
        self.fed = [fed + 1 for fed in self.fed]

    def _positions(self, b: int, logits: Measured) -> None:
        """The first block has seen nothing but the new rows: its keys tell their positions."""
        if not close(self._measured(b, 0)[0]):
            self._close("RR-KV-004", b, "logits of rows whose keys in block 0 are off", logits)

    def _moved(self, kind: str, operation: dict[str, Any], before: list[_Held]) -> None:
        for session in self.sessions:
            session.step(operation)
        if kind == "crop":
            self.fed = [fed - operation["rows"] for fed in self.fed]
            for b, held in enumerate(self.shown):
                kept = before[b].without(operation["rows"])
                if not all(same(x, y) for x, y in zip(held.tensors(), kept, strict=True)):
                    detail = "what is left of the cache is not what it was"
                    self.verdict.violate("RR-KV-009", f"request {b}, {self.where}", detail, b)
            return
        order = operation.get("order") or [b for b in range(len(before)) for _ in range(operation["times"])]
        self.prompts, self.fed = ([counts[place] for place in order] for counts in (self.prompts, self.fed))
        after, whole = ([(held.length, held.tensors()) for held in shown] for shown in (self.shown, before))
        wrong = [b for b, place in enumerate(order) if not _same_request(after[b], whole[place])]
        self.verdict.require(
            "RR-KV-010",
            self.where,
            f"request {wrong[:1]} is not what stood at its place before",
            same=_same_request,
            after=after,
            before=whole,
            order=order,
        )

    def _rows_added(self, b: int, before: _Held, new: int) -> bool:
        """Rows of text join every cache."""
        plain = [layer for layer, kind in enumerate(self.decoder.kinds) if kind == "full_attention"]
        counts = [[rows[layer] for layer in plain] for rows in (before.rows(), self.shown[b].rows())]
        detail = f"{new} rows of text, and the blocks held {counts[0]} rows before, {counts[1]} after"
        return self.verdict.require(
            "RR-KV-008",
            f"request {b}, {self.where}",
            detail,
            request=b,
            new_rows=new,
            rows_before=counts[0],
            rows_after=counts[1],
        )

    def _measured(self, b: int, layer: int) -> list[Measured]:
        """Keys and values of a block beside the reference's."""
        held = [session.caches[b].keys_values(layer) for session in self.sessions]
        shown = self.shown[b].keys[layer], self.shown[b].values[layer]
        return [Measured(actual, held[0][i], held[1][i]) for i, actual in enumerate(shown)]

    def _caches(self, b: int, rule: str) -> None:
        """All that every block holds."""
        names: dict[str, Any] = {"generated": [], "greedy": []} if rule == "RR-KV-002" else {}
        for layer in range(self.decoder.num_layers):
            for name, part in zip(("keys", "values"), self._measured(b, layer), strict=True):
                self._close(rule, b, f"{name} of block {layer}", part, **names)

    def _close(self, rule: str, b: int, what: str, measured: Measured, **names: Any) -> None:
        where = f"request {b}, {self.where}, {what}"
        self.verdict.exercised["RR-NUM-001"] += 1
        self.verdict.require(
            rule, where, lambda: describe(measured), request=b, close=close, decode_logits=measured, **names
        )

    def _lengths(self) -> None:
        for b, held in enumerate(self.shown):
            self.verdict.require(
                "RR-KV-003",
                f"request {b}, {self.where}",
                f"logical length {held.length}, fed {self.prompts[b]} rows and then {self.fed[b]}",
                request=b,
                length=held.length,
                S=self.prompts[b],
                new_rows=self.fed[b],
            )


@dataclass(frozen=True)
class _Said:
    field: str
    remedy: str


def _same_request(one: tuple[int, list[Tensor]], other: tuple[int, list[Tensor]]) -> bool:
    return one[0] == other[0] and all(same(x, y) for x, y in zip(one[1], other[1], strict=True))
