"""A prefill on packed rows: a stage gathers its rows once, runs compact, and writes them back where it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..engine import Turn
from ..probe import replayed_tables
from ..records import Decided, reads_at_once, refuse_nan
from .blocks import Angles, Block, attend, scores
from .pages import PagedLayer
from .plan import PackedDecision, PackedPlan, PackedStage, Starts


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
    asking: Starts
    always: Tensor
    angles: Angles
    places: Tensor
    stage: PackedStage | None = None


class FusedTurn(Turn):
    """A first turn; arguments as for :class:`reroute_optimized.engine.Turn`. A later turn is not for this engine."""

    @torch.no_grad()
    def run(self) -> Tensor:
        """As :meth:`Turn.run`, without a gradient: :func:`check_no_gradient` was asked before."""
        layout, hidden = self._layout, self._rows.hidden_states
        device, rule = hidden.device, self._schedule.score
        packed = PackedPlan.of(layout, rule.n, device)
        self._packed = packed
        replay = None if self._probe is None else self._probe.replay
        self._replayed = None if replay is None else replayed_tables(self._schedule, layout, replay, device)
        cos, sin = (table.flatten(0, 1).index_select(0, packed.columns) for table in self._rows.rotary)
        everything = torch.arange(packed.rows.total, dtype=torch.int32, device=device)
        self._alive = Alive(
            stream=hidden.flatten(0, 1).index_select(0, packed.columns),
            rows=packed.rows,
            asking=packed.asking,
            always=packed.always,
            angles=Angles(cos, sin, everything),
            places=everything,
        )
        self._ordinals: Tensor | None = None
        self._previous: tuple[Tensor, Tensor] | None = None
        self._features = self._packed_features()
        for stage in packed.stages:
            self._stage(stage)
        return self._finish(*self._rectangle(self._alive.stream))

    # ------------------------------------------------------------------------------------------------------- a stage

    def _stage(self, stage: PackedStage) -> None:
        alive = self._alive
        block = self._block(stage.first)
        norm = block.input_norm
        keys = None
        if stage.decision is None:
            active = None
            rows, angles = alive.stream, alive.angles
            normed = norm(rows)
        else:
            active, keys = self._choose(stage, stage.decision)
            rows, normed = ops.gather_rmsnorm(alive.stream, active, norm.weight, norm.variance_epsilon)
            angles = self._angles(stage, alive.angles, active)
            if keys is not None:
                keys = keys.index_select(0, active)
        delta = self._run(stage, rows, normed, angles, active, keys)
        if active is None:
            alive.stream = rows if delta is None else rows.add_(delta)
        elif self._schedule.action == "delete":
            kept = rows if delta is None else rows.add_(delta)
            everything = torch.arange(len(active), dtype=torch.int32, device=rows.device)
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

    def _run(
        self,
        stage: PackedStage,
        rows: Tensor,
        normed: Tensor,
        angles: Angles,
        active: Tensor | None,
        keys: Tensor | None,
    ) -> Tensor | None:
        """All blocks of a stage on ``rows`` [M, d], in place; what is still to be added to them, or None.

        ``keys`` are those of the first block where its decision computed them.
        """
        scored = self._schedule.score.source == "previous" and stage.last + 1 < self._decoder.num_layers
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
                self._between(stage, layer, rows, active)
            if layer < stage.last:
                norm = self._block(layer + 1).input_norm
                if delta is None:
                    normed = norm(rows)
                else:
                    normed = ops.add_rmsnorm(rows, delta, norm.weight, norm.variance_epsilon)
        return delta

    def _attention(
        self,
        stage: PackedStage,
        layer: int,
        block: Block,
        normed: Tensor,
        angles: Angles,
        keys: Tensor | None,
    ) -> Tensor:
        query, value = block.queries(normed), block.values(normed)
        key = block.keys(normed) if keys is None else keys
        slots, key_pages, value_pages = self._room(stage, layer, key)
        query, key = ops.rope_kv_write(
            query, key, value, angles.cos, angles.sin, None, angles.rows, slots, key_pages, value_pages
        )
        return attend(query, key, value, stage, block.attention.scaling)

    def _room(self, stage: PackedStage, layer: int, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slots for the rows of a stage in one block's cache, and its pages; no slots where nothing is kept."""
        if self._cache is None:
            page = key.new_empty(1, 1, *key.shape[1:])
            return torch.full((key.shape[0],), -1, device=key.device), page, torch.empty_like(page)
        layers: list[Any] = self._cache.layers
        while len(layers) <= layer:
            layers.append(PagedLayer())
        own: PagedLayer = layers[layer]
        own.open(len(stage.rows.counts), key)
        slots = torch.tensor(own.append(stage.rows.counts), device=key.device)
        assert own.key_pages is not None
        assert own.value_pages is not None
        return slots, own.key_pages, own.value_pages

    def _angles(self, stage: PackedStage, angles: Angles, active: Tensor) -> Angles:
        """Of the active rows: at their original positions, or counted anew where positions are renumbered."""
        if self._schedule.positions != "renumber":
            return Angles(angles.cos, angles.sin, angles.rows.index_select(0, active))
        decided = stage.decision
        assert decided is not None
        counts = torch.cat([torch.arange(n) for n in stage.rows.counts])[None].to(active.device)
        cos, sin = (x[0] for x in self._decoder.position_embeddings(self._alive.stream[None], counts))
        if 0 in decided.shape.candidates:  # a request that decides nothing keeps its own
            decides = [
                n > 0
                for n, rows in zip(decided.shape.candidates, stage.rows.counts, strict=True)
                for _ in range(rows)
            ]
            mine = torch.tensor(decides, device=active.device)[:, None]
            at = angles.rows.index_select(0, active)
            cos, sin = torch.where(mine, cos, angles.cos[at]), torch.where(mine, sin, angles.sin[at])
        everything = torch.arange(len(active), dtype=torch.int32, device=active.device)
        return Angles(cos.contiguous(), sin.contiguous(), everything)

    # ---------------------------------------------------------------------------------------------------- a decision

    def _choose(self, stage: PackedStage, decision: PackedDecision) -> tuple[Tensor, Tensor | None]:
        """The rows that run, [M] int32 ascending, and the block's keys of all rows alive where they were computed."""
        alive, shape, schedule = self._alive, decision.shape, self._schedule
        if self._probe is not None:
            self._probe.residuals[stage.first] = self._rectangle(alive.stream.clone())
        pooled = self._ordinals if schedule.pool == "survivors" else None  # [V]
        ordinals = self._candidates(decision, pooled)
        begins = self._packed.visual.table.index_select(0, decision.request_of_candidate)
        of_prompt = self._packed.visual_rows.index_select(0, begins + ordinals)
        candidates = alive.places.index_select(0, of_prompt)
        pool = (
            None
            if pooled is None
            else decision.candidate_rectangle(pooled, self._layout.visual.shape[1] - 1).long()
        )
        given = self._tables if self._tables is not None else self._replayed
        keys = None
        if self._tables is not None:
            table = self._tables[shape.index]
            self.done.decided.append(Decided(shape, stage.first, pool, table.new_zeros(0), table))
        else:
            score, keys = self._scores_alive(stage)
            chosen = self._select(stage, decision, score, candidates)
            selected, has_nan = chosen[0], chosen[4]
            self._check(decision, stage.first, has_nan)
            picked = ordinals.index_select(0, decision.segment_of_selected + selected)
            table = decision.selected_rectangle(picked, self._layout.visual.shape[1] - 1).long()
            rectangle = decision.candidate_rectangle(score.index_select(0, candidates), 0.0)
            if given is None:
                self.done.decided.append(Decided(shape, stage.first, pool, rectangle, table))
                self._ordinals = picked
                return chosen[2], keys
            self.done.decided.append(Decided(shape, stage.first, pool, rectangle, given[shape.index], table))
        assert given is not None
        wanted = given[shape.index]  # as scores that are highest, so that they run
        flags = torch.zeros(*self._layout.visual.shape, device=wanted.device).scatter_(1, wanted, 1.0)
        flags[:, -1] = 0
        high = alive.stream.new_zeros(len(alive.always), dtype=torch.float32)
        high[candidates.long()] = flags[decision.request_of_candidate, ordinals.long()]
        chosen = self._select(stage, decision, high, candidates)
        self._ordinals = ordinals.index_select(0, decision.segment_of_selected + chosen[0])
        return chosen[2], keys

    def _candidates(self, decision: PackedDecision, pooled: Tensor | None) -> Tensor:
        """[V] ordinals of the candidates, request by request."""
        if pooled is not None:
            return pooled
        counts = decision.shape.candidates
        parts = [torch.arange(n, dtype=torch.int32) for n in counts]
        return torch.cat(parts).to(self._alive.stream.device)

    def _scores_alive(self, stage: PackedStage) -> tuple[Tensor, Tensor | None]:
        """Score of every row alive, and the keys of the block that decides where they were computed for it."""
        alive, rule = self._alive, self._schedule.score
        if rule.source == "previous":
            assert self._previous is not None
            score, active = self._previous
            if len(score) == len(alive.always):
                return score, None
            full = score.new_zeros(len(alive.always))
            return full.index_copy(0, active.long(), score), None
        block = self._block(stage.first)
        normed = block.input_norm(alive.stream)
        keys = block.keys(normed)
        return scores(block, normed, keys, alive.angles, alive.rows, alive.asking, rule.heads), keys

    def _score_before(
        self, stage: PackedStage, block: Block, normed: Tensor, angles: Angles, active: Tensor | None
    ) -> None:
        """Scores in the terms of the block before the next decision, of the rows that it is about to run."""
        rule = self._schedule.score
        score = scores(block, normed, block.keys(normed), angles, stage.rows, stage.asking, rule.heads)
        everything = torch.arange(len(score), dtype=torch.int32, device=score.device)
        self._previous = score, everything if active is None else active

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

    def _check(self, decision: PackedDecision, layer: int, has_nan: Tensor) -> None:
        flags = decision.segment_rectangle(has_nan, False).any(1)
        if reads_at_once(flags.device):
            refuse_nan(decision.shape.index, layer, flags)
        else:
            self.done.guard.note(decision.shape.index, layer, flags)

    # -------------------------------------------------------------------------------------- between blocks, and after

    def _stops_after(self, layer: int) -> bool:
        """Whether a block's output is needed whole before the next norm."""
        featured = self._rows.features is not None and layer < len(self._rows.features.features)
        return featured or self.hidden_states is not None

    def _packed_features(self) -> Tensor | None:
        """[T] feature row of every row, one past the last where it has none."""
        features = self._rows.features
        if features is None:
            return None
        return features.places[:, :-1].flatten().index_select(0, self._packed.columns)

    def _between(self, stage: PackedStage, layer: int, rows: Tensor, active: Tensor | None) -> None:
        features, alive = self._rows.features, self._alive
        if self.hidden_states is not None:  # what the block returns, as transformers has it
            if active is not None and self._schedule.action == "delete":
                self.hidden_states.append(stage.output(rows, torch.nan))
            else:
                whole = rows if active is None else alive.stream.index_copy(0, active.long(), rows)
                self.hidden_states.append(self._rectangle(whole)[0])
        if features is not None and layer < len(features.features):
            assert self._features is not None
            own = features.features[layer]
            table = torch.cat([own, own.new_zeros(1, own.shape[1])])
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
        ragged = len(set(stage.rows.counts)) > 1
        real = stage.output.index < stage.rows.total
        return stage.output(rows, 0.0), real if ragged else None

    def _block(self, layer: int) -> Block:
        return Block(self._decoder.blocks[layer], self._decoder.names)
