"""Builds causal masks over compact rows, in the form that each attention implementation of transformers takes."""

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
    valid: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """Bottom-right causal: query i is key ``keys - queries + i`` and attends every real key up to itself.

    A query that is itself padding attends itself alone, so that no softmax is empty.

    Args:
        implementation: ``eager``, ``sdpa`` or ``flash_attention_*``.
        queries, keys: row counts; equal in a prefill.
        valid: [B, keys] bool, False for padding among the keys; None where there is none.
        dtype: of an additive mask.
        device: where to build.

    Returns:
        None where the implementation is causal by itself; [B, keys] (1 = real) for flash; else [B or 1, 1, queries,
        keys], bool for sdpa (True attends), additive for eager, which would attend both ways without one.
    """
    if implementation.startswith("flash_attention"):
        return None if valid is None else valid.long()
    if valid is None and (queries == 1 or (implementation == "sdpa" and queries == keys)):
        return None
    column = torch.arange(keys, device=device)
    row = torch.arange(keys - queries, keys, device=device)[:, None]
    allowed = (column <= row)[None]  # [1, queries, keys]
    if valid is not None:
        allowed = (allowed & valid[:, None]) | (column == row)
    allowed = allowed[:, None]
    if implementation == "sdpa":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )
