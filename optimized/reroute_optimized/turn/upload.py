"""Uploads tables from the host to the device, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def uploaded(table: NDArray[Any], device: torch.device) -> Tensor:
    """``table`` on ``device``; the caller may change it at once."""
    copied = torch.tensor(table)
    if device.type == "cpu":
        return copied
    return copied.pin_memory().to(device, non_blocking=True)
