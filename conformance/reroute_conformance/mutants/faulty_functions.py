"""Provides functions of the reference with one small thing wrong, which mutants put in place of the right ones.

Whole targets that are wrong are in ``faulty_targets``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from reroute_reference import CanonicalDecoder, routing
from reroute_reference.cache import RowCache
from reroute_reference.score import attention_scores
from reroute_spec import Plan, Schedule, ScoreRule, plan
from reroute_spec import select as _right_select
from reroute_spec.budget import parse_keep
from reroute_spec.trace import record
from torch import Tensor

_score, _routed_block, _extend = routing.score, routing.routed_block, routing.extend


# Selection


def order_by(key: Callable[[float, int], Any]) -> Callable[..., list[int]]:
    """A selection in another order."""

    def select(scores: Sequence[float], k: int) -> list[int]:
        return sorted(sorted(range(len(scores)), key=lambda i: key(scores[i], i))[:k])

    return select


def selecting(select: Callable[..., list[int]]) -> dict[str, Any]:
    """Patches that put a selection in place of the right one."""
    return {
        "reroute_spec.trace.select": select,
        "reroute_conformance.targets.reference_target.select": select,
    }


def refusing_nan(select: Callable[..., list[int]]) -> Callable[..., list[int]]:
    """A wrong selection that refuses NaN all the same."""

    def wrapped(scores: Sequence[float], k: int) -> list[int]:
        _right_select(scores, k)
        return select(scores, k)

    return wrapped


def best_first(scores: Sequence[float], k: int) -> list[int]:
    """A selection that is reported in the order of the scores, the best first."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


# Budgets and rows


def wrong_budget(rows: Callable[[Any, int, int], int]) -> Callable[..., int]:
    """A budget that takes ``rows(keep, n, pool size)`` in place of the floor of ``keep * n``."""

    def budget(keep: Any, n: int, *, min_keep: int = 1, pool: int | None = None) -> int:
        exact, candidates = parse_keep(keep), n if pool is None else pool
        return min(candidates, max(min_keep, exact if isinstance(exact, int) else rows(exact, n, candidates)))

    return budget


def last_row_routable(
    schedule: Schedule, num_layers: int, visual: Sequence[bool], images: Any = None
) -> Plan:
    """A plan in which the last prompt row may be routed: that of the prompt with one more row after it."""
    longer = plan(schedule, num_layers, [*visual, False], images)
    return replace(longer, num_rows=len(visual), kv_rows=tuple(rows - 1 for rows in longer.kv_rows))


def first_image_only(schedule: Schedule, num_layers: int, visual: Sequence[bool], images: Any = None) -> Plan:
    """A plan that finds the first run of visual rows only."""
    start = next((row for row, flag in enumerate(visual) if flag), len(visual))
    end = next((row for row in range(start, len(visual)) if not visual[row]), len(visual))
    if not any(visual[end:]):
        return plan(schedule, num_layers, visual, images)
    return plan(
        replace(schedule, scope="request"), num_layers, [start <= row < end for row in range(len(visual))]
    )


def everything_reenters(*given: Any) -> Any:
    """A record that takes every selected row for one that came back."""
    request, stage, pool, scores, selected, _, *rest = given
    return record(request, stage, pool, scores, selected, (), *rest)


def absolute_margin(scores: Sequence[float], selected: Sequence[int]) -> float | None:
    """The gap at the threshold, not relative to it."""
    left_out = [score for place, score in enumerate(scores) if place not in set(selected)]
    return min(scores[place] for place in selected) - max(left_out) if selected and left_out else None


# Scores


def score_with(**changed: Callable[..., Any]) -> Callable[..., list[float]]:
    """A score of other arguments."""
    names = ("decoder", "request", "schedule", "layer", "hidden", "cos", "sin", "alive", "pool")

    def score(*args: Any) -> list[float]:
        given = dict(zip(names, args, strict=True))
        return _score(**{**given, **{name: change(given) for name, change in changed.items()}})

    return score


def visual_and_last(given: dict[str, Any]) -> list[int]:
    """The rows U of the softmax without text: the visual rows and the last row."""
    request: Plan = given["request"]
    return [row for row in given["alive"] if row in request.visual_rows or row == request.num_rows - 1]


def stale_scores() -> Callable[..., list[float]]:
    """The scores of a request's first decision at every decision."""
    seen: dict[int, tuple[Plan, dict[int, float]]] = {}

    def score(*args: Any) -> list[float]:
        request, pool = args[1], args[-1]
        values = _score(*args)
        if id(request) not in seen:
            seen[id(request)] = request, dict(zip(pool, values, strict=True))
        return [seen[id(request)][1][ordinal] for ordinal in pool]

    return score


