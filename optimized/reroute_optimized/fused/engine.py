"""Keeps what a fused model reuses from one request to the next: layouts, pages and captured graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from reroute_reference.families import part
from reroute_spec import RerouteError, Schedule
from torch import Tensor

from ..model.decoder import Decoder
from ..stages.opening import Opening
from ..turn.cache import RoutedCache
from ..turn.layout import Layout
from ..turn.pages import PagedLayer, PagedRows, PagePool
from .blocks import calls_modules
from .graphs import Graphs, Read
from .opened import OpenedPlan
from .plan import PackedPlan

MOST_PLANS = 128
"""Layouts whose tables are kept: some hundred kilobytes each."""


class Fused:
    """The state of the fused engine that all requests of a routed model share.

    Attributes:
        as_modules: whether blocks are called whole as modules. There are no pages then, and no graphs.
        groups: the first block of every run of blocks that hold the same rows.
        graphs: the captured prefills and decode steps.
        opened_plan: :meth:`OpenedPlan.of`, which remembers its results.
    """

    def __init__(self, decoder: Decoder, schedule: Schedule) -> None:
        self._decoder, self._schedule = decoder, schedule
        self.as_modules = calls_modules(decoder)
        self.groups = sorted({0, *(decision.layer for decision in schedule.decisions)})
        self._device = next(decoder.module.parameters()).device
        self.graphs = Graphs.on(self._device)
        self._plans: OrderedDict[Hashable, tuple[Layout, PackedPlan]] = OrderedDict()
        self._pools: dict[int, PagePool] = {}
        self._read = None if self.as_modules else Read(decoder)
        self.opened_plan = lru_cache(MOST_PLANS)(OpenedPlan.of)

    def layout(
        self, key: Any, build: Callable[[], Layout], device: torch.device
    ) -> tuple[Layout, PackedPlan]:
        """The tables of a batch: those of an earlier one where ``key``, of nested lists, is the same."""
        if device != self._device:  # the model was moved
            self._device, self.graphs = device, Graphs.on(device)
        key = _frozen(key), device
        if key not in self._plans:
            layout = build()
            self._plans[key] = layout, PackedPlan.of(layout, self._schedule.score.n, device)
            if len(self._plans) > MOST_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def read(self, pools: Sequence[PagePool]) -> Hashable:
        """The addresses that a graph reads beside its inputs, or a str that says why there is no graph.

        They are those of weights and pages.
        """
        if self._read is None:
            return "blocks run as modules"
        addresses = self._read.addresses()
        if isinstance(addresses, str):
            return addresses
        return addresses, tuple((pool, pool.moves) for pool in pools)

    def check(self) -> None:
        """Refuse what the engine would not do, and the modules would.

        Raises:
            RerouteError: autocast is on; modules that are not called have hooks.
        """
        if self._read is None:
            return
        if torch.is_autocast_enabled(self._device.type):
            problem = "'triton' computes in the model's own dtype, and autocast is on"
            raise RerouteError("backend", problem, "convert the model, or use backend='torch'")
        self._read.check()

    def remove(self) -> None:
        """Let go of graphs, pages and plans; caches keep the pages that they hold."""
        self.graphs.clear()
        self._pools.clear()
        self._plans.clear()
        self.opened_plan.cache_clear()

    def open(
        self, cache: RoutedCache, plan: PackedPlan, hidden: Tensor, opening: Opening | None
    ) -> list[PagedRows]:
        """Pages of an empty cache for all rows of ``plan``: what every group holds. A failure to get them changes nothing.

        Where requests begin with ``opening``, they hold its pages.
        """
        held: list[PagedRows] = []
        with released_on_failure(held):
            for group, first in enumerate(self.groups):
                counts = plan.stage_of(first).rows.counts
                if group or opening is None:
                    held.append(PagedRows(self.pool(group, hidden), len(counts)))
                    held[-1].append(counts)
                else:
                    held.append(opening.layers[0].held.fork())
                    held[-1].take([0] * len(counts))
                    held[-1].append([count - len(opening.hidden_states) for count in counts])
        for rows in held:
            cache.layers.extend(PagedLayer(rows, place) for place in range(len(rows.pool.keys)))
        return held

    def pool(self, group: int, hidden: Tensor) -> PagePool:
        """Pages of a group of blocks for rows in the dtype and on the device of ``hidden``."""
        decoder = self._decoder
        head_dim = part(decoder.blocks[0], decoder.names.attention).head_dim
        like = hidden.new_empty(0, decoder.config.num_key_value_heads, head_dim)
        pool = self._pools.get(group)
        if pool is None or not pool.serves(like):  # a model that was moved or converted begins anew
            ends = [*self.groups[1:], decoder.num_layers]
            pool = self._pools[group] = PagePool(ends[group] - self.groups[group], like)
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
    return tuple(map(_frozen, flat)) if flat and not isinstance(flat[0], (bool, int)) else flat
