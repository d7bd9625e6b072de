"""Judging one request of a run, in the order in which its data come to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from reroute_reference import forced_logits
from reroute_reference.model import RoutedOutput
from reroute_spec import DecisionRecord, Plan, Stage
from reroute_spec.trace import record as make_record
from torch import Tensor

from .answers import Answer, first_difference
from .cases import RoutedCase
from .diagnosis import decode_rule, score_rule
from .selection import judge_selection
from .tolerance import Measured, close, describe, same, score_tau
from .verdict import Verdict


@dataclass(frozen=True)
class RequestJudge:
    """Compares one request with the reference under the target's own decisions.

    Attributes:
        b: batch row.
        case: what was run.
        answer: the target's, its form checked.
        request: its plan.
        models, outputs: of the reference in the same dtype and in float64, decisions replayed.
        verdict: filled.
    """

    b: int
    case: RoutedCase
    answer: Answer
    request: Plan
    models: tuple[Any, Any]
    outputs: tuple[RoutedOutput, RoutedOutput]
    verdict: Verdict
    earlier: tuple[int, ...] = ()
    """Rows that every block held before this turn; none before a prefill."""

    @property
    def visual(self) -> list[bool]:
        """A flag per row: routable rows, and the last row, whose flag no comparison reads."""
        return [row in set(self.request.visual_rows) for row in range(self.request.num_rows)]

    @property
    def deleting(self) -> bool:
        """Whether rows that are not selected are gone."""
        return self.case.routing().action == "delete"

    def judge(self, tokens: Tensor | None) -> None:
        """All comparisons, in order; ``tokens`` [T] are those of the continuation."""
        records = [output.traces[self.b].decisions for output in self.outputs]
        tau = score_tau(records[0], records[1], torch.float32)
        before: Sequence[int] = range(self.request.num_visual)
        for stage in self.request.stages:
            if stage.index > 0:
                plain, exact = (decisions[stage.index - 1] for decisions in records)
                self.judge_decision(stage, plain, exact, before, tau)
                before = self.answer.record(stage.index).selected
            self.judge_blocks(stage)
        self.judge_logits()
        if tokens is not None and self.answer.decode_logits is not None:
            decoded = (
                forced_logits(model, output.cache[self.b], tokens)
                for model, output in zip(self.models, self.outputs, strict=True)
            )
            self.judge_decode(tokens, Measured(self.answer.decode_logits, *decoded))

    def judge_decision(
        self, stage: Stage, plain: DecisionRecord, exact: DecisionRecord, before: Sequence[int], tau: float
    ) -> None:
        """A decision: its scores, its choice, and what its record derives from them."""
        record = self.answer.record(stage.index)
        where = f"decision {stage.index} at block {stage.first}"
        scores = Measured(
            torch.tensor(record.scores, dtype=torch.float64),
            torch.tensor(plain.scores),
            torch.tensor(exact.scores, dtype=torch.float64),
        )
        reduced = self.case.routing().score
        self.verdict.exercised["RR-SCORE-004"] += reduced.query == "last_n" or reduced.heads == "max"
        self.verdict.exercised["RR-SCORE-008"] += len(record.pool) > len(before)
        self.verdict.exercised.update(("RR-SCORE-002", "RR-SCORE-003", "RR-SCORE-009", "RR-NUM-001"))
        rule, reading = ("RR-SCORE-001", "")
        if any(self.earlier):
            self.require(
                "RR-KV-007",
                f"{where}, scores [candidate]",
                lambda: describe(scores),
                close=close,
                scores=scores,
                visual_rows=self.answer.trace.visual_rows,
                S=self.request.num_rows,
                visual=self.visual,
            )
        elif not close(scores):
            rule, reading = score_rule(self, stage, scores)
        right = self.require(
            rule,
            f"{where}, scores [candidate]",
            lambda: reading + describe(scores),
            close=close,
            scores=scores,
        )
        if right and self.case.decisions is None:
            self.judge_choice(where, record)
            judge_ambiguity(self.b, record, exact, self.request, tau, self.verdict)
        derived = make_record(self.request, stage.index, record.pool, record.scores, record.selected, before)
        self.require(
            "RR-POOL-005",
            where,
            lambda: next(
                f"{name}: {first_difference(right, mine)}"
                for name in ("deferred", "reentered")
                if (mine := getattr(record, name)) != (right := getattr(derived, name))
            ),
            N=self.request.num_visual,
            selected=record.selected,
            previous=before,
            deferred=record.deferred,
            reentered=record.reentered,
        )
        self.require(
            "RR-POOL-006",
            where,
            f"margin {record.margin}, its own scores give {derived.margin}; would_select {record.would_select}",
            S=self.request.num_rows,
            num_rows=self.answer.trace.num_rows,
            recorded=[(record.stage, record.layer)],
            planned=[(stage.index, stage.first)],
            would_select=record.would_select,
            replayed=self.case.decisions is not None,
            margin=record.margin,
            margin_of_scores=derived.margin,
        )

    def judge_choice(self, where: str, record: DecisionRecord) -> None:
        """Given its own scores, a decision is what they say: per span, exactly."""
        for span in self.request.spans:
            candidates = [ordinal for ordinal in record.pool if ordinal in span]
            scores = [record.scores[record.pool.index(ordinal)] for ordinal in candidates]
            chosen = [candidates.index(ordinal) for ordinal in record.selected if ordinal in span]
            judge_selection(self.verdict, f"request {self.b}, {where}", scores, chosen, self.b)

    def judge_blocks(self, stage: Stage) -> None:
        """A stage's caches, its bypass, and the residual stream after it."""
        end = stage.last + 1
        where = f"stage {stage.index} (blocks {stage.first} to {stage.last})"
        for layer in range(stage.first, end):
            self.judge_cache(stage, layer, where)
        if stage.index > 0 and not self.deleting:
            self.judge_bypass(where, self.answer.record(stage.index), end)
        residual = self.measured(
            self.answer.residuals[end], [output.residuals[self.b][end] for output in self.outputs]
        )
        where = f"{where}, residual stream after it"
        if self.deleting and stage.index > 0:
            alive = self.request.num_rows - self.request.num_visual + stage.kept
            self.require(
                "RR-BLOCK-007",
                where,
                lambda: describe(residual),
                close=close,
                states=residual,
                rows_alive=alive,
            )
            return
        if stage.index > 0 and stage.last > stage.first:  # its inner blocks are right by their caches
            self.require("RR-EQV-001", where, lambda: describe(residual), close=close, residual=residual)
        network = stage.index == 0 and bool(self.case.network_rules)
        rule = "RR-BLOCK-006" if network else "RR-BLOCK-003"
        names: dict[str, Any] = {"residual": residual} if network else {"outputs": [residual]}
        self.require(rule, where, lambda: describe(residual), close=close, **names)

    def judge_cache(self, stage: Stage, layer: int, where: str) -> None:
        """What a block cached. A stage's first block has seen nothing but its input, already judged: its keys tell the positions."""
        before = self.earlier[layer] if self.earlier else 0
        held, ran = self.answer.keys[layer].shape[1] - before, self.request.kv_rows[layer]
        detail = f"it holds {held} rows, the block ran {ran}"
        if not self.require("RR-KV-001", f"cache of block {layer}", detail, cached_rows=held, rows_run=ran):
            return
        cached = [output.cache[self.b].keys_values(layer) for output in self.outputs]
        keys = self.measured(self.answer.keys[layer], [entry[0] for entry in cached])
        values = self.measured(self.answer.values[layer], [entry[1] for entry in cached])
        if layer == stage.first:
            rule = "RR-BLOCK-005" if stage.index == 0 and self.case.network_rules else "RR-BLOCK-002"
            self.require(
                rule, f"{where}, keys of block {layer}", lambda: describe(keys), close=close, keys=keys
            )
        for name, part in (("keys", keys), ("values", values)):
            place = f"{where}, {name} of block {layer}"
            self.require("RR-BLOCK-003", place, partial(describe, part), close=close, outputs=[part])

    def judge_bypass(self, where: str, record: DecisionRecord, end: int) -> None:
        """Deferred rows leave the stage as they entered it, bit for bit."""
        rows = self.request.visual_rows
        deferred = [rows[ordinal] for ordinal in range(len(rows)) if ordinal not in record.selected]
        before, after = self.answer.residuals[record.layer], self.answer.residuals[end]
        if before.shape != after.shape or before.shape[0] != self.request.num_rows:
            return  # the shape is the next comparison's finding

        def detail() -> str:
            changed = (before[deferred] != after[deferred]).any(-1).tolist()
            place = deferred[changed.index(True) if True in changed else 0]
            off = (before[place] - after[place]).abs().max().item()
            ordinal = rows.index(place)
            return f"first differing ordinal {ordinal} (prompt row {place}): it was deferred, yet its state changed by up to {off:.3g}"

        self.require(
            "RR-BLOCK-001",
            where,
            detail,
            counts=bool(deferred),
            same=same,
            residual_in=before,
            residual_out=after,
            deferred_rows=deferred,
        )

    def judge_logits(self) -> None:
        """Logits of all rows, or of the survivors."""
        computed = [output.logits[self.b] for output in self.outputs]
        logits = self.measured(self.answer.logits, [x[~x.isnan().all(-1)] for x in computed])
        where, rows = "logits [row, vocabulary]", self.request.num_rows
        unrouted = all(stage.kept == self.request.num_visual for stage in self.request.stages)
        if self.case.network_rules and logits.actual.shape == logits.oracle.shape:
            # the residual stream has been judged: what is left is the final norm
            self.require("RR-BLOCK-004", where, lambda: describe(logits), close=close, normed=logits)
        if self.deleting:
            alive = rows - self.request.num_visual + self.request.stages[-1].kept
            self.require(
                "RR-BLOCK-007", where, lambda: describe(logits), close=close, states=logits, rows_alive=alive
            )
        else:
            self.require("RR-BLOCK-008", where, lambda: describe(logits), close=close, logits=logits, S=rows)
        if unrouted and not any(self.earlier):
            kv_rows = self.answer.trace.kv_rows
            self.require(
                "RR-EQV-002",
                where,
                lambda: describe(logits),
                close=close,
                logits=logits,
                unrouted_rows=[rows] * self.request.num_layers,
                kv_rows=kv_rows,
            )

    def judge_decode(self, tokens: Tensor, logits: Measured) -> None:
        """Logits after every token that was fed."""
        self.verdict.exercised["RR-KV-004"] += 1
        rule, reading = ("RR-KV-002", "") if close(logits) else decode_rule(self, tokens, logits)
        names: dict[str, Any] = {"generated": [], "greedy": []} if rule == "RR-KV-002" else {}
        where = "decode logits [token, vocabulary]"
        self.require(
            rule, where, lambda: reading + describe(logits), close=close, decode_logits=logits, **names
        )

    def measured(self, actual: Tensor, computed: Sequence[Tensor]) -> Measured:
        """A tensor of the target beside the reference's two."""
        self.verdict.exercised["RR-NUM-001"] += 1
        return Measured(actual, computed[0], computed[1])

    def require(self, rule: str, where: str, detail: Any, *, counts: bool = True, **names: Any) -> bool:
        """Run a rule's check on this request."""
        return self.verdict.require(
            rule, f"request {self.b}, {where}", detail, request=self.b, counts=counts, **names
        )


