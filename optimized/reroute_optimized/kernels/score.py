"""Scores all rows of a packed batch by the attention of its asking rows, without the square of attention (RR-SCORE-001 to 004).

There are two launches. The first turns the keys by their positions, writes them for the cache, and leaves the logits
with every tile's maximum and sum. The second reduces those in the order of the tiles, then over asking rows, then over
heads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table
from .rotary import angle_offsets, partner_of, turned


@triton.jit
def _logits(
    query,
    key,
    cos,
    sin,
    axes,
    cu_seqlens,
    cu_queries,
    rotated,
    logits,
    partials,
    scale,
    total_rows,
    most_tiles,
    query_row,
    query_head,
    key_row,
    key_head,
    angle_axis,
    angle_row,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    MOST_QUERIES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY: tl.constexpr,
    ROTATE: tl.constexpr,
    HAS_AXES: tl.constexpr,
    WRITE: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    tile, kv_head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(cu_seqlens + request)
    rows = tl.load(cu_seqlens + request + 1) - start
    if tile * ROWS < rows:
        first_query = tl.load(cu_queries + request)
        asked = tl.load(cu_queries + request + 1) - first_query
        local = tile * ROWS + tl.arange(0, ROWS)
        here = local < rows
        row = (start + local).to(tl.int64)
        channels = tl.arange(0, CHANNELS)
        real = channels < HEAD_DIM
        block = here[:, None] & real[None, :]
        lines = key + row[:, None] * key_row + kv_head.to(tl.int64) * key_head
        keys = tl.load(lines + channels[None, :], mask=block, other=0.0).to(tl.float32)
        if ROTATE:
            angles = angle_offsets(axes, channels, angle_axis, ROTARY, HAS_AXES)
            turns = channels < ROTARY
            at = row[:, None] * angle_row + angles[None, :]
            c = tl.load(cos + at, mask=here[:, None] & turns[None, :], other=1.0).to(tl.float32)
            s = tl.load(sin + at, mask=here[:, None] & turns[None, :], other=0.0).to(tl.float32)
            partner = partner_of(channels, ROTARY)
            partners = tl.load(lines + partner[None, :], mask=block, other=0.0).to(tl.float32)
            # rounded as the block rounds its keys, then widened again (RR-SCORE-003)
            narrow = turned(keys, partners, c, s, channels[None, :], ROTARY).to(key.dtype.element_ty)
            if WRITE:
                out = (row * (HEADS // GROUP) + kv_head) * HEAD_DIM
                tl.store(rotated + out[:, None] + channels[None, :], narrow, mask=block)
            keys = narrow.to(tl.float32)
        for i in range(MOST_QUERIES):
            if i < asked:
                asking = rows - asked + i  # the last rows ask, in order
                seen = local <= asking
                for g in range(GROUP):
                    head = kv_head * GROUP + g
                    line = query + (first_query + i).to(tl.int64) * query_row + head.to(tl.int64) * query_head
                    q = tl.load(line + channels, mask=real, other=0.0).to(tl.float32)
                    if ROTATE:
                        at_q = (start + asking).to(tl.int64) * angle_row + angles
                        cq = tl.load(cos + at_q, mask=turns, other=1.0).to(tl.float32)
                        sq = tl.load(sin + at_q, mask=turns, other=0.0).to(tl.float32)
                        pq = tl.load(line + partner, mask=real, other=0.0).to(tl.float32)
                        q = turned(q, pq, cq, sq, channels, ROTARY)
                        q = q.to(query.dtype.element_ty).to(tl.float32)
                    x = tl.sum(keys * q[None, :], axis=1) * scale
                    x = tl.where(seen, x, float("-inf"))
                    of_head = (i * HEADS + head).to(tl.int64)
                    tl.store(logits + of_head * total_rows + row, x, mask=here)
                    most = tl.max(x, axis=0)
                    base = tl.where(most == float("-inf"), 0.0, most)
                    spot = ((request * MOST_QUERIES + i) * HEADS + head).to(tl.int64) * most_tiles + tile
                    tl.store(partials + 2 * spot, most)
                    tl.store(partials + 2 * spot + 1, tl.sum(tl.exp(x - base), axis=0))


@triton.jit
def _reduce(
    logits,
    partials,
    cu_seqlens,
    cu_queries,
    scores,
    total_rows,
    most_tiles,
    HEADS: tl.constexpr,
    MOST_QUERIES: tl.constexpr,
    MAXIMUM: tl.constexpr,
    ROWS: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    TILES: tl.constexpr,
):
    tile, request = tl.program_id(0), tl.program_id(1)
    start = tl.load(cu_seqlens + request)
    rows = tl.load(cu_seqlens + request + 1) - start
    if tile * ROWS < rows:
        asked = tl.load(cu_queries + request + 1) - tl.load(cu_queries + request)
        local = tile * ROWS + tl.arange(0, ROWS)
        here = local < rows
        row = (start + local).to(tl.int64)
        heads = tl.arange(0, ALL_HEADS)
        real = heads < HEADS
        tiles = tl.cdiv(rows, ROWS)
        total = tl.zeros([ALL_HEADS, ROWS], dtype=tl.float32)
        for i in range(MOST_QUERIES):
            if i < asked:
                top = tl.full([ALL_HEADS], float("-inf"), dtype=tl.float32)
                norm = tl.zeros([ALL_HEADS], dtype=tl.float32)
                lines = ((request * MOST_QUERIES + i) * HEADS + heads).to(tl.int64) * most_tiles
                first = tiles * 0
                while first < tiles:
                    some = first + tl.arange(0, TILES)
                    known = real[:, None] & (some < tiles)[None, :]
                    spots = partials + 2 * (lines[:, None] + some[None, :])
                    peaks = tl.load(spots, mask=known, other=float("-inf"))
                    parts = tl.load(spots + 1, mask=known, other=0.0)
                    higher = tl.maximum(top, tl.max(peaks, axis=1))
                    base = tl.where(higher == float("-inf"), 0.0, higher)
                    norm = norm * tl.exp(top - base) + tl.sum(parts * tl.exp(peaks - base[:, None]), axis=1)
                    top = higher
                    first += TILES
                base = tl.where(top == float("-inf"), 0.0, top)
                at = (i * HEADS + heads).to(tl.int64)[:, None] * total_rows + row[None, :]
                x = tl.load(logits + at, mask=real[:, None] & here[None, :], other=float("-inf"))
                total += (
                    tl.exp(x - base[:, None]) / tl.where(real, norm, 1.0)[:, None]
                )  # lanes without a head: 0 / 1
        total = total / asked
        if MAXIMUM:
            # a maximum passes over NaN, a sum does not
            lost = tl.sum(total, axis=0)
            score = tl.max(total, axis=0)
            score = tl.where(lost == lost, score, lost)
        else:
            score = tl.sum(total, axis=0) / HEADS
        tl.store(scores + row, score, mask=here)


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
    """Score of every row of the batch, [T] float32; see :func:`reroute_optimized.kernels.ops.score_last_row`."""
    total, kv_heads, head_dim = key.shape
    num_heads, requests = query.shape[1], cu_seqlens.shape[0] - 1
    tiles = -(-max_rows // table.SCORE_ROWS)
    scores = key.new_empty(total, dtype=torch.float32)
    logits = scores.new_empty(max_queries, num_heads, total)
    partials = scores.new_empty(requests, max_queries, num_heads, tiles, 2)  # a tile's maximum and sum
    angles = cos if cos is None or cos.dim() == 3 else cos[None]
    table.launch(
        _logits,
        (tiles, kv_heads, requests),
        {
            "query": query,
            "key": key,
            "cos": cos,
            "sin": sin,
            "axes": axes,
            "cu_seqlens": cu_seqlens,
            "cu_queries": cu_queries,
            "rotated": rotated,
            "logits": logits,
            "partials": partials,
            "scale": scale,
            "total_rows": total,
            "most_tiles": tiles,
            "query_row": query.stride(0),
            "query_head": query.stride(1),
            "key_row": key.stride(0),
            "key_head": key.stride(1),
            "angle_axis": 0 if angles is None else angles.stride(0),
            "angle_row": 0 if angles is None else angles.stride(1),
            "HEADS": num_heads,
            "GROUP": num_heads // kv_heads,
            "MOST_QUERIES": max_queries,
            "HEAD_DIM": head_dim,
            "ROTARY": head_dim if angles is None else angles.shape[2],
            "ROTATE": angles is not None,
            "HAS_AXES": axes is not None,
            "WRITE": rotated is not None,
            "ROWS": table.SCORE_ROWS,
            "CHANNELS": table.power_of_two(head_dim),
        },
        warps=8,
    )
    table.launch(
        _reduce,
        (tiles, requests),
        {
            "logits": logits,
            "partials": partials,
            "cu_seqlens": cu_seqlens,
            "cu_queries": cu_queries,
            "scores": scores,
            "total_rows": total,
            "most_tiles": tiles,
            "HEADS": num_heads,
            "MOST_QUERIES": max_queries,
            "MAXIMUM": heads == "max",
            "ROWS": table.SCORE_ROWS,
            "ALL_HEADS": table.power_of_two(num_heads),
            "TILES": table.SCORE_TILES,
        },
        warps=4,
    )
    return scores
