"""Defines the KV cache of a routed request, whose blocks hold different numbers of rows, and the state beside its keys and values."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from reroute_spec import RerouteError
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer

from ..model.decoder import Decoder
from .pages import PagedLayer
from .records import NanGuard


@dataclass(frozen=True)
class Held:
    """A run of blocks whose caches hold the same rows.

    Attributes:
        first, last: the blocks, both inclusive.
        valid: [B, rows] bool, False for padding, as of the last routed turn; None where there is none. Rows that came
            later are all valid.
    """

    first: int
    last: int
    valid: Tensor | None

    def valid_of(self, rows: int) -> Tensor | None:
        """[B, rows] bool for a cache that now holds ``rows``."""
        if self.valid is None:
            return None
        return torch.nn.functional.pad(self.valid, (0, rows - self.valid.shape[1]), value=True)


@dataclass
class RoutingState:
    """The state of a filled cache beside its keys and values.

    Attributes:
        columns: logical length as transformers counts it, which is the number of columns given so far, padding
            included.
        held: what every block holds; together they cover all blocks.
        num_rows: [B] real rows given so far, deferred or removed ones included.
        hidden_columns: [B] columns that are no rows although no mask hides them: the patches that a first stage drops.
        next_positions: [B, 1 + t], the next position after each of the last t rows, and first the one before them.
            Entries from before the end of a request's last routed turn, or from before its first row, mean nothing.
        reach: [B] rows since a request's last routed turn, or all its rows where none was routed; at most t.
        renumbered: whether later rows count on from a block's own rows.
        guard: NaN flags of the last routed turn that nobody has read yet.
        open: whether a routed forward is appending rows. Nobody else may append, because lengths and positions would go
            stale.
    """

    columns: int
    held: list[Held]
    num_rows: Tensor
    hidden_columns: Tensor
    next_positions: Tensor
    reach: Tensor
    renumbered: bool
    guard: NanGuard
    open: bool = False

    def take(self, index: Tensor) -> None:
        """Keep the requests of ``index`` [B'] in that order."""
        index = index.to(self.num_rows.device)
        self.held = [
            Held(held.first, held.last, None if held.valid is None else held.valid[index])
            for held in self.held
        ]
        self.num_rows, self.hidden_columns = self.num_rows[index], self.hidden_columns[index]
        self.next_positions, self.reach = self.next_positions[index], self.reach[index]


class RoutedCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped here
    """The KV cache of a routed request.

    ``generate`` and the user hold a DynamicCache, and that very object becomes an instance of this class.
    ``get_seq_length()`` is the logical length, and ``get_seq_length(i)`` is the number of rows that block i's cache
    holds.
    """

    routing: RoutingState | None = None

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """The logical length in columns, or the physical rows of one block."""
        if layer_idx is None and self.routing is not None:
            return self.routing.columns
        if layer_idx is not None and layer_idx < len(self.layers) and is_state(self.layers[layer_idx]):
            return 0
        length: int = super().get_seq_length(layer_idx or 0)
        return length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append rows to one block's cache.

        Raises:
            RerouteError: a model that is not routed goes on with the cache of a routed prefill.
        """
        self._check_open()
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return keys, values

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether a block of linear attention goes on from a state; refused like :meth:`update`."""
        if layer_idx is not None:
            self._check_open()
        previous: bool = super().has_previous_state(layer_idx, state_idx)
        return previous

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """A state that a block of linear attention goes on from; refused like :meth:`update`."""
        self._check_open()
        state: Tensor | None = super().get_conv_state(layer_idx, state_idx)
        return state

    def _check_open(self) -> None:
        if self.routing is not None and not self.routing.open:
            raise RerouteError(
                "past_key_values",
                "it was filled by a routed prefill",
                "go on with it while the model is routed",
            )

    def to(self, device: torch.device | str | int | None, *, non_blocking: bool | None = None) -> RoutedCache:
        """Move every key, value and state to ``device``; returns the cache itself.

        Args:
            device: None leaves everything where it is.
            non_blocking: as for tensors. ``False`` by name is what accelerate's hooks give with whatever goes through a
                module; keys and values stay with their blocks then, as those of a DynamicCache, which has no ``to``.
        """
        if device is None or non_blocking is False or self.routing is None or self.routing.open:
            return self
        where, wait = torch.device(device), bool(non_blocking)

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(where, non_blocking=wait)

        for layer in self.layers:
            if is_state(layer):
                for states in (layer.conv_states, layer.recurrent_states):
                    states.update(
                        {i: state if state is None else moved(state) for i, state in states.items()}
                    )
            elif isinstance(layer, PagedLayer):
                layer.to(where)
            elif layer.is_initialized:
                layer.keys, layer.values = moved(layer.keys), moved(layer.values)
            layer.device = where
        state = self.routing
        state.held = [
            Held(held.first, held.last, None if held.valid is None else moved(held.valid))
            for held in state.held
        ]
        state.num_rows, state.hidden_columns = moved(state.num_rows), moved(state.hidden_columns)
        state.next_positions, state.reach = moved(state.next_positions), moved(state.reach)
        return self

    def reset(self) -> None:
        """Empty the cache; the next forward is a prefill."""
        for place, layer in enumerate(self.layers):  # transformers would zero states, and rows before 5.23
            self.layers[place] = type(layer)()
        self.routing = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the requests."""
        super().reorder_cache(beam_idx)
        if self.routing is not None:
            self.routing.take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every request ``repeats`` times, side by side."""
        if self.routing is not None:
            rows = self.routing.num_rows
            self.reorder_cache(torch.arange(len(rows), device=rows.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the requests of ``indices`` (integers, or a bool mask).

        Raises:
            RerouteError: no tensor.
        """
        if not isinstance(indices, Tensor):
            raise RerouteError("indices", f"are a {type(indices).__name__}", "give a tensor")
        if self.routing is not None:
            rows = torch.arange(len(self.routing.num_rows), device=self.routing.num_rows.device)
            self.reorder_cache(rows[indices.to(rows.device)])

    def crop(self, tokens_to_remove: SupportsIndex) -> None:
        """Forget the last ``-tokens_to_remove`` rows, at most back to the end of the last routed turn.

        Raises:
            RerouteError: no integer, a positive number, more rows than came after that turn, or blocks of linear
                attention.
        """
        try:
            tokens_to_remove = operator.index(tokens_to_remove)  # a tensor's too
        except TypeError:
            what = type(tokens_to_remove).__name__
            raise RerouteError("tokens_to_remove", f"is a {what}", "give an integer") from None
        later = 0 if self.routing is None else int(self.routing.reach.min())
        states = any(is_state(layer) for layer in self.layers)
        if tokens_to_remove > 0 or -tokens_to_remove > later or (tokens_to_remove and states):
            why = "over linear attention" if states else f"with {later} rows after the last routed turn"
            raise RerouteError(
                "tokens_to_remove",
                f"{tokens_to_remove} {why}",
                f"give a number from {0 if states else -later} to 0: what a prefill deferred or removed, and a"
                " state, cannot be undone",
            )
        if self.routing is None or not tokens_to_remove:
            return
        for layer in self.layers:
            _shorten(layer, -tokens_to_remove)
        self.routing.columns += tokens_to_remove
        self.routing.num_rows = self.routing.num_rows + tokens_to_remove
        self.routing.next_positions = self.routing.next_positions[:, :tokens_to_remove]
        self.routing.reach = self.routing.reach + tokens_to_remove
        self.routing.held = [
            Held(
                held.first, held.last, None if held.valid is None else held.valid[:, : layer.get_seq_length()]
            )
            for held, layer in ((held, self.layers[held.first]) for held in self.routing.held)
        ]


def is_state(layer: Any) -> bool:
    """Whether a layer of a cache is a state of linear attention, and no rows."""
    return isinstance(layer, LinearAttentionLayer)


def _shorten(layer: Any, rows: int) -> None:
    """Forget the last ``rows`` rows of every request."""
    if isinstance(layer, PagedLayer):
        layer.crop(-rows)
    else:
        layer.keys, layer.values = (
            table[:, :, : table.shape[2] - rows] for table in (layer.keys, layer.values)
        )


def make_cache(decoder: Decoder) -> RoutedCache:
    """An empty cache for ``decoder``."""
    return RoutedCache(config=decoder.config) if decoder.hybrid else RoutedCache()


_FIT = "pass none, an empty DynamicCache, or the cache of a routed prefill"


def check_kind(cache: Any) -> None:
    """Refuse a cache of another kind than a dynamic one.

    Raises:
        RerouteError: naming ``past_key_values``.
    """
    if cache is not None and type(cache) not in (DynamicCache, RoutedCache):
        raise RerouteError("past_key_values", f"a {type(cache).__name__} is not routed", _FIT)


def check_cache(cache: Any, decoder: Decoder) -> bool:
    """Whether ``cache`` holds rows of an earlier turn; anything that is no fit cache is refused.

    Raises:
        RerouteError: naming ``past_key_values``.
    """
    if cache is None:
        return False
    check_kind(cache)
    field, remedy = "past_key_values", _FIT
    if cache.offloading:
        raise RerouteError(field, "an offloaded cache is not routed", remedy)
    foreign = {type(layer).__name__ for layer in cache.layers if type(layer) not in _layers(decoder)}
    if foreign:
        raise RerouteError(field, f"its layers are {', '.join(sorted(foreign))}", remedy)
    filled = any(_holds(layer) for layer in cache.layers)
    if filled and (not isinstance(cache, RoutedCache) or cache.routing is None):
        raise RerouteError(field, "it was filled by an unrouted model", remedy)
    if filled and len(cache.layers) != decoder.num_layers:
        raise RerouteError(field, f"it was filled by a decoder of {len(cache.layers)} blocks", remedy)
    return filled


def _layers(decoder: Decoder) -> tuple[type, ...]:
    return (DynamicLayer, LinearAttentionLayer) if decoder.hybrid else (DynamicLayer, PagedLayer)


def _holds(layer: Any) -> bool:
    return any(layer.has_previous_state.values()) if is_state(layer) else layer.get_seq_length() > 0


def adopt(cache: Any, filled: RoutedCache) -> RoutedCache:
    """Make the caller's empty ``cache`` the filled one, by class and content."""
    cache.layers = filled.layers
    cache.__class__ = RoutedCache
    cache.routing = filled.routing
    adopted: RoutedCache = cache
    return adopted


@dataclass(frozen=True)
class Snapshot:
    """The contents of a cache before a turn, which are restored where the turn fails.

    Attributes:
        lengths: number of rows of every block.
        states: copies of the states of linear attention, by block, because those are written in place.
    """

    lengths: tuple[int, ...]
    states: dict[int, Any]

    @classmethod
    def of(cls, cache: RoutedCache) -> Snapshot:
        """What ``cache`` holds now."""
        states = {
            index: tuple(
                {i: s.clone() for i, s in part.items()}
                for part in (layer.conv_states, layer.recurrent_states)
            )
            for index, layer in enumerate(cache.layers)
            if is_state(layer)
        }
        return cls(tuple(cache.get_seq_length(layer) for layer in range(len(cache.layers))), states)

    def restore(self, cache: RoutedCache) -> None:
        """Make ``cache`` hold that again."""
        for index, (layer, length) in enumerate(zip(cache.layers, self.lengths, strict=True)):
            if index in self.states:
                layer.conv_states, layer.recurrent_states = self.states[index]
            else:
                _shorten(layer, layer.get_seq_length() - length)


def one_request(cache: RoutedCache, layer: int, request: int) -> Any:
    """A cache whose block ``layer`` holds one request's state of linear attention, written in place."""
    own = copy.copy(cache.layers[layer])
    rows = slice(request, request + 1)
    own.conv_states = {i: state[rows] for i, state in own.conv_states.items()}
    own.recurrent_states = {i: state[rows] for i, state in own.recurrent_states.items()}
    view = DynamicCache()
    view.layers = [own] * (layer + 1)
    return view
