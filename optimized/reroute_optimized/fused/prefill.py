"""Runs a prefill on packed rows: a stage gathers its rows once, runs on them alone, and writes them back where it ends.

Nothing here reads the device or makes a table on the host. What differs between prompts of one layout is in tensors of
the same shapes, so that a graph can be captured once and replayed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from reroute_spec import Schedule
from torch import Tensor

from ..kernels import ops
from ..model.decoder import Decoder
from ..turn.layout import Layout
from ..turn.pages import PAGE, PagePool
from .attention import attend
from .batch import Given, Made, Watch
from .blocks import Angles, Block, scores
from .decide import Alive, Decisions, Scored
from .opened import OpenedPlan, run_opened
from .plan import PackedPlan, PackedStage


class PackedPrefill:
    """One prefill of a packed batch through all blocks.

    Args:
        decoder: the decoder whose blocks run.
        schedule: the schedule that is applied.
        layout: the layout of the batch.
        plan: the packed form of the layout.
        groups: the first block of every group of blocks with pages of its own.
        pools: the pages of every group; empty where nothing is kept.
        given: the tensors of the batch.
        watch: what is replayed and observed, see :class:`Watch`.
        opened: the index tables of a batch with a prefix; None without one.
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
        self._decisions = Decisions(schedule, layout, plan, self._watch)
        self._slots: dict[int, Tensor] = {}

    @torch.no_grad()
    def run(self) -> Made:
        """Run all blocks."""
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
        return Made(hidden, real, self._decisions.decided, self._decisions.nan)

    def _after_prefix(self, opened: OpenedPlan) -> Sequence[PackedStage]:
        """Run the blocks before the first decision on what follows the prefix, and return the stages that are left."""
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
            if self._watch.residual is not None:
                self._watch.residual(stage.first, *self._rectangle(alive.stream.clone()))
            active, keys = self._decisions.choose(
                stage, stage.decision, alive, partial(self._scores_alive, stage)
            )
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
        """Angles of the active rows, at their original positions or counted anew where positions are renumbered."""
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

    # ------------------------------------------------------------------------------------------------------- scores

    def _scores_alive(self, stage: PackedStage) -> Scored:
        if self._schedule.score.source == "previous":
            return self._decisions.before(self._alive)
        return self._own_scores(stage)

    def _own_scores(self, stage: PackedStage) -> Scored:
        """Scores in the terms of the block that decides, and the keys that the block computed for them."""
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
        self._decisions.note_before(score, active)

    # -------------------------------------------------------------------------------------- between blocks, and after

    def _stops_after(self, layer: int) -> bool:
        """Whether a block's output is needed whole before the next norm."""
        return layer < len(self._given.features) or self._watch.after_block is not None

    def _between(self, layer: int, stage: PackedStage, rows: Tensor, active: Tensor | None) -> None:
        alive = self._alive
        if self._watch.after_block is not None:  # what the block returns, as transformers has it
            if self._schedule.action == "delete":
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
