"""Registers the kernels as torch operators, ``torch.ops.reroute.*``, which are checked, traced, compiled and captured like any other.

Every function here checks what the host can see and names what is wrong. What only the device knows, which is the
values of index and offset tables, is the caller's responsibility, because looking would stop the device. No operator
has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from reroute_spec import RerouteError
from torch import Tensor

from .operand_checks import (
    INDEX,
    MOST_REQUESTS,
    check_angles,
    check_count,
    check_covered,
    check_disjoint,
    check_first,
    check_heads,
    check_number,
    check_pages,
    check_starts,
    check_tensor,
    check_width,
    check_written,
)

_library: Any = torch.library.Library("reroute", "DEF")  # type: ignore[no-untyped-call]


# ---------------------------------------------------------------------------------------------------------------- score


def score_last_row(
    query: Tensor,
    key: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    axes: Tensor | None,
    cu_seqlens: Tensor,
    cu_queries: Tensor,
    rotated: Tensor | None,
    scale: float,
    max_rows: int,
    max_queries: int,
    heads: str,
) -> Tensor:
    """How much a request's last rows attend each of its rows (RR-SCORE-001 to 004, RR-SCORE-009).

    Args:
        query: [Q, H, D], rows of all requests that ask, one after another; a request's last ones, in order. Queries and
            keys as projected and normalised, turned already where ``cos`` is None.
        key: [T, Hkv, D], the rows U of all requests, one request after another.
        cos, sin: [T, W] of every row at its original position, W ≤ D channels turned in half-split pairs; with ``axes``
            [A, T, W], one table per axis of the positions. None: ``query`` and ``key`` are turned.
        axes: [W] int32, the axis that each channel takes (any sections, interleaved or not), or None.
        cu_seqlens: [R + 1] int32, where each request's rows begin, and T.
        cu_queries: [R + 1] int32, where each request's asking rows begin, and Q.
        rotated: [T, Hkv, D] or None; the turned keys are written to it, for the cache.
        scale: of the logits, the block's own.
        max_rows, max_queries: the largest of any request.
        heads: ``mean`` or ``max``, over all query heads after the asking rows are averaged.

    Returns:
        [T] float32.

    Raises:
        RerouteError: a device, shape, dtype or layout that the kernel does not take, by field.
    """
    check_first("key", key, 3)
    check_tensor("query", query, [None, None, key.shape[2]], (key.dtype,), key)
    check_heads(query.shape[1], key.shape[1])
    if cos is not None:
        check_angles(cos, sin, axes, key.shape[0], key.shape[2], key)
        if rotated is not None:
            check_tensor("rotated", rotated, list(key.shape), (key.dtype,), key, dense=3)
    elif sin is not None or axes is not None or rotated is not None:
        raise RerouteError(
            "cos", "is None beside sin, axes or rotated", "give it, or none of them: keys are turned then"
        )
    check_starts("cu_seqlens", cu_seqlens, None, key)
    check_starts("cu_queries", cu_queries, cu_seqlens.shape[0], key)
    check_covered("key", key, cu_seqlens)
    check_number("scale", scale)
    check_count("max_rows", max_rows, 0)
    check_count("max_queries", max_queries, 1)
    if heads not in ("mean", "max"):
        raise RerouteError("heads", repr(heads), "give 'mean' or 'max'")
    scores: Tensor = torch.ops.reroute.score_last_row(
        query, key, cos, sin, axes, cu_seqlens, cu_queries, rotated, scale, max_rows, max_queries, heads
    )
    return scores


def select_compact(
    scores: Tensor,
    candidates: Tensor,
    cu_candidates: Tensor,
    cu_selected: Tensor,
    always: Tensor,
    cu_seqlens: Tensor,
    cu_active: Tensor,
    num_selected: int,
    num_active: int,
    max_candidates: int,
    max_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Which candidates run and where the running rows go (RR-SEL-001 to 005, RR-POOL-002).

    A segment is what a budget is taken of: a request, or an image of one under ``scope = image``. All counts are known on
    the host; the tables are their sums.

    Args:
        scores: [T] float32, of every row.
        candidates: [V] int32, rows of the candidates, segment by segment, each in the order of its ordinals.
        cu_candidates, cu_selected: [G + 1] int32, where each segment's candidates and selected begin, and how many.
        always: [T] bool, rows that run whatever their score; False for candidates and for rows that cannot run.
        cu_seqlens, cu_active: [R + 1] int32, where each request's rows and running rows begin, and how many.
        num_selected, num_active: the last of ``cu_selected`` and ``cu_active``.
        max_candidates, max_rows: the largest of any segment and request.

    Returns:
        ``selected`` [num_selected] and ``deferred`` [V - num_selected], places within their segment, ascending;
        ``active`` [num_active], rows that run, ascending; ``inverse`` [T], each row's place in ``active`` or -1, all int32;
        ``has_nan`` [G] bool: such a segment's choice means nothing (see :func:`refuse_nan`).

    Raises:
        RerouteError: a device, shape, dtype or layout that the kernel does not take, by field.
    """
    check_first("scores", scores, 1, (torch.float32,))
    check_tensor("candidates", candidates, [None], INDEX, scores)
    check_starts("cu_candidates", cu_candidates, None, scores)
    check_starts("cu_selected", cu_selected, cu_candidates.shape[0], scores)
    check_tensor("always", always, list(scores.shape), (torch.bool,), scores)
    check_starts("cu_seqlens", cu_seqlens, None, scores)
    check_starts("cu_active", cu_active, cu_seqlens.shape[0], scores)
    check_covered("scores", scores, cu_seqlens)
    check_count("max_candidates", max_candidates, 0)
    check_count("max_rows", max_rows, 0)
    check_count("num_selected", num_selected, 0, candidates.shape[0])
    check_count("num_active", num_active, 0, scores.shape[0])
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = torch.ops.reroute.select_compact(
        scores,
        candidates,
        cu_candidates,
        cu_selected,
        always,
        cu_seqlens,
        cu_active,
        num_selected,
        num_active,
        max_candidates,
        max_rows,
    )
    return result


