"""What the fused engine runs of a block: its own modules for every matrix product, kernels in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from reroute_reference.families import part
from reroute_spec import RerouteError
from torch import Tensor, nn

from .. import ops
from ..decoder import Decoder
from .plan import Asking, PackedStage, Starts

FUSED = ("LlamaModel", "Qwen2Model", "Qwen3Model", "Qwen2_5_VLTextModel", "Qwen3VLTextModel")
"""Text decoders whose blocks are norm, attention, norm, gated MLP, with these names inside."""


@dataclass(frozen=True)
class Angles:
    """cos and sin [n, W], dense, and the row of them that every packed row takes, [M] int32."""

    cos: Tensor
    sin: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Block:
    """One block's modules."""

    module: Any
    names: Any

    @property
    def attention(self) -> Any:
        """The attention module."""
        return part(self.module, self.names.attention)

    @property
    def input_norm(self) -> Any:
        """The norm before the attention."""
        return part(self.module, self.names.input_norm)

    def queries(self, normed: Tensor) -> Tensor:
        """[n, H, D] as projected and normalised."""
        return self._heads(normed, self.names.query, self.names.query_norm)

    def keys(self, normed: Tensor) -> Tensor:
        """[n, Hkv, D] as projected and normalised."""
        return self._heads(normed, self.names.key, self.names.key_norm)

    def values(self, normed: Tensor) -> Tensor:
        """[n, Hkv, D]."""
        return self._heads(normed, "v_proj", None)

    def query_key_value(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.queries(normed), self.keys(normed), self.values(normed)

    def query_value(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Where a decision computed the keys."""
        return self.queries(normed), self.values(normed)

    def _heads(self, normed: Tensor, projection: str, norm: str | None) -> Tensor:
        attention = self.attention
        states: Tensor = part(attention, projection)(normed).view(normed.shape[0], -1, attention.head_dim)
        return states if norm is None else part(attention, norm)(states)

    def after_attention(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Adds the attention's output [M, H, D] to ``residual`` in place; returns what the MLP adds, [M, d]."""
        delta = self.attention.o_proj(attended.flatten(1))
        norm, mlp = self.module.post_attention_layernorm, self.module.mlp
        normed = ops.add_rmsnorm(residual, delta, norm.weight, norm.variance_epsilon)
        out: Tensor = mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        return out


def check_fusable(decoder: Decoder) -> None:
    """Refuse a decoder whose blocks the engine would not compute as they are.

    Raises:
        RerouteError: naming the model, and what is in the way.
    """
    name = decoder.names.class_name
    if name not in FUSED:
        raise RerouteError(
            "backend", f"'triton' does not run the blocks of {name}", "use backend='torch' for this family"
        )
    for layer, block in enumerate(decoder.blocks):
        for path, module in block.named_modules():
            if not isinstance(module, nn.Linear) and (module._forward_hooks or module._forward_pre_hooks):
                raise RerouteError(
                    "backend",
                    f"'triton' does not call {path or 'the block'} of block {layer}, which has hooks",
                    "use backend='torch', which calls blocks whole",
                )
    weight = next(decoder.module.parameters())
    ops.check_device(weight.device, weight.dtype)


def check_no_gradient(embeddings: Tensor) -> None:
    """Refuse a forward whose gradient would be lost.

    Raises:
        RerouteError: naming the backend.
    """
    if torch.is_grad_enabled() and embeddings.requires_grad:
        raise RerouteError(
            "backend",
            "'triton' has no gradients, and this forward asks for them",
            "call under torch.no_grad(), or use backend='torch'",
        )


def attend(query: Tensor, key: Tensor, value: Tensor, stage: PackedStage, scale: float) -> Tensor:
    """Causal attention of packed rows [M, H, D] within each request, by SDPA.

    Requests are packed to the left: padding is then later than every row, and causal order hides it without a mask.
    """

    def grid(rows: Tensor) -> Tensor:
        if stage.attention is None:
            return rows.view(len(stage.rows.counts), -1, *rows.shape[1:]).transpose(1, 2)
        return stage.attention(rows, 0).transpose(1, 2)

    out = F.scaled_dot_product_attention(
        grid(query),
        grid(key),
        grid(value),
        is_causal=True,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    rows = out.transpose(1, 2).flatten(0, 1)
    return rows if stage.unpack is None else rows.index_select(0, stage.unpack)


def scores(
    block: Block, normed: Tensor, keys: Tensor, angles: Angles, rows: Starts, asking: Asking, heads: str
) -> Tensor:
    """Score of every packed row by the last ones of its request, [M] float32.

    Args:
        block: in whose terms.
        normed: [M, d], its input norm of the rows.
        keys: [M, Hkv, D], its keys of them, not turned.
        angles: of the rows.
        rows, asking: per request.
        heads: ``mean`` or ``max``.
    """
    cos, sin = (table.index_select(0, angles.rows) for table in (angles.cos, angles.sin))
    return ops.score_last_row(
        block.queries(normed.index_select(0, asking.rows)), keys, cos, sin, None, rows.table,
        asking.starts.table, None, block.attention.scaling, rows.most, asking.starts.most, heads,
    )  # fmt: skip
