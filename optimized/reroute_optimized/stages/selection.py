"""Selects the candidates that run, by index arithmetic that keeps their order and reads nothing on the host.

Tables are rectangular over the batch. Entries beyond a request's own count hold a sentinel one past the largest place.
"""

from __future__ import annotations

import torch
from torch import Tensor


def select_places(scores: Tensor, slots: Tensor, groups: Tensor | None = None) -> Tensor:
    """Places of the selected candidates, ascending.

    Args:
        scores: [B, C], one per candidate, in candidate order.
        slots: [B, K] int64, ranks to keep in the order (group ascending, score descending, place ascending); C where a
            request keeps fewer than K.
        groups: [B, C] int64, span of every candidate, the largest value for padding; None for one span without padding.

    Returns:
        [B, K] places, ascending; C where a request keeps fewer than K.
    """
    candidates = scores.shape[1]
    # adding +0.0 turns -0.0 into +0.0, which a radix sort would tell apart
    order = torch.sort(scores + 0.0, dim=1, descending=True, stable=True).indices  # [B, C]
    if groups is not None:
        grouped = torch.sort(groups.gather(1, order), dim=1, stable=True).indices
        order = order.gather(1, grouped)
    order = torch.cat([order, order.new_full((order.shape[0], 1), candidates)], dim=1)
    return torch.sort(order.gather(1, slots), dim=1).values
