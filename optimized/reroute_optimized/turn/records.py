"""Keeps what a prefill leaves behind: its decisions stay device tensors until somebody asks for the traces."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from reroute_spec import DecisionRecord, RerouteError, RoutingTrace
from reroute_spec.trace import record
from torch import Tensor

from .layout import DecisionLayout, Layout
from .source import Source


@dataclass(frozen=True)
class Decided:
    """One decision over the batch.

    Attributes:
        shape: its static layout, which gives every count.
        layer: the block at whose input the decision is made.
        pool: [B, C] ordinals of the candidates, or None where they are all ordinals.
        scores: [B, C].
        selected: [B, K] ordinals, ascending, padding last.
        would_select: [B, K] what the scores select, where ``selected`` was replayed.
    """

    shape: DecisionLayout
    layer: int
    pool: Tensor | None
    scores: Tensor
    selected: Tensor
    would_select: Tensor | None = None

    def copied(self) -> Decided:
        """The same in tensors of its own."""
        tensors: dict[str, Any] = {n: x.clone() for n, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors)


@dataclass
class NanGuard:
    """The NaN scores that were seen on an asynchronous device, which the host reads when somebody checks."""

    seen: list[tuple[int, int, Tensor]] = field(default_factory=list)

    def note(self, index: int, layer: int, flags: Tensor) -> None:
        """Decision ``index`` at block ``layer`` had NaN scores in the requests of ``flags`` [B]."""
        self.seen.append((index, layer, flags))

    def requests(self) -> Tensor | None:
        """[B] bool, requests with a NaN so far; None where nothing was looked at."""
        return torch.stack([flags for _, _, flags in self.seen]).any(0) if self.seen else None

    def check(self) -> None:
        """Raise for the first NaN there was.

        Raises:
            RerouteError: naming the decision, its block and the batch row.
        """
        for index, layer, flags in self.seen:
            refuse_nan(index, layer, flags)


def reads_at_once(device: torch.device) -> bool:
    """Whether reading ``device`` waits for nothing, so that a NaN can be raised where it appears."""
    return device.type == "cpu"


def refuse_nan(index: int, layer: int, flags: Tensor) -> None:
    """Raise if any of ``flags`` [B] is set; reads the device."""
    rows = [row for row, flag in enumerate(flags.tolist()) if flag]
    if rows:
        raise RerouteError(
            f"decisions[{index}].scores",
            f"are NaN at block {layer}, batch row {rows[0]}",
            "a NaN is never ordered; find the block or the input that made it",
        )


@dataclass
class Prefill:
    """A finished prefill, or a finished later turn that was routed.

    Attributes:
        layout: the layout of the batch.
        decided: the decisions, in order.
        guard: NaN flags that nobody has read yet.
        attends: per block, whether it caches rows.
        past: [Λ, B] rows that every block had cached before; None where nothing was.
        source: what the prompt was made of, for whoever draws it; None where it had no placeholders.
    """

    layout: Layout
    decided: list[Decided]
    guard: NanGuard
    attends: tuple[bool, ...]
    past: Tensor | None = None
    source: Source | None = None
    _traces: list[RoutingTrace] | None = None

    def traces(self) -> list[RoutingTrace]:
        """One trace per request, read from the device once.

        Raises:
            RerouteError: a request had NaN scores.
        """
        if self._traces is None:
            self.guard.check()
            tables = [_Table(decided) for decided in self.decided]
            rows = self.kv_rows()
            self._traces = [self._trace(tables, rows, request) for request in range(len(self.layout.plans))]
        return self._traces

    def kv_rows(self) -> list[tuple[int, ...]]:
        """Per request, the rows that every block's cache holds after the turn; 0 where it holds a state."""
        past = [[0] * len(self.layout.plans)] * len(self.attends) if self.past is None else self.past.tolist()
        return [
            tuple(
                (rows + before[request]) * attends
                for rows, before, attends in zip(plan.kv_rows, past, self.attends, strict=True)
            )
            for request, plan in enumerate(self.layout.plans)
        ]

    def _trace(self, tables: list[_Table], kv_rows: list[tuple[int, ...]], request: int) -> RoutingTrace:
        plan = self.layout.plans[request]
        records: list[DecisionRecord] = []
        before: list[int] = list(range(plan.num_visual))
        for stage, table in enumerate(tables, start=1):
            if not plan.num_visual:
                break
            row = table.row(request)
            records.append(record(plan, stage, row.pool, row.scores, row.selected, before, row.would_select))
            before = row.selected
        return RoutingTrace(plan.num_rows, plan.visual_rows, kv_rows[request], tuple(records))


@dataclass(frozen=True)
class _Row:
    pool: list[int]
    scores: list[float]
    selected: list[int]
    would_select: list[int] | None


class _Table:
    """One decision's tensors, copied to the host."""

    def __init__(self, decided: Decided) -> None:
        self._shape = decided.shape
        self._pool = None if decided.pool is None else decided.pool.tolist()
        self._scores = decided.scores.tolist()
        self._selected = decided.selected.tolist()
        self._would = None if decided.would_select is None else decided.would_select.tolist()

    def row(self, request: int) -> _Row:
        candidates, kept = self._shape.candidates[request], self._shape.kept[request]
        return _Row(
            pool=list(range(candidates)) if self._pool is None else self._pool[request][:candidates],
            scores=self._scores[request][:candidates],
            selected=self._selected[request][:kept],
            would_select=None if self._would is None else self._would[request][:kept],
        )
