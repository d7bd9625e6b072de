"""One block's cache in pages: every request holds just the rows that it ran, and room for rows to come is taken page by page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

PAGE = 16
"""Rows of a page."""


class PagedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """A layer of a ``DynamicCache`` whose rows lie in pages.

    ``keys`` and ``values`` show it as transformers does, [B, Hkv, rows, head_dim] with shorter requests padded on the left; that is
    a copy. Requests that were repeated share pages until one of them appends.

    Attributes:
        key_pages, value_pages: [P, PAGE, Hkv, head_dim].
        lengths: rows of every request.
        width: rows that transformers sees, padding included; it stays when the longest request leaves.
        tables: pages of every request, in order.
        padded: whether a turn on rectangles left padding among the rows, which only a mask hides.
    """

    def __init__(self) -> None:
        self.key_pages: Tensor | None = None
        self.value_pages: Tensor | None = None
        self.lengths: list[int] = []
        self.width = 0
        self.padded = False
        self.tables: list[list[int]] = []
        self._free: list[int] = []
        self._holders: list[int] = []
        super().__init__()

    # keys and values are views for transformers; nobody sets them but its constructor and reset, to None
    @property
    def keys(self) -> Tensor | None:
        """[B, Hkv, rows, head_dim], or None."""
        return self._rectangle(self.key_pages)

    @keys.setter
    def keys(self, value: None) -> None:
        self._drop(value)

    @property
    def values(self) -> Tensor | None:
        """[B, Hkv, rows, head_dim], or None."""
        return self._rectangle(self.value_pages)

    @values.setter
    def values(self, value: None) -> None:
        self._drop(value)

    def _drop(self, value: None) -> None:
        assert value is None
        self.key_pages = self.value_pages = None
        self.padded = False
        self.lengths, self.width, self.tables, self._free, self._holders = [], 0, [], [], []

    def get_seq_length(self) -> int:
        """Rows that :attr:`keys` shows."""
        return self.width

    def open(self, requests: int, like: Tensor) -> None:
        """Begin, with ``requests`` requests that hold nothing; ``like`` [.., Hkv, head_dim] gives sizes, dtype and device."""
        self.dtype, self.device = like.dtype, like.device
        self.lengths, self.tables = [0] * requests, [[] for _ in range(requests)]
        self.key_pages = like.new_empty(0, PAGE, *like.shape[-2:])
        self.value_pages = torch.empty_like(self.key_pages)
        self.is_initialized = True

    def append(self, counts: Sequence[int]) -> list[int]:
        """Room for ``counts`` more rows of every request: the slots to write them to, request by request."""
        needed = [
            -(-(length + count) // PAGE) - len(table)
            for length, count, table in zip(self.lengths, counts, self.tables, strict=True)
        ]
        shared = [
            bool(count and length % PAGE and self._holders[table[length // PAGE]] > 1)
            for length, count, table in zip(self.lengths, counts, self.tables, strict=True)
        ]
        self._reserve(sum(needed) + sum(shared))
        self.width += max(counts, default=0)
        slots: list[int] = []
        for request, count in enumerate(counts):
            table, length = self.tables[request], self.lengths[request]
            if shared[request] and self._holders[table[length // PAGE]] > 1:  # the last sharer keeps the page
                self._own(table, length // PAGE)
            table.extend(self._take() for _ in range(needed[request]))
            slots.extend(table[row // PAGE] * PAGE + row % PAGE for row in range(length, length + count))
            self.lengths[request] = length + count
        return slots

    def block_table(self) -> Tensor:
        """[B, most pages] int32 on the layer's device."""
        most = max(map(len, self.tables), default=0)
        return torch.tensor(
            [[*table, *[0] * (most - len(table))] for table in self.tables],
            dtype=torch.int32,
            device=self.device,
        ).view(len(self.tables), most)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [B, Hkv, T, head_dim], T rows to every request; gives all rows back as transformers does."""
        batch, _, rows, _ = key_states.shape
        if not self.is_initialized:
            self.open(batch, key_states.transpose(1, 2))
        slots = torch.tensor(self.append([rows] * batch), device=self.device)
        self.write(
            slots, key_states.transpose(1, 2).flatten(0, 1), value_states.transpose(1, 2).flatten(0, 1)
        )
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Rows [n, Hkv, head_dim] to ``slots`` [n]."""
        for pages, rows in ((self.key_pages, keys), (self.value_pages, values)):
            assert pages is not None
            pages.flatten(0, 1).index_copy_(0, slots, rows)

    def _truncate(self, lengths: Sequence[int]) -> None:
        """Keep the first ``lengths`` rows of every request; pages that hold none are given back."""
        for request, length in enumerate(lengths):
            table, kept = self.tables[request], -(-length // PAGE)
            for page in table[kept:]:
                self._give(page)
            del table[kept:]
            self.lengths[request] = length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` rows of every request."""
        self._truncate([length + tokens_to_remove for length in self.lengths])
        self.width += tokens_to_remove

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The requests of ``beam_idx``, in that order: by their tables, no row is copied."""
        chosen = beam_idx.tolist()
        tables = [list(self.tables[request]) for request in chosen]
        for table in tables:
            for page in table:
                self._holders[page] += 1
        for table in self.tables:
            for page in table:
                self._give(page)
        self.lengths, self.tables = [self.lengths[request] for request in chosen], tables

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every request ``repeats`` times, side by side."""
        self.reorder_cache(torch.arange(len(self.tables)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """The requests of ``indices``, integers or a bool mask."""
        self.reorder_cache(torch.arange(len(self.tables))[indices.cpu()])

    def to(self, device: torch.device | str) -> None:
        """Move every page."""
        if self.key_pages is not None and self.value_pages is not None:
            self.key_pages, self.value_pages = self.key_pages.to(device), self.value_pages.to(device)
        self.device = torch.device(device)

    def _rectangle(self, pages: Tensor | None) -> Tensor | None:
        if pages is None:
            return None
        index = [
            [pages.shape[0] * PAGE] * (self.width - length)
            + [table[row // PAGE] * PAGE + row % PAGE for row in range(length)]
            for length, table in zip(self.lengths, self.tables, strict=True)
        ]
        at = torch.tensor(index, dtype=torch.long, device=pages.device).view(len(self.lengths), self.width)
        rows = torch.cat([pages.flatten(0, 1), pages.new_zeros(1, *pages.shape[2:])])
        return rows[at].transpose(1, 2)

    def _reserve(self, pages: int) -> None:
        """At least so many free pages; a failure to get them changes nothing."""
        missing = pages - len(self._free)
        if missing <= 0:
            return
        assert self.key_pages is not None
        assert self.value_pages is not None
        held = self.key_pages.shape[0]
        # a fifth more than is needed now, so that decode does not move the cache at every page
        more = self.key_pages.new_empty(missing + held // 5, *self.key_pages.shape[1:])
        grown = torch.cat([self.key_pages, more]), torch.cat([self.value_pages, more])
        self.key_pages, self.value_pages = grown
        self._free.extend(range(held, grown[0].shape[0]))
        self._holders.extend([0] * (grown[0].shape[0] - held))

    def _take(self) -> int:
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def _give(self, page: int) -> None:
        self._holders[page] -= 1
        if not self._holders[page]:
            self._free.append(page)

    def _own(self, table: list[int], place: int) -> None:
        """A page that others hold too becomes a copy of the request's own."""
        assert self.key_pages is not None
        assert self.value_pages is not None
        old, new = table[place], self._take()
        for pages in (self.key_pages, self.value_pages):
            pages[new].copy_(pages[old])
        self._give(old)
        table[place] = new
