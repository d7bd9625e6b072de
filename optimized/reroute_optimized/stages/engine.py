"""Runs a routed turn in one pass over its stages: it decides, gathers the active rows, runs whole blocks and writes the rows back.

On a GPU nothing is read on the host between the first block and the output. On a CPU a NaN score is raised where it
appears.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from reroute_spec import Schedule
from torch import Tensor

from ..model.decoder import Decoder, PositionEmbeddings, counted
from ..model.deepstack import DeepStack
from ..turn.layout import DecisionLayout, Layout, StageLayout
from ..turn.past import Past
from ..turn.probe import Probe, replayed_tables
from ..turn.records import Decided, NanGuard, Prefill, reads_at_once, refuse_nan
from .linear_attention import run_linear
from .masks import causal_mask
from .opening import Opening, resume
from .score import Universe, row_scores
from .selection import select_places
from .stream import ActiveRows, Stream, open_stream


@dataclass(frozen=True)
class Rows:
    """The new rows of a turn.

    Attributes:
        layout: the layout of the batch.
        hidden_states: [B, S, d] embeddings, which are left as they are.
        rotary: cos and sin of all columns, [B, S, rotary width].
        features: what the family adds to visual rows between blocks, or None.
    """

    layout: Layout
    hidden_states: Tensor
    rotary: PositionEmbeddings
    features: DeepStack | None = None


class Turn:
    """One prefill, or one later turn with visual rows.

    Args:
        decoder: the decoder whose blocks run.
        schedule: the schedule that is applied.
        rows: the new rows.
        cache: every block appends exactly the rows it runs. If it is None, nothing is kept.
        past: what the cache held before; None in a first turn.
        probe: what a conformance run replays and observes, see :class:`Probe`.
        tables: [B, K] selections to run instead of deciding, one per decision. Nothing is scored then.
        keep_hidden_states: whether to collect the embeddings, the stream after every block, and the final states.
        opening: what the blocks before the first decision made of the first rows of every request. A first turn without
            collected states may start there.
    """

    def __init__(
        self,
        decoder: Decoder,
        schedule: Schedule,
        rows: Rows,
        cache: Any,
        *,
        past: Past | None = None,
        probe: Probe | None = None,
        tables: Sequence[Tensor] | None = None,
        keep_hidden_states: bool = False,
        opening: Opening | None = None,
    ) -> None:
        self._decoder, self._schedule, self._rows, self._cache = decoder, schedule, rows, cache
        self._layout, self._past, self._probe, self._tables = rows.layout, past, probe, tables
        self._opening = opening
        self.hidden_states: list[Tensor] | None = [rows.hidden_states] if keep_hidden_states else None
        self.done = Prefill(
            rows.layout, [], NanGuard(), decoder.attends, None if past is None else past.rows()
        )
        self._before: tuple[Universe, ActiveRows | None] | None = None

    def run(self) -> Tensor:
        """Run all blocks, and return the final hidden states after the norm.

        Returns:
            [B, S, d] under ``reroute``, [B, R, d] with the last stage's survivors left-padded with NaN under
                ``delete``.

        Raises:
            RerouteError: a replayed selection that the plan refuses; NaN scores on a CPU, before the decision's block
                runs.
        """
        layout, hidden, rotary = self._layout, self._rows.hidden_states, self._rows.rotary
        replay = None if self._probe is None else self._probe.replay
        replayed = None if replay is None else replayed_tables(self._schedule, layout, replay, hidden.device)
        stages = list(layout.stages)
        if self._opening is not None and self._opening.layers:
            hidden, stages = self._resumed(self._opening, stages)
        if stages[0].decision is None and layout.real is None:  # dense and unpadded: nothing to gather
            device = hidden.device
            hidden, rotary = self._run_stage(stages[0], None, hidden, rotary, None)
            hidden = hidden.to(device)  # blocks may lie on several devices, the rows between stages do not
            stages = stages[1:]
        if not stages:
            return self._finish(hidden, None)
        stream = open_stream(self._schedule.action, layout, hidden, rotary)
        del hidden
        for stage in stages:
            active = layout.always
            if stage.decision is None:
                active = active.scatter(1, layout.visual, True)
            else:
                decided = self._decide(stage, stage.decision, stream, replayed)
                active = active.scatter(1, layout.visual.gather(1, decided.selected), True)
            active[:, -1] = False  # the sentinel column took whatever was padding
            rows = ActiveRows.of(active, stage.width, stage.pads)
            compact, own = stream.gather(rows)
            device = compact.device
            compact, own = self._run_stage(stage, rows, compact, own, stream)
            compact = compact.to(device)
            stream.scatter(rows, compact, own)
        return self._finish(*stream.result())

    def _resumed(self, opening: Opening, stages: list[StageLayout]) -> tuple[Tensor, list[StageLayout]]:
        """All rows [B, S, d] after the blocks that ``opening`` has been through, and what is left to run."""
        rows, layout, layers = self._rows, self._layout, len(opening.layers)
        hidden, before = resume(
            self._decoder, opening, layout, rows.hidden_states, rows.rotary, rows.features, self._cache
        )
        if before is not None:
            self._before = Universe(before, rows.rotary, layout.real, layout.queries, layout.asked), None
        dense = replace(stages[0], first=layers)  # no block where the next stage decides, or nothing does
        return hidden, stages[1:] if len(stages) > 1 else [dense]

    def _run_stage(
        self,
        stage: StageLayout,
        rows: ActiveRows | None,
        hidden: Tensor,
        rotary: PositionEmbeddings,
        stream: Stream | None,
    ) -> tuple[Tensor, PositionEmbeddings]:
        """All blocks of a stage on [B, R, d]; ``rows`` and ``stream`` are None where the rows are the prompt's columns.

        Returns:
            Their output, and the rotary embedding with which the last of them ran.
        """
        decoder, features, past = self._decoder, self._rows.features, self._past
        real = None if rows is None else rows.real
        masks: dict[int, Tensor | None] = {}
        # a later turn counts on from what each block had cached, a first one from its decisions on
        renumbers = self._schedule.positions == "renumber" and (
            past is not None or stage.decision is not None
        )
        part = -1
        scored = self._schedule.score.source == "previous" and stage.last + 1 < decoder.num_layers
        for layer in range(stage.first, stage.last + 1):
            before, part = part, 0 if past is None else past.part(layer)
            if renumbers and part != before:
                rotary = self._renumbered(stage, layer, rows, hidden, rotary)
            if scored and layer == stage.last:
                self._before = self._universe_before(layer, rows, hidden, rotary), rows
            if decoder.attends[layer]:
                if part not in masks:
                    masks[part] = self._mask(layer, real, hidden)
                hidden = decoder.run_block(layer, hidden, rotary, masks[part], self._cache)
            else:
                hidden = run_linear(decoder, layer, hidden, rotary, stage, real, self._cache, past)
            if self.hidden_states is not None:  # what the block returns, as transformers has it
                whole = hidden if stream is None or rows is None else stream.snapshot(rows, hidden)
                self.hidden_states.append(whole)
            if features is not None:
                hidden = features.add(
                    layer, hidden.to(features.flat.device), None if rows is None else rows.columns
                )
                if stream is not None:
                    stream.bypass(layer, features)
        return hidden, rotary

    def _mask(self, layer: int, real: Tensor | None, hidden: Tensor) -> Tensor | None:
        width = hidden.shape[1]
        keys = width if self._past is None else width + self._past.lengths[layer]
        valid = real if self._past is None else self._past.valid_with(layer, real, len(hidden), width)
        implementation = self._decoder.implementation
        return causal_mask(implementation, width, keys, valid, hidden.dtype, hidden.device)

    def _renumbered(
        self,
        stage: StageLayout,
        layer: int,
        rows: ActiveRows | None,
        hidden: Tensor,
        rotary: PositionEmbeddings,
    ) -> PositionEmbeddings:
        """Rotary embedding of positions that count the active rows, on top of what block ``layer`` had cached."""
        cos, sin = self._counted_on(layer, hidden, None if rows is None else rows.real)
        # a request that decides nothing keeps its own
        if self._past is None and stage.decision is not None and 0 in stage.decision.candidates:
            decides = [count > 0 for count in stage.decision.candidates]
            mine = torch.tensor(decides, device=hidden.device)[:, None, None]
            cos, sin = torch.where(mine, cos, rotary[0]), torch.where(mine, sin, rotary[1])
        return cos, sin

    def _counted_on(self, layer: int, hidden: Tensor, real: Tensor | None) -> PositionEmbeddings:
        """Rotary embedding of rows [B, R, d] that go on where the rows in block ``layer``'s cache end."""
        counts = counted(real, hidden.shape[1], hidden.device)
        if self._past is not None:
            counts = counts + self._past.counts(layer)[:, None]
        return self._decoder.position_embeddings(hidden, counts)

    def _universe_before(
        self, layer: int, rows: ActiveRows | None, hidden: Tensor, rotary: PositionEmbeddings
    ) -> Universe:
        """What block ``layer`` attends: the rows it is about to run, and its cache."""
        layout = self._layout
        if rows is None:
            universe = Universe(hidden, rotary, layout.real, layout.queries, layout.asked)
        else:
            width = hidden.shape[1]
            asking = min(layout.queries.shape[1], width)
            queries = torch.arange(width - asking, width, device=hidden.device).expand(len(hidden), -1)
            real = rows.real
            asked = real[:, width - asking :] if real is not None and asking > 1 else None
            universe = Universe(hidden, rotary, real, queries, asked)
        return self._with_cached(universe, layer)

    def _with_cached(self, universe: Universe, layer: int) -> Universe:
        if self._past is None:
            return universe
        # pages are taken for all blocks of a stage at once: what this block has yet to write comes last
        keys = self._cache.layers[layer].keys[:, :, : self._past.lengths[layer]]
        return replace(universe, cached=(keys, self._past.valid(layer)))

    def _decide(
        self, stage: StageLayout, shape: DecisionLayout, stream: Stream, replayed: list[Tensor] | None
    ) -> Decided:
        """Score the candidates and select; adds the decision to ``done``."""
        schedule, layout, done = self._schedule, self._layout, self.done
        if self._probe is not None:
            universe = stream.universe()
            self._probe.residuals[stage.first] = (universe.hidden_states.clone(), universe.real)
        pool = done.decided[-1].selected if done.decided and schedule.pool == "survivors" else None
        if self._tables is not None:
            table = self._tables[shape.index]
            decided = Decided(shape, stage.first, pool, table.new_zeros(0), table)
        else:
            columns = (
                layout.visual[:, : max(shape.candidates)] if pool is None else layout.visual.gather(1, pool)
            )
            scores = self._scores(stage, columns, stream)  # [B, C]
            _check_nan(shape, stage.first, scores, done.guard)
            places = select_places(scores, shape.slots, shape.groups)
            chosen = places if pool is None else _ordinals(pool, places, layout.visual.shape[1] - 1)
            if replayed is None:
                decided = Decided(shape, stage.first, pool, scores, chosen)
            else:
                decided = Decided(shape, stage.first, pool, scores, replayed[shape.index], chosen)
        done.decided.append(decided)
        return decided

    def _scores(self, stage: StageLayout, columns: Tensor, stream: Stream) -> Tensor:
        """[B, C] scores of the rows in ``columns`` [B, C]."""
        decoder, rule = self._decoder, self._schedule.score
        if rule.source == "own":
            universe = self._with_cached(stream.universe(), stage.first)
            if self._past is not None and self._schedule.positions == "renumber":
                hidden = universe.hidden_states  # in the block's own terms: after the keys of its cache
                own = self._counted_on(stage.first, hidden, universe.real)
                universe = replace(universe, position_embeddings=own)
            scores = row_scores(decoder.blocks[stage.first], decoder.names, rule, universe).to(columns.device)
            return scores.gather(1, stream.columns_in_universe(columns))
        assert self._before is not None  # a decision has a block before it
        (universe, rows), self._before = self._before, None
        block = decoder.blocks[stage.first - 1]
        scores = row_scores(block, decoder.names, rule, universe).to(columns.device)
        if rows is None:
            return scores.gather(1, columns.clamp(max=scores.shape[1] - 1))
        return scores.gather(1, rows.places.gather(1, columns))

    def _finish(self, hidden: Tensor, real: Tensor | None) -> Tensor:
        if self._probe is not None:
            self._probe.residuals[self._decoder.num_layers] = (hidden.clone(), real)
        final = self._decoder.final_norm(hidden)
        if self._schedule.action == "delete" and real is not None:
            final = final.masked_fill(~real[..., None], torch.nan)
        poisoned = self.done.guard.requests()
        if poisoned is not None:
            final = final.masked_fill(poisoned[:, None, None], torch.nan)
        if self.hidden_states is not None:
            self.hidden_states[-1] = final  # as transformers has it
        return final


def _ordinals(pool: Tensor, places: Tensor, sentinel: int) -> Tensor:
    """``pool`` [B, C] at ``places`` [B, K], where place C gives the sentinel."""
    return torch.cat([pool, pool.new_full((pool.shape[0], 1), sentinel)], dim=1).gather(1, places)


def _check_nan(shape: DecisionLayout, layer: int, scores: Tensor, guard: NanGuard) -> None:
    nan = scores.isnan()
    if shape.real is not None:
        nan = nan & shape.real
    flags = nan.any(1)  # [B]
    if reads_at_once(scores.device):
        refuse_nan(shape.index, layer, flags)
    else:
        guard.note(shape.index, layer, flags)
