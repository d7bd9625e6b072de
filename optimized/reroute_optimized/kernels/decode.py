"""Computes decode attention: one new row of every request against the rows that one block holds for it in its pages (RR-KV-002).

There are two launches. The first attends one split of the cached rows; the second reduces the splits of a request in
their order. Splits have a fixed length from the request's first row on, so a request's bits do not depend on the batch
around it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table


@triton.jit
def _split(
    query,
    key_pages,
    value_pages,
    block_table,
    lengths,
    partial,
    maxima,
    sums,
    scale,
    most_splits,
    query_row,
    query_head,
    page,
    page_row,
    page_head,
    table_row,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    ALL_GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    split, kv_head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + request)
    start = split * SPLIT
    if start < length:
        group = tl.arange(0, ALL_GROUP)
        of_group = group < GROUP
        heads = kv_head * GROUP + group
        channels = tl.arange(0, CHANNELS)
        real = channels < HEAD_DIM
        at = request.to(tl.int64) * query_row + heads.to(tl.int64)[:, None] * query_head + channels[None, :]
        q = tl.load(query + at, mask=of_group[:, None] & real[None, :], other=0.0)
        top = tl.full([ALL_GROUP], float("-inf"), dtype=tl.float32)
        norm = tl.zeros([ALL_GROUP], dtype=tl.float32)
        total = tl.zeros([ALL_GROUP, CHANNELS], dtype=tl.float32)
        for step in range(SPLIT // ROWS):
            row = start + step * ROWS + tl.arange(0, ROWS)
            here = row < length
            pages = tl.load(block_table + request.to(tl.int64) * table_row + row // PAGE, mask=here, other=0)
            lines = pages.to(tl.int64) * page + (row % PAGE).to(tl.int64) * page_row
            lines += kv_head.to(tl.int64) * page_head
            block = here[:, None] & real[None, :]
            k = tl.load(key_pages + lines[:, None] + channels[None, :], mask=block, other=0.0)
            v = tl.load(value_pages + lines[:, None] + channels[None, :], mask=block, other=0.0)
            x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            x = tl.where(here[None, :], x, float("-inf"))
            higher = tl.maximum(top, tl.max(x, axis=1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            p = tl.exp(x - base[:, None])
            kept = tl.exp(top - base)
            norm = norm * kept + tl.sum(p, axis=1)
            total = total * kept[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            top = higher
        spot = (request * HEADS + heads).to(tl.int64) * most_splits + split
        tl.store(maxima + spot, top, mask=of_group)
        tl.store(sums + spot, norm, mask=of_group)
        out = partial + spot[:, None] * HEAD_DIM + channels[None, :]
        tl.store(out, total, mask=of_group[:, None] & real[None, :])


@triton.jit
def _merge(
    partial,
    maxima,
    sums,
    lengths,
    out,
    most_splits,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    head, request = tl.program_id(0), tl.program_id(1)
    splits = tl.cdiv(tl.load(lengths + request), SPLIT)
    channels = tl.arange(0, CHANNELS)
    real = channels < HEAD_DIM
    line = (request * HEADS + head).to(tl.int64)
    top = tl.full([1], float("-inf"), dtype=tl.float32)
    norm = tl.zeros([1], dtype=tl.float32)
    total = tl.zeros([CHANNELS], dtype=tl.float32)
    first = splits * 0
    while first < splits:
        some = first + tl.arange(0, SPLITS)
        known = some < splits
        peaks = tl.load(maxima + line * most_splits + some, mask=known, other=float("-inf"))
        parts = tl.load(sums + line * most_splits + some, mask=known, other=0.0)
        at = (line * most_splits + some)[:, None] * HEAD_DIM + channels[None, :]
        rows = tl.load(partial + at, mask=known[:, None] & real[None, :], other=0.0)
        higher = tl.maximum(top, tl.max(peaks, axis=0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(peaks - base)
        kept = tl.exp(top - base)
        norm = norm * kept + tl.sum(parts * weight, axis=0)
        total = total * kept + tl.sum(rows * weight[:, None], axis=0)
        top = higher
        first += SPLITS
    # a request without rows attends to nothing: zeros, not NaN
    result = total / tl.where(splits == 0, 1.0, norm)
    tl.store(out + line * HEAD_DIM + channels, result, mask=real)


def decode_paged(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    scale: float,
    max_length: int,
) -> Tensor:
    """Attention of one row a request, [R, H, D]; see :func:`reroute_optimized.kernels.ops.decode_paged`."""
    requests, num_heads, head_dim = query.shape
    page_size, kv_heads = key_pages.shape[1:3]
    splits = max(-(-max_length // table.DECODE_SPLIT), 1)
    out = query.new_empty(query.shape)
    maxima = query.new_empty(requests, num_heads, splits, dtype=torch.float32)
    sums = torch.empty_like(maxima)
    partial = maxima.new_empty(requests, num_heads, splits, head_dim)
    table.launch(
        _split,
        (splits, kv_heads, requests),
        {
            "query": query,
            "key_pages": key_pages,
            "value_pages": value_pages,
            "block_table": block_table,
            "lengths": lengths,
            "partial": partial,
            "maxima": maxima,
            "sums": sums,
            "scale": scale,
            "most_splits": splits,
            "query_row": query.stride(0),
            "query_head": query.stride(1),
            "page": key_pages.stride(0),
            "page_row": key_pages.stride(1),
            "page_head": key_pages.stride(2),
            "table_row": block_table.stride(0),
            "HEADS": num_heads,
            "GROUP": num_heads // kv_heads,
            "HEAD_DIM": head_dim,
            "PAGE": page_size,
            "SPLIT": table.DECODE_SPLIT,
            "ROWS": table.DECODE_ROWS,
            "ALL_GROUP": max(table.power_of_two(num_heads // kv_heads), 16),  # a matrix unit's least height
            "CHANNELS": max(table.power_of_two(head_dim), 16),  # and its least depth
        },
        warps=table.decode_warps(query.element_size()),
    )
    table.launch(
        _merge,
        (num_heads, requests),
        {
            "partial": partial,
            "maxima": maxima,
            "sums": sums,
            "lengths": lengths,
            "out": out,
            "most_splits": splits,
            "HEADS": num_heads,
            "HEAD_DIM": head_dim,
            "SPLIT": table.DECODE_SPLIT,
            "SPLITS": table.DECODE_SPLITS,
            "CHANNELS": table.power_of_two(head_dim),
        },
        warps=4,
    )
    return out
