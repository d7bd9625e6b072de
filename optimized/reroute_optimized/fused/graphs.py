"""Captures the launches of a whole prefill, or of one decode step, as a CUDA graph, and replays them as one launch.

A graph reads fixed addresses. So inputs are copied into tensors of its own, and everything else that it read when it
was captured has to be where it was. A graph for which that is no longer true is dropped and captured anew. Work that
cannot be captured runs as it is; it is counted and logged with the reason.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from reroute_reference.families import part
from reroute_spec import RerouteError
from torch import Tensor, nn

from ..model.decoder import Decoder

T = TypeVar("T")

LOG = logging.getLogger("reroute_optimized.graphs")

MOST_GRAPHS = 64
"""How many graphs are kept. Prompts need one per layout and batch size, decode one per batch size and power of two of pages."""

FIRST = "met for the first time"

SHARE_OF_DEVICE = 0.1
"""The share of the device's memory that graphs may hold. The caches need the rest."""


class Executor(Protocol):
    """The protocol of what captures work. :class:`CudaExecutor` is the one that is used."""

    def capture(self, work: Callable[[], T]) -> tuple[Callable[[], T], int]:
        """Capture ``work``.

        Returns:
            A function that replays ``work`` and returns its results, always in the same tensors; and the bytes that it
                holds.
        """


