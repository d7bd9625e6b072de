"""What a plan costs, computed from shapes alone (§12 of the method): rows, FLOPs, KV rows and bytes per block.

A multiply-add is two FLOPs. Counted are the matrix products, convolutions and recurrences of the decoder's blocks; norms,
activations, softmax and moves are not. Nor is what routing does not change: the vision tower and its projector, the
embedding, the final norm and the head. So a ratio against the unrouted request is one of the decoder's blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from .errors import RerouteError
from .plan import Plan
from .schedule import Schedule, ScoreRule
from .shapes import DecoderShape, HybridShape

_STATE_ELEMENT_BYTES = 4  # a recurrent state is kept in float32, whatever the model's dtype


@dataclass(frozen=True)
class BlockCost:
    """One block's prefill. FLOPs by part; ``scoring`` is what a decision at this block adds.

    Attributes:
        rows: rows the block runs.
        kv_rows: rows its cache holds afterwards: the rows it ran, or 0 in a linear-attention block.
        state_bytes: bytes of a linear-attention block's convolution and recurrent state, whatever the rows.
        projections: FLOPs of q, k, v, gates and output, and of a linear block's convolution.
        attention: FLOPs of scores and values, causal; in a linear block of its recurrence, row by row.
        mlp: FLOPs of the gate, up and down projections.
        scoring: FLOPs of the asking rows' logits and, unless scores are read from the block before, of the keys of rows
            that then do not run.
    """

    rows: int
    kv_rows: int
    projections: int
    attention: int
    mlp: int
    scoring: int
    state_bytes: int = 0

    @property
    def flops(self) -> int:
        """All FLOPs of the block."""
        return self.projections + self.attention + self.mlp + self.scoring


@dataclass(frozen=True)
class Cost:
    """A request's prefill against the unrouted one, in FLOPs and bytes.

    Attributes:
        blocks: per block, as routed.
        unrouted: per block, without routing.
        kv_row_bytes: bytes of one cached row (keys and values) in one block.
    """

    blocks: tuple[BlockCost, ...]
    unrouted: tuple[BlockCost, ...]
    kv_row_bytes: int

    @property
    def flops(self) -> int:
        """FLOPs over all blocks."""
        return sum(block.flops for block in self.blocks)

    @property
    def unrouted_flops(self) -> int:
        """FLOPs over all blocks without routing."""
        return sum(block.flops for block in self.unrouted)

    @property
    def flops_ratio(self) -> Fraction:
        """FLOPs against the unrouted prefill."""
        return Fraction(self.flops, self.unrouted_flops)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values over all blocks after prefill."""
        return sum(block.kv_rows for block in self.blocks) * self.kv_row_bytes

    @property
    def unrouted_kv_bytes(self) -> int:
        """Bytes of keys and values over all blocks after the unrouted prefill."""
        return sum(block.kv_rows for block in self.unrouted) * self.kv_row_bytes

    @property
    def kv_ratio(self) -> Fraction:
        """KV bytes against the unrouted prefill; 1 where no block caches keys."""
        return Fraction(self.kv_bytes, self.unrouted_kv_bytes) if self.unrouted_kv_bytes else Fraction(1)

    @property
    def state_bytes(self) -> int:
        """Bytes of the linear-attention blocks' states; routing does not change them."""
        return sum(block.state_bytes for block in self.blocks)


def cost(plan: Plan, shape: DecoderShape, element_bytes: int = 2) -> Cost:
    """The cost of a prefill.

    Args:
        plan: of the request; ``plan.num_layers`` equals ``shape.num_layers``.
        shape: the decoder's sizes.
        element_bytes: bytes of one cached element, 2 for bfloat16 and float16.

    Raises:
        RerouteError: another depth, or a decision at a block without plain attention.
    """
    _check(plan, shape)
    _check_count("element_bytes", element_bytes, 1)
    scoring = {
        stage.first: _scoring(shape, plan.score, stage.scored, plan.kv_rows[stage.first])
        for stage in plan.stages
        if stage.index > 0
    }
    blocks = tuple(
        _block(shape, layer, rows, scoring.get(layer, 0), element_bytes)
        for layer, rows in enumerate(plan.kv_rows)
    )
    dense = tuple(_block(shape, layer, plan.num_rows, 0, element_bytes) for layer in range(plan.num_layers))
    return Cost(blocks, dense, 2 * shape.key_size * element_bytes)


