"""Holds the static launch table, and is the one place where kernels are launched.

Nothing is tuned at run time. Tuning again whenever lengths change would cost more than it saves, and other tiles would
give other bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

SCORE_ROWS = 32
"""Rows of one tile of keys; with 128 channels and 8 warps 16 values a thread."""

SCORE_TILES = 16
"""Tiles whose maxima and sums one step of the reduction reads."""

SELECT_ROWS = 4096
"""Most candidates or rows that one step of the selection looks at; a request of fewer has one smaller tile."""

SELECT_LEAST = 128
"""Fewest candidates or rows of a tile, so that short requests share one compiled kernel."""

DECODE_SPLIT = 256
"""Cached rows of one split of decode attention. It is the same for every batch, so that a request's bits do not depend on the
batch."""

DECODE_ROWS = 32
"""Rows of a split that are read at once."""

DECODE_SPLITS = 16
"""Splits that one step of their reduction reads."""

ROW_CHANNELS = 1024
"""Channels of one program of the elementwise kernels."""

MOST_CHANNELS = 16384
"""Widest row that the normalisations hold in one program."""


@dataclass(frozen=True)
class Launch:
    """One launch: a jitted function, its grid, its arguments by name, and the compiler's options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]


_recorder: Callable[[Launch], None] | None = None


@contextmanager
def recording(launches: list[Launch]) -> Iterator[None]:
    """Note launches instead of launching: what would run, for compilers that have no device. Not for threads."""
    global _recorder
    _recorder = launches.append
    try:
        yield
    finally:
        _recorder = None


def launch(kernel: Any, grid: Sequence[int], arguments: dict[str, Any], *, warps: int) -> None:
    """Run ``kernel`` on ``grid``; nothing happens where the grid is empty.

    ``enable_fp_fusion`` stays off: whether a product and a sum are contracted must not depend on the compiler's version.
    """
    if not all(grid):
        return
    options = {"num_warps": warps, "enable_fp_fusion": False}
    if _recorder is not None:
        _recorder(Launch(kernel, tuple(grid), arguments, options))
        return
    device = next(x.device for x in arguments.values() if isinstance(x, torch.Tensor))
    # Triton launches on the current device, whatever the tensors' own
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[tuple(grid)](**arguments, **options)


def power_of_two(n: int) -> int:
    """The least power of two that is at least ``n``, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def row_warps(width: int) -> int:
    """Warps of a program that holds one row of ``width`` channels: 8 values a thread, at most 16 warps.

    Never more threads than channels but in one warp: a thread of another warp that holds a copy of a channel could read it
    after it was written in place.
    """
    return min(max(power_of_two(width) // 256, 1), 16)


def select_rows(most: int) -> int:
    """Candidates or rows of one step of the selection."""
    return min(max(power_of_two(most), SELECT_LEAST), SELECT_ROWS)


def select_warps(rows: int) -> int:
    """Warps of a program that looks at so many at once: 8 a thread, within 4 to 16 warps."""
    return min(max(rows // 256, 4), 16)


def decode_warps(element_size: int) -> int:
    """Warps of one split: in float32 the products keep twice the registers."""
    return 8 if element_size == 4 else 4
