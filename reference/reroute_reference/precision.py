"""A model in another precision, its own rounding points widened with it: float64 makes the oracle (§11)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a transformers model that computes in ``dtype`` from end to end.

    transformers rounds to float32 inside norms, rotary angles, eager softmax and linear attention, whatever the model's
    dtype. In the float64 copy every module asks for float64 where it would ask for float32, and attention is sdpa,
    which follows its inputs.
    """
    widened: Any = copy.deepcopy(model).to(dtype)
    # the oracle that tolerances and ambiguous rows are measured from  RR-NUM-001 RR-NUM-002
    if dtype == torch.float64:
        widened.set_attn_implementation("sdpa")
        for module in widened.modules():
            if type(module).__module__.startswith("transformers."):
                module.forward = MethodType(_wide_forward, module)
    return widened  # type: ignore[no-any-return]


def _wide_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(self).forward
    if _Float64ForFloat32.entered:  # by the module around this one
        return forward(self, *args, **kwargs)
    _Float64ForFloat32.entered = True
    try:
        with _Float64ForFloat32():
            return forward(self, *args, **kwargs)
    finally:
        _Float64ForFloat32.entered = False


class _Float64ForFloat32(TorchFunctionMode):
    """Whoever asks torch for float32 gets float64."""

    entered = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        func = Tensor.double if func is Tensor.float else func
        given = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widened, args), **given)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
