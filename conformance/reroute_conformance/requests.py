"""Judging one request of a run, in the order in which its data come to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from reroute_reference import forced_logits
from reroute_reference.model import RoutedOutput
from reroute_spec import DecisionRecord, Plan, Stage
from reroute_spec.trace import record as make_record
from torch import Tensor

from .answers import Answer, first_difference
from .cases import RoutedCase
from .tolerance import ambiguous_rows, excess, score_tau

if TYPE_CHECKING:
    from .judge import Verdict


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
                self.judge_scores(stage, plain, exact, before, tau)
                before = self.answer.record(stage.index).selected
            self.judge_blocks(stage)
        logits = [output.logits[self.b] for output in self.outputs]
        plain_logits, exact_logits = (x[~x.isnan().all(-1)] for x in logits)
        rule = "RR-BLOCK-007" if self.deleting else "RR-BLOCK-008"
        self.close(rule, "logits [row, vocabulary]", self.answer.logits, plain_logits, exact_logits)
        if all(stage.kept == self.request.num_visual for stage in self.request.stages):
            self.verdict.exercised["RR-EQV-002"] += 1
        if tokens is not None and self.answer.decode_logits is not None:
            plain_decoded, exact_decoded = (
                forced_logits(model, output.cache[self.b], tokens)
                for model, output in zip(self.models, self.outputs, strict=True)
            )
            self.verdict.exercised["RR-KV-004"] += 1
            where = "decode logits [token, vocabulary]"
            self.close("RR-KV-002", where, self.answer.decode_logits, plain_decoded, exact_decoded)

    def judge_scores(
        self, stage: Stage, plain: DecisionRecord, exact: DecisionRecord, before: Sequence[int], tau: float
    ) -> None:
        """A decision: its choice, its scores, and what its record derives from them."""
        record = self.answer.record(stage.index)
        where = f"decision {stage.index} at block {stage.first}"
        rule = self.case.routing().score
        self.verdict.exercised["RR-SCORE-004"] += rule.query == "last_n" or rule.heads == "max"
        if self.case.decisions is None:
            judge_decision(self.b, record, exact, self.request, tau, self.verdict)
        scores = [torch.tensor(r.scores, dtype=torch.float64) for r in (record, plain, exact)]
        # what float16 rounding could do is a matter of precision; more is another formula
        precise = bool((scores[0] - scores[2]).abs().max() <= 1e-2 * scores[2].max())
        rule_broken = "RR-SCORE-003" if precise else "RR-SCORE-001"
        self.verdict.exercised["RR-SCORE-003"] += 1
        self.close(rule_broken, f"{where}, scores [candidate]", scores[0], scores[1].float(), scores[2])
        derived = make_record(self.request, stage.index, record.pool, record.scores, record.selected, before)
        self.verdict.exercised.update(("RR-POOL-005", "RR-POOL-006"))
        for name in ("deferred", "reentered"):
            mine, right = getattr(record, name), getattr(derived, name)
            if mine != right:
                self.violate("RR-POOL-005", where, f"{name}: {first_difference(right, mine)}")
        if (record.margin is None) != (derived.margin is None) or not math.isclose(
            record.margin or 0.0, derived.margin or 0.0, rel_tol=1e-4, abs_tol=1e-6
        ):
            self.violate(
                "RR-POOL-006", where, f"margin {record.margin}, its own scores give {derived.margin}"
            )

    def judge_blocks(self, stage: Stage) -> None:
        """A stage's caches, its bypass, and the residual stream after it."""
        end = stage.last + 1
        where = f"stage {stage.index} (blocks {stage.first} to {stage.last})"
        self.verdict.exercised["RR-EQV-001"] += stage.index > 0 and stage.last > stage.first
        for layer in range(stage.first, end):
            self.verdict.exercised["RR-KV-001"] += 1
            held, ran = self.answer.keys[layer].shape[1], self.request.kv_rows[layer]
            if held != ran:
                self.violate(
                    "RR-KV-001", f"cache of block {layer}", f"it holds {held} rows, the block ran {ran}"
                )
                continue
            # a stage's first block has seen nothing but its input, already judged: its keys tell the positions
            rule = "RR-BLOCK-002" if layer == stage.first else "RR-BLOCK-003"
            plain, exact = (output.cache[self.b].keys_values(layer) for output in self.outputs)
            for name, mine, index in (("keys", self.answer.keys, 0), ("values", self.answer.values, 1)):
                part = f"{where}, {name} of block {layer}"
                self.close(
                    rule if name == "keys" else "RR-BLOCK-003", part, mine[layer], plain[index], exact[index]
                )
        if stage.index > 0 and not self.deleting:
            self.judge_bypass(where, self.answer.record(stage.index), end)
        plain_after, exact_after = (output.residuals[self.b][end] for output in self.outputs)
        rule = "RR-BLOCK-007" if self.deleting and stage.index > 0 else "RR-BLOCK-003"
        self.close(
            rule, f"{where}, residual stream after it", self.answer.residuals[end], plain_after, exact_after
        )

    def judge_bypass(self, where: str, record: DecisionRecord, end: int) -> None:
        """Deferred rows leave the stage as they entered it, bit for bit (RR-BLOCK-001)."""
        rows = self.request.visual_rows
        deferred = [rows[ordinal] for ordinal in range(len(rows)) if ordinal not in record.selected]
        self.verdict.exercised["RR-BLOCK-001"] += bool(deferred)
        before, after = self.answer.residuals[record.layer], self.answer.residuals[end]
        if before.shape != after.shape or before.shape[0] != self.request.num_rows:
            return  # the shape is the next comparison's finding
        changed = (before[deferred] != after[deferred]).any(-1).tolist()
        if any(changed):
            place = deferred[changed.index(True)]
            off = (before[place] - after[place]).abs().max().item()
            self.violate(
                "RR-BLOCK-001",
                where,
                f"first differing ordinal {rows.index(place)} (prompt row {place}): it was deferred, yet its state "
                f"changed by up to {off:.3g}",
            )

    def close(self, rule: str, where: str, actual: Tensor, plain: Tensor, oracle: Tensor) -> None:
        """A computed tensor, by tolerance (RR-NUM-001)."""
        self.verdict.exercised.update((rule, "RR-NUM-001"))
        if actual.shape != oracle.shape:
            self.violate(rule, where, f"shape {list(actual.shape)}, expected {list(oracle.shape)}")
        elif (found := excess(actual, plain, oracle)) is not None:
            self.violate(rule, where, str(found))

    def violate(self, rule: str, where: str, detail: str) -> None:
        """Note a broken rule of this request."""
        self.verdict.violate(rule, f"request {self.b}, {where}", detail, self.b)


