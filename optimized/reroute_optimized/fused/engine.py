"""What a fused model keeps from one request to the next: layouts, pages and graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from reroute_spec import Schedule
from torch import Tensor

from ..cache import RoutedCache
from ..decoder import Decoder
from ..layout import Layout
from .graphs import Graphs, Read
from .pages import PagedLayer, PagedRows, PagePool
from .plan import PackedPlan

MOST_PLANS = 128
"""Layouts whose tables are kept: some hundred kilobytes each."""


class Fused:
    """Shared by all requests of a routed model.

    Attributes:
        groups: the first of every run of blocks that hold the same rows.
        graphs: captured prefills and tokens.
    """

    def __init__(self, decoder: Decoder, schedule: Schedule) -> None:
        self._decoder, self._schedule = decoder, schedule
        self.groups = sorted({0, *(decision.layer for decision in schedule.decisions)})
        self.graphs = Graphs.on(next(decoder.module.parameters()).device)
        self._plans: OrderedDict[Hashable, tuple[Layout, PackedPlan]] = OrderedDict()
        self._pools: dict[int, PagePool] = {}
        self._read = Read(decoder)

    def layout(
        self, key: Any, build: Callable[[], Layout], device: torch.device
    ) -> tuple[Layout, PackedPlan]:
        """The tables of a batch: those of an earlier one where ``key``, of nested lists, is the same."""
        key = _frozen(key), device
        if key not in self._plans:
            layout = build()
            self._plans[key] = layout, PackedPlan.of(layout, self._schedule.score.n, device)
            if len(self._plans) > MOST_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def read(self, pools: Sequence[PagePool]) -> Hashable:
        """What a graph reads beside its inputs, or why there is none: weights and pages."""
        addresses = self._read.addresses()
        if isinstance(addresses, str):
            return addresses
        return addresses, tuple((pool, pool.moves) for pool in pools)

    def open(self, cache: RoutedCache, plan: PackedPlan, hidden: Tensor) -> list[PagedRows]:
        """Pages of an empty cache for all rows of ``plan``: what every group holds. A failure to get them changes nothing."""
        config, blocks = self._decoder.config, self._decoder.blocks
        like = hidden.new_empty(0, config.num_key_value_heads, self._decoder_head_dim())
        held: list[PagedRows] = []
        with released_on_failure(held):
            for first, end in zip(self.groups, [*self.groups[1:], len(blocks)], strict=True):
                stage = plan.stage_of(first)
                held.append(PagedRows(self._pool(first, end - first, like), len(stage.rows.counts)))
                held[-1].append(stage.rows.counts)
        for rows in held:
            cache.layers.extend(PagedLayer(rows, place) for place in range(len(rows.pool.keys)))
        return held

    def _decoder_head_dim(self) -> int:
        block = self._decoder.blocks[0]
        size: int = getattr(block, self._decoder.names.attention).head_dim
        return size

    def _pool(self, first: int, blocks: int, like: Tensor) -> PagePool:
        pool = self._pools.get(first)
        if pool is None or not pool.serves(like):  # a model that was moved or converted begins anew
            pool = self._pools[first] = PagePool(blocks, like)
        return pool


@contextmanager
def released_on_failure(held: list[PagedRows]) -> Iterator[None]:
    """Gives pages back at once where something fails: whoever keeps the error would keep them too."""
    try:
        yield
    except BaseException:
        for rows in held:
            rows.release()
        raise


def _frozen(key: Any) -> Hashable:
    """Lists as tuples; the innermost, of numbers and flags, at once."""
    if not isinstance(key, (list, tuple)):
        single: Hashable = key
        return single
    flat: tuple[Hashable, ...] = tuple(key)
    return tuple(map(_frozen, flat)) if any(isinstance(x, list) for x in flat) else flat
