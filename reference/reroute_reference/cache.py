"""What one request keeps between forward calls (RR-KV): per block exactly the rows that ran it, and two counters."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from reroute_spec import RerouteError
from torch import Tensor
from transformers import DynamicCache


@dataclass
class RowCache:
    """The cache of one request.

    Attributes:
        storage: keys and values per block, [1, K, rows, h]; a block that deferred rows holds fewer. A block of linear
            attention has its states here and no rows (RR-BLOCK-011).
        length: logical length, real rows so far. Never read off ``storage`` (RR-KV-003).
        next_position: 1 + the largest coordinate of any position so far, deferred rows included (RR-KV-004).
        renumbered: whether rows are numbered block by block, as ``positions = renumber`` asks (RR-BLOCK-009).
        reach: ``next_position`` at the end of the last routed prefill, then after every row since: how far
            :meth:`crop` can go back.
    """

    storage: DynamicCache = field(default_factory=DynamicCache)
    length: int = 0
    next_position: int = 0
    renumbered: bool = False
    reach: list[int] = field(default_factory=lambda: [0])

    def rows(self, layer: int) -> int:
        """Rows that block ``layer`` holds."""
        return self.keys_values(layer)[0].shape[1] if layer < len(self.storage.layers) else 0

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of block ``layer``, each [K, rows, h]; empty where it has run no row with plain attention."""
        entry = self.storage.layers[layer]
        keys, values = getattr(entry, "keys", None), getattr(entry, "values", None)
        # a block of linear attention has states, and no rows  RR-BLOCK-011
        return (torch.empty(0, 0, 0),) * 2 if keys is None or values is None else (keys[0], values[0])

    def first_position(self, layer: int) -> int:
        """Position of the next row in block ``layer``."""
        return self.rows(layer) if self.renumbered else self.next_position

    def advance(self, positions: Int[Tensor, "*axes n"], *, routed: bool = False) -> None:
        """Count new rows at ``positions``, after the blocks have stored what they ran."""
        largest = positions.reshape(-1, positions.shape[-1]).amax(dim=0)
        ends = torch.cummax(largest, dim=0).values.add(1).clamp(min=self.next_position).tolist()
        self.length += len(ends)  # RR-KV-003
        self.next_position = int(ends[-1])  # RR-KV-004
        self.reach = [self.next_position] if routed else [*self.reach, *map(int, ends)]

    def copy(self) -> RowCache:
        """A cache of its own: what runs on it leaves this one as it is."""
        return copy.deepcopy(self)

    def crop(self, rows: int) -> None:
        """Forget the newest rows: ``-n`` or 0 drops n of them, a positive count keeps that many (RR-KV-009).

        Raises:
            RerouteError: further back than the end of the last routed prefill, whose rows differ from block to block;
                or over blocks of linear attention, whose states cannot be rewound.
        """
        if isinstance(rows, bool) or not isinstance(rows, int) or rows > self.length:
            raise RerouteError(
                "crop", f"{rows!r} of {self.length} rows", "give -n to drop n rows, or how many to keep"
            )
        dropped = -rows if rows <= 0 else self.length - rows
        if dropped == 0:
            return
        # every block ran the rows since the last routed prefill, and them alone  RR-KV-009
        if dropped >= len(self.reach):
            raise RerouteError(
                "crop",
                f"{dropped} rows back, past the end of the last routed prefill",
                f"drop at most {len(self.reach) - 1} rows, or run the prefill anew",
            )
        if any(not hasattr(entry, "keys") for entry in self.storage.layers):
            raise RerouteError(
                "crop",
                "the decoder has blocks of linear attention, whose states cannot be rewound",
                "keep a copy() of the cache from before the rows",
            )
        for entry in self.storage.layers:
            entry.keys, entry.values = entry.keys[:, :, :-dropped], entry.values[:, :, :-dropped]
        self.length -= dropped
        self.reach = self.reach[:-dropped]
        self.next_position = self.reach[-1]
