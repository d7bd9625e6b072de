"""Judges one request of a run in the order in which its data come to be: decisions, caches, residual stream, logits, decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from reroute_reference.families import PLAIN_ATTENTION
from reroute_reference.model import RoutedOutput
from reroute_spec import DecisionRecord, Plan, Stage
from reroute_spec.predicates import names
from reroute_spec.trace import record as make_record
from torch import Tensor

from ..targets.answers import first_difference
from ..verdicts.compared import Compared
from ..verdicts.diagnosis import decode_rule, family_rule, key_rule, score_rule
from ..verdicts.misreadings import gated
from ..verdicts.tolerance import LOW_PRECISION, Measured, close, describe, same, score_tau
from ..verdicts.verdict import Verdict
from .selection import judge_selection

NOTHING = Measured(*[torch.empty(0)] * 3)
"""Stands for a quantity that a check names and that is judged elsewhere."""
_QUANTITY = frozenset({"scores", "keys", "residual", "states"})
"""The names by which checks call a measured quantity."""


@dataclass(frozen=True)
class RequestJudge(Compared):
    """Compares one request with the reference, which replays the target's own decisions.

    Attributes:
        verdict: the verdict that is filled; the other attributes are those of
            :class:`~reroute_conformance.verdicts.compared.Compared`.
    """

    verdict: Verdict

    def judge(self, tokens: Tensor | None) -> None:
        """All comparisons, in order; ``tokens`` [T] are those of the continuation."""
        records = self.records()
        tau = score_tau(records[0], records[1], self.case.precision)
        before: Sequence[int] = range(self.request.num_visual)
        for stage in self.request.stages:
            if stage.index > 0:
                plain, exact = (decisions[stage.index - 1] for decisions in records)
                self.judge_decision(stage, plain, exact, before, tau)
                before = self.answer.record(stage.index).selected
                if not self.follows(exact, before):
                    return
            self.judge_blocks(stage)
        self.judge_logits()
        if tokens is not None and self.answer.decode_logits is not None:
            self.judge_decode(tokens, self.answer.decode_logits)

    def follows(self, exact: DecisionRecord, selected: Sequence[int]) -> bool:
        """Whether what is expected from here on is expected under this selection; the reference replayed it."""
        return True

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
            precision=self.case.precision,
        )
        reduced, due = self.case.routing().score, "RR-SCORE-001"
        if reduced.source == "previous":
            due = "RR-SCORE-007"
        self.verdict.exercised["RR-SCORE-004"] += reduced.query == "last_n" or reduced.heads == "max"
        self.verdict.exercised["RR-SCORE-008"] += len(record.pool) > len(before)
        self.verdict.exercised.update(("RR-SCORE-002", "RR-SCORE-003", "RR-SCORE-009", "RR-NUM-001"))
        rule, reading = (due, "")
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

            def scores_of(output: RoutedOutput) -> Tensor:
                made = output.traces[self.b].decisions[stage.index - 1].scores
                return torch.tensor(made, dtype=torch.float64)

            rule, reading = family_rule(self, scores, scores_of) or score_rule(self, stage, scores)
        right = self.require(
            rule, f"{where}, scores [candidate]", lambda: reading + describe(scores), **about(rule, scores)
        )
        if right and self.case.decisions is None:
            self.judge_choice(where, record)
            low = self.case.precision in LOW_PRECISION
            found = Verdict() if low else self.verdict
            judge_ambiguity(self.b, record, exact, self.request, tau, found)
            if low:  # such decisions are reported  RR-NUM-002
                found.differing = len(found.violations)
                found.violations.clear()
                self.verdict.add(found)
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
            self.judge_bypass(where, stage, end)
        if (expected := self.computed("residuals", end)) is None:
            return
        residual = self.measured(self.answer.residuals[end], expected)
        due = self.residual_rules(stage, right_rows=len(residual.actual) == len(residual.oracle))
        rule, reading = self.named(due[0], residual, lambda output: output.residuals[self.b][end])
        for each in (rule, *(other for other in due if other != rule)):
            names = about(each, residual)
            if each == "RR-BLOCK-007":
                names["rows_alive"] = self.request.num_rows - self.request.num_visual + stage.kept
            if not self.require(
                each, f"{where}, residual stream after it", lambda: reading + describe(residual), **names
            ):
                return

    def residual_rules(self, stage: Stage, *, right_rows: bool) -> list[str]:
        """The rules that the residual stream after a stage is about, first the one that is to blame if nothing else is known.

        Of removed rows the first question is whether they are gone; of the right rows, whether their block ran. Inner blocks with plain attention are right by their caches; of linear ones nothing else is to be seen.
        """
        kinds = self.decoder.kinds[stage.first : stage.last + 1]
        due = []
        if any(kind != PLAIN_ATTENTION for kind in kinds):
            due.append("RR-BLOCK-011")
        if gated(self.decoder) and PLAIN_ATTENTION in kinds:
            due.append("RR-BLOCK-013")
        if stage.index > 0 and self.deleting:
            due += ["RR-BLOCK-003", "RR-BLOCK-007"] if right_rows else ["RR-BLOCK-007"]
        else:
            due += ["RR-EQV-001"] if stage.index > 0 and stage.last > stage.first else []
            due.append("RR-BLOCK-006" if stage.index == 0 and self.case.network_rules else "RR-BLOCK-003")
        return due + (["RR-BLOCK-010"] if self.crossed(stage) and self.request.num_visual else [])

    def crossed(self, stage: Stage) -> range:
        """The boundaries of a stage at which something is added to the rows."""
        return range(stage.first, min(stage.last + 1, len(self.features[0])))

    def judge_cache(self, stage: Stage, layer: int, where: str) -> None:
        """What a block cached. A stage's first block has seen nothing but its input, already judged: its keys tell the positions."""
        before = self.earlier[layer] if self.earlier else 0
        held, ran = self.answer.keys[layer].shape[1] - before, self.request.kv_rows[layer]
        detail, place = f"it holds {held} rows, the block ran {ran}", f"cache of block {layer}"
        if self.decoder.kinds[layer] != PLAIN_ATTENTION:
            self.require("RR-BLOCK-011", place, detail, close=lambda _: True, residual=None, cached_rows=held)
            return
        if not self.require("RR-KV-001", place, detail, cached_rows=held, rows_run=ran):
            return
        shown = self.answer.keys[layer], self.answer.values[layer]
        for part, (name, actual) in enumerate(zip(("keys", "values"), shown, strict=True)):
            if (expected := self.computed(name, layer)) is None:
                continue

            def held_by(output: RoutedOutput, part: int = part) -> Tensor:
                return output.cache[self.b].keys_values(layer)[part]

            x = self.measured(actual, expected)
            rule, reading = self.named("RR-BLOCK-003", x, held_by)
            if part == 0 and layer == stage.first and rule == "RR-BLOCK-003":
                rule = self.case.rotary_rule if stage.index == 0 else "RR-BLOCK-002"
                rule = "RR-BLOCK-009" if stage.index > 0 and self.renumbering else rule
                if not close(x):
                    rule, reading = key_rule(x) or (rule, reading)
            for each in dict.fromkeys((rule, "RR-BLOCK-003")):
                self.require(
                    each,
                    f"{where}, {name} of block {layer}",
                    partial(lambda x, reading: reading + describe(x), x, reading),
                    **about(each, x),
                )

    def judge_bypass(self, where: str, stage: Stage, end: int) -> None:
        """Deferred rows leave the stage as they entered it, bit for bit but for what block boundaries add."""
        rows, record = self.request.visual_rows, self.answer.record(stage.index)
        deferred = [rows[ordinal] for ordinal in range(len(rows)) if ordinal not in record.selected]
        before, after = self.answer.residuals[record.layer], self.answer.residuals[end]
        if before.shape != after.shape or before.shape[0] != self.request.num_rows:
            return  # the shape is the next comparison's finding
        if self.crossed(stage):
            # what is added to deferred rows, too, is a computed value
            expected, exact = (
                sum((added[layer] for layer in self.crossed(stage)), start)
                for start, added in zip((before, before.double()), self.features, strict=True)
            )
            bypassed = Measured(after[deferred], expected[deferred], exact[deferred])
            rule, reading = self.named(
                "RR-BLOCK-001", bypassed, lambda out: out.residuals[self.b][end][deferred]
            )
            if close(bypassed) or rule != "RR-BLOCK-001":
                self.require(
                    "RR-BLOCK-010",
                    f"{where}, deferred rows",
                    lambda: reading + describe(bypassed),
                    counts=bool(deferred),
                    close=close,
                    residual=bypassed,
                )
                return
            before = expected

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
        if (expected := self.computed("logits")) is None:
            return
        logits = self.measured(self.answer.logits, expected)
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
                unrouted_rows=[rows if ran else 0 for ran in self.request.kv_rows],
                kv_rows=kv_rows,
            )

    def judge_decode(self, tokens: Tensor, decoded: Tensor) -> None:
        """Logits after every token that was fed."""
        if (expected := self.computed("decode_logits")) is None:
            return
        logits = self.measured(decoded, expected)
        self.verdict.exercised["RR-BLOCK-009" if self.renumbering else "RR-KV-004"] += 1
        rule, reading = ("RR-KV-002", "") if close(logits) else decode_rule(self, tokens, logits)
        names: dict[str, Any] = {"generated": [], "greedy": []} if rule == "RR-KV-002" else {}
        names |= {"keys": NOTHING} if rule == "RR-BLOCK-009" else {}
        where = "decode logits [token, vocabulary]"
        self.require(
            rule, where, lambda: reading + describe(logits), close=close, decode_logits=logits, **names
        )

    def named(self, rule: str, x: Measured, of: Callable[[RoutedOutput], Tensor]) -> tuple[str, str]:
        """The rule that a value broke and how that can be told: ``rule``, or one of a family's that is known to be
        misread to just this value; ``of`` takes the quantity from a run.
        """
        known = None if close(x) else family_rule(self, x, of)
        return known or (rule, "")

    def measured(self, actual: Tensor, computed: Sequence[Tensor]) -> Measured:
        """A tensor of the target beside the reference's two."""
        self.verdict.exercised["RR-NUM-001"] += 1
        return Measured(actual, computed[0], computed[1])

    def require(self, rule: str, where: str, detail: Any, *, counts: bool = True, **names: Any) -> bool:
        """Run a rule's check on this request."""
        return self.verdict.require(
            rule, f"request {self.b}, {where}", detail, request=self.b, counts=counts, **names
        )