def judge_ambiguity(
    b: int, record: DecisionRecord, exact: DecisionRecord, request: Plan, tau: float, verdict: Verdict
) -> None:
    """A decision may differ from the oracle's in ambiguous rows only (RR-NUM-002).

    Args:
        b: batch row.
        record: the target's.
        exact: the oracle's, under the target's earlier decisions.
        request: the plan.
        tau: ambiguity threshold of the case.
        verdict: filled.
    """
    right, chosen = set(exact.would_select or ()), set(record.selected)
    score = dict(zip(exact.pool, exact.scores, strict=True))
    threshold = {}
    for span in request.spans:
        lowest = min(score[ordinal] for ordinal in right & set(span))
        threshold.update({ordinal: lowest for ordinal in span if ordinal in score})
    ambiguous = {v for v in score if abs(score[v] - threshold[v]) <= tau * threshold[v]}
    verdict.decisions += 1
    near = ((score[u], score[v]) for u in ambiguous & right for v in ambiguous - right)
    verdict.ambiguous += any(a != b for a, b in near)  # exact ties do not count

    def detail() -> str:
        first = min((chosen ^ right) - ambiguous)
        verb = "was selected, but should not be" if first in chosen else "should be selected, but was not"
        near = f"; ambiguous rows (τ = {tau:.2g}): {sorted(ambiguous)}" if ambiguous - right else ""
        return (
            f"first differing ordinal {first}: it {verb} (oracle score {score[first]:.6g}); expected {sorted(right)}, "
            f"got {sorted(chosen)}{near}"
        )

    where = f"request {b}, decision {record.stage} at block {record.layer}"
    names: dict[str, Any] = {"selected": record.selected, "oracle_selected": sorted(right)}
    verdict.require(
        "RR-NUM-002", where, detail, request=b, tau=tau, score=score, threshold=threshold, **names
    )
