"""Watches a kernel in the interpreter, which checks no bounds and runs programs one after another; or on a GPU, where there is one.

Inputs and whatever a launcher allocates lie between bands of known values; memory that is not yet written is poison. Programs
run in both orders: what depends on it is a race on a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import interpreter_builder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if DEVICE == "cuda" else ())
"""The interpreter gets bfloat16 wrong."""

BAND = 1024
"""Elements on either side."""

DENSE = "rotated"
"""The one input of several dimensions that has to be dense."""

EMPTY = (
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.empty_like.default,
)


def poison(dtype: torch.dtype) -> float | int | bool:
    """A value that spoils any result that it gets into, and as an index stays inside small tensors."""
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else 3


class Guarded:
    """A tensor of that shape between two bands, all of it poison; a loose one has gaps after rows of every dimension."""

    def __init__(self, shape: Any, dtype: torch.dtype, *, loose: bool = False) -> None:
        padded = list(shape)
        if loose and len(shape) > 1:
            # the first two of four dimensions are pages, which lie side by side
            dense = 2 if len(shape) == 4 else 1
            padded[dense:] = [n + 1 for n in padded[dense:]]
        count = torch.Size(padded).numel()
        self.whole = torch.full((count + 2 * BAND,), poison(dtype), dtype=dtype, device=DEVICE)
        whole = self.whole[BAND : BAND + count].view(padded)
        self.tensor = whole[tuple(slice(n) for n in shape)]

    def check(self) -> None:
        outside = self.whole.clone()
        mine = self.tensor.storage_offset() - self.whole.storage_offset()
        outside.as_strided(self.tensor.shape, self.tensor.stride(), mine).fill_(poison(outside.dtype))
        expected = torch.full_like(outside, poison(outside.dtype))
        assert torch.equal(outside.view(torch.uint8), expected.view(torch.uint8)), "wrote out of bounds"


class Guards(TorchDispatchMode):
    """Every tensor that is allocated inside lies between bands."""

    def __init__(self) -> None:
        super().__init__()
        self.guarded: list[Guarded] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (
            func not in EMPTY or not result.numel()
        ):  # the interpreter makes empty tensors to show memory that is there
            return result
        self.guarded.append(Guarded(result.shape, result.dtype))
        return self.guarded[-1].tensor


@contextmanager
def reversed_programs() -> Iterator[None]:
    """The last program runs first."""
    plain = interpreter_builder.set_grid_idx

    def mirrored(*index: int) -> None:
        plain(*(n - 1 - i for n, i in zip(interpreter_builder.grid_dim, index, strict=True)))

    interpreter_builder.set_grid_idx = mirrored
    try:
        yield
    finally:
        del interpreter_builder.set_grid_idx


def watched(launcher: Callable[..., Any], arguments: dict[str, Any], writes: tuple[str, ...] = ()) -> Any:
    """What ``launcher`` returns, and the arguments that it writes to, in that order, as a flat tuple.

    Asserts that nothing else is written, inside or outside, and that reversed programs on loosely laid inputs give the same
    bits.
    """
    forwards = _run(launcher, arguments, writes, loose=False)
    with reversed_programs():  # a GPU chooses its own order, and may choose another the second time
        backwards = _run(launcher, arguments, writes, loose=True)
    for one, other in zip(forwards, backwards, strict=True):
        assert same_bits(one, other), "the order of programs, or the strides of inputs, matter"
    return forwards


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal shapes, dtypes and bits; a NaN equals itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _run(
    launcher: Callable[..., Any], arguments: dict[str, Any], writes: tuple[str, ...], loose: bool
) -> tuple[torch.Tensor, ...]:
    inputs = {
        name: _guarded(value, loose and name != DENSE)
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor)
    }
    with Guards() as guards:
        result = launcher(**arguments | {name: x.tensor for name, x in inputs.items()})
    for guarded in (*inputs.values(), *guards.guarded):
        guarded.check()
    for name, x in inputs.items():
        assert name in writes or same_bits(x.tensor.cpu(), arguments[name]), f"wrote to {name}"
    flat = result if isinstance(result, tuple) else () if result is None else (result,)
    return tuple(x.cpu() for x in (*flat, *(inputs[name].tensor for name in writes if name in inputs)))


def plainly(launcher: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What ``launcher`` returns, unwatched, on the CPU."""
    moved = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    result = launcher(**moved)
    return tuple(x.cpu() for x in result) if isinstance(result, tuple) else result.cpu()


def _guarded(value: torch.Tensor, loose: bool) -> Guarded:
    guarded = Guarded(value.shape, value.dtype, loose=loose)
    guarded.tensor.copy_(value)
    return guarded
