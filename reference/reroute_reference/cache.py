"""What one request keeps between forward calls (RR-KV): per block exactly the rows that ran it, and two counters."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from transformers import DynamicCache


@dataclass
class RowCache:
    """The cache of one request.

    Attributes:
        storage: keys and values per block, [1, K, rows, h]; a block that deferred rows holds fewer.
        length: logical length, real rows so far. Never read off ``storage`` (RR-KV-003).
        next_position: 1 + the largest position so far, deferred rows included (RR-KV-004).
    """

    storage: DynamicCache = field(default_factory=DynamicCache)
    length: int = 0
    next_position: int = 0

    def rows(self, layer: int) -> int:
        """Rows that block ``layer`` holds."""
        return int(self.storage.get_seq_length(layer))

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of block ``layer``, each [K, rows, h]."""
        entry = self.storage.layers[layer]
        return entry.keys[0], entry.values[0]
