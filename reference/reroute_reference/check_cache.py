"""Refuses caches and tokens that a later turn cannot go on from, before its first block runs (RR-KV-010, RR-KV-011)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from reroute_spec import RerouteError, Schedule
from torch import Tensor

from .cache import RowCache
from .check_request import Decoder, check_ids
from .families import PLAIN_ATTENTION


def check_cache(decoder: Decoder, cache: Any, batch: int, schedule: Schedule) -> list[RowCache]:
    """The caches of a later turn, one per request, in any order the caller moved them to (RR-KV-010).

    Raises:
        RerouteError: a cache that the reference has not filled, or of another model, precision or batch (RR-KV-011).
    """
    if not isinstance(cache, (list, tuple)) or not all(isinstance(entry, RowCache) for entry in cache):
        raise RerouteError(
            "cache", f"is a {type(cache).__name__}", "give the cache that an earlier run returned"
        )
    if len(cache) != batch:
        raise RerouteError("cache", f"holds {len(cache)} requests", f"the inputs hold {batch}")
    for index, entry in enumerate(cache):
        check_one(decoder, entry, f"cache[{index}]")
        if schedule.decisions and entry.renumbered != (schedule.positions == "renumber"):
            filled_under = "renumber" if entry.renumbered else "preserve"
            raise RerouteError(
                "positions",
                f"{schedule.positions!r} over a cache of {filled_under!r}",
                "keep one per session",
            )
    # each holds its caches, its length and its next position: requests move whole  RR-KV-010
    return list(cache)


def check_one(decoder: Decoder, cache: Any, field: str) -> None:
    """Refuse what is no cache of one request of this decoder, in its precision (RR-KV-011)."""
    if not isinstance(cache, RowCache):
        raise RerouteError(
            field, f"is a {type(cache).__name__}", "give one of the caches that an earlier run returned"
        )
    blocks = cache.storage.layers
    if len(blocks) != decoder.num_layers:
        raise RerouteError(
            field,
            f"is of {len(blocks)} blocks and {cache.length} rows",
            f"give one that a run of these {decoder.num_layers} blocks filled",
        )
    heads, width = decoder.key_heads, decoder.head_dim
    for layer, entry in enumerate(blocks):
        plain, holds = decoder.kinds[layer] == PLAIN_ATTENTION, hasattr(entry, "keys")
        if plain != holds:
            raise RerouteError(
                field,
                f"holds {'keys and values' if holds else 'the states of linear attention'} of block {layer}",
                f"give one that this model filled: its block {layer} is {decoder.kinds[layer]}",
            )
        if cache.rows(layer) > cache.length:
            raise RerouteError(
                field,
                f"holds {cache.rows(layer)} rows of block {layer} and counts {cache.length}",
                "give a cache as a run left it: crop() and copy() keep the counts right",
            )
        if not cache.rows(layer):
            continue
        keys, values = cache.keys_values(layer)
        for held in (keys, values):
            if held.dtype != decoder.dtype:
                raise RerouteError(
                    field,
                    f"holds {held.dtype}",
                    f"continue in the precision it was filled in, not {decoder.dtype}",
                )
            if (held.shape[0], held.shape[-1]) != (heads, width):
                raise RerouteError(
                    field,
                    f"holds {held.shape[0]} key/value heads of size {held.shape[-1]} in block {layer}",
                    f"give one that this model filled: it has {heads} of size {width}",
                )


def check_tokens(decoder: Decoder, tokens: Any) -> Int[Tensor, " n"]:
    """Token ids to append to a cache: one axis, not empty, all of them in the vocabulary."""
    if not isinstance(tokens, Tensor) or tokens.ndim != 1 or not len(tokens):
        found = (
            f"has shape {list(tokens.shape)}"
            if isinstance(tokens, Tensor)
            else f"is a {type(tokens).__name__}"
        )
        raise RerouteError("tokens", found, "give a tensor of one axis with at least one token id")
    check_ids("tokens", tokens, decoder.vocabulary)
    return tokens
