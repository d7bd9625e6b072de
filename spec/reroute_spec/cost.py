"""What a plan costs, computed from shapes alone (§12 of the method): rows, FLOPs, KV rows and bytes per block.

A multiply-add is two FLOPs. Only matrix products are counted; norms, activations and moves are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from .errors import RerouteError
from .plan import Plan


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder of identical blocks (grouped-query attention, gated MLP)."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RerouteError(name, f"{value!r} is no size", "give an integer >= 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise RerouteError(
                "num_key_value_heads",
                f"{self.num_key_value_heads} does not divide {self.num_attention_heads} heads",
                "every key/value head serves the same number of query heads",
            )


DECODER_SHAPES: dict[str, DecoderShape] = {
    # vicuna-7b-v1.5 as in llava-hf/llava-1.5-7b-hf's public configuration
    "llava-1.5-7b": DecoderShape(32, 4096, 11008, 32, 32, 128),
}


@dataclass(frozen=True)
class BlockCost:
    """One block's prefill. FLOPs by part; ``scoring`` is what a decision at this block adds."""

    rows: int
    kv_rows: int
    projections: int
    attention: int
    mlp: int
    scoring: int

    @property
    def flops(self) -> int:
        """All FLOPs of the block."""
        return self.projections + self.attention + self.mlp + self.scoring


@dataclass(frozen=True)
class Cost:
    """A request's prefill against the unrouted one, in FLOPs and KV bytes."""

    blocks: tuple[BlockCost, ...]
    unrouted: BlockCost
    kv_row_bytes: int

    @property
    def flops(self) -> int:
        """FLOPs over all blocks."""
        return sum(block.flops for block in self.blocks)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values over all blocks after prefill."""
        return sum(block.kv_rows for block in self.blocks) * self.kv_row_bytes

    @property
    def flops_ratio(self) -> Fraction:
        """FLOPs against the unrouted prefill."""
        return Fraction(self.flops, self.unrouted.flops * len(self.blocks))

    @property
    def kv_ratio(self) -> Fraction:
        """KV bytes against the unrouted prefill."""
        return Fraction(sum(block.kv_rows for block in self.blocks), self.unrouted.kv_rows * len(self.blocks))


def cost(plan: Plan, shape: DecoderShape, element_bytes: int = 2) -> Cost:
    """The cost of a prefill.

    Args:
        plan: of the request; ``plan.num_layers`` equals ``shape.num_layers``.
        shape: the decoder's sizes.
        element_bytes: bytes of one cached element, 2 for bfloat16 and float16.
    """
    if plan.num_layers != shape.num_layers:
        raise RerouteError(
            "shape.num_layers", f"{shape.num_layers}", f"the plan has {plan.num_layers} blocks"
        )
    scored = {stage.first: stage.scored for stage in plan.stages if stage.index > 0}
    blocks = tuple(_block(shape, rows, scored.get(layer)) for layer, rows in enumerate(plan.kv_rows))
    row_bytes = 2 * shape.num_key_value_heads * shape.head_dim * element_bytes
    return Cost(blocks, _block(shape, plan.num_rows, None), row_bytes)


def _block(shape: DecoderShape, rows: int, scored_rows: int | None) -> BlockCost:
    query, key = (heads * shape.head_dim for heads in (shape.num_attention_heads, shape.num_key_value_heads))
    scoring = 0
    if scored_rows is not None:
        # keys of the rows that then run are the block's own keys; the last row's query is its own too
        scoring = 2 * (scored_rows - rows) * shape.hidden_size * key + 2 * scored_rows * query
    return BlockCost(
        rows=rows,
        kv_rows=rows,
        projections=2 * rows * shape.hidden_size * (2 * query + 2 * key),
        attention=2
        * 2
        * query
        * (rows * (rows + 1) // 2),  # causal: row i attends i + 1 rows, scores and values
        mlp=2 * rows * 3 * shape.hidden_size * shape.intermediate_size,
        scoring=scoring,
    )
