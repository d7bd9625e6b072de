"""Computes where rows go when the active ones are packed together; it keeps their order and reads nothing on the host.

Tables are rectangular over the batch. Entries beyond a request's own count hold a sentinel one past the largest place.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compaction(active: Tensor, width: int, pads: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where active columns go when they are packed to the right of ``width`` places, order kept.

    Args:
        active: [B, S + 1] bool; the last column is the sentinel and never active.
        width: places; the largest count of active columns over the batch.
        pads: [B] places left empty before a request's first row, or None where there are none.

    Returns:
        ``columns`` [B, width], the column of every place (S where empty), and ``places`` [B, S + 1], the place of
        every column (``width - 1`` for columns that are not active).
    """
    batch, sentinel = active.shape[0], active.shape[1] - 1
    rank = active.cumsum(1) - 1
    if pads is not None:
        rank = rank + pads[:, None]
    target = torch.where(active, rank, width)  # inactive columns fall off the end
    source = torch.arange(sentinel + 1, device=active.device).expand(batch, -1)
    columns = torch.full((batch, width + 1), sentinel, device=active.device).scatter_(1, target, source)
    return columns[:, :width], target.clamp(max=width - 1)


def take(table: Tensor, columns: Tensor) -> Tensor:
    """``table`` [B, S, x] at ``columns`` [B, W], zero where a column is S."""
    padded = torch.cat([table, table.new_zeros(len(table), 1, table.shape[2])], dim=1)
    return padded.gather(1, columns[..., None].expand(-1, -1, table.shape[2]))
