"""Applies rotary embedding inside a kernel, in half-split pairs on the leading channels, and finds the axis of a channel's angle."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def partner_of(channels, ROTARY: tl.constexpr):
    """The channel that ``channels`` is turned with; itself beyond the rotary width."""
    half: tl.constexpr = ROTARY // 2
    return tl.where(channels < half, channels + half, tl.where(channels < ROTARY, channels - half, channels))


@triton.jit
def turned(values, partners, cos, sin, channels, ROTARY: tl.constexpr):
    """``values`` turned by the angles of their rows, all float32 and of one shape; channels beyond ``ROTARY`` stay."""
    sign = tl.where(channels < ROTARY // 2, -1.0, 1.0)
    return tl.where(channels < ROTARY, values * cos + sign * partners * sin, values)


@triton.jit
def angle_offsets(axes, channels, axis_stride, ROTARY: tl.constexpr, HAS_AXES: tl.constexpr):
    """Where in one row of the tables each channel's cosine lies: axis by axis where positions have several."""
    offsets = channels.to(tl.int64)
    if HAS_AXES:
        axis = tl.load(axes + channels, mask=channels < ROTARY, other=0)
        offsets += axis.to(tl.int64) * axis_stride
    return offsets
