"""Divides a model's attention heads among processes for a conformance run, and runs a request in several processes.

The attention is divided by transformers' own tensor-parallel plan, and the rest of the model stays whole in every
process. Keys and values of all heads are gathered again, so that every process returns the whole answer. The processes
that are started here form one gloo group. They wait for the next call, because they are slow to start.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from datetime import timedelta
from functools import cache
from multiprocessing import get_context
from multiprocessing.util import Finalize
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

from ..parallel.shards import Shards

_PATIENCE = timedelta(seconds=60)
"""How long the processes wait for one that does not come to a collective."""


def processes() -> int:
    """The number of processes of the default group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def shared(network: nn.Module) -> nn.Module:
    """``network`` as the processes of the default group share it: a copy whose heads are divided by transformers' own plan.

    The rest stays whole, so that its sums round as the suite's tolerances expect: those are of one process's rounding.
    The network is returned itself where there is one process, where transformers has no plan for its text decoder, and
    where its heads cannot be divided: then every process runs all of it.
    """
    model: Any = network
    size = processes()
    config = model.config.get_text_config()
    if (
        size == 1
        or not any(name.endswith("self_attn.q_proj") for name in model.tp_plan)
        or config.num_attention_heads % size
        or config.num_key_value_heads % size
    ):
        return network
    copy = deepcopy(model)
    copy.tp_plan = {name: style for name, style in copy.tp_plan.items() if ".self_attn." in name}
    parts: nn.Module = copy.maybe_distribute_model(copy, *_distributed(dist.group.WORLD))
    return parts


@cache
def _distributed(world: Any) -> tuple[Any, Any]:
    """transformers' configuration and mesh, one for all models: a mesh brings process groups of its own."""
    config, _, mesh = PreTrainedModel.prepare_distribute_model(DistributedConfig(tp_size=world.size()))
    return config, mesh


def all_heads(rows: Tensor, shards: Shards | None) -> Tensor:
    """Keys or values [heads, rows, head_dim] of the heads of all processes, given ``rows`` of this one's."""
    if shards is None:
        return rows
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(shards.size)]
    dist.all_gather(parts, rows, group=shards.group)
    return torch.cat(parts)


def in_processes(work: Callable[..., Any], count: int, *given: Any) -> list[Any]:
    """What ``work(*given)`` returns in each of ``count`` processes of one gloo group.

    Raises:
        Exception: what one of them raised; what others raised because it was gone only if there is nothing else.
        BrokenProcessPool: one died.
    """
    message = pickle.dumps((work, given))
    with TemporaryDirectory(prefix="vlm-reroute-") as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        pool = _pool(count)
        try:
            # none takes two: each waits for the others
            asked = [pool.submit(_one_of, rank, count, meeting, message) for rank in range(count)]
            raised = [error for error in (done.exception() for done in asked) if error is not None]
            if raised:
                raise min(raised, key=lambda error: "gloo" in str(error).lower())
            return [pickle.loads(done.result()) for done in asked]
        except BaseException:  # of submit too, where the first was gone before the last was asked
            _POOLS.pop(count, pool).shutdown(wait=False, cancel_futures=True)
            raise


_POOLS: dict[int, ProcessPoolExecutor] = {}


def _pool(count: int) -> ProcessPoolExecutor:
    """Processes that wait for the next call: they start slowly. What is forked has torch and transformers already."""
    if not _POOLS:
        # where multiprocessing itself started this process, it closes queues (priority 10) and then joins children before it
        # tells executors that it ends: they would wait for a word that can no longer be sent
        Finalize(None, _end, exitpriority=100)
    if count not in _POOLS:
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])
        _POOLS[count] = ProcessPoolExecutor(count, mp_context=context)
    return _POOLS[count]


def _end() -> None:
    while _POOLS:
        _POOLS.popitem()[1].shutdown()


def _one_of(rank: int, count: int, meeting: str, message: bytes) -> bytes:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        work, given = pickle.loads(message)
        return pickle.dumps(work(*given))
    finally:
        dist.destroy_process_group()
        _distributed.cache_clear()  # groups of a mesh live as long as it does, and their threads never sleep
