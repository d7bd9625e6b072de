"""Describes the machine that figures are from, and measures the most that it can do, in the same run."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .timing import Call, measure

_VERSIONS = ("vlm-reroute", "torch", "transformers", "triton")
_ROUNDS = 15


@dataclass(frozen=True)
class Place:
    """The device and the dtype that figures are taken in.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: the dtype of models and rows.
    """

    device: str
    dtype: torch.dtype

    @classmethod
    def of(cls, device: str) -> Place:
        """float32 on a CPU, bfloat16 on a GPU."""
        return cls(device, torch.float32 if device == "cpu" else torch.bfloat16)

    @property
    def element_bytes(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    def settle(self) -> None:
        """Wait until the device has done its work."""
        if self.device != "cpu":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Rates:
    """The most that a machine does.

    Attributes:
        flops: FLOPs per second of a large matrix product.
        bytes: bytes per second, read and written, of a large copy.
        call: seconds of the smallest operation.
    """

    flops: float
    bytes: float
    call: float

    @classmethod
    def measured(cls, place: Place) -> Rates:
        """Measure the rates of ``place`` in its dtype. The best of some rounds counts, since a ceiling is meant."""
        side, elements = (1024, 2**25) if place.device == "cpu" else (8192, 2**29)
        a, b = (torch.randn(side, side, device=place.device).to(place.dtype) for _ in "ab")
        source = torch.ones(elements, dtype=place.dtype, device=place.device)
        target, nothing = torch.empty_like(source), torch.zeros(1, device=place.device)
        calls: dict[str, Call] = {
            "product": lambda: a @ b,
            "copy": lambda: target.copy_(source),
            "nothing": nothing.zero_,
        }
        times = measure(calls, _ROUNDS, settle=place.settle)
        return cls(
            flops=2 * side**3 / times["product"].least,
            bytes=2 * source.nbytes / times["copy"].least,
            call=times["nothing"].least,
        )


def facts(place: Place) -> dict[str, Any]:
    """What to know of the machine and the software, as plain data."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "device": place.device,
        "dtype": str(place.dtype).removeprefix("torch."),
        "versions": {
            **{name: version(name) for name in _VERSIONS if _has(name)},
            "python": platform.python_version(),
        },
    }
    if place.device != "cpu":
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
    return found


def _has(name: str) -> bool:
    return name != "triton" or platform.system() == "Linux"


def _processor() -> str:
    """Its name, as the system has it."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