def refuse_nan(has_nan: Tensor) -> None:
    """Raise where a segment had a NaN score. Reads the device: not for the hot path (RR-SEL-005).

    Raises:
        RerouteError: naming the first such segment.
    """
    check_tensor("has_nan", has_nan, [None], (torch.bool,), has_nan)
    segments = has_nan.nonzero().flatten().tolist()
    if segments:
        raise RerouteError(
            f"scores of segment {segments[0]}",
            "hold a NaN",
            "a NaN is never ordered; find the block that made it",
        )


# ----------------------------------------------------------------------------------------------------------------- rows


def gather_rmsnorm(stream: Tensor, index: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The way into a stage: its rows, and the same normalised as its first block normalises them.

    Args:
        stream: [T, d], the residual stream.
        index: [M] int32, rows of the stage.
        weight: [d], of the block's input norm (for norms that multiply by 1 + w, give that).
        epsilon: of the norm.

    Returns:
        ``rows`` [M, d] and ``normed`` [M, d].
    """
    check_first("stream", stream, 2)
    check_tensor("index", index, [None], INDEX, stream)
    check_tensor("weight", weight, [stream.shape[1]], (stream.dtype,), stream)
    check_number("epsilon", epsilon)
    check_width("stream", stream.shape[1])
    result: tuple[Tensor, Tensor] = torch.ops.reroute.gather_rmsnorm(stream, index, weight, epsilon)
    return result


def add_rmsnorm(residual: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Adds ``delta`` [M, d] to ``residual`` [M, d] in place, and returns the sum normalised by ``weight`` [d], [M, d]."""
    check_first("residual", residual, 2)
    check_tensor("delta", delta, list(residual.shape), (residual.dtype,), residual)
    check_tensor("weight", weight, [residual.shape[1]], (residual.dtype,), residual)
    check_number("epsilon", epsilon)
    check_written("residual", residual)
    check_width("residual", residual.shape[1])
    normed: Tensor = torch.ops.reroute.add_rmsnorm(residual, delta, weight, epsilon)
    return normed


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``gate_up`` [M, 2F], gates first: [M, F]."""
    check_first("gate_up", gate_up, 2)
    if gate_up.shape[1] % 2:
        raise RerouteError("gate_up", f"has {gate_up.shape[1]} channels", "give gates and as many more")
    out: Tensor = torch.ops.reroute.swiglu(gate_up)
    return out


def write_back(stream: Tensor, index: Tensor, residual: Tensor, delta: Tensor) -> None:
    """The way out of a stage: rows ``index`` [M] int32 of ``stream`` [T, d] become ``residual + delta``, both [M, d].

    No row may be named twice.
    """
    check_first("stream", stream, 2)
    check_tensor("index", index, [None], INDEX, stream)
    for name, x in (("residual", residual), ("delta", delta)):
        check_tensor(name, x, [index.shape[0], stream.shape[1]], (stream.dtype,), stream)
    check_written("stream", stream)
    torch.ops.reroute.write_back(stream, index, residual, delta)


# ---------------------------------------------------------------------------------------------------------------- cache


def rope_kv_write(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    axes: Tensor | None,
    rows: Tensor,
    slots: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
) -> tuple[Tensor, Tensor]:
    """Turns queries and keys by their original positions and writes keys and values to a block's pages.

    Args:
        query: [M, H, D]; key, value: [M, Hkv, D]; views of one fused projection are as good.
        cos, sin, axes: tables as for :func:`score_last_row`, [T, W] or [A, T, W] with ``axes`` [W].
        rows: [M] int32, the row of the tables that each row takes.
        slots: [M] int64, ``page * page size + row in the page``, each once; below zero, nothing is written for that row.
        key_pages, value_pages: [P, page size, Hkv, D], written in place.

    Returns:
        The turned queries [M, H, D] and keys [M, Hkv, D].
    """
    check_first("query", query, 3)
    count, _, head_dim = query.shape
    check_tensor("key", key, [count, None, head_dim], (query.dtype,), query)
    check_tensor("value", value, list(key.shape), (query.dtype,), query)
    check_heads(query.shape[1], key.shape[1])
    check_angles(cos, sin, axes, None, head_dim, query)
    check_tensor("rows", rows, [count], INDEX, query)
    check_tensor("slots", slots, [count], (torch.int64,), query)
    check_pages(key_pages, value_pages, key.shape[1], query)
    check_written("key_pages", key_pages)
    check_written("value_pages", value_pages)
    turned: tuple[Tensor, Tensor] = torch.ops.reroute.rope_kv_write(
        query, key, value, cos, sin, axes, rows, slots, key_pages, value_pages
    )
    return turned


def decode_paged(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    scale: float,
    max_length: int,
) -> Tensor:
    """Attention of one new row a request to all rows of its cache in one block (RR-KV-002).

    Args:
        query: [R, H, D], turned; the row's own key and value are in the pages already.
        key_pages, value_pages: [P, page size, Hkv, D].
        block_table: [R, most pages] int32, a request's pages in order; what lies beyond its length is not read.
        lengths: [R] int32, rows that the block holds for each request, the new one included; 0 gives zeros.
        scale: of the logits.
        max_length: the largest length.

    Returns:
        [R, H, D] in the dtype of ``query``.
    """
    check_first("query", query, 3)
    check_pages(key_pages, value_pages, None, query)
    check_heads(query.shape[1], key_pages.shape[2])
    check_tensor("block_table", block_table, [query.shape[0], None], INDEX, query)
    check_tensor("lengths", lengths, [query.shape[0]], INDEX, query)
    check_number("scale", scale)
    check_count("max_length", max_length, 0)
    check_count("requests", query.shape[0], 0, MOST_REQUESTS)
    if max_length > block_table.shape[1] * key_pages.shape[1]:
        raise RerouteError(
            "max_length",
            f"{max_length} rows do not fit in {block_table.shape[1]} pages of {key_pages.shape[1]}",
            "give a wider block_table",
        )
    out: Tensor = torch.ops.reroute.decode_paged(
        query, key_pages, value_pages, block_table, lengths, scale, max_length
    )
    return out


# --------------------------------------------------------------------------------------------------------- registration


def _register(
    schema: str, launcher: str, fake: Callable[..., Any], disjoint: Sequence[tuple[str, str]] = ()
) -> None:
    """Define an operator: its kernel on every device that :func:`check_device` lets pass, and its shapes for tracing.

    ``disjoint`` are arguments of which one is written while other programs may still read the other.
    """
    name = schema.split("(")[0]
    module, function = launcher.split(":")
    _library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))

    names = [
        argument.split()[-1] for argument in schema[schema.index("(") + 1 : schema.index(") ->")].split(", ")
    ]

    def run(*args: Any) -> Any:
        for written, read in disjoint:
            check_disjoint(written, args[names.index(written)], args[names.index(read)], read)
        import importlib  # triton is imported where a kernel runs, not before

        return getattr(importlib.import_module(f"{__package__}.{module}"), function)(*args)

    for key in ("CPU", "CUDA"):
        _library.impl(name, run, key)
    torch.library.register_fake(f"reroute::{name}", fake, lib=_library)


def _fake_select(scores: Tensor, candidates: Tensor, cu_candidates: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    num_selected, num_active = rest[4], rest[5]
    counts = (num_selected, candidates.shape[0] - num_selected, num_active, scores.shape[0])
    tables = [scores.new_empty(n, dtype=torch.int32) for n in counts]
    return (*tables, scores.new_empty(cu_candidates.shape[0] - 1, dtype=torch.bool))


def _fake_gather(stream: Tensor, index: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    shape = (index.shape[0], stream.shape[1])
    return stream.new_empty(shape), stream.new_empty(shape)


_register(
    "score_last_row(Tensor query, Tensor key, Tensor? cos, Tensor? sin, Tensor? axes, Tensor cu_seqlens, "
    "Tensor cu_queries, Tensor(a!)? rotated, float scale, SymInt max_rows, SymInt max_queries, str heads) -> Tensor",
    "score:score_last_row",
    lambda query, key, *rest: key.new_empty(key.shape[0], dtype=torch.float32),
    disjoint=[("rotated", "key")],
)
_register(
    "select_compact(Tensor scores, Tensor candidates, Tensor cu_candidates, Tensor cu_selected, Tensor always, "
    "Tensor cu_seqlens, Tensor cu_active, SymInt num_selected, SymInt num_active, SymInt max_candidates, "
    "SymInt max_rows) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "select:select_compact",
    _fake_select,
)
_register(
    "gather_rmsnorm(Tensor stream, Tensor index, Tensor weight, float epsilon) -> (Tensor, Tensor)",
    "rows:gather_rmsnorm",
    _fake_gather,
)
_register(
    "add_rmsnorm(Tensor(a!) residual, Tensor delta, Tensor weight, float epsilon) -> Tensor",
    "rows:add_rmsnorm",
    lambda residual, *rest: residual.new_empty(residual.shape),
    disjoint=[("residual", "delta")],
)
_register(
    "swiglu(Tensor gate_up) -> Tensor",
    "rows:swiglu",
    lambda gate_up: gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2),
)
_register(
    "write_back(Tensor(a!) stream, Tensor index, Tensor residual, Tensor delta) -> ()",
    "rows:write_back",
    lambda *args: None,
    disjoint=[("stream", "residual"), ("stream", "delta")],
)
_register(
    "rope_kv_write(Tensor query, Tensor key, Tensor value, Tensor cos, Tensor sin, Tensor? axes, Tensor rows, "
    "Tensor slots, Tensor(a!) key_pages, Tensor(b!) value_pages) -> (Tensor, Tensor)",
    "rope_kv:rope_kv_write",
    lambda query, key, *rest: (query.new_empty(query.shape), key.new_empty(key.shape)),
    disjoint=[("key_pages", "value_pages")],
)
_register(
    "decode_paged(Tensor query, Tensor key_pages, Tensor value_pages, Tensor block_table, Tensor lengths, float scale, "
    "SymInt max_length) -> Tensor",
    "decode:decode_paged",
    lambda query, *rest: query.new_empty(query.shape),
)
