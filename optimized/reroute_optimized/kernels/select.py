"""Selects the candidates that run and packs the running rows (RR-SEL-001 to 005, RR-POOL), in integers only.

There are two launches. The first works segment by segment; a segment is a request, or an image of one under
``scope = image``. It finds the key of the last selected candidate by its four digits of eight bits, then stores the
selected and the deferred in order. The second packs the rows that run. Every key is an integer that orders like its
score, so nothing here depends on rounding, tiles or the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table


@triton.jit
def _ordered(score):
    """uint32 keys in the order of the scores; the two zeros are one, NaN is above +inf or below -inf by its sign."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 0, bits | 0x80000000, bits ^ 0xFFFFFFFF)


@triton.jit
def _select(
    scores,
    candidates,
    cu_candidates,
    cu_selected,
    runs,
    selected,
    deferred,
    has_nan,
    ROWS: tl.constexpr,
):
    segment = tl.program_id(0)
    start = tl.load(cu_candidates + segment)
    count = tl.load(cu_candidates + segment + 1) - start
    chosen_from = tl.load(cu_selected + segment)
    wanted = tl.minimum(tl.load(cu_selected + segment + 1) - chosen_from, count)
    places = tl.arange(0, ROWS)
    digits = tl.arange(0, 256)

    # the key of the last one selected, from its highest digit to its lowest; ``missing`` of those equal to it run
    threshold = tl.zeros([1], dtype=tl.uint32)
    settled = tl.zeros([1], dtype=tl.uint32)  # the bits of ``threshold`` that are found
    missing = wanted
    for step in range(4):
        shift = 24 - 8 * step
        counts = tl.zeros([256], dtype=tl.int32)
        first = start * 0
        while first < count:
            here = first + places < count
            row = tl.load(candidates + start + first + places, mask=here, other=0)
            key = _ordered(tl.load(scores + row.to(tl.int64), mask=here, other=0.0))
            match = here & ((key & settled) == threshold)
            counts += tl.histogram(((key >> shift) & 0xFF).to(tl.int32), 256, mask=match)
            first += ROWS
        up_to = tl.cumsum(counts, axis=0)
        total = tl.sum(counts, axis=0)
        at_least = total - up_to + counts
        # the highest digit that at least ``missing`` keys reach; the lowest where none are missing is as good as any
        digit_of_last = tl.maximum(tl.sum((at_least >= missing).to(tl.int32), axis=0) - 1, 0)
        missing -= tl.sum(tl.where(digits == digit_of_last, total - up_to, 0), axis=0)
        threshold = threshold | (digit_of_last.to(tl.uint32) << shift)
        settled = settled | (tl.full([1], 0xFF, dtype=tl.uint32) << shift)

    above = start * 0  # selected before this tile
    equal = start * 0  # of them, or left out, with the threshold's own key
    nans = start * 0
    first = start * 0
    while first < count:
        here = first + places < count
        row = tl.load(candidates + start + first + places, mask=here, other=0)
        score = tl.load(scores + row.to(tl.int64), mask=here, other=0.0)
        nans += tl.sum((score != score).to(tl.int32), axis=0)
        key = _ordered(score)
        tie = here & (key == threshold)
        tie_rank = equal + tl.cumsum(tie.to(tl.int32), axis=0) - 1
        take = (here & (key > threshold)) | (tie & (tie_rank < missing))
        rank = above + tl.cumsum(take.to(tl.int32), axis=0) - take.to(tl.int32)
        ordinal = first + places
        tl.store(selected + chosen_from + rank, ordinal, mask=take)
        tl.store(deferred + start - chosen_from + ordinal - rank, ordinal, mask=here & (take == 0))
        tl.store(runs + row.to(tl.int64), take.to(tl.int8), mask=here)
        above += tl.sum(take.to(tl.int32), axis=0)
        equal += tl.sum(tie.to(tl.int32), axis=0)
        first += ROWS
    tl.store(has_nan + segment, nans > 0)


@triton.jit
def _compact(runs, cu_seqlens, cu_active, active, inverse, ROWS: tl.constexpr):
    request = tl.program_id(0)
    start = tl.load(cu_seqlens + request)
    count = tl.load(cu_seqlens + request + 1) - start
    packed_from = tl.load(cu_active + request)
    room = tl.load(cu_active + request + 1) - packed_from
    places = tl.arange(0, ROWS)
    before = start * 0
    first = start * 0
    while first < count:
        here = first + places < count
        row = start + first + places
        take = tl.load(runs + row, mask=here, other=0) != 0
        rank = before + tl.cumsum(take.to(tl.int32), axis=0) - 1
        take = take & (rank < room)
        tl.store(active + packed_from + rank, row, mask=take)
        tl.store(inverse + row, tl.where(take, packed_from + rank, -1), mask=here)
        before += tl.sum(take.to(tl.int32), axis=0)
        first += ROWS


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
    """Selected, deferred, active, inverse, has_nan; see :func:`reroute_optimized.kernels.ops.select_compact`."""
    segments, requests = cu_candidates.shape[0] - 1, cu_seqlens.shape[0] - 1
    selected, deferred, active, inverse = (
        scores.new_empty(count, dtype=torch.int32)
        for count in (num_selected, candidates.shape[0] - num_selected, num_active, scores.shape[0])
    )
    has_nan = scores.new_empty(segments, dtype=torch.bool)
    runs = always.to(torch.int8, copy=True)
    table.launch(
        _select,
        (segments,),
        {
            "scores": scores,
            "candidates": candidates,
            "cu_candidates": cu_candidates,
            "cu_selected": cu_selected,
            "runs": runs,
            "selected": selected,
            "deferred": deferred,
            "has_nan": has_nan,
            "ROWS": (tile := table.select_rows(max_candidates)),
        },
        warps=table.select_warps(tile),
    )
    table.launch(
        _compact,
        (requests,),
        {
            "runs": runs,
            "cu_seqlens": cu_seqlens,
            "cu_active": cu_active,
            "active": active,
            "inverse": inverse,
            "ROWS": (tile := table.select_rows(max_rows)),
        },
        warps=table.select_warps(tile),
    )
    return selected, deferred, active, inverse, has_nan
