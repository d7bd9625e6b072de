"""Checks on the host what the operators are given: devices, shapes, strides and counts. Each refusal names the argument."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from reroute_spec import RerouteError
from torch import Tensor

from .table import MOST_CHANNELS

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INDEX = (torch.int32,)
MOST_REQUESTS = 65535
"""The most programs that a grid has along its second and third axis."""


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, slowly, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_device(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a device on which the kernels cannot run; nothing else is run in their place.

    Raises:
        RerouteError: neither a GPU nor Triton's interpreter on a CPU; bfloat16 in the interpreter, which gets it wrong.
    """
    if interpreted() and dtype == torch.bfloat16:
        raise RerouteError(
            "dtype",
            "Triton's interpreter computes bfloat16 wrongly",
            "use float32 or float16, or a GPU without TRITON_INTERPRET=1",
        )
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        raise RerouteError(
            "device",
            f"the Triton kernels do not run on {device.type!r}",
            "move the tensors to a CUDA or ROCm device, use backend='torch', or set TRITON_INTERPRET=1 before "
            "triton is imported to run them slowly on a CPU",
        )


def check_tensor(
    name: str,
    x: Any,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    like: Tensor,
    dense: int = 1,
) -> None:
    """Refuse ``x`` unless it has that shape (None: any length), one of the dtypes, the device of ``like``, its last ``dense``
    dimensions dense, and no gradient to be lost.
    """
    if not isinstance(x, Tensor):
        raise RerouteError(name, f"is a {type(x).__name__}", f"give a tensor {_words(shape)}")
    if x.dim() != len(shape) or any(n is not None and n != m for n, m in zip(shape, x.shape, strict=True)):
        raise RerouteError(name, f"has the shape {list(x.shape)}", f"give {_words(shape)}")
    if x.dtype not in dtypes:
        known = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise RerouteError(name, f"is {str(x.dtype).removeprefix('torch.')}", f"give {known}")
    if x.device != like.device:
        raise RerouteError(name, f"is on {x.device}", f"move it to {like.device}, where the others are")
    if x.numel() and not _dense(x, dense):
        raise RerouteError(
            name, f"has the strides {list(x.stride())}", f"make its last {dense} dimensions contiguous"
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise RerouteError(
            name, "requires a gradient, and the kernels have none", "call under torch.no_grad()"
        )


def check_written(name: str, x: Tensor) -> None:
    """Refuse a tensor that is written to and whose elements lie on one another."""
    if any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True)):
        raise RerouteError(name, "is expanded, and is written to", "give a tensor of its own: x.contiguous()")


def _words(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"


def check_first(name: str, x: Any, dims: int, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """:func:`check_device` and :func:`check_tensor` of the tensor that the others are measured by."""
    check_tensor(name, x, [None] * dims, dtypes, x)
    check_device(x.device, x.dtype)


def _dense(x: Tensor, dims: int) -> bool:
    expected = 1
    for dim in range(x.dim() - 1, x.dim() - 1 - dims, -1):
        if x.shape[dim] != 1 and x.stride(dim) != expected:
            return False
        expected *= x.shape[dim]
    return True


def check_count(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuse what is no integer from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise RerouteError(name, f"is a {type(value).__name__}", "give an integer")
    if value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise RerouteError(name, f"{value}", f"give an integer {limit}")


def check_number(name: str, value: Any) -> None:
    """Refuse what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
        raise RerouteError(name, f"is a {type(value).__name__}", "give a float")


def check_starts(name: str, x: Any, members: int | None, like: Tensor) -> None:
    """[members + 1] int32, at most as many members as a grid has programs along its shorter axes."""
    check_tensor(name, x, [members], INDEX, like)
    if not 1 <= x.shape[0] <= MOST_REQUESTS + 1:
        raise RerouteError(
            name, f"has {x.shape[0]} entries", f"give from 1 to {MOST_REQUESTS + 1}: starts, and the end"
        )


def check_angles(cos: Tensor, sin: Any, axes: Any, rows: int | None, head_dim: int, like: Tensor) -> None:
    """Refuse rotary tables that differ from one another, turn an odd number of channels, or more than a head has."""
    shape: list[int | None] = [rows, None] if axes is None else [None, rows, None]
    check_tensor("cos", cos, shape, FLOATS, like)
    check_tensor("sin", sin, list(cos.shape), (cos.dtype,), like)
    if cos.stride() != sin.stride():
        raise RerouteError(
            "sin", f"has the strides {list(sin.stride())}", f"lay it out like cos: {list(cos.stride())}"
        )
    rotary = cos.shape[-1]
    if rotary % 2 or rotary > head_dim:
        raise RerouteError(
            "cos", f"turns {rotary} channels", f"give an even number up to head_dim, {head_dim}"
        )
    if axes is not None:
        check_tensor("axes", axes, [rotary], INDEX, like)


def check_heads(num_heads: int, kv_heads: int) -> None:
    """Refuse query heads that the key heads do not divide."""
    if kv_heads == 0 or num_heads == 0 or num_heads % kv_heads:
        raise RerouteError(
            "query", f"has {num_heads} heads, the keys {kv_heads}", "give a multiple of theirs"
        )


def check_covered(name: str, rows: Tensor, starts: Tensor) -> None:
    """Refuse rows where there is no request to hold them."""
    if starts.shape[0] == 1 and rows.shape[0]:
        raise RerouteError(
            name, f"has {rows.shape[0]} rows of no request", "let cu_seqlens end at their number"
        )


def check_width(name: str, width: int) -> None:
    """Refuse rows wider than a program holds."""
    if width > MOST_CHANNELS:
        raise RerouteError(
            name, f"has {width} channels", f"the kernel holds up to {MOST_CHANNELS} in one program"
        )


def check_pages(key_pages: Tensor, value_pages: Any, kv_heads: int | None, like: Tensor) -> None:
    """Refuse pages that do not hold keys and values alike, page after page."""
    check_tensor("key_pages", key_pages, [None, None, kv_heads, like.shape[-1]], (like.dtype,), like)
    check_tensor("value_pages", value_pages, list(key_pages.shape), (like.dtype,), like)
    if key_pages.stride() != value_pages.stride():
        raise RerouteError(
            "value_pages", "is laid out otherwise than key_pages", "give both the same strides"
        )
    if key_pages.shape[0] > 1 and key_pages.stride(0) != key_pages.shape[1] * key_pages.stride(1):
        raise RerouteError("key_pages", "has gaps between its pages", "lay page after page, row after row")


def check_disjoint(name: str, written: Tensor | None, read: Tensor, other: str) -> None:
    """Refuse memory that is written to while ``read``, the argument ``other``, is read from it."""
    if written is None or not written.numel() or not read.numel():
        return
    (first, last), (start, end) = _extent(written), _extent(read)
    if written.device == read.device and first < end and start < last:
        raise RerouteError(
            name, f"shares memory with {other}, and is written to", "give it memory of its own"
        )


def _extent(x: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()
