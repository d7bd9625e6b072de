"""Makes the decisions on packed rows: it chooses which of the rows alive run the next blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from reroute_spec import Schedule
from torch import Tensor

from ..kernels import ops
from ..turn.layout import Layout
from ..turn.records import Decided
from .batch import Watch
from .blocks import Angles
from .plan import Asking, PackedDecision, PackedPlan, PackedStage, Starts

Scored = tuple[Tensor, Tensor | None]
"""The score of every row alive, [W] float32, and the keys [W, Hkv, D] of the deciding block where the score needed them."""


@dataclass
class Alive:
    """The rows that a decision chooses among.

    Under ``reroute`` they are all rows of the prompt, under ``delete`` the survivors.

    Attributes:
        stream: [W, d] their hidden states; those of active rows are written back to it.
        rows: where the rows of every request begin.
        asking: the last rows of every request, which ask.
        always: [W] bool, the rows that run whatever their score.
        angles: the rotary angles of the rows.
        places: [T] where each row of the prompt stands among them; -1 for removed rows.
        stage: the stage whose output they are; None while they are the prompt's own rows.
    """

    stream: Tensor
    rows: Starts
    asking: Asking
    always: Tensor
    angles: Angles
    places: Tensor
    stage: PackedStage | None = None


class Decisions:
    """The decisions of one batch, made in order.

    Args:
        schedule: the schedule that is applied.
        layout: the layout of the batch.
        plan: the packed form of the layout.
        watch: what is replayed and observed, see :class:`Watch`.

    Attributes:
        decided: the decisions so far.
        nan: per decision that was scored its index, its block, and [B] which requests have scores that hold a NaN.
    """

    def __init__(self, schedule: Schedule, layout: Layout, plan: PackedPlan, watch: Watch) -> None:
        self._layout, self._packed, self._watch = layout, plan, watch
        self._survive = schedule.pool == "survivors"
        self.decided: list[Decided] = []
        self.nan: list[tuple[int, int, Tensor]] = []
        self._ordinals: Tensor | None = None
        self._previous: tuple[Tensor, Tensor | None] | None = None

    def choose(
        self, stage: PackedStage, decision: PackedDecision, alive: Alive, scored: Callable[[], Scored]
    ) -> tuple[Tensor, Tensor | None]:
        """The rows that run, [M] int32 ascending, and the keys of ``scored``, which is asked unless nothing is scored."""
        pooled = self._ordinals if self._survive else None  # [V]
        ordinals = decision.ordinals if pooled is None else pooled
        begins = self._packed.visual.table.index_select(0, decision.request_of_candidate)
        of_prompt = self._packed.visual_rows.index_select(0, begins + ordinals)
        candidates = alive.places.index_select(0, of_prompt)
        sentinel = self._layout.visual.shape[1] - 1
        pool = None if pooled is None else decision.candidate_rectangle(pooled, sentinel).long()
        replayed = None if self._watch.replayed is None else self._watch.replayed[decision.shape.index]
        if self._watch.blind and replayed is not None:
            keys, would, rectangle = None, None, replayed.new_zeros(0)
        else:
            score, keys = scored()
            chosen = _select(stage, decision, alive, score, candidates)
            self._note_nan(decision, stage.first, chosen[4])
            picked = ordinals.index_select(0, decision.segment_of_selected + chosen[0])
            would = decision.selected_rectangle(picked, sentinel).long()
            rectangle = decision.candidate_rectangle(score.index_select(0, candidates), 0.0)
        if replayed is None:
            assert would is not None
            self.decided.append(Decided(decision.shape, stage.first, pool, rectangle, would))
        else:
            self.decided.append(Decided(decision.shape, stage.first, pool, rectangle, replayed, would))
            flags = self._as_scores(replayed, decision, alive, candidates, ordinals)
            chosen = _select(stage, decision, alive, flags, candidates)
            picked = ordinals.index_select(0, decision.segment_of_selected + chosen[0])
        self._ordinals = picked
        return chosen[2], keys

    def _as_scores(
        self,
        selected: Tensor,
        decision: PackedDecision,
        alive: Alive,
        candidates: Tensor,
        ordinals: Tensor,
    ) -> Tensor:
        """[W] scores by which just ``selected`` [B, K] run."""
        flags = torch.zeros(*self._layout.visual.shape, device=selected.device).scatter_(1, selected, 1.0)
        flags[:, -1] = 0
        high = alive.stream.new_zeros(len(alive.always), dtype=torch.float32)
        high[candidates.long()] = flags[decision.request_of_candidate, ordinals.long()]
        return high

    def note_before(self, score: Tensor, active: Tensor | None) -> None:
        """Scores [M] for the next decision, of the block before it: of the rows ``active`` [M] alone, or of all (None)."""
        self._previous = score, active

    def before(self, alive: Alive) -> Scored:
        """The noted scores, for every row alive. Rows that did not run have the score 0, and they are no candidates."""
        assert self._previous is not None
        score, active = self._previous
        rows = len(alive.always)
        if active is None or len(score) == rows:
            return score, None
        return score.new_zeros(rows).index_copy(0, active.long(), score), None

    def _note_nan(self, decision: PackedDecision, layer: int, has_nan: Tensor) -> None:
        flags = decision.segment_rectangle(has_nan, False).any(1)
        if self._watch.nan is not None:
            self._watch.nan(decision.shape.index, layer, flags)
        self.nan.append((decision.shape.index, layer, flags))


def _select(
    stage: PackedStage, decision: PackedDecision, alive: Alive, score: Tensor, candidates: Tensor
) -> tuple[Tensor, ...]:
    return ops.select_compact(
        score,
        candidates,
        decision.candidates.table,
        decision.selected.table,
        alive.always,
        alive.rows.table,
        stage.rows.table,
        decision.selected.total,
        stage.rows.total,
        decision.candidates.most,
        alive.rows.most,
    )
