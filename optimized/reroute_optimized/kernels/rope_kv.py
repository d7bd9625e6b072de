"""Applies rotary embedding at original positions, and writes keys and values to a block's own pages (RR-KV-001, RR-BLOCK-005).

There is one program for each row. A slot below zero skips the cache, so that a fixed grid may be larger than the rows
there are.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import table
from .rotary import angle_offsets, partner_of, turned


@triton.jit
def _turn(
    source,
    target,
    line,
    source_head,
    out,
    heads,
    channels,
    c,
    s,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY: tl.constexpr,
):
    real = (heads < HEADS)[:, None] & (channels < HEAD_DIM)[None, :]
    at = source + line + heads.to(tl.int64)[:, None] * source_head
    values = tl.load(at + channels[None, :], mask=real, other=0.0).to(tl.float32)
    partners = tl.load(at + partner_of(channels, ROTARY)[None, :], mask=real, other=0.0).to(tl.float32)
    result = turned(values, partners, c[None, :], s[None, :], channels[None, :], ROTARY)
    result = result.to(target.dtype.element_ty)
    tl.store(target + out + heads.to(tl.int64)[:, None] * HEAD_DIM + channels[None, :], result, mask=real)
    return result, real


@triton.jit
def _rope_kv_write(
    query,
    key,
    value,
    cos,
    sin,
    axes,
    rows,
    slots,
    query_out,
    key_out,
    key_pages,
    value_pages,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    angle_axis,
    angle_row,
    page_row,
    page_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY: tl.constexpr,
    HAS_AXES: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    ALL_KV_HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + place).to(tl.int64)
    row = tl.load(rows + place).to(tl.int64)
    channels = tl.arange(0, CHANNELS)
    at = row * angle_row + angle_offsets(axes, channels, angle_axis, ROTARY, HAS_AXES)
    c = tl.load(cos + at, mask=channels < ROTARY, other=1.0).to(tl.float32)
    s = tl.load(sin + at, mask=channels < ROTARY, other=0.0).to(tl.float32)
    heads = tl.arange(0, ALL_HEADS)
    _turn(
        query, query_out, place * query_row, query_head, place * (HEADS * HEAD_DIM), heads, channels, c, s,
        HEADS, HEAD_DIM, ROTARY,
    )  # fmt: skip
    kv = tl.arange(0, ALL_KV_HEADS)
    keys, real = _turn(
        key, key_out, place * key_row, key_head, place * (KV_HEADS * HEAD_DIM), kv, channels, c, s,
        KV_HEADS, HEAD_DIM, ROTARY,
    )  # fmt: skip
    if slot >= 0:
        page = slot * page_row + kv.to(tl.int64)[:, None] * page_head + channels[None, :]
        tl.store(key_pages + page, keys, mask=real)
        of_value = place * value_row + kv.to(tl.int64)[:, None] * value_head + channels[None, :]
        tl.store(value_pages + page, tl.load(value + of_value, mask=real, other=0.0), mask=real)


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
    """Turned queries and keys; see :func:`reroute_optimized.kernels.ops.rope_kv_write`."""
    count, num_heads, head_dim = query.shape
    kv_heads = key.shape[1]
    query_out, key_out = query.new_empty(query.shape), key.new_empty(key.shape)
    angles = cos if cos.dim() == 3 else cos[None]
    table.launch(
        _rope_kv_write,
        (count,),
        {
            "query": query,
            "key": key,
            "value": value,
            "cos": cos,
            "sin": sin,
            "axes": axes,
            "rows": rows,
            "slots": slots,
            "query_out": query_out,
            "key_out": key_out,
            "key_pages": key_pages,
            "value_pages": value_pages,
            "query_row": query.stride(0),
            "query_head": query.stride(1),
            "key_row": key.stride(0),
            "key_head": key.stride(1),
            "value_row": value.stride(0),
            "value_head": value.stride(1),
            "angle_axis": angles.stride(0),
            "angle_row": angles.stride(1),
            "page_row": key_pages.stride(1),
            "page_head": key_pages.stride(2),
            "HEADS": num_heads,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "ROTARY": angles.shape[2],
            "HAS_AXES": axes is not None,
            "ALL_HEADS": table.power_of_two(num_heads),
            "ALL_KV_HEADS": table.power_of_two(kv_heads),
            "CHANNELS": table.power_of_two(head_dim),
        },
        warps=4,
    )
    return query_out, key_out
