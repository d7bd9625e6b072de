"""Causal masks over compact, left-padded rows, in the form each attention implementation of transformers takes."""

from __future__ import annotations

import torch
from reroute_spec import RerouteError
from torch import Tensor


def check_implementation(implementation: str) -> None:
    """Refuse an attention implementation whose mask is not known here.

    Raises:
        RerouteError: naming ``attn_implementation``.
    """
    if implementation not in ("eager", "sdpa") and not implementation.startswith("flash_attention"):
        raise RerouteError(
            "attn_implementation",
            f"{implementation!r} is not routed",
            "use 'sdpa', 'eager' or 'flash_attention_2'",
        )


def causal_mask(
    implementation: str,
    queries: int,
    keys: int,
    pads: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """Bottom-right causal: query i is key ``keys - queries + i`` and attends every real key up to itself.

    A query that is itself padding attends itself alone, so that no softmax is empty.

    Args:
        implementation: ``eager``, ``sdpa`` or ``flash_attention_*``.
        queries, keys: row counts; equal in a prefill.
        pads: [B] rows of left padding per request, or None where no request has any.
        dtype: of an additive mask.
        device: where to build.

    Returns:
        None where the implementation is causal by itself; [B, keys] (1 = real) for flash; else [B or 1, 1, queries,
        keys], bool for sdpa (True attends), additive for eager, which would attend both ways without one.
    """
    column = torch.arange(keys, device=device)
    if implementation.startswith("flash_attention"):
        return None if pads is None else (column >= pads[:, None]).long()
    if pads is None and (queries == 1 or (implementation == "sdpa" and queries == keys)):
        return None
    row = torch.arange(keys - queries, keys, device=device)[:, None]
    allowed = (column <= row)[None]  # [1, queries, keys]
    if pads is not None:
        allowed = (allowed & (column >= pads[:, None, None])) | (column == row)
    allowed = allowed[:, None]
    if implementation == "sdpa":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )
