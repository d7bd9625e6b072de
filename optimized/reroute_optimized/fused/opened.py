"""Runs the blocks before the first decision where a prefix is reused: its pages are shared, and only the rows after it run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import ops
from ..stages.opening import Opening
from ..turn.pages import PagedLayer, PagedRows, PagePool
from .blocks import Angles, Block
from .plan import PackedPlan, Rectangle


@dataclass(frozen=True, eq=False)  # itself a part of the keys of graphs
class OpenedPlan:
    """The index tables of a batch whose requests begin with the same P rows (M rows after them, R at most in one request).

    Attributes:
        own: [M] places of the rows after the prefix among the packed rows.
        first: [B * P] places of the prefix's rows among the packed rows.
        queries: rectangle [B, R] of the rows after the prefix, packed to the left.
        keys: rectangle [B, P + R] of all rows, packed to the left.
        unpack: [M] places of the rows in ``queries``, flattened.
        mask: [R, P + R] bool, which keys each row attends. Padding comes later than every row.
    """

    own: Tensor
    first: Tensor
    queries: Rectangle
    keys: Rectangle
    unpack: Tensor
    mask: Tensor

    @classmethod
    def of(cls, plan: PackedPlan, shared: int, device: torch.device) -> OpenedPlan:
        """The tables of a batch whose requests all begin with ``shared`` rows and go on after them."""
        counts = plan.rows.counts
        after = [count - shared for count in counts]
        width, begin = max(after), 0
        own: list[int] = []
        first: list[int] = []
        for count in counts:
            first += range(begin, begin + shared)
            own += range(begin + shared, begin + count)
            begin += count
        places = [b * width + row for b, count in enumerate(after) for row in range(count)]
        at = torch.arange(shared + width, device=device)
        return cls(
            own=torch.tensor(own, dtype=torch.long, device=device),
            first=torch.tensor(first, dtype=torch.long, device=device),
            queries=Rectangle.of(after, width, device),
            keys=Rectangle.of(counts, shared + width, device),
            unpack=torch.tensor(places, dtype=torch.long, device=device),
            mask=at[None] <= shared + at[:width, None],
        )


def kept(opening: Opening, pool: PagePool) -> Opening:
    """``opening`` with its keys and values in pages of ``pool``, which requests that begin with it hold too."""
    rows = PagedRows(pool, 1)
    layers = tuple(PagedLayer(rows, place) for place in range(len(opening.layers)))
    for layer, made in zip(layers, opening.layers, strict=True):
        layer.update(made.keys, made.values)
    return Opening(opening.hidden_states, opening.before, layers)


def run_opened(
    blocks: Sequence[Block],
    opened: OpenedPlan,
    prefix: Sequence[Tensor],
    stream: Tensor,
    angles: Angles,
    features: Sequence[Tensor],
    pool: PagePool,
    slots: Tensor,
) -> list[Tensor]:
    """The stream [T, d] after ``blocks`` and, with a second of ``prefix``, before the last of them.

    Args:
        blocks: before the first decision.
        opened: of the batch.
        prefix: [P, d] its rows after the blocks and, where scores are of the block before, before the last of them.
        stream: [T, d] embeddings of all rows, left as they are.
        angles: of all rows.
        features: [T, d] for each of the first blocks, added after it.
        pool: of these blocks.
        slots: [T] where all rows are, the prefix's already with keys and values.
    """
    rows, own = stream.index_select(0, opened.own), opened.own.int()
    angles = Angles(angles.cos, angles.sin, angles.rows.index_select(0, opened.own))
    before = rows
    for place, block in enumerate(blocks):
        before = rows.clone() if len(prefix) > 1 and place + 1 == len(blocks) else rows
        query, key, value = block.query_key_value(block.input_norm(rows))
        pages = pool.keys[place], pool.values[place]
        query, _ = ops.rope_kv_write(
            query,
            key,
            value,
            angles.cos,
            angles.sin,
            None,
            angles.rows,
            slots.index_select(0, opened.own),
            *pages,
        )
        keys, values = (table.flatten(0, 1).index_select(0, slots) for table in pages)
        out = F.scaled_dot_product_attention(
            opened.queries(query, 0).transpose(1, 2),
            opened.keys(keys, 0).transpose(1, 2),
            opened.keys(values, 0).transpose(1, 2),
            attn_mask=opened.mask,
            scale=block.attention.scaling,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        attended = out.transpose(1, 2).flatten(0, 1).index_select(0, opened.unpack)
        rows.add_(block.after_attention(rows, attended))
        if place < len(features):
            rows.add_(features[place].index_select(0, own))
    requests = len(opened.queries.index)
    return [
        stream.index_copy(0, opened.own, later).index_copy_(0, opened.first, first.repeat(requests, 1))
        for first, later in zip(prefix, (rows, before), strict=False)
    ]
