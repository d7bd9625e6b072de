"""Computes the least time that a work can take, from its FLOPs and bytes by the cost model and the rates of the machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reroute_spec import DecoderShape, Plan, cost, decode_cost

from .machine import Rates

Part = tuple[int, int]
"""The FLOPs and bytes of one part of a work; the next part starts when it has ended."""
_SCORE_BYTES, _INDEX_BYTES = 4, 8


@dataclass(frozen=True)
class Floor:
    """The least that a work can take on one machine.

    Attributes:
        flops, bytes: the sums over all parts of the work.
        seconds: the least time. Every part takes as long as the longer of its FLOPs and its bytes, and no work takes
            less than the smallest call.
        bound: which of ``flops``, ``bytes`` and ``call`` makes up most of it.
    """

    flops: int
    bytes: int
    seconds: float
    bound: str

    @classmethod
    def of(cls, parts: Iterable[Part], rates: Rates) -> Floor:
        """The floor of parts that run one after another."""
        parts = list(parts)
        computing = [flops / rates.flops for flops, _ in parts]
        moving = [moved / rates.bytes for _, moved in parts]
        seconds = sum(map(max, computing, moving))
        bound = "flops" if sum(computing) >= sum(moving) else "bytes"
        if seconds < rates.call:
            seconds, bound = rates.call, "call"
        return cls(sum(flops for flops, _ in parts), sum(moved for _, moved in parts), seconds, bound)


def prefill_parts(plan: Plan, shape: DecoderShape, element_bytes: int, batch: int = 1) -> list[Part]:
    """The parts of a prefill, one per block: its weights once, its rows in and out, and what it caches."""
    costs = cost(plan, shape, element_bytes)
    return [
        (
            batch * block.flops,
            element_bytes * (shape.mixer_weights(layer) + shape.mlp_weights)
            + batch
            * (2 * block.rows * shape.hidden_size * element_bytes + block.kv_rows * costs.kv_row_bytes),
        )
        for layer, block in enumerate(costs.blocks)
    ]


def decode_parts(plan: Plan, shape: DecoderShape, element_bytes: int, batch: int, tokens: int) -> list[Part]:
    """The parts of a decode, one per token: the weights once for the batch, and every request's own keys and values."""
    steps = (
        decode_cost(plan, shape, batch=batch, decoded=decoded, element_bytes=element_bytes)
        for decoded in range(tokens)
    )
    return [
        (batch * step.flops, step.weight_bytes + batch * (step.kv_bytes + step.state_bytes)) for step in steps
    ]


def score_parts(rows: int, shape: DecoderShape, element_bytes: int) -> list[Part]:
    """The one part of a score: the keys of all rows, the last row's query, and its logits."""
    width, key, query = shape.hidden_size, shape.key_size, shape.query_size
    flops = 2 * rows * width * key + 2 * width * query + 2 * rows * query
    return [(flops, element_bytes * (rows * width + width * (key + query)) + _SCORE_BYTES * rows)]


def select_parts(candidates: int, kept: int) -> list[Part]:
    """The one part of a selection: every score is read once, and every selected place is written."""
    return [(0, _SCORE_BYTES * candidates + _INDEX_BYTES * kept)]


def reorder_parts(plan: Plan, shape: DecoderShape, element_bytes: int, batch: int) -> list[Part]:
    """The one part of a reordering: every cached row is read and written once."""
    return [(0, 2 * batch * cost(plan, shape, element_bytes).kv_bytes)]
