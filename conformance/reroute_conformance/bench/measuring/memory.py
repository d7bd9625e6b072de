"""Measures the memory of requests: the KV cache that a target shows, and the peak of the allocations of a call.

It also computes, by the cost model, how many requests fit in a given memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from reroute_spec import DECODER_SHAPES, Schedule, cost
from torch.profiler import ProfilerActivity, profile

from ...protocol import Target
from .timing import Call
from .works import UNROUTED_SCHEDULE, Layout, Work

_SHOWN = ("llava-1.5-7b", "qwen2.5-vl-7b")
_GIBIBYTES = (24, 80)
_ROOM = 256
_ELEMENT_BYTES = 2


def peak_bytes(call: Call) -> int:
    """The most that one call has allocated at a time on the CPU, beyond what was there."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del kept
    return peak


def peak_bytes_on(device: str, call: Call) -> int:
    """The most that one call has allocated at a time on ``device``, beyond what was there."""
    if device == "cpu":
        return peak_bytes(call)
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


def kv_bytes(target: Target, work: Work) -> int:
    """Bytes of keys and values that a target shows after a prefill."""
    given = work.given(module="hf" in target.profiles)
    answers = target.run(given["model"], given["inputs"], given["schedule"])
    return sum(
        int(table.nbytes) for answer in answers for side in ("keys", "values") for table in answer[side]
    )


def cache_bytes(cache: Any) -> int:
    """Bytes of keys and values in a transformers cache whose blocks hold tensors."""
    return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in cache.layers)


def fits(presets: Sequence[str]) -> list[dict[str, Any]]:
    """How many requests fit beside the blocks' weights, unrouted and routed, by the cost model, with room for decode.

    Returns:
        Per model, memory and preset: ``unrouted`` and ``routed`` requests.
    """
    found = []
    for model in _SHOWN:
        shape = DECODER_SHAPES[model]
        weights = _ELEMENT_BYTES * sum(
            shape.mixer_weights(layer) + shape.mlp_weights for layer in range(shape.num_layers)
        )
        room = _ROOM * shape.num_layers * 2 * shape.key_size * _ELEMENT_BYTES
        for gibibytes in _GIBIBYTES:
            free = gibibytes * 2**30 - weights
            dense = free // (_kv(UNROUTED_SCHEDULE, shape) + room)
            for preset in presets:
                routed = free // (_kv(Schedule.load(preset, shape.num_layers), shape) + room)
                found.append(
                    {
                        "model": model,
                        "memory_gib": gibibytes,
                        "schedule": preset,
                        "decode_room": _ROOM,
                        "unrouted": dense,
                        "routed": routed,
                    }
                )
    return found


def _kv(schedule: Schedule, shape: Any) -> int:
    return cost(Layout().plan(schedule, shape), shape, _ELEMENT_BYTES).kv_bytes