@dataclass(frozen=True)
class PrefixCost:
    """What the blocks before the first decision do for a prefix. Every request that starts after it saves the same,
    whatever it asks: only its own rows run those blocks (RR-EQV-009).

    Attributes:
        blocks: per block before the first decision.
    """

    blocks: tuple[BlockCost, ...]

    @property
    def rows(self) -> int:
        """Rows run, over those blocks."""
        return sum(block.rows for block in self.blocks)

    @property
    def flops(self) -> int:
        """FLOPs over those blocks."""
        return sum(block.flops for block in self.blocks)


def prefix_cost(schedule: Schedule, shape: DecoderShape, rows: int, element_bytes: int = 2) -> PrefixCost:
    """The cost of a prefix of ``rows`` rows, which is what a request saves that starts after it.

    Args:
        schedule: to run.
        shape: the decoder's sizes.
        rows: of the prefix.
        element_bytes: bytes of one cached element.

    Raises:
        RerouteError: a schedule that is none for this decoder, or an impossible count.
    """
    schedule.validate(shape.num_layers, shape.attention_layers)
    _check_count("rows", rows, 1)
    _check_count("element_bytes", element_bytes, 1)
    layers = range(schedule.dense_layers(shape.num_layers))
    return PrefixCost(tuple(_block(shape, layer, rows, 0, element_bytes) for layer in layers))


@dataclass(frozen=True)
class DecodeCost:
    """One decode step of a batch of equal requests: every request makes one token.

    Bytes are those read. A step reads the blocks' weights once for the whole batch, and for each request the keys and values
    that its token attends to (its own row included) and the linear-attention blocks' states.

    Attributes:
        batch: requests in the step.
        decoded: tokens that each request had decoded before it.
        weight_bytes: weights of all blocks, shared by the batch.
        kv_bytes, unrouted_kv_bytes: keys and values per request.
        state_bytes: states per request.
        flops, unrouted_flops: per token.
    """

    batch: int
    decoded: int
    weight_bytes: int
    kv_bytes: int
    unrouted_kv_bytes: int
    state_bytes: int
    flops: int
    unrouted_flops: int

    @property
    def bytes_per_token(self) -> Fraction:
        """Bytes read per token: a share of the weights, and all of the request's own."""
        return Fraction(self.weight_bytes, self.batch) + self.kv_bytes + self.state_bytes

    @property
    def unrouted_bytes_per_token(self) -> Fraction:
        """The same without routing."""
        return Fraction(self.weight_bytes, self.batch) + self.unrouted_kv_bytes + self.state_bytes

    @property
    def bytes_ratio(self) -> Fraction:
        """Bytes per token against the unrouted request."""
        return self.bytes_per_token / self.unrouted_bytes_per_token

    @property
    def flops_ratio(self) -> Fraction:
        """FLOPs per token against the unrouted request."""
        return Fraction(self.flops, self.unrouted_flops)


