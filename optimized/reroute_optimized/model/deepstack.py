"""Adds a family's visual features between blocks (DeepStack). Every visual row gets its features, whether it ran or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DeepStack:
    """The features that are added after the first blocks (n visual columns of a batch of B prompts in S columns).

    Attributes:
        features: [n, d] per boundary, from the first block's on.
        flat: [n] column of every feature row in the flattened batch, ascending.
        places: [B, S + 1] feature row of every column; n where a column has none.
    """

    features: Sequence[Tensor]
    flat: Tensor
    places: Tensor

    @classmethod
    def of(cls, features: Sequence[Tensor], flags: Sequence[Sequence[bool]], like: Tensor) -> DeepStack:
        """From host flags [B][S] of the columns that ``features`` belong to, in order; ``like`` gives the device."""
        width = len(flags[0])
        flat = [b * width + c for b, row in enumerate(flags) for c, flag in enumerate(row) if flag]
        places = torch.full((len(flags) * width,), len(flat), device=like.device)
        at = torch.tensor(flat, dtype=torch.long, device=like.device)
        places[at] = torch.arange(len(flat), device=like.device)
        table = torch.nn.functional.pad(places.view(len(flags), width), (0, 1), value=len(flat))
        return cls([each.to(like.device, like.dtype) for each in features], at, table)

    def add(self, layer: int, hidden_states: Tensor, columns: Tensor | None) -> Tensor:
        """A block's output with the features of its rows added.

        Args:
            layer: the block.
            hidden_states: [B, R, d], left as it is.
            columns: [B, R] prompt column of every row, S for padding; None where the rows are the prompt's columns.
        """
        if layer >= len(self.features):
            return hidden_states
        if columns is None:
            flat = hidden_states.flatten(0, 1)
            return flat.index_add(0, self.flat, self.features[layer]).view_as(hidden_states)
        return hidden_states + self.at(layer, columns)

    def at(self, layer: int, columns: Tensor) -> Tensor:
        """What is added after block ``layer`` in ``columns`` [B, R] (S for padding): [B, R, d], zero where nothing is."""
        features = self.features[layer]
        with_none = torch.cat([features, features.new_zeros(1, features.shape[1])])
        rows = with_none.index_select(0, self.places.gather(1, columns).flatten())
        return rows.view(*columns.shape, -1)

    def add_in_place(self, layer: int, rows: Tensor) -> None:
        """Add the features of a boundary to the flattened batch ``rows`` [B * S or more, d]."""
        if layer < len(self.features):
            rows.index_add_(0, self.flat, self.features[layer])