def judge_decision(
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
    verdict.exercised.update(("RR-SCORE-001", "RR-SCORE-002", "RR-SEL-001", "RR-NUM-002"))
    right, chosen = set(exact.would_select or ()), set(record.selected)
    ambiguous: set[int] = set()
    for span in request.spans:
        threshold = min(
            score
            for ordinal, score in zip(exact.pool, exact.scores, strict=True)
            if ordinal in right & set(span)
        )
        ambiguous |= ambiguous_rows(exact, threshold, tau) & set(span)
    verdict.decisions += 1
    verdict.ambiguous += bool(ambiguous & right and ambiguous - right)
    wrong = sorted((chosen ^ right) - ambiguous)
    if wrong:
        first = wrong[0]
        score = exact.scores[exact.pool.index(first)]
        verb = "was selected, but should not be" if first in chosen else "should be selected, but was not"
        near = (
            f"; ambiguous rows (τ = {tau:.2g}, RR-NUM-002): {sorted(ambiguous)}" if ambiguous - right else ""
        )
        verdict.violate(
            "RR-SCORE-001",
            f"request {b}, decision {record.stage} at block {record.layer}",
            f"first differing ordinal {first}: it {verb} (oracle score {score:.6g}); expected {sorted(right)}, "
            f"got {sorted(chosen)}{near}",
            b,
        )
