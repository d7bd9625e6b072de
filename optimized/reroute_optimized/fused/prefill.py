"""A prefill on packed rows: a stage gathers its rows once, runs compact, and writes them back where it ends.

Nothing here reads the device or makes a table on the host: what differs between prompts of one layout is tensors of the same
shapes, so that a graph can be captured once and replayed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from reroute_spec import Schedule
from torch import Tensor

from .. import ops
from ..decoder import Decoder
from ..layout import Layout
from ..records import Decided
from .attention import attend
from .blocks import Angles, Block, scores
from .opened import OpenedPlan, run_opened
from .pages import PAGE, PagePool
from .plan import Asking, PackedDecision, PackedPlan, PackedStage, Starts


@dataclass(frozen=True)
class Given:
    """What differs between prompts of one layout.

    Attributes:
        hidden_states: [B, S, d] embeddings.
        cos, sin: [B, S, W].
        places: [B, S] row of ``features`` of every column, one past the last where it has none; None without features.
        features: [n, d] for each of the first blocks, added to those rows after it.
        tables: per group of blocks with pages of their own, pages of every request [B, width] int32; empty where nothing is kept.
        prefix: [P, d] rows that every request begins with, after the blocks before the first decision and, where scores are of
            the block before, before the last of them; empty where no prefix is reused.
    """

    hidden_states: Tensor
    cos: Tensor
    sin: Tensor
    places: Tensor | None
    features: tuple[Tensor, ...]
    tables: tuple[Tensor, ...]
    prefix: tuple[Tensor, ...] = ()

    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        many = *self.features, *self.tables, *self.prefix
        return [
            self.hidden_states,
            self.cos,
            self.sin,
            *(() if self.places is None else (self.places,)),
            *many,
        ]

    def like(self, tensors: Sequence[Tensor]) -> Given:
        """The same with other tensors, in the order of :meth:`tensors`."""
        rest = iter(tensors)
        hidden, cos, sin = next(rest), next(rest), next(rest)
        places = None if self.places is None else next(rest)
        many = (tuple(next(rest) for _ in own) for own in (self.features, self.tables, self.prefix))
        return Given(hidden, cos, sin, places, *many)


@dataclass
class Made:
    """What a prefill makes.

    Attributes:
        hidden_states: [B, W, d] of the rows alive, before the final norm.
        real: [B, W] which of them are rows; None: all.
        decided: in order.
        nan: [B] per decision, requests whose scores hold a NaN.
    """

    hidden_states: Tensor
    real: Tensor | None
    decided: list[Decided]
    nan: list[tuple[int, int, Tensor]]

    def copied(self) -> Made:
        """In tensors that no replay overwrites."""
        return Made(
            self.hidden_states.clone(),
            None if self.real is None else self.real.clone(),
            [decided.copied() for decided in self.decided],
            [(index, layer, flags.clone()) for index, layer, flags in self.nan],
        )


@dataclass(frozen=True)
class Watch:
    """What somebody wants to see on the way; absent in ordinary use.

    Attributes:
        replayed: [B, K] selections to run, one per decision; with ``blind``, nothing is scored.
        blind: whether nothing is scored.
        residual: called with the block that decides and the stream [B, W, d] at its input.
        after_block: called with what every block leaves, [B, W, d].
        nan: called with every decision's NaN flags, before its block runs.
    """

    replayed: Sequence[Tensor] | None = None
    blind: bool = False
    residual: Callable[[int, Tensor, Tensor | None], None] | None = None
    after_block: Callable[[Tensor], None] | None = None
    nan: Callable[[int, int, Tensor], None] | None = None


@dataclass
class Alive:
    """The rows that a decision chooses among: all of the prompt under ``reroute``, the survivors under ``delete``.

    Attributes:
        stream: [W, d] their states; the active ones are written back to it.
        rows: per request.
        asking: per request.
        always: [W] bool, those that run whatever their score.
        angles: of them.
        places: [T] where each row of the prompt stands; -1 for the removed.
        stage: whose output they are; None while they are the prompt's own.
    """

    stream: Tensor
    rows: Starts
    asking: Asking
    always: Tensor
    angles: Angles
    places: Tensor
    stage: PackedStage | None = None


class PackedPrefill:
    """The blocks over one batch.

    Args:
        decoder: whose blocks run.
        schedule: what is decided.
        layout, plan: of the batch.
        groups: per group of blocks with pages of their own, the first of them.
        pools: per group; empty where nothing is kept.
        given: the batch.
        watch: see there.
        opened: of a batch with a prefix.
    """

    def __init__(
        self,
        decoder: Decoder,
        schedule: Schedule,
        layout: Layout,
        plan: PackedPlan,
        groups: Sequence[int],
        pools: Sequence[PagePool],
        given: Given,
        watch: Watch | None = None,
        opened: OpenedPlan | None = None,
    ) -> None:
        self._decoder, self._schedule, self._layout, self._packed = decoder, schedule, layout, plan
        self._groups, self._pools, self._given = groups, pools, given
        self._watch, self._opened = watch or Watch(), opened
        self._decided: list[Decided] = []
        self._nan: list[tuple[int, int, Tensor]] = []
        self._ordinals: Tensor | None = None
        self._previous: tuple[Tensor, Tensor] | None = None
        self._slots: dict[int, Tensor] = {}

    @torch.no_grad()
    def run(self) -> Made:
        """All blocks."""
        packed, given = self._packed, self._given
        cos, sin = (table.flatten(0, 1).index_select(0, packed.columns) for table in (given.cos, given.sin))
        everything = _count(packed.rows.total, cos.device)
        self._alive = Alive(
            stream=given.hidden_states.flatten(0, 1).index_select(0, packed.columns),
            rows=packed.rows,
            asking=packed.asking,
            always=packed.always,
            angles=Angles(cos, sin, everything),
            places=everything,
        )
        self._features = (
            None if given.places is None else given.places.flatten().index_select(0, packed.columns)
        )
        stages = packed.stages if self._opened is None else self._after_prefix(self._opened)
        for stage in stages:
            self._stage(stage)
        if self._schedule.action == "delete":  # where nothing was removed, too
            self._alive.stage = packed.stages[-1]
        hidden, real = self._rectangle(self._alive.stream)
        return Made(hidden, real, self._decided, self._nan)

    def _after_prefix(self, opened: OpenedPlan) -> Sequence[PackedStage]:
        """Run the blocks before the first decision on what follows the prefix; the stages that are left."""
        alive, given = self._alive, self._given
        end = [*self._groups[1:], self._decoder.num_layers][0]
        blocks = [self._block(layer) for layer in range(end)]
        first, *later = self._packed.stages
        slots = self._slots_of(0, first)
        features = [] if self._features is None else [_with_none(x)[self._features] for x in given.features]
        alive.stream, *before = run_opened(
            blocks, opened, given.prefix, alive.stream, alive.angles, features[:end], self._pools[0], slots
        )
        for rows in before:
            normed = blocks[-1].input_norm(rows)
            self._score_before(first, blocks[-1], normed, alive.angles, None)
        return later if first.last < end else [replace(first, first=end), *later]

    # ------------------------------------------------------------------------------------------------------- a stage

    def _stage(self, stage: PackedStage) -> None:
        alive = self._alive
        active, angles, keys = None, alive.angles, None
        if stage.decision is not None:
            active, keys = self._choose(stage, stage.decision)
            angles = self._angles(stage, alive.angles, active)
            if keys is not None:
                keys = keys.index_select(0, active)
        rows, delta = self._through(stage, active, angles, keys)
        if active is None:
            alive.stream = rows if delta is None else rows.add_(delta)
        elif self._schedule.action == "delete":
            kept = rows if delta is None else rows.add_(delta)
            everything = _count(len(active), rows.device)
            inverse = torch.full((len(alive.always) + 1,), -1, dtype=torch.int32, device=rows.device)
            inverse[active.long()] = everything
            self._alive = Alive(
                stream=kept,
                rows=stage.rows,
                asking=stage.asking,
                always=alive.always.index_select(0, active),
                angles=angles,
                places=inverse[alive.places.long()],  # -1, of the removed, reads the last entry
                stage=stage,
            )
        elif delta is None:
            alive.stream.index_copy_(0, active.long(), rows)
        else:
            ops.write_back(alive.stream, active, rows, delta)

    def _through(
        self, stage: PackedStage, active: Tensor | None, angles: Angles, keys: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The rows [M, d] that run, after all blocks of a stage, and what is still to be added to them, or None.

        ``keys`` are those of the first block where its decision computed them.
        """
        norm = self._block(stage.first).input_norm
        if active is None:
            rows = self._alive.stream
            normed = norm(rows)
        else:
            rows, normed = ops.gather_rmsnorm(self._alive.stream, active, norm.weight, norm.variance_epsilon)
        scored = self._is_scored_before(stage)
        delta: Tensor | None = None
        for layer in range(stage.first, stage.last + 1):
            block = self._block(layer)
            if scored and layer == stage.last:
                self._score_before(stage, block, normed, angles, active)
            attended = self._attention(stage, layer, block, normed, angles, keys)
            delta, keys = block.after_attention(rows, attended), None
            if self._stops_after(layer):
                rows.add_(delta)
                delta = None
                self._between(layer, stage, rows, active)
            if layer < stage.last:
                norm = self._block(layer + 1).input_norm
                if delta is None:
                    normed = norm(rows)
                else:
                    normed = ops.add_rmsnorm(rows, delta, norm.weight, norm.variance_epsilon)
        return rows, delta

    def _attention(
        self,
        stage: PackedStage,
        layer: int,
        block: Block,
        normed: Tensor,
        angles: Angles,
        keys: Tensor | None,
    ) -> Tensor:
        if keys is None:
            query, keys, value = block.query_key_value(normed)
        else:
            query, value = block.query_value(normed)
        slots, key_pages, value_pages = self._room(stage, layer, keys)
        query, keys = ops.rope_kv_write(
            query, keys, value, angles.cos, angles.sin, None, angles.rows, slots, key_pages, value_pages
        )
        return attend(query, keys, value, stage, block.attention.scaling)

    def _room(self, stage: PackedStage, layer: int, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slots for the rows of a stage in one block's cache, and its pages; no slots where nothing is kept."""
        if not self._pools:
            page = key.new_empty(1, 1, *key.shape[1:])
            return torch.full((key.shape[0],), -1, device=key.device), page, torch.empty_like(page)
        group = bisect_right(self._groups, layer) - 1
        pool, place = self._pools[group], layer - self._groups[group]
        return self._slots_of(group, stage), pool.keys[place], pool.values[place]

    def _slots_of(self, group: int, stage: PackedStage) -> Tensor:
        if group not in self._slots:
            pages = self._given.tables[group].flatten().index_select(0, stage.page)
            self._slots[group] = pages.long() * PAGE + stage.line
        return self._slots[group]

    def _angles(self, stage: PackedStage, angles: Angles, active: Tensor) -> Angles:
        """Of the active rows: at their original positions, or counted anew where positions are renumbered."""
        if self._schedule.positions != "renumber":
            return Angles(angles.cos, angles.sin, angles.rows.index_select(0, active))
        cos, sin = (
            x[0] for x in self._decoder.position_embeddings(self._alive.stream[None], stage.counts[None])
        )
        if stage.decides is not None:  # a request that decides nothing keeps its own
            at = angles.rows.index_select(0, active)
            cos = torch.where(stage.decides, cos, angles.cos.index_select(0, at))
            sin = torch.where(stage.decides, sin, angles.sin.index_select(0, at))
        return Angles(cos.contiguous(), sin.contiguous(), _count(len(active), active.device))

    # ---------------------------------------------------------------------------------------------------- a decision

    def _choose(self, stage: PackedStage, decision: PackedDecision) -> tuple[Tensor, Tensor | None]:
        """The rows that run, [M] int32 ascending, and the block's keys of all rows alive where they were computed."""
        if self._watch.residual is not None:
            self._watch.residual(stage.first, *self._rectangle(self._alive.stream.clone()))
        pooled = self._ordinals if self._schedule.pool == "survivors" else None  # [V]
        ordinals = decision.ordinals if pooled is None else pooled
        begins = self._packed.visual.table.index_select(0, decision.request_of_candidate)
        of_prompt = self._packed.visual_rows.index_select(0, begins + ordinals)
        candidates = self._alive.places.index_select(0, of_prompt)
        sentinel = self._layout.visual.shape[1] - 1
        pool = None if pooled is None else decision.candidate_rectangle(pooled, sentinel).long()
        replayed = None if self._watch.replayed is None else self._watch.replayed[decision.shape.index]
        if self._watch.blind and replayed is not None:
            keys, would, rectangle = None, None, replayed.new_zeros(0)
        else:
            score, keys = self._scores_alive(stage)
            chosen = self._select(stage, decision, score, candidates)
            self._note_nan(decision, stage.first, chosen[4])
            picked = ordinals.index_select(0, decision.segment_of_selected + chosen[0])
            would = decision.selected_rectangle(picked, sentinel).long()
            rectangle = decision.candidate_rectangle(score.index_select(0, candidates), 0.0)
        if replayed is None:
            assert would is not None
            self._decided.append(Decided(decision.shape, stage.first, pool, rectangle, would))
        else:
            self._decided.append(Decided(decision.shape, stage.first, pool, rectangle, replayed, would))
            chosen = self._select(
                stage, decision, self._as_scores(replayed, decision, candidates, ordinals), candidates
            )
            picked = ordinals.index_select(0, decision.segment_of_selected + chosen[0])
        self._ordinals = picked
        return chosen[2], keys

    def _as_scores(
        self, selected: Tensor, decision: PackedDecision, candidates: Tensor, ordinals: Tensor
    ) -> Tensor:
        """[W] scores by which just ``selected`` [B, K] run."""
        flags = torch.zeros(*self._layout.visual.shape, device=selected.device).scatter_(1, selected, 1.0)
        flags[:, -1] = 0
        high = self._alive.stream.new_zeros(len(self._alive.always), dtype=torch.float32)
        high[candidates.long()] = flags[decision.request_of_candidate, ordinals.long()]
        return high

    def _scores_alive(self, stage: PackedStage) -> tuple[Tensor, Tensor | None]:
        """Score of every row alive, and the keys of the block that decides where they were computed for it."""
        if self._schedule.score.source == "own":
            return self._own_scores(stage)
        assert self._previous is not None
        score, active = self._previous
        rows = len(self._alive.always)
        if len(score) == rows:
            return score, None
        return score.new_zeros(rows).index_copy(0, active.long(), score), None

    def _own_scores(self, stage: PackedStage) -> tuple[Tensor, Tensor | None]:
        """As :meth:`_scores_alive`, in the terms of the block that decides."""
        alive, block = self._alive, self._block(stage.first)
        normed = block.input_norm(alive.stream)
        keys = block.keys(normed)
        heads = self._schedule.score.heads
        return scores(block, normed, keys, alive.angles, alive.rows, alive.asking, heads), keys

    def _is_scored_before(self, stage: PackedStage) -> bool:
        """Whether the decision after a stage reads its scores from the last block of it."""
        return self._schedule.score.source == "previous" and stage.last + 1 < self._decoder.num_layers

    def _score_before(
        self, stage: PackedStage, block: Block, normed: Tensor, angles: Angles, active: Tensor | None
    ) -> None:
        """Scores in the terms of the block before the next decision, of the rows that it is about to run."""
        rule = self._schedule.score
        score = scores(block, normed, block.keys(normed), angles, stage.rows, stage.asking, rule.heads)
        self._note_score_before(score, active)

    def _note_score_before(self, score: Tensor, active: Tensor | None) -> None:
        self._previous = score, _count(len(score), score.device) if active is None else active

    def _select(
        self, stage: PackedStage, decision: PackedDecision, score: Tensor, candidates: Tensor
    ) -> tuple[Tensor, ...]:
        alive = self._alive
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

    def _note_nan(self, decision: PackedDecision, layer: int, has_nan: Tensor) -> None:
        flags = decision.segment_rectangle(has_nan, False).any(1)
        if self._watch.nan is not None:
            self._watch.nan(decision.shape.index, layer, flags)
        self._nan.append((decision.shape.index, layer, flags))

    # -------------------------------------------------------------------------------------- between blocks, and after

    def _stops_after(self, layer: int) -> bool:
        """Whether a block's output is needed whole before the next norm."""
        return layer < len(self._given.features) or self._watch.after_block is not None

    def _between(self, layer: int, stage: PackedStage, rows: Tensor, active: Tensor | None) -> None:
        alive = self._alive
        if self._watch.after_block is not None:  # what the block returns, as transformers has it
            if active is not None and self._schedule.action == "delete":
                self._watch.after_block(stage.output(rows, torch.nan))
            else:
                whole = rows if active is None else alive.stream.index_copy(0, active.long(), rows)
                self._watch.after_block(self._rectangle(whole)[0])
        if layer < len(self._given.features):
            assert self._features is not None
            table = _with_none(self._given.features[layer])
            of_alive = self._of_alive(self._features)
            if active is None:
                rows.add_(table.index_select(0, of_alive))
            else:
                if self._schedule.action != "delete":
                    # the deferred get theirs; the active are overwritten later
                    alive.stream.add_(table.index_select(0, of_alive))
                rows.add_(table.index_select(0, of_alive.index_select(0, active)))

    def _of_alive(self, table: Tensor) -> Tensor:
        """Entries of a table over the prompt's rows [T], of the rows alive [W]."""
        alive = self._alive
        if len(table) == len(alive.always):
            return table
        gone = len(alive.always)
        out = table.new_zeros(gone + 1)
        out[torch.where(alive.places < 0, gone, alive.places).long()] = table
        return out[:-1]

    def _rectangle(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows alive as [B, W, d], and which of it are rows."""
        stage = self._alive.stage
        if stage is None:
            return self._packed.prompt(rows, 0.0), self._layout.real
        return stage.output(rows, 0.0), stage.real

    def _block(self, layer: int) -> Block:
        return Block(self._decoder.blocks[layer], self._decoder.names)


def _with_none(features: Tensor) -> Tensor:
    """[n + 1, d], the last of them for rows that have none."""
    return torch.cat([features, features.new_zeros(1, features.shape[1])])


def _count(rows: int, device: torch.device) -> Tensor:
    return torch.arange(rows, dtype=torch.int32, device=device)