def about(rule: str, x: Measured) -> dict[str, Any]:
    """Give a quantity under every name that a rule's check has for it.

    Where the check is about keys and the quantity is scores, the scores pass as the keys, whose positions made them.
    """
    given: dict[str, Any] = dict.fromkeys(_QUANTITY & names(rule), x)
    given |= {"outputs": [x]} if "outputs" in names(rule) else {}
    given |= {"decode_logits": NOTHING} if "decode_logits" in names(rule) else {}
    given |= {"cached_rows": 0} if rule == "RR-BLOCK-011" else {}  # the caches were judged before
    return {"close": close, **given}


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
    verdict.margins.append(record.margin)
    near = ((score[u], score[v]) for u in ambiguous & right for v in ambiguous - right)
    verdict.ambiguous += any(a != b for a, b in near)  # exact ties do not count

    def detail() -> str:
        first = min((chosen ^ right) - ambiguous)
        verb = "was selected, but should not be" if first in chosen else "should be selected, but was not"
        off = abs(score[first] - threshold[first])
        near = f", and here ambiguous are {sorted(ambiguous)}" if ambiguous - right else ""
        return (
            f"first differing ordinal {first}: it {verb} (oracle score {score[first]:.6g}, {off:.3g} from the lowest selected, "
            f"relative {off / threshold[first] if threshold[first] else float('inf'):.3g}); expected {sorted(right)}, got "
            f"{sorted(chosen)}. RR-NUM-002 allows a relative τ of {tau:.2g}, twice the plain run's largest score error, clamped{near}"
        )

    where = f"request {b}, decision {record.stage} at block {record.layer}"
    names: dict[str, Any] = {"selected": record.selected, "oracle_selected": sorted(right)}
    verdict.require(
        "RR-NUM-002", where, detail, request=b, tau=tau, score=score, threshold=threshold, **names
    )
