"""What blocks hold from earlier turns, and how blocks of linear attention run ragged rows on top of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.decoder import Decoder, PositionEmbeddings
from .cache import Held, RoutedCache, one_request
from .layout import StageLayout


@dataclass(frozen=True)
class Past:
    """The caches of earlier turns, as they were when this one began.

    Attributes:
        batch: requests.
        held: what blocks hold.
        lengths: physical rows per block, padding included.
        device: of the cache.
    """

    batch: int
    held: tuple[Held, ...]
    lengths: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, cache: RoutedCache) -> Past:
        """What ``cache`` holds now."""
        state = cache.routing
        assert state is not None
        lengths = tuple(cache.get_seq_length(layer) for layer in range(len(cache.layers)))
        return cls(len(state.num_rows), tuple(state.held), lengths, state.num_rows.device)

    def part(self, layer: int) -> int:
        """Which of ``held`` a block belongs to."""
        return next(i for i, held in enumerate(self.held) if held.first <= layer <= held.last)

    def valid(self, layer: int) -> Tensor | None:
        """[B, rows] which entries of a block's cache are rows; None: all."""
        return self.held[self.part(layer)].valid_of(self.lengths[layer])

    def valid_with(self, layer: int, real: Tensor | None, batch: int, width: int) -> Tensor | None:
        """:meth:`valid`, and then the ``width`` new rows, of which ``real`` [B, width] are rows (None: all)."""
        before = self.valid(layer)
        if before is None and real is None:
            return None
        if before is None:
            before = torch.ones(batch, self.lengths[layer], dtype=torch.bool, device=self.device)
        if real is None:
            return torch.nn.functional.pad(before, (0, width), value=True)
        return torch.cat([before, real], dim=1)

    def counts(self, layer: int) -> Tensor:
        """[B] rows of a block's cache."""
        valid = self.valid(layer)
        if valid is None:
            return torch.full((self.batch,), self.lengths[layer], device=self.device)
        return valid.sum(1)

    def rows(self) -> Tensor:
        """[Λ, B] rows of every block's cache."""
        return torch.stack([self.counts(layer) for layer in range(len(self.lengths))])


def run_linear(
    decoder: Decoder,
    layer: int,
    hidden_states: Tensor,
    rotary: PositionEmbeddings,
    stage: StageLayout,
    real: Tensor | None,
    cache: Any,
    past: Past | None,
) -> Tensor:
    """A block of linear attention on left-padded rows [B, R, d].

    Padding before a state's first row changes nothing once it is zero, which the block's mask sees to. Between an old
    state and the new rows it would decay the state and fill the convolution, so there every request runs by itself.
    """
    if real is None or past is None:
        return decoder.run_block(layer, hidden_states, rotary, real, cache)
    outputs = []
    for request, rows in enumerate(stage.rows):
        own = slice(request, request + 1), slice(stage.width - rows, None)
        output = decoder.run_block(
            layer,
            hidden_states[own],
            (rotary[0][own], rotary[1][own]),
            None,
            one_request(cache, layer, request),
        )
        outputs.append(torch.nn.functional.pad(output, (0, 0, stage.width - rows, 0)))
    return torch.cat(outputs)
