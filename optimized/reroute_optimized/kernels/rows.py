"""Gathers, normalises, adds, gates and writes back whole rows at the ends of stages and blocks, with at least one program a row.

Normalisation is that of the Llama family. The row is divided by its root mean square in float32 and rounded to the
model's dtype; it is then multiplied by the weight and rounded again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table


@triton.jit
def _normalised(row, weight, channels, real, WIDTH: tl.constexpr, epsilon):
    square = tl.sum(row * row, axis=0) / WIDTH
    w = tl.load(weight + channels, mask=real, other=0.0)
    narrow = (row * (1.0 / tl.sqrt_rn(square + epsilon))).to(w.dtype)
    return narrow.to(tl.float32) * w.to(tl.float32)


@triton.jit
def _gather_rmsnorm(
    stream, index, weight, rows, normed, stream_row, epsilon, WIDTH: tl.constexpr, CHANNELS: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(index + place).to(tl.int64)
    channels = tl.arange(0, CHANNELS)
    real = channels < WIDTH
    values = tl.load(stream + row * stream_row + channels, mask=real, other=0.0)
    tl.store(rows + place * WIDTH + channels, values, mask=real)
    result = _normalised(values.to(tl.float32), weight, channels, real, WIDTH, epsilon)
    tl.store(normed + place * WIDTH + channels, result, mask=real)


@triton.jit
def _add_rmsnorm(
    residual,
    delta,
    weight,
    normed,
    residual_row,
    delta_row,
    epsilon,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, CHANNELS)
    real = channels < WIDTH
    line = residual + place * residual_row + channels
    total = tl.load(line, mask=real, other=0.0).to(tl.float32)
    total += tl.load(delta + place * delta_row + channels, mask=real, other=0.0).to(tl.float32)
    narrow = total.to(residual.dtype.element_ty)  # the stream is kept, and normalised, as it is stored
    tl.store(line, narrow, mask=real)
    result = _normalised(narrow.to(tl.float32), weight, channels, real, WIDTH, epsilon)
    tl.store(normed + place * WIDTH + channels, result, mask=real)


@triton.jit
def _swiglu(gate_up, out, gate_up_row, WIDTH: tl.constexpr, CHANNELS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = channels < WIDTH
    line = gate_up + place * gate_up_row
    gate = tl.load(line + channels, mask=real, other=0.0).to(tl.float32)
    up = tl.load(line + WIDTH + channels, mask=real, other=0.0).to(tl.float32)
    # rounded in between, like a module that returns its activation
    active = (gate / (1.0 + tl.exp(-gate))).to(gate_up.dtype.element_ty).to(tl.float32)
    tl.store(out + place * WIDTH + channels, active * up, mask=real)


@triton.jit
def _write_back(
    stream,
    index,
    residual,
    delta,
    stream_row,
    residual_row,
    delta_row,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = channels < WIDTH
    row = tl.load(index + place).to(tl.int64)
    total = tl.load(residual + place * residual_row + channels, mask=real, other=0.0).to(tl.float32)
    total += tl.load(delta + place * delta_row + channels, mask=real, other=0.0).to(tl.float32)
    tl.store(stream + row * stream_row + channels, total, mask=real)


def gather_rmsnorm(stream: Tensor, index: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Rows ``index`` [M] of ``stream`` [T, d], and the same normalised."""
    width = stream.shape[1]
    rows = stream.new_empty(index.shape[0], width)
    normed = torch.empty_like(rows)
    table.launch(
        _gather_rmsnorm,
        (index.shape[0],),
        {
            "stream": stream,
            "index": index,
            "weight": weight,
            "rows": rows,
            "normed": normed,
            "stream_row": stream.stride(0),
            "epsilon": epsilon,
            "WIDTH": width,
            "CHANNELS": table.power_of_two(width),
        },
        warps=table.row_warps(width),
    )
    return rows, normed


def add_rmsnorm(residual: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Adds ``delta`` [M, d] to ``residual`` in place; returns the sum normalised."""
    width = residual.shape[1]
    normed = residual.new_empty(residual.shape)
    table.launch(
        _add_rmsnorm,
        (residual.shape[0],),
        {
            "residual": residual,
            "delta": delta,
            "weight": weight,
            "normed": normed,
            "residual_row": residual.stride(0),
            "delta_row": delta.stride(0),
            "epsilon": epsilon,
            "WIDTH": width,
            "CHANNELS": table.power_of_two(width),
        },
        warps=table.row_warps(width),
    )
    return normed


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of [M, 2F], gates first: [M, F]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    table.launch(
        _swiglu,
        (rows, -(-width // table.ROW_CHANNELS)),
        {
            "gate_up": gate_up,
            "out": out,
            "gate_up_row": gate_up.stride(0),
            "WIDTH": width,
            "CHANNELS": table.ROW_CHANNELS,
        },
        warps=4,
    )
    return out


def write_back(stream: Tensor, index: Tensor, residual: Tensor, delta: Tensor) -> None:
    """``stream[index] = residual + delta`` in place, the last addition of a stage and its way back in one."""
    rows, width = residual.shape
    table.launch(
        _write_back,
        (rows, -(-width // table.ROW_CHANNELS)),
        {
            "stream": stream,
            "index": index,
            "residual": residual,
            "delta": delta,
            "stream_row": stream.stride(0),
            "residual_row": residual.stride(0),
            "delta_row": delta.stride(0),
            "WIDTH": width,
            "CHANNELS": table.ROW_CHANNELS,
        },
        warps=4,
    )