def on_a_fixed_grid(*args: Any, **kwargs: Any) -> list[float]:
    """Scores in fixed point: right to 16 ε of the largest, ties far below it."""
    scores = _score(*args, **kwargs)
    step = 32 * torch.finfo(torch.float32).eps * max(scores)
    return [round(value / step) * step for value in scores]


def in_half_precision(query: Tensor, keys: Tensor, *rest: Any) -> Tensor:
    """Scores of queries and keys that were rounded to float16."""
    return attention_scores(query.half().to(query.dtype), keys.half().to(keys.dtype), *rest)


def largest_head(query: Tensor, keys: Tensor, scaling: float, rule: ScoreRule, *rest: Any) -> Tensor:
    """The maximum over heads, whatever the rule says."""
    return attention_scores(query, keys, scaling, replace(rule, heads="max"), *rest)


# Blocks, cache, decode


def deferred_through_mlp(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    """A whole block on deferred rows that skip attention alone."""
    routed = _routed_block(decoder, layer, hidden, active, *rest)
    deferred = sorted(set(range(hidden.shape[0])) - set(active))
    if deferred and isinstance(decoder, CanonicalDecoder):
        name = f"layers.{layer}."
        gate, up, down = (decoder.weights[f"{name}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        weight = decoder.weights[name + "post_attention_layernorm.weight"]
        normed = F.rms_norm(hidden[deferred], weight.shape, weight, decoder.config.rms_norm_eps)
        routed[deferred] = hidden[deferred] + (F.silu(normed @ gate.T) * (normed @ up.T)) @ down.T
    elif deferred:
        block = decoder.blocks[layer]
        routed[deferred] = hidden[deferred] + block.mlp(block.post_attention_layernorm(hidden[deferred]))
    return routed


def renumbered(
    decoder: Any, layer: int, hidden: Tensor, active: list[int], cos: Tensor, sin: Tensor, cache: Any
) -> Tensor:
    """Active rows at the positions 0, 1, 2, …"""
    cos, sin = cos.clone(), sin.clone()
    cos[active], sin[active] = cos[: len(active)].clone(), sin[: len(active)].clone()
    return _routed_block(decoder, layer, hidden, active, cos, sin, cache)


def in_two_windows(
    decoder: Any, layer: int, hidden: Tensor, active: list[int], cos: Tensor, sin: Tensor, cache: RowCache
) -> Tensor:
    """The second half of the active rows does not attend the first."""
    routed = hidden
    for half in (active[: len(active) // 2], active[len(active) // 2 :]):
        if half:
            routed = routed_in_a_fresh_cache(decoder, layer, routed, half, cos, sin, cache)
    return routed


def routed_in_a_fresh_cache(
    decoder: Any, layer: int, hidden: Tensor, active: list[int], cos: Tensor, sin: Tensor, cache: RowCache
) -> Tensor:
    """Rows that do not attend what the block had cached."""
    fresh = RowCache()
    routed = _routed_block(decoder, layer, hidden, active, cos, sin, fresh)
    keys, values = fresh.keys_values(layer)
    cache.storage.update(keys[None], values[None], layer)
    return routed


def all_rows_cached(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    """A block that runs all rows, and puts the deferred ones back."""
    routed = _routed_block(decoder, layer, hidden, list(range(hidden.shape[0])), *rest)
    deferred = sorted(set(range(hidden.shape[0])) - set(active))
    routed[deferred] = hidden[deferred]
    return routed


def neighbours_paired(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of channels 2i and 2i + 1."""
    half = x.shape[-1] // 2
    cos, sin = (table[..., :half].repeat_interleave(2, dim=-1) for table in (cos, sin))
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos + turned * sin


def norm_without_weight(decoder: CanonicalDecoder, hidden: Tensor) -> Tensor:
    """A final norm whose weight was forgotten."""
    return F.rms_norm(hidden, hidden.shape[-1:], eps=decoder.config.rms_norm_eps)


def decode_at_cache_length(decoder: Any, cache: Any, embeddings: Tensor) -> Tensor:
    """Positions that continue from the rows of the last block's cache."""
    cache.next_position = cache.rows(decoder.num_layers - 1)
    return _extend(decoder, cache, embeddings)


def decoded_rows_forgotten(decoder: Any, cache: RowCache, embeddings: Tensor) -> Tensor:
    """Decoded rows that leave nothing in the last block's cache."""
    states = _extend(decoder, cache, embeddings)
    entry = cache.storage.layers[decoder.num_layers - 1]
    entry.keys, entry.values = (
        x[..., : x.shape[-2] - embeddings.shape[0], :] for x in (entry.keys, entry.values)
    )
    return states
