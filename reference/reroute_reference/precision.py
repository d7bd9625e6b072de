"""A model in another precision, its own rounding points widened with it: float64 makes the oracle (§11)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from reroute_spec import RerouteError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a transformers model that computes in ``dtype`` from end to end.

    transformers rounds to float32 inside norms, rotary angles, eager softmax and linear attention, whatever the model's
    dtype. In the float64 copy every module asks for float64 where it would ask for float32, and attention is sdpa,
    which follows its inputs. A ``forward`` given to one module computes there too, with the copy's weights.

    Raises:
        RerouteError: a module whose own ``forward`` cannot be followed to the copy.
    """
    copies: dict[int, Any] = {}
    widened: Any = copy.deepcopy(model, copies).to(dtype)
    for name, module in model.named_modules():
        if "forward" in vars(module):
            copies[id(module)].forward = _rebound(module.forward, copies, name)
    # the oracle that tolerances and ambiguous rows are measured from  RR-NUM-001 RR-NUM-002
    if dtype == torch.float64:
        widened.set_attn_implementation("sdpa")
        for module in widened.modules():
            if type(module).__module__.startswith("transformers."):
                module.forward = partial(_wide_forward, module.forward)
    return widened  # type: ignore[no-any-return]


def _rebound(value: Any, copies: dict[int, Any], name: str) -> Any:
    """``value`` with every module that it holds replaced by its copy, so that no weight of the model's own runs.

    Raises:
        RerouteError: what may hold modules out of sight: a ``forward`` given to module ``name`` cannot be followed.
    """
    again = partial(_rebound, copies=copies, name=name)
    if isinstance(value, nn.Module):
        if id(value) in copies:
            return copies[id(value)]
    elif isinstance(value, MethodType):
        own = getattr(type(value.__self__), value.__func__.__name__, None) is value.__func__
        return MethodType(value.__func__ if own else again(value.__func__), again(value.__self__))
    elif isinstance(value, partial):
        given = {key: again(x) for key, x in value.keywords.items()}
        return partial(again(value.func), *map(again, value.args), **given)
    elif isinstance(value, FunctionType):
        return _rebound_function(value, again)
    elif value is None or isinstance(value, (Tensor, int, float, str, type, BuiltinFunctionType, ModuleType)):
        return value
    elif isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(again, value))
    elif isinstance(value, dict):
        return {key: again(x) for key, x in value.items()}
    raise RerouteError(
        "dtype",
        f"module {name!r} has a forward of its own, which reaches a {type(value).__name__}",
        "make the change in the module's class or weights, or run in the model's own precision",
    )


def _rebound_function(function: FunctionType, again: Callable[[Any], Any]) -> FunctionType:
    if function.__module__.partition(".")[0] in ("torch", "transformers") and not function.__closure__:
        return function  # it is given what it computes with
    named = {
        name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__
    }
    # other functions of its file are taken as they are: they are given what they compute with
    held = {name: x for name, x in named.items() if isinstance(x, (nn.Module, MethodType, partial))}
    outside = {**function.__globals__, **{name: again(x) for name, x in held.items()}} if held else None
    cells = tuple(CellType(again(cell.cell_contents)) for cell in function.__closure__ or ())
    rebound = FunctionType(
        function.__code__,
        function.__globals__ if outside is None else outside,
        function.__name__,
        again(function.__defaults__),
        cells or None,
    )
    rebound.__kwdefaults__ = again(function.__kwdefaults__)
    return rebound


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _wide_forward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if _Float64ForFloat32.entered:  # by the module around this one
        return forward(*args, **kwargs)
    _Float64ForFloat32.entered = True
    try:
        with _Float64ForFloat32():
            return forward(*args, **kwargs)
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
