"""Finds the processes that divide the heads by tensor parallelism, and reduces a score over the heads of all of them.

It also says what happened where a collective fails because another process is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from reroute_reference.families import part
from reroute_spec import RerouteError
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..model.decoder import Decoder


@dataclass(frozen=True)
class Shards:
    """The processes among which heads are divided.

    Attributes:
        group: their process group, for collectives.
        size: the number of processes.
    """

    group: dist.ProcessGroup
    size: int


def shards_of(projection: nn.Module) -> Shards | None:
    """The processes among which a projection's outputs are divided, as its weight (a DTensor) says; None where it is whole."""
    weight: Any = getattr(projection, "weight", None)
    mesh = getattr(weight, "device_mesh", None)
    if mesh is None:
        return None
    cut = [axis for axis, placement in enumerate(weight.placements) if placement.is_shard(0)]
    if not cut or mesh.size(cut[0]) == 1:
        return None
    return Shards(mesh.get_group(cut[0]), mesh.size(cut[0]))


def check_shards(decoder: Decoder) -> Shards | None:
    """The processes among which the heads of ``decoder`` are divided; None where each has all of them.

    Raises:
        RerouteError: weights that are gathered block by block (FSDP), heads that the processes cannot share evenly.
    """
    if any(cls.__name__ == "FSDPModule" for block in decoder.blocks for cls in type(block).__mro__):
        raise RerouteError(
            "model",
            "its blocks are sharded by FSDP, and scores are computed from weights between two blocks",
            "divide the heads: DistributedConfig(tp_size=...), or give every process the whole model",
        )
    if not decoder.attention_layers:
        return None
    attention = part(decoder.blocks[decoder.attention_layers[0]], decoder.names.attention)
    shards = shards_of(part(attention, decoder.names.query))
    if shards is None:
        return None
    config: Any = decoder.config
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name)
        if heads % shards.size:
            raise RerouteError(
                "model",
                f"{name} is {heads}, for {shards.size} processes",
                "tp_size has to divide the heads, of queries and of keys",
            )
    return shards


def over_all_heads(scores: Tensor, reduction: str, heads: int, projection: nn.Module) -> Tensor:
    """The mean or the largest over all heads [B, W], of this process's share [B, heads here, W].

    Where the heads are divided it is one reduction among the processes, in the scores' own float32 (or float64), and
    what comes out of it is the same on all of them: they compare the same numbers, and select alike.

    Args:
        scores: of the heads that this process has.
        reduction: ``mean`` or ``max``.
        heads: of the whole model.
        projection: of the queries, which knows the processes.
    """
    shards = None if scores.shape[1] == heads else shards_of(projection)
    if shards is None:
        return scores.mean(1) if reduction == "mean" else scores.amax(1)
    if reduction == "mean":
        total = scores.sum(1)
        dist.all_reduce(total, group=shards.group)
        return total / heads
    # the largest of a NaN and a number is either, by backend: infinity, which no probability is, always wins
    most = scores.amax(1)
    most = most.masked_fill(most.isnan(), torch.inf)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=shards.group)
    return most.masked_fill(most.isinf(), torch.nan)


_LOST = ("gloo", "pair closure")
"""Words in gloo's messages about a lost process. It says the second of a group that has given a process up before."""


@contextmanager
def lost_processes_told(shards: Shards) -> Iterator[None]:
    """Say what happened where a collective fails, be it a score's or one of transformers' own.

    Raises:
        RerouteError: another process died, or did not come within the group's timeout.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in _LOST):
            raise
        raise RerouteError(
            "process group",
            f"another of the {shards.size} processes died, or did not follow within the timeout ({error})",
            "see what it said, end all and start anew; init_process_group(timeout=...) before the model is loaded"
            " says how long one may take",
        ) from error
