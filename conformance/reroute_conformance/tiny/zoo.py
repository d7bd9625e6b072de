"""Keeps the tiny transformers models that cases run: those that targets are given, and those that only the judge holds.

The two kinds share no objects, so that nothing that a target does to its model changes what it is judged by.
"""

from __future__ import annotations

from functools import cache

import torch
from reroute_reference.precision import in_precision
from torch import nn

from .llava import tiny_llava
from .qwen import tiny_qwen

_STD = {"qwen3_5": 0.1}
"""The standard deviation of a family's matrices. Wider matrices make linear attention enlarge rounding a hundredfold, so that a
short prompt would be right by luck."""


def forget_target_models() -> None:
    """Let the next case build the target's models anew: what one target did to its own must not reach another."""
    target_model.cache_clear()


@cache
def target_model(family: str, seed: int, attention: str) -> nn.Module:
    """A model of a target's own, the same for every case of one seed, as a server would keep it."""
    return _build(family, seed, attention)


@cache
def judge_model(family: str, seed: int, attention: str, dtype: torch.dtype) -> nn.Module:
    """The same model in ``dtype``, of objects that no target ever holds."""
    if dtype == torch.float32:
        return _build(family, seed, attention)
    return in_precision(judge_model(family, seed, "sdpa", torch.float32), dtype)


def _build(family: str, seed: int, attention: str) -> nn.Module:
    model: nn.Module = (
        tiny_llava(seed, attention=attention)
        if family == "llava"
        else tiny_qwen(family, seed, attention=attention, std=_STD.get(family, 0.2))
    )
    return model