def decode_cost(
    plan: Plan, shape: DecoderShape, *, batch: int = 1, decoded: int = 0, element_bytes: int = 2
) -> DecodeCost:
    """The cost of the decode step that follows a prefill and ``decoded`` tokens.

    Args:
        plan: of each request of the batch.
        shape: the decoder's sizes.
        batch: requests that share one reading of the weights.
        decoded: tokens each request decoded before; all of them are in every block's cache.
        element_bytes: bytes of one weight and of one cached element, 2 for bfloat16 and float16.

    Raises:
        RerouteError: as :func:`cost`, or an impossible count.
    """
    _check(plan, shape)
    for name, value, least in (
        ("batch", batch, 1),
        ("decoded", decoded, 0),
        ("element_bytes", element_bytes, 1),
    ):
        _check_count(name, value, least)
    layers, attending = range(shape.num_layers), shape.attention_layers
    weights = sum(shape.mixer_weights(layer) + shape.mlp_weights for layer in layers)
    linear = [layer for layer in layers if layer not in attending]
    shared = 2 * weights + sum(_mixing(shape, layer, 1) for layer in linear)
    routed = sum(plan.kv_rows[layer] + decoded + 1 for layer in attending)
    dense = len(attending) * (plan.num_rows + decoded + 1)
    row_bytes = 2 * shape.key_size * element_bytes  # RR-BUD-008
    return DecodeCost(
        batch=batch,
        decoded=decoded,
        weight_bytes=weights * element_bytes,
        kv_bytes=routed * row_bytes,
        unrouted_kv_bytes=dense * row_bytes,
        state_bytes=sum(_state_bytes(shape, layer, element_bytes) for layer in linear),
        flops=shared + 4 * shape.query_size * routed,  # scores and values of one row
        unrouted_flops=shared + 4 * shape.query_size * dense,
    )


def _check(plan: Plan, shape: DecoderShape) -> None:
    if plan.num_layers != shape.num_layers:
        raise RerouteError(
            "shape.num_layers", f"{shape.num_layers}", f"the plan has {plan.num_layers} blocks"
        )
    for stage in plan.stages:
        if stage.index > 0 and stage.first not in shape.attention_layers:
            raise RerouteError(
                f"decisions[{stage.index - 1}].layer",
                f"{stage.first} is a block without plain attention",
                f"decide at one of {', '.join(map(str, shape.attention_layers))}",
            )


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RerouteError(name, f"{value!r} is no count", f"give an integer >= {least}")


def _block(shape: DecoderShape, layer: int, rows: int, scoring: int, element_bytes: int) -> BlockCost:
    return BlockCost(
        rows=rows,
        kv_rows=rows if layer in shape.attention_layers else 0,
        projections=2 * rows * shape.mixer_weights(layer),
        attention=_mixing(shape, layer, rows),
        mlp=2 * rows * shape.mlp_weights,
        scoring=scoring,
        state_bytes=_state_bytes(shape, layer, element_bytes),
    )


def _scoring(shape: DecoderShape, score: ScoreRule, scored: int, rows: int) -> int:
    """What a decision adds to its block, which runs ``rows`` of the ``scored`` rows (RR-BUD-006)."""
    logits = 2 * min(score.n, scored) * scored * shape.query_size
    if score.source == "previous":
        return logits  # of keys that the block before has made
    # keys of the rows that then run are the block's own; the asking rows' queries too, as far as they are text
    return logits + 2 * (scored - rows) * shape.hidden_size * shape.key_size


def _mixing(shape: DecoderShape, layer: int, rows: int) -> int:
    if isinstance(shape, HybridShape) and layer not in shape.attention_layers:
        # per row: read the state with the key, add the correction to it, read it with the query
        return 2 * 3 * rows * shape.linear_state_size
    # causal: row i attends to i + 1 rows, scores and values
    return 2 * 2 * shape.query_size * (rows * (rows + 1) // 2)


def _state_bytes(shape: DecoderShape, layer: int, element_bytes: int) -> int:
    if not isinstance(shape, HybridShape) or layer in shape.attention_layers:
        return 0
    # the inputs that the next row's convolution still needs; transformers' cache keeps one more
    convolution = shape.linear_conv_size * (shape.linear_conv_kernel_dim - 1)
    return convolution * element_bytes + shape.linear_state_size * _STATE_ELEMENT_BYTES
