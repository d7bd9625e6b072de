"""A model in another precision, its own rounding points widened with it: float64 makes the oracle (§11)."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a transformers model that computes in ``dtype`` from end to end.

    transformers rounds to float32 inside RMSNorm, rotary angles and eager softmax, whatever the model's dtype. For
    float64 the copy's norms and rotary modules compute in float64 and its attention is sdpa, which follows its inputs.
    """
    widened: Any = copy.deepcopy(model).to(dtype)
    if dtype == torch.float64:
        widened.set_attn_implementation("sdpa")
        for module in widened.modules():
            name = type(module).__name__
            if name.endswith("RMSNorm"):
                module.forward = MethodType(_wide_norm, module)
            elif name.endswith("RotaryEmbedding") and hasattr(module, "attention_scaling"):
                module.forward = MethodType(_wide_rotary, module)
    return widened  # type: ignore[no-any-return]


def _wide_norm(self: Any, hidden: Tensor) -> Tensor:
    scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (hidden * scale)  # type: ignore[no-any-return]


def _wide_rotary(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    angles = position_ids[..., None].to(x.dtype) * self.inv_freq.to(x.dtype)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
