"""Keeps KV caches in pages: every request holds just the rows that it ran, and takes room for later rows page by page.

Blocks between two decisions hold the same rows, so they share one table of pages: page p of each of them holds the same
rows. Pages come from a pool that the caches of a routed model share. Repeated, copied and prefixed requests hold the
same pages until one of them appends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from .upload import uploaded

PAGE = 16
"""Rows of a page."""

Counts = Sequence[int] | NDArray[np.int64]


def pages_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pages that so many rows take."""
    return -(-rows // PAGE)


class PagePool:
    """The pages of blocks that hold the same rows.

    Attributes:
        keys, values: per block [P, PAGE, Hkv, head_dim].
        moves: how often growing has moved them.
    """

    def __init__(self, blocks: int, like: Tensor) -> None:
        empty = like.new_empty(0, PAGE, *like.shape[-2:])
        self.keys, self.values = ([torch.empty_like(empty) for _ in range(blocks)] for _ in range(2))
        self.moves = 0
        self._free: list[int] = []
        self._holders: list[int] = []

    @property
    def size(self) -> int:
        """Pages that there are."""
        return len(self._holders)

    def serves(self, like: Tensor) -> bool:
        """Whether rows [.., Hkv, head_dim] such as ``like`` go into its pages."""
        own = self.keys[0]
        return (own.shape[2:], own.dtype, own.device) == (like.shape[-2:], like.dtype, like.device)

    @property
    def held(self) -> int:
        """Pages that somebody holds."""
        return self.size - len(self._free)

    def reserve(self, pages: int) -> None:
        """Make sure that at least ``pages`` pages are free. A failure to get them changes nothing that anybody holds."""
        missing = pages - len(self._free)
        if missing <= 0:
            return
        # more than is needed now where there were pages before, so that decode does not move them, and drop graphs, all the time
        size = self.size + missing + (max(self.size // 5, 4) if self.size else 0)
        self.moves += 1
        for tables in (self.keys, self.values):
            for block, table in enumerate(tables):  # one after another: only one of them is there twice
                if table.shape[0] < size:
                    tables[block] = torch.cat(
                        [table, table.new_empty(size - table.shape[0], *table.shape[1:])]
                    )
        self._free.extend(range(self.size, size))
        self._holders.extend([0] * (size - self.size))

    def take(self, count: int) -> list[int]:
        """Take ``count`` reserved pages, each with one holder."""
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def hold(self, pages: Iterable[int]) -> None:
        """Add one holder to each of ``pages``."""
        for page in pages:
            self._holders[page] += 1

    def give(self, pages: Iterable[int]) -> None:
        """Take one holder from each of ``pages``; those without any are free."""
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Whether several hold ``page``."""
        return self._holders[page] > 1

    def copy(self, page: int, to: int) -> None:
        """Copy the rows of ``page`` of every block into ``to``."""
        for table in (*self.keys, *self.values):
            table[to].copy_(table[page])


class PagedRows:
    """The rows of B requests in the blocks of one pool.

    Attributes:
        pool: the pool that has their pages.
        lengths: [B] rows of every request.
        tables: [B, at least the most pages] int32, the pages of every request in order; entries after them mean
            nothing.
        width: rows that transformers sees, padding included; it stays when the longest request leaves.
        padded: whether a turn on rectangles left padding among the rows, which only a mask hides.
    """

    def __init__(self, pool: PagePool, requests: int) -> None:
        self.pool = pool
        self.lengths = np.zeros(requests, dtype=np.int64)
        self.tables = np.zeros((requests, 0), dtype=np.int32)
        self.width = 0
        self.padded = False

    def pages(self) -> list[int]:
        """What is held: pages request by request."""
        held = np.arange(self.tables.shape[1]) < pages_of(self.lengths)[:, None]
        pages: list[int] = self.tables[held].tolist()
        return pages

    def append(self, counts: Counts) -> None:
        """Take room for ``counts`` [B] more rows of every request; a failure to get it changes nothing."""
        counts = np.asarray(counts, dtype=np.int64)
        lengths = self.lengths + counts
        before, after = pages_of(self.lengths), pages_of(lengths)
        begun = [
            (int(request), int(length // PAGE))
            for request, length in enumerate(self.lengths)
            if counts[request] and length % PAGE
        ]
        shared = [place for place in begun if self.pool.is_shared(int(self.tables[place]))]
        needed = after - before
        self.pool.reserve(int(needed.sum()) + len(shared))
        most = int(after.max(initial=0))
        if most > self.tables.shape[1]:
            wide = np.zeros((len(lengths), _power_of_two(most)), dtype=np.int32)
            wide[:, : self.tables.shape[1]] = self.tables
            self.tables = wide
        for place in shared:
            self._own(place)
        new = np.arange(self.tables.shape[1])
        new_places = (new >= before[:, None]) & (new < after[:, None])
        self.tables[new_places] = self.pool.take(int(needed.sum()))
        self.lengths, self.width = lengths, self.width + int(counts.max(initial=0))

    def _own(self, place: tuple[int, int]) -> None:
        """A page that others hold too becomes a copy of the request's own; the last sharer keeps it."""
        page = int(self.tables[place])
        if not self.pool.is_shared(page):
            return
        (new,) = self.pool.take(1)
        self.pool.copy(page, new)
        self.pool.give([page])
        self.tables[place] = new

    def slots(self, counts: Counts, device: torch.device) -> Tensor:
        """[sum of counts] where the last ``counts`` rows of every request are, request by request."""
        return uploaded(
            np.concatenate(
                [
                    self._places(request, length - count, length)
                    for request, (length, count) in enumerate(zip(self.lengths.tolist(), counts, strict=True))
                ]
            ),
            device,
        )

    def _places(self, request: int, first: int, end: int) -> NDArray[np.int64]:
        rows = np.arange(first, end, dtype=np.int64)
        places: NDArray[np.int64] = self.tables[request, rows // PAGE].astype(np.int64) * PAGE + rows % PAGE
        return places

    def truncate(self, lengths: NDArray[np.int64], width: int) -> None:
        """Keep the first ``lengths`` rows of every request; pages that hold none are given back."""
        before, after = pages_of(self.lengths), pages_of(lengths)
        at = np.arange(self.tables.shape[1])
        self.pool.give(self.tables[(at >= after[:, None]) & (at < before[:, None])].tolist())
        self.lengths, self.width = lengths, width

    def take(self, chosen: Sequence[int]) -> None:
        """Keep the requests of ``chosen``, in that order. Only their tables change, and no row is copied."""
        before = self.pages()
        at = list(chosen)
        self.tables, self.lengths = self.tables[at], self.lengths[at]
        self.pool.hold(self.pages())
        self.pool.give(before)

    def fork(self) -> PagedRows:
        """Hold the same rows once more, on the same pages."""
        other = PagedRows(self.pool, len(self.lengths))
        other.lengths, other.tables = self.lengths.copy(), self.tables.copy()
        other.width, other.padded = self.width, self.padded
        other.pool.hold(other.pages())
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> PagedRows:
        return self.fork()

    def release(self) -> None:
        """Give every page back."""
        self.truncate(np.zeros_like(self.lengths), 0)

    def __del__(self) -> None:
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        pages = self.pages()
        pool = PagePool(0, self.pool.keys[0])
        pool.keys, pool.values = (
            [table[pages] for table in tables] for tables in (self.pool.keys, self.pool.values)
        )
        pool._holders = [1] * len(pages)
        tables = np.zeros_like(self.tables)
        tables[np.arange(tables.shape[1]) < pages_of(self.lengths)[:, None]] = range(len(pages))
        return {**vars(self), "pool": pool, "tables": tables}

    def moved(self, device: torch.device) -> None:
        """Move the pages to another device, into a pool of their own there."""
        state = self.__getstate__()
        pool = state["pool"]
        pool.keys, pool.values = (
            [table.to(device) for table in tables] for tables in (pool.keys, pool.values)
        )
        self.pool.give(self.pages())
        vars(self).update(state)

    def rectangle(self, pages: Tensor) -> Tensor:
        """[B, Hkv, width, head_dim] of one block's pages, shorter requests padded with zeros on the left: a copy."""
        index = np.full((len(self.lengths), self.width), -1, dtype=np.int64)
        for request, length in enumerate(self.lengths.tolist()):
            index[request, self.width - length :] = self._places(request, 0, length)
        if not index.size or not pages.shape[0]:
            return pages.new_zeros(*index.shape, *pages.shape[2:]).transpose(1, 2)
        at = uploaded(index, pages.device)
        rows = pages.flatten(0, 1)[at.clamp(min=0)].masked_fill((at < 0)[..., None, None], 0)
        return rows.transpose(1, 2)


class PagedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """One block's part of a cache, as transformers sees it.

    ``keys`` and ``values`` show it as transformers does, [B, Hkv, rows, head_dim] with shorter requests padded on the
    left; that is a copy. Whatever changes the tables is done by the first block that shares them, for all of those
    blocks. On the others it does nothing.

    Attributes:
        rows: the rows of the blocks that share them; None before anything is held.
        place: place of the block among those.
    """

    def __init__(self, rows: PagedRows | None = None, place: int = 0) -> None:
        self.rows = rows
        self.place = place
        super().__init__()
        if rows is not None:
            pages = rows.pool.keys[place]
            self.dtype, self.device = pages.dtype, pages.device
            self.is_initialized = True

    # keys and values are views for transformers; nobody sets them but its constructor, to None
    @property
    def keys(self) -> Tensor | None:
        """[B, Hkv, rows, head_dim], or None."""
        return None if self.rows is None else self.rows.rectangle(self.key_pages)

    @keys.setter
    def keys(self, value: None) -> None:
        assert value is None

    @property
    def values(self) -> Tensor | None:
        """[B, Hkv, rows, head_dim], or None."""
        return None if self.rows is None else self.rows.rectangle(self.value_pages)

    @values.setter
    def values(self, value: None) -> None:
        assert value is None

    @property
    def key_pages(self) -> Tensor:
        """[P, PAGE, Hkv, head_dim]."""
        return self.held.pool.keys[self.place]

    @property
    def value_pages(self) -> Tensor:
        """[P, PAGE, Hkv, head_dim]."""
        return self.held.pool.values[self.place]

    @property
    def held(self) -> PagedRows:
        """:attr:`rows` once there are any."""
        assert self.rows is not None
        return self.rows

    def get_seq_length(self) -> int:
        """Rows that :attr:`keys` shows."""
        return 0 if self.rows is None else self.rows.width

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [B, Hkv, T, head_dim], T rows to every request; gives all rows back as transformers does."""
        counts = [key_states.shape[2]] * key_states.shape[0]
        if self.place == 0:
            self.held.append(counts)
        slots = self.held.slots(counts, key_states.device)
        for pages, states in ((self.key_pages, key_states), (self.value_pages, value_states)):
            pages.flatten(0, 1).index_copy_(0, slots, states.transpose(1, 2).flatten(0, 1))
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` rows of every request."""
        if self.place == 0:
            rows = self.held
            rows.truncate(rows.lengths + tokens_to_remove, rows.width + tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the requests of ``beam_idx``, in that order."""
        if self.place == 0:
            self.held.take(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every request ``repeats`` times, side by side."""
        self.reorder_cache(torch.arange(len(self.held.lengths)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the requests of ``indices``, integers or a bool mask."""
        self.reorder_cache(torch.arange(len(self.held.lengths))[indices.cpu()])

    def to(self, device: torch.device | str) -> None:
        """Move the rows."""
        if self.place == 0:
            self.held.moved(torch.device(device))
        self.device = torch.device(device)


def _power_of_two(count: int) -> int:
    """The next power of two that is at least ``count``. Tables of the same width serve the same graphs."""
    return 1 << (count - 1).bit_length()
