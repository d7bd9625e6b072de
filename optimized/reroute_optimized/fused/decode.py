"""Decodes one new row of every request through all blocks, each block against just the rows that it holds in its pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..kernels import ops
from ..model.decoder import Decoder, PositionEmbeddings
from ..turn.cache import RoutedCache
from ..turn.pages import PAGE, PagedLayer, PagedRows, PagePool
from ..turn.upload import uploaded
from .blocks import Angles, Block
from .engine import Fused


def is_paged(cache: RoutedCache) -> bool:
    """Whether every block's rows lie in pages, and nothing else does."""
    return all(isinstance(layer, PagedLayer) and not layer.held.padded for layer in cache.layers)


def note_padding(cache: RoutedCache, blocks: range) -> None:
    """Note that a turn on rectangles put padding into the pages of ``blocks``, which are read through masks from then on."""
    for layer in blocks:
        if isinstance(cache.layers[layer], PagedLayer):
            cache.layers[layer].held.padded = True


@torch.no_grad()
def run_row(
    decoder: Decoder,
    fused: Fused,
    cache: RoutedCache,
    hidden_states: Tensor,
    rotaries: Sequence[PositionEmbeddings],
    observe: Callable[[Tensor], None] | None,
) -> Tensor:
    """Run one new row of every request through all blocks, and return the output of the last block, [B, 1, d].

    Args:
        decoder: whose blocks run.
        fused: of the routed model.
        cache: in pages; every block appends a row to each request.
        hidden_states: [B, 1, d] embeddings.
        rotaries: cos and sin [B or 1, 1, W] of the row: one pair for all blocks, or one per group of them.
        observe: called with every block's output.
    """
    fused.check()
    starts = [index for index, layer in enumerate(cache.layers) if layer.place == 0]
    groups: list[PagedRows] = [cache.layers[start].rows for start in starts]
    pools = [rows.pool for rows in groups]
    tables = []
    for rows in groups:
        rows.append([1] * len(rows.lengths))
        table = np.concatenate([rows.tables, rows.lengths[:, None].astype(np.int32)], axis=1)
        tables.append(uploaded(table, hidden_states.device))
    batch = len(hidden_states)
    angles = [table.expand(batch, -1, -1)[:, 0].contiguous() for rotary in rotaries for table in rotary]

    def work(given: Sequence[Tensor]) -> Tensor:
        row, turns, own = given[0], given[1 : 1 + len(angles)], given[1 + len(angles) :]
        row = row.clone()
        run = _Row(decoder, row, observe)
        for place, (start, pool, table) in enumerate(zip(starts, pools, own, strict=True)):
            pair = 2 * place if len(turns) > 2 else 0
            run.through(start, pool, table, turns[pair], turns[pair + 1])
        return row

    given = [hidden_states[:, 0], *angles, *tables]
    if observe is not None:
        return work(given)[:, None]
    key = "row", tuple(starts), tuple(pools), len(rotaries)
    read = fused.read(pools)
    return fused.graphs.run(key, read, given, work, torch.clone)[:, None]


class _Row:
    """One new row of every request, [B, d], on its way through the blocks. It is written in place."""

    def __init__(
        self,
        decoder: Decoder,
        row: Tensor,
        observe: Callable[[Tensor], None] | None,
    ) -> None:
        self._row, self._observe = row, observe
        self._blocks = [Block(block, decoder.names) for block in decoder.blocks]
        self._normed = self._blocks[0].input_norm(row)

    def through(self, first: int, pool: PagePool, table: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Run the blocks of one group.

        ``table`` [B, pages + 1] int32 holds the group's pages and, last, the lengths with the new row.
        """
        pages, lengths = table[:, :-1].contiguous(), table[:, -1].contiguous()
        last = (lengths - 1)[:, None]
        slots = (pages.gather(1, (last // PAGE).long()).long() * PAGE + last % PAGE)[:, 0]
        everyone = torch.arange(len(self._row), dtype=torch.int32, device=self._row.device)
        angles = Angles(cos, sin, everyone)
        # a split that no request reaches costs nothing: the width of the tables may stand for the largest length
        most = pages.shape[1] * PAGE
        for place, (keys, values) in enumerate(zip(pool.keys, pool.values, strict=True)):
            block = self._blocks[first + place]
            query, key, value = block.query_key_value(self._normed)
            query, _ = ops.rope_kv_write(
                query, key, value, angles.cos, angles.sin, None, angles.rows, slots, keys, values
            )
            attended = ops.decode_paged(query, keys, values, pages, lengths, block.attention.scaling, most)
            self._step(first + place, block.after_attention(self._row, attended))

    def _step(self, layer: int, delta: Tensor) -> None:
        last = layer + 1 == len(self._blocks)
        if self._observe is None and not last:
            norm = self._blocks[layer + 1].input_norm
            self._normed = ops.add_rmsnorm(self._row, delta, norm.weight, norm.variance_epsilon)
            return
        self._row.add_(delta)
        if self._observe is not None:
            self._observe(self._row[:, None].clone())
        if not last:
            self._normed = self._blocks[layer + 1].input_norm(self._row)
