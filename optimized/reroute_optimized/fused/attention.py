"""Computes causal attention of packed rows, by torch's variable-length attention where it serves them, else by SDPA on a rectangle.

The choice is made by what torch, the device and the heads are, and never by trying. So the same facts always give the
same choice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from reroute_reference.families import part
from torch import Tensor

from ..model.decoder import Decoder
from .blocks import calls_modules
from .plan import PackedStage, Starts

_NEEDED = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size")
_MOST_CHANNELS = 256  # of a head, in flash attention; a multiple of eight


def attention_of(decoder: Decoder) -> str:
    """``varlen`` or ``sdpa``, what serves the packed rows of a decoder as it is now; ``modules`` where its blocks do."""
    if calls_modules(decoder):
        return "modules"
    block, config = decoder.blocks[0], decoder.config
    weight = part(block, decoder.names.input_norm).weight
    alike = config.num_attention_heads == config.num_key_value_heads
    return _choice(weight.device, weight.dtype, alike, part(block, decoder.names.attention).head_dim)


def attend(query: Tensor, key: Tensor, value: Tensor, stage: PackedStage, scale: float) -> Tensor:
    """Causal attention of packed rows within each request, [M, H, D].

    Args:
        query: [M, H, D], turned.
        key, value: [M, Hkv, D].
        stage: that the rows are of.
        scale: of the logits.
    """
    alike = query.shape[1] == key.shape[1]
    if _choice(query.device, query.dtype, alike, query.shape[2]) == "varlen":
        function = varlen_function()
        assert function is not None
        return varlen(function, query, key, value, stage.rows, scale)
    return _rectangular(query, key, value, stage, scale)


@cache
def varlen_function() -> Callable[..., Any] | None:
    """torch's attention of sequences of any length, where this version has it."""
    if find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


@lru_cache
def _choice(device: torch.device, dtype: torch.dtype, alike: bool, head_dim: int) -> str:
    flash = device.type == "cuda" and torch.version.hip is None
    flash = flash and torch.backends.cuda.is_flash_attention_available()
    capability = torch.cuda.get_device_capability(device) if flash else None
    return "varlen" if serves(varlen_function(), capability, dtype, alike, head_dim) else "sdpa"


def serves(
    function: Callable[..., Any] | None,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    alike: bool,
    head_dim: int,
) -> bool:
    """Whether ``function``, by its signature, is causal attention of such rows.

    Args:
        function: torch's, or None.
        capability: of a CUDA device with flash attention; None on any other.
        dtype: of the rows.
        alike: whether keys have as many heads as queries.
        head_dim: channels of a head.
    """
    if function is None or capability is None or capability < (8, 0):
        return False
    takes = inspect.signature(function).parameters
    return (
        dtype in (torch.float16, torch.bfloat16)
        and head_dim % 8 == 0
        and head_dim <= _MOST_CHANNELS
        and all(name in takes for name in _NEEDED)
        and (alike or "enable_gqa" in takes)
    )


def varlen(
    function: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, rows: Starts, scale: float
) -> Tensor:
    """:func:`attend` by ``function``, which :func:`serves` it; ``rows`` per request."""
    grouped = {} if query.shape[1] == key.shape[1] else {"enable_gqa": True}
    out: Tensor = function(
        query, key, value, rows.table, rows.table, rows.most, rows.most,
        scale=scale, window_size=(-1, 0), **grouped,
    )  # fmt: skip
    return out


def _rectangular(query: Tensor, key: Tensor, value: Tensor, stage: PackedStage, scale: float) -> Tensor:
    """:func:`attend` by SDPA.

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
