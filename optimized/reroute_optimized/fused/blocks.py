"""Runs the parts of a decoder block for the fused engine: matrix products with the block's own weights, and kernels between them.

It also refuses blocks, and forwards with gradients, that the engine would not compute as the modules do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from reroute_reference.families import part
from reroute_spec import RerouteError
from torch import Tensor, nn

from ..kernels import ops
from ..kernels.operand_checks import check_device
from ..model.decoder import Decoder
from .plan import Asking, Starts
from .weights import product

FUSED = ("LlamaModel", "Qwen2Model", "Qwen3Model", "Qwen2_5_VLTextModel", "Qwen3VLTextModel")
"""The text decoders whose blocks the fused engine computes itself: norm, attention, norm, gated MLP. The blocks of all others are
called as modules."""

_VALUE = ("v_proj", None)


@dataclass(frozen=True)
class Angles:
    """The rotary angles of packed rows.

    ``cos`` and ``sin`` are dense tables [n, W], and ``rows`` [M] int32 says which row of the tables every packed row
    takes.
    """

    cos: Tensor
    sin: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Block:
    """One decoder block, whose parts are called one by one.

    Attributes:
        module: the block itself.
        names: the description of its decoder, with the names of its parts.
    """

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
        return self._heads(normed, self._query)[0]

    def keys(self, normed: Tensor) -> Tensor:
        """[n, Hkv, D] as projected and normalised."""
        return self._heads(normed, self._key)[0]

    def values(self, normed: Tensor) -> Tensor:
        """[n, Hkv, D]."""
        return self._heads(normed, _VALUE)[0]

    def query_key_value(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`queries`, :meth:`keys` and :meth:`values`, by one product where the weights lie so; rows may have gaps between them."""
        key, query, value = self._heads(normed, self._key, self._query, _VALUE)
        return query, key, value

    def query_value(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`queries` and :meth:`values`, of rows whose keys were computed for their scores; as :meth:`query_key_value`."""
        query, value = self._heads(normed, self._query, _VALUE)
        return query, value

    @property
    def _query(self) -> tuple[str, str | None]:
        return self.names.query, self.names.query_norm

    @property
    def _key(self) -> tuple[str, str | None]:
        return self.names.key, self.names.key_norm

    def _heads(self, normed: Tensor, *projections: tuple[str, str | None]) -> list[Tensor]:
        """[n, heads, D] of every projection and its norm, in the order in which they may lie in memory."""
        attention = self.attention
        modules = [part(attention, name) for name, _ in projections]
        together = product(modules, normed) if len(modules) > 1 else None
        if together is None:
            outputs = [module(normed) for module in modules]
        else:
            outputs = list(torch.split(together, [module.weight.shape[0] for module in modules], dim=1))
        heads = [output.view(len(normed), -1, attention.head_dim) for output in outputs]
        return [
            states if norm is None else part(attention, norm)(states)
            for states, (_, norm) in zip(heads, projections, strict=True)
        ]

    def after_attention(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Add the attention's output [M, H, D] to ``residual`` in place, and return what the MLP adds, [M, d]."""
        delta = self.attention.o_proj(attended.flatten(1))
        norm, mlp = self.module.post_attention_layernorm, self.module.mlp
        normed = ops.add_rmsnorm(residual, delta, norm.weight, norm.variance_epsilon)
        together = product([mlp.gate_proj, mlp.up_proj], normed) if _is_silu(mlp.act_fn) else None
        if together is None:
            gated = mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed)
        else:
            gated = ops.swiglu(together)
        out: Tensor = mlp.down_proj(gated)
        return out


def _is_silu(activation: Any) -> bool:
    return type(activation).__name__ in ("SiLU", "SiLUActivation")


def calls_modules(decoder: Decoder) -> bool:
    """Whether the blocks of a decoder are called whole, as the modules that they are."""
    return decoder.names.class_name not in FUSED


def check_fusable(decoder: Decoder) -> None:
    """Refuse a decoder whose blocks the engine would not compute as they are.

    Raises:
        RerouteError: naming what is in the way.
    """
    for layer, block in enumerate([] if calls_modules(decoder) else decoder.blocks):
        for path, module in block.named_modules():
            hooked = module._forward_hooks or module._forward_pre_hooks
            if not isinstance(module, nn.Linear) and (hooked or "forward" in vars(module)):
                what = (
                    "has hooks" if hooked else "has a forward of its own, as accelerate's device maps give it"
                )
                raise RerouteError(
                    "backend",
                    f"'triton' does not call {path or 'the block'} of block {layer}, which {what}",
                    "use backend='torch', which calls blocks whole",
                )
    weight = next(decoder.module.parameters())
    check_device(weight.device, weight.dtype)


def check_no_gradient(decoder: Decoder, embeddings: Tensor) -> None:
    """Refuse a forward whose gradient would be lost.

    Raises:
        RerouteError: naming the backend.
    """
    if not torch.is_grad_enabled():
        return
    if embeddings.requires_grad or any(weight.requires_grad for weight in decoder.module.parameters()):
        raise RerouteError(
            "backend",
            "'triton' has no gradients, and this forward asks for them",
            "call under torch.no_grad(), or use backend='torch'",
        )


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