class CudaExecutor:
    """Captures work as CUDA graphs. Each has memory of its own, so that dropping one gives just that memory back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def capture(self, work: Callable[[], T]) -> tuple[Callable[[], T], int]:
        """As :meth:`Executor.capture`; ``work`` has run once before, outside."""
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before, stream = torch.cuda.memory_reserved(), torch.cuda.current_stream()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    result = work()
            finally:
                torch.cuda.set_stream(stream)  # torch does not where ending a failed capture raises
            held = torch.cuda.memory_reserved() - before

        def replay() -> T:
            graph.replay()
            return result

        return replay, max(held, 0)


@dataclass(frozen=True)
class _Captured(Generic[T]):
    inputs: list[Tensor]
    replay: Callable[[], T]
    read: Hashable
    held: int


class Graphs:
    """Captured work by key. The least recently used is dropped first.

    Args:
        executor: captures the work; None where this device has no graphs.
        limit: bytes that all graphs together may hold.

    Attributes:
        captured, replayed, dropped: how often that has happened.
        eager: how often work ran without a graph, by reason.
    """

    def __init__(self, executor: Executor | None, limit: int) -> None:
        self.executor, self.limit = executor, limit
        self.captured = self.replayed = self.dropped = 0
        self.eager: Counter[str] = Counter()
        self._graphs: OrderedDict[Hashable, _Captured[Any]] = OrderedDict()
        self._met: OrderedDict[Hashable, str] = OrderedDict()

    @classmethod
    def on(cls, device: torch.device) -> Graphs:
        """The graphs of a device; only CUDA devices have any."""
        if device.type != "cuda" or torch.version.hip is not None:
            return cls(None, 0)
        total = torch.cuda.get_device_properties(device).total_memory
        return cls(CudaExecutor(device), int(total * SHARE_OF_DEVICE))

    @property
    def held(self) -> int:
        """Bytes that all graphs hold."""
        return sum(graph.held for graph in self._graphs.values())

    def __len__(self) -> int:
        return len(self._graphs)

    def run(
        self,
        key: Hashable,
        read: Hashable,
        inputs: Sequence[Tensor],
        work: Callable[[Sequence[Tensor]], T],
        copied: Callable[[T], T],
    ) -> T:
        """``work(inputs)``, as it is the first time that ``key`` is met, from then on by its graph.

        Args:
            key: with every number on which ``work`` depends, but for the shapes and dtypes of ``inputs``.
            read: addresses of all that it reads beside ``inputs``; a str says why it cannot be captured.
            inputs: tensors.
            work: reads nothing else that changes, waits for nothing, and makes nothing on the host.
            copied: of its results, which the next replay overwrites.
        """
        key = key, tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        reason = "this device has no graphs" if self.executor is None else ""
        reason = reason or (read if isinstance(read, str) else "")
        found = self._graphs.get(key)
        if found is not None and not reason and found.read != read:
            self._drop(key, "what it read has moved")
            found = None
        if not reason and found is None:
            reason = self._met.setdefault(key, FIRST)
            if reason == FIRST:
                self._met[key] = ""
            self._met.move_to_end(key)
            while len(self._met) > 4 * MOST_GRAPHS:
                self._met.popitem(last=False)
        if not reason and found is None:
            found, reason = self._capture(key, read, inputs, work)
        if found is None or reason:
            self._note(reason)
            return work(inputs)
        self._graphs.move_to_end(key)
        for own, given in zip(found.inputs, inputs, strict=True):
            own.copy_(given)
        self.replayed += 1
        return copied(found.replay())

    def clear(self) -> None:
        """Drop all graphs."""
        self._graphs.clear()

    def _capture(
        self, key: Hashable, read: Hashable, inputs: Sequence[Tensor], work: Callable[[Sequence[Tensor]], T]
    ) -> tuple[_Captured[T] | None, str]:
        assert self.executor is not None
        own = [tensor.clone() for tensor in inputs]
        try:
            replay, held = self.executor.capture(lambda: work(own))
        except RerouteError:
            raise
        except Exception as error:  # whatever a driver or a library may say: the work itself has run before
            reason = f"capture failed: {type(error).__name__}: {error}".splitlines()[0]
            self._met[key] = reason
            return None, reason
        held += sum(tensor.nbytes for tensor in own)
        if held > self.limit:
            self._met[key] = reason = f"its graph holds {held:,} bytes, more than {self.limit:,}"
            return None, reason
        while self._graphs and (len(self) >= MOST_GRAPHS or self.held + held > self.limit):
            self._drop(next(iter(self._graphs)), "others are used more")
        self._graphs[key] = graph = _Captured(own, replay, read, held)
        self.captured += 1
        return graph, ""

    def _drop(self, key: Hashable, reason: str) -> None:
        del self._graphs[key]
        self.dropped += 1
        LOG.info("a graph is dropped: %s", reason)

    def _note(self, reason: str) -> None:
        if not self.eager[reason] and self.executor is not None and reason != FIRST:
            LOG.warning("runs without a graph: %s", reason)
        self.eager[reason] += 1


class Read:
    """The modules of a decoder, and their weights, that the fused engine reads beside its inputs.

    Their addresses say whether a captured graph still reads what the model has now.
    """

    def __init__(self, decoder: Decoder) -> None:
        names = decoder.names
        attention = [
            n for n in (names.query, names.key, "v_proj", "o_proj", names.query_norm, names.key_norm) if n
        ]
        self._called: list[tuple[dict[str, Any], str]] = []
        self._around: list[nn.Module] = []
        for block in decoder.blocks:
            inner = part(block, names.attention)
            self._around += [block, inner, block.mlp]
            self._called += [(inner._modules, name) for name in attention]
            self._called += [
                (block.mlp._modules, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")
            ]
            self._called += [
                (block._modules, n) for n in (names.input_norm, "post_attention_layernorm", "mlp")
            ]
        self._rotary = part(decoder.module, names.rotary)

    def check(self) -> None:
        """Refuse hooks of modules that are not called as modules.

        Raises:
            RerouteError: naming the module's class.
        """
        for module in self._around:
            if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
                raise RerouteError(
                    "backend",
                    f"'triton' does not call {type(module).__name__}, which has hooks or a forward of its own",
                    "remove them, or use backend='torch', which calls blocks whole",
                )

    def addresses(self) -> Hashable:
        """The addresses of all of them, or a str that says why a graph would not do what the modules do."""
        found: list[int] = [
            buffer.data_ptr() for buffer in self._rotary._buffers.values() if buffer is not None
        ]
        for modules, name in self._called:
            module: Any = modules.get(name)
            if module is None:
                return f"{name} is gone"
            if module._forward_hooks or module._forward_pre_hooks:
                return f"{name} has hooks"
            if "forward" in vars(module):
                return f"{name} has another forward"
            if (
                name.endswith("_proj") and type(module) is not nn.Linear
            ):  # what an adapter does may change in place
                return f"{name} is a {type(module).__name__}"
            found.append(id(module))
            found.extend(p.data_ptr() for p in module._parameters.values() if p is not None)
        return tuple(found)
