"""Makes the reference compute the same bits on every machine, by a PyTorch dispatch mode that does every sum in a fixed order.

A processor's own kernels sum in an order of their own and have an exponential of their own, so the last bits of a run
depend on the machine. Under :class:`FixedOrder` the reference runs unchanged, but every operation is exact, correctly
rounded, or done here. What PyTorch would leave to a kernel is done by additions, multiplications, divisions and roots
of single elements, one after another, which IEEE 754 rounds alike everywhere. An operation that is not known to be
alike is refused. So vectors are regenerated bit for bit on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Context, Decimal
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# moves, comparisons, and what IEEE 754 rounds correctly
_EXACT = {
    "_local_scalar_dense", "_to_copy", "_unsafe_view", "abs", "add", "alias", "all", "amax", "any",
    "arange", "bitwise_and", "bitwise_not", "bitwise_or", "cat", "clamp", "clone", "copy_",
    "cummax", "detach", "div", "eq", "expand", "fill_", "full", "ge", "gt", "index", "index_put_",
    "isfinite", "isnan", "le", "lift_fresh", "logical_and", "logical_not", "lt", "masked_fill",
    "max", "mul", "ne", "neg", "new_full", "nonzero", "ones", "permute", "promote_types", "select",
    "slice", "split", "stack", "sub", "t", "transpose", "tril", "unbind", "unsqueeze", "view",
    "zeros",
}  # fmt: skip
_PRECISE = Context(prec=40)
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 6.93147180369123816490e-01, 1.90821492927058770002e-10
_HALF_PI = (1.57079632673412561417, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
_INVERSE_FACTORIALS = [1.0]
for _n in range(1, 18):
    _INVERSE_FACTORIALS.append(_INVERSE_FACTORIALS[-1] / _n)


def _sum(x: Tensor, dim: int, keepdim: bool) -> Tensor:
    total, *rest = x.unbind(dim)
    for part in rest:
        total = total + part
    return total.unsqueeze(dim) if keepdim else total


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a`` [..., n, k] times ``b`` [..., k, m], summed over k from the first to the last."""
    total = a[..., :, :1] * b[..., :1, :]
    for k in range(1, a.shape[-1]):
        total = total + a[..., :, k : k + 1] * b[..., k : k + 1, :]
    return total


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def _exp(x: Tensor) -> Tensor:
    """Powers of e to within 2 units of the last place of float64, then rounded to the dtype; 0 below 1e-307."""
    wide = x.double()
    finite = wide.clamp(-708.0, 709.0)
    turns = (finite * _LOG2_E).round()
    rest = finite - turns * _LN2_HIGH - turns * _LN2_LOW
    scale = ((turns.long() + 1023) * 2**52).view(torch.float64)  # 2 to the power, by its bits
    value = (_polynomial(rest, _INVERSE_FACTORIALS[:15]) * scale).masked_fill(wide < -708.0, 0.0)
    return value.masked_fill(wide.isnan(), torch.nan).to(x.dtype)


def _turned(x: Tensor, quarter: int) -> Tensor:
    """Sine of ``x`` plus ``quarter`` right angles, of angles up to some thousands."""
    wide = x.double()
    turns = (wide * (2 / 3.141592653589793)).round()
    rest = wide
    for part in _HALF_PI:
        rest = rest - turns * part
    square, f = rest * rest, _INVERSE_FACTORIALS
    sine = rest * _polynomial(square, [(-1) ** i * f[2 * i + 1] for i in range(9)])
    cosine = _polynomial(square, [(-1) ** i * f[2 * i] for i in range(9)])
    place = (turns.long() + quarter) % 4
    value = torch.where(place % 2 == 0, sine, cosine)
    return torch.where(place < 2, value, -value).to(x.dtype)


def _power(base: float, exponents: Tensor) -> Tensor:
    values = [
        float(_PRECISE.power(Decimal(base), Decimal(exponent))) for exponent in exponents.double().tolist()
    ]
    return torch.tensor(values, dtype=torch.float64).to(exponents.dtype)


def _reduced(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, **_: Any) -> Tensor:
    if dims is None or len(dims) != 1:
        raise NotImplementedError(f"a sum over the axes {dims} has no fixed order yet")
    return _sum(x, dims[0], keepdim)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    powers = _exp(x - x.amax(dim, keepdim=True))
    return powers / _sum(powers, dim, True)


def _square(x: Tensor, exponent: float) -> Tensor:
    if exponent != 2:
        raise NotImplementedError(f"powers of {exponent} are not known to be alike everywhere")
    return x * x


_IN_ORDER: dict[str, Callable[..., Tensor]] = {
    "mm": _product,
    "bmm": _product,
    "addmm": lambda bias, a, b: _product(a, b) + bias,
    "sum": _reduced,
    "mean": lambda x, dims, keepdim=False: _reduced(x, dims, keepdim) / x.shape[dims[0]],
    "_softmax": _softmax,
    "exp": _exp,
    "silu": lambda x: x / (1 + _exp(-x)),
    "cos": lambda x: _turned(x, 1),
    "sin": lambda x: _turned(x, 0),
    "rsqrt": lambda x: 1 / x.sqrt(),
    "pow.Tensor_Scalar": _square,
    "pow.Scalar": _power,
}


class FixedOrder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode in which operations on CPU tensors give the same bits on every machine, or raise."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        operation = name.partition(".")[0]
        replaced = _IN_ORDER.get(name, _IN_ORDER.get(operation))
        if replaced is not None:
            return replaced(*args, **(kwargs or {}))
        if operation not in _EXACT:
            raise NotImplementedError(f"{func} is not known to give the same bits on every machine")
        return func(*args, **(kwargs or {}))
