"""Describes what the blocks hold from earlier turns, as it was when a turn began."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import Held, RoutedCache


@dataclass(frozen=True)
class Past:
    """The caches of earlier turns, as they were when this one began.

    Attributes:
        batch: number of requests.
        held: what the blocks hold.
        lengths: physical rows per block, padding included.
        device: the device of the cache.
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
