"""A dynamic cache whose blocks hold different numbers of rows, and the two numbers that no block's cache can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from reroute_spec import RerouteError
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from .records import NanGuard


@dataclass
class RoutingState:
    """What a filled cache knows beside its keys and values.

    Attributes:
        columns: logical length as transformers counts it: columns given so far, padding included.
        groups: (first block, last block, [B] rows of left padding or None) of every stage.
        num_rows: [B] real rows given so far, deferred or removed ones included.
        next_positions: [B, 1 + t], the next position after the prefill and after each of the t later rows.
        guard: NaN flags of the prefill that nobody has read yet.
        open: whether a routed forward is appending rows; nobody else may, for lengths and positions would go stale.
    """

    columns: int
    groups: list[tuple[int, int, Tensor | None]]
    num_rows: Tensor
    next_positions: Tensor
    guard: NanGuard
    open: bool = False

    def take(self, index: Tensor) -> None:
        """Keep the requests of ``index`` [B'] in that order."""
        index = index.to(self.num_rows.device)
        self.groups = [
            (first, last, None if pads is None else pads[index]) for first, last, pads in self.groups
        ]
        self.num_rows, self.next_positions = self.num_rows[index], self.next_positions[index]


class RoutedCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped here
    """The cache of a routed request. ``generate`` and the user hold a DynamicCache; that very object becomes this.

    ``get_seq_length()`` is the logical length, ``get_seq_length(i)`` the rows that block i's cache holds.
    """

    routing: RoutingState | None = None

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """The logical length in columns, or the physical rows of one block."""
        if layer_idx is None and self.routing is not None:
            return self.routing.columns
        length: int = super().get_seq_length(layer_idx or 0)
        return length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append rows to one block's cache.

        Raises:
            RerouteError: a model that is not routed goes on with the cache of a routed prefill.
        """
        if self.routing is not None and not self.routing.open:
            raise RerouteError(
                "past_key_values",
                "it was filled by a routed prefill",
                "go on with it while the model is routed",
            )
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return keys, values

    def reset(self) -> None:
        """Empty the cache; the next forward is a prefill."""
        for layer in self.layers:  # transformers before 5.23 would zero the rows and keep them
            layer.keys = layer.values = None
            layer.is_initialized = False
        self.routing = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the requests."""
        super().reorder_cache(beam_idx)
        if self.routing is not None:
            self.routing.take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every request ``repeats`` times, side by side."""
        super().batch_repeat_interleave(repeats)
        if self.routing is not None:
            rows = self.routing.num_rows
            self.routing.take(torch.arange(len(rows), device=rows.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the requests of ``indices`` (integers, or a bool mask)."""
        super().batch_select_indices(indices)
        if self.routing is not None:
            self.routing.take(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` rows, at most back to the end of the routed prefill.

        Raises:
            RerouteError: a positive number, or more rows than came after the prefill.
        """
        later = 0 if self.routing is None else self.routing.next_positions.shape[1] - 1
        if tokens_to_remove > 0 or -tokens_to_remove > later:
            raise RerouteError(
                "tokens_to_remove",
                f"{tokens_to_remove} with {later} rows after the routed prefill",
                f"give a number from {-later} to 0: what a prefill deferred or removed cannot be undone",
            )
        super().crop(tokens_to_remove)
        if self.routing is not None and tokens_to_remove:
            self.routing.columns += tokens_to_remove
            self.routing.num_rows = self.routing.num_rows + tokens_to_remove
            self.routing.next_positions = self.routing.next_positions[:, :tokens_to_remove]


def check_cache(cache: Any, num_layers: int) -> bool:
    """Whether ``cache`` holds rows of an earlier turn; anything that is no fit cache is refused.

    Raises:
        RerouteError: naming ``past_key_values``.
    """
    if cache is None:
        return False
    field, remedy = "past_key_values", "pass none, an empty DynamicCache, or the cache of a routed prefill"
    if type(cache) not in (DynamicCache, RoutedCache):
        raise RerouteError(field, f"a {type(cache).__name__} is not routed", remedy)
    if cache.offloading:
        raise RerouteError(field, "an offloaded cache is not routed", remedy)
    foreign = {type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer}
    if foreign:
        raise RerouteError(field, f"its layers are {', '.join(sorted(foreign))}", remedy)
    filled = any(layer.get_seq_length() for layer in cache.layers)
    if filled and (not isinstance(cache, RoutedCache) or cache.routing is None):
        raise RerouteError(field, "it was filled by an unrouted model", remedy)
    if filled and len(cache.layers) != num_layers:
        raise RerouteError(field, f"it was filled by a decoder of {len(cache.layers)} blocks", remedy)
    return filled


def adopt(cache: Any, filled: RoutedCache) -> RoutedCache:
    """Make the caller's empty ``cache`` the filled one, by class and content."""
    cache.layers = filled.layers
    cache.__class__ = RoutedCache
    cache.routing = filled.routing
    adopted: RoutedCache = cache
    return adopted
