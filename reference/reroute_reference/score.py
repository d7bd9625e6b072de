"""The score of a decision: how much the asking row attends each candidate, in the decision block's own terms (§5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from reroute_spec import ScoreRule
from torch import Tensor


def apply_rotary(
    x: Float[Tensor, "heads n h"], cos: Float[Tensor, "n r"], sin: Float[Tensor, "n r"]
) -> Float[Tensor, "heads n h"]:
    """Rotate the first ``r`` of ``h`` channels, pairing channel i with channel i + r / 2 (RR-BLOCK-005)."""
    rotated, passed = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = rotated.chunk(2, dim=-1)
    return torch.cat([rotated * cos + torch.cat([-second, first], dim=-1) * sin, passed], dim=-1)


def attention_scores(
    query: Float[Tensor, "H n h"],
    keys: Float[Tensor, "K U h"],
    scaling: float,
    rule: ScoreRule,
    shards: int = 1,
) -> Float[Tensor, " U"]:
    """One score per scored row: attention probability from the asking rows, reduced over rows, then over heads.

    Args:
        query: rotated queries of the asking rows, H query heads: the last ``n`` scored rows, as many as the rule
            asks for or as there are (the last prompt row alone for ``query = last``).
        keys: rotated keys of all scored rows U, K key/value heads; query head h reads key head h // (H / K).
        scaling: factor of the logits.
        rule: reductions.
        shards: processes that the heads are divided among.

    Returns:
        Scores in float32 (float64 for the oracle); they sum to 1 under ``heads = mean``.
    """
    # q and k arrive rounded as the block rounds them; from here on at least float32 (RR-SCORE-003)
    wide = torch.promote_types(query.dtype, torch.float32)
    keys = keys.to(wide).repeat_interleave(query.shape[0] // keys.shape[0], dim=0)  # [H, U, h]
    logits = query.to(wide) @ keys.transpose(-1, -2) * scaling  # [H, n, U]
    asking, scored = logits.shape[-2:]
    visible = torch.ones(asking, scored, dtype=torch.bool, device=logits.device).tril(scored - asking)
    probabilities = logits.masked_fill(~visible, -torch.inf).softmax(dim=-1)  # over all of U  RR-SCORE-002
    per_head = probabilities.mean(dim=1)  # [H, U]
    return reduced_heads(per_head.chunk(shards), rule)


def reduced_heads(shares: Sequence[Float[Tensor, "H_r U"]], rule: ScoreRule) -> Float[Tensor, " U"]:
    """One number per scored row from the heads of every process, the same on each of them.

    Every process reduces its own heads, and these are reduced once more: the mean is over all heads, never a process's own.
    """
    if rule.heads == "max":
        return torch.stack([share.amax(dim=0) for share in shares]).amax(dim=0)
    # one sum over processes, in float32, whose result all of them select by  RR-EQV-008
    total = torch.stack([share.sum(dim=0) for share in shares]).sum(dim=0)
    return total / sum(len(share) for share in shares)  # RR-SCORE-004
