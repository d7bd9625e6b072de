"""One new row of every request through some blocks, each against just the rows that it holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops
from ..cache import RoutedCache
from ..decoder import Decoder, PositionEmbeddings
from .blocks import Angles, Block
from .pages import PagedLayer


def is_paged(cache: RoutedCache) -> bool:
    """Whether every block's rows lie in pages, and nothing else does."""
    return all(isinstance(layer, PagedLayer) and not layer.padded for layer in cache.layers)


def note_padding(cache: RoutedCache, blocks: range) -> None:
    """A turn on rectangles put its padding into the pages of ``blocks``: from now on their rows are read through masks."""
    for layer in blocks:
        if isinstance(cache.layers[layer], PagedLayer):
            cache.layers[layer].padded = True


@torch.no_grad()
def run_row(
    decoder: Decoder,
    cache: RoutedCache,
    blocks: range,
    hidden_states: Tensor,
    rotary: PositionEmbeddings,
    observe: Callable[[Tensor], None] | None,
) -> Tensor:
    """The output of the last of ``blocks``, [B, 1, d]; arguments as for :func:`reroute_optimized.later.decode`."""
    rows = hidden_states[:, 0].clone()
    everyone = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    cos, sin = (table.expand(len(rows), -1, -1)[:, 0].contiguous() for table in rotary)
    angles = Angles(cos, sin, everyone)
    norm = Block(decoder.blocks[blocks.start], decoder.names).input_norm
    normed = norm(rows)
    for layer in blocks:
        block = Block(decoder.blocks[layer], decoder.names)
        delta = block.after_attention(rows, _attend(block, cache.layers[layer], normed, angles))
        if observe is not None or layer == blocks[-1]:
            rows.add_(delta)
            if observe is not None:
                observe(rows[:, None].clone())
            if layer < blocks[-1]:
                normed = Block(decoder.blocks[layer + 1], decoder.names).input_norm(rows)
        else:
            norm = Block(decoder.blocks[layer + 1], decoder.names).input_norm
            normed = ops.add_rmsnorm(rows, delta, norm.weight, norm.variance_epsilon)
    return rows[:, None]


def _attend(block: Block, layer: PagedLayer, normed: Tensor, angles: Angles) -> Tensor:
    query, key, value = block.queries(normed), block.keys(normed), block.values(normed)
    slots = torch.tensor(layer.append([1] * len(normed)), device=normed.device)
    assert layer.key_pages is not None
    assert layer.value_pages is not None
    query, _ = ops.rope_kv_write(
        query,
        key,
        value,
        angles.cos,
        angles.sin,
        None,
        angles.rows,
        slots,
        layer.key_pages,
        layer.value_pages,
    )
    return ops.decode_paged(
        query,
        layer.key_pages,
        layer.value_pages,
        layer.block_table(),
        torch.tensor(layer.lengths, dtype=torch.int32, device=normed.device),
        block.attention.scaling,
        max(layer.lengths),
    )
