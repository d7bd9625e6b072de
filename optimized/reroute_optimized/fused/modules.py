"""Calls whole the blocks that the fused engine does not compute itself, such as those of Qwen3.5, within the same plan.

The rows of a stage are laid onto a rectangle, run through all its blocks there, and packed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model.decoder import PositionEmbeddings
from ..stages.masks import causal_mask
from ..stages.score import Universe, row_scores
from ..turn.cache import RoutedCache
from .blocks import Angles
from .plan import PackedStage
from .prefill import PackedPrefill


class ModulePrefill(PackedPrefill):
    """A prefill whose blocks are transformers modules. Arguments are those of :class:`PackedPrefill`, without pages.

    Args:
        cache: every block appends exactly the rows it runs. If it is None, nothing is kept.
    """

    def __init__(self, *args: Any, cache: RoutedCache | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cache = cache

    def _through(
        self, stage: PackedStage, active: Tensor | None, angles: Angles, keys: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`PackedPrefill._through`. A block's output is the whole state, so nothing is left to be added."""
        decoder, stream = self._decoder, self._alive.stream
        hidden = stage.output(stream if active is None else stream.index_select(0, active), 0.0)
        rotary, real = _turned(stage, angles), stage.real
        mask = None
        if any(decoder.attends[stage.first : stage.last + 1]):
            width = hidden.shape[1]
            mask = causal_mask(decoder.implementation, width, width, real, hidden.dtype, hidden.device)
        scored = self._is_scored_before(stage)
        for layer in range(stage.first, stage.last + 1):
            if scored and layer == stage.last:
                score = self._row_scores(layer, self._universe_of(stage, hidden, rotary), stage.places)
                self._decisions.note_before(score, active)
            # padding before a state's first row changes nothing once it is zero, which the block's mask sees to
            own = mask if decoder.attends[layer] else real
            hidden = decoder.run_block(layer, hidden, rotary, own, self._cache)
            if self._stops_after(layer):
                rows = _packed(hidden, stage.places, stream.device)
                self._between(layer, stage, rows, active)
                hidden = stage.output(rows, 0.0)
        return _packed(hidden, stage.places, stream.device), None

    def _own_scores(self, stage: PackedStage) -> tuple[Tensor, None]:
        """As :meth:`PackedPrefill._own_scores`; the block computes its keys itself."""
        alive, layout = self._alive, self._layout
        if alive.stage is None:
            hidden = self._packed.prompt(alive.stream, 0.0)
            rotary = self._given.cos, self._given.sin
            universe = Universe(hidden, rotary, layout.real, layout.queries, layout.asked)
            return self._row_scores(stage.first, universe, self._packed.columns), None
        hidden, rotary = alive.stage.output(alive.stream, 0.0), _turned(alive.stage, alive.angles)
        universe = self._universe_of(alive.stage, hidden, rotary)
        return self._row_scores(stage.first, universe, alive.stage.places), None

    def _universe_of(self, stage: PackedStage, hidden: Tensor, rotary: PositionEmbeddings) -> Universe:
        """The rows of a stage [B, R, d], packed to the right; the last of them ask."""
        width, real = hidden.shape[1], stage.real
        asking = min(self._layout.queries.shape[1], width)
        queries = torch.arange(width - asking, width, device=hidden.device).expand(len(hidden), -1)
        asked = real[:, width - asking :] if real is not None and asking > 1 else None
        return Universe(hidden, rotary, real, queries, asked)

    def _row_scores(self, layer: int, universe: Universe, places: Tensor) -> Tensor:
        """Scores [M] float32 of the rows that stand at ``places`` of the flattened universe."""
        decoder, rule = self._decoder, self._schedule.score
        scores = row_scores(decoder.blocks[layer], decoder.names, rule, universe)
        return _packed(scores, places, places.device)


def _turned(stage: PackedStage, angles: Angles) -> PositionEmbeddings:
    """cos and sin of a stage's rows, [B, R, W]."""
    cos, sin = (stage.output(x.index_select(0, angles.rows), 0.0) for x in (angles.cos, angles.sin))
    return cos, sin


def _packed(rectangle: Tensor, places: Tensor, device: torch.device) -> Tensor:
    """Entries of [B, R, ...] as [M, ...], always a copy: a block's output belongs to whoever hooked the block.

    ``device`` is where the stream is; blocks of one model may lie on several.
    """
    return rectangle.flatten(0, 1).to(device).index_select(0, places)
