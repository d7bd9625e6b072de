"""Computes every shape of a turn from its masks alone: the plan of every request, ragged stages, and static index tables.

The masks are read to the host once, here. What the engine needs later is uploaded before the first block runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from reroute_spec import Plan, RerouteError, Schedule, Stage, plan
from torch import Tensor


@dataclass(frozen=True)
class DecisionLayout:
    """One decision over the batch (C: the most candidates, K: the most rows kept).

    Attributes:
        index: place in the schedule's decisions.
        candidates: number of candidates of every request, 0 where it decides nothing.
        kept: number of rows that every request keeps.
        slots: [B, K] ranks to keep, see :func:`reroute_optimized.stages.selection.select_places`.
        groups: [B, C] span of every candidate, or None for one span without padding.
        real: [B, C] bool, False for padding; None where there is none.
    """

    index: int
    candidates: tuple[int, ...]
    kept: tuple[int, ...]
    slots: Tensor
    groups: Tensor | None
    real: Tensor | None


@dataclass(frozen=True)
class StageLayout:
    """Blocks ``first`` to ``last`` over the batch.

    Attributes:
        rows: number of rows of every request; ``width`` is the largest.
        pads: [B] rows of left padding, or None where all requests have ``width`` rows.
        decision: what is decided at the input of ``first``; None for the dense stage.
    """

    first: int
    last: int
    rows: tuple[int, ...]
    pads: Tensor | None
    decision: DecisionLayout | None

    @property
    def width(self) -> int:
        """Rows that the batch runs per request."""
        return max(self.rows)


@dataclass(frozen=True)
class Layout:
    """The shapes of a batch of B prompts in S columns (N: the most routable rows; S and N are also the sentinels).

    Attributes:
        plans: one per request.
        columns: real columns per request, ascending; a column's place here is its prompt row.
        real: [B, S] bool, or None where no column is padding.
        always: [B, S + 1] bool, the columns that run every block: text and the last row.
        visual: [B, N + 1] column of every ordinal.
        queries: [B, n] columns of the last n rows, ascending; 0 where a request has fewer.
        asked: [B, n] bool, or None where every request has n rows.
        stages: the stages in order; they cover all blocks.
    """

    num_columns: int
    plans: tuple[Plan, ...]
    columns: tuple[tuple[int, ...], ...]
    real: Tensor | None
    always: Tensor
    visual: Tensor
    queries: Tensor
    asked: Tensor | None
    stages: tuple[StageLayout, ...]


Flags = list[list[bool]]
"""[B][S], on the host."""


def read_masks(*masks: Tensor | None) -> list[Flags | None]:
    """Masks [B, S] as flags on the host, in one copy; None stays None."""
    given = [mask for mask in masks if mask is not None]
    present = [(mask != 0).to(given[-1].device) for mask in given]
    on_host = iter(torch.stack(present).tolist() if present else [])
    return [None if mask is None else next(on_host) for mask in masks]


def flags(shape: tuple[int, int], value: bool) -> Flags:
    """Flags of every column that all have the same value."""
    return [[value] * shape[1] for _ in range(shape[0])]


def build_layout(
    schedule: Schedule,
    num_layers: int,
    real: Sequence[Sequence[bool]],
    visual: Sequence[Sequence[bool]],
    images: Sequence[Sequence[int]] | int | None,
    device: torch.device,
    schedules: Sequence[Schedule] | None = None,
) -> Layout:
    """The layout of a batch.

    Args:
        schedule: checked against ``num_layers``.
        num_layers: blocks of the decoder.
        real, visual: host flags [B][S].
        images: for ``scope = image``, per request the rows of every image and video, or the rows that every image
            has; None where they are not known.
        device: where the index tables go.
        schedules: per request, with its own keeps; ``schedule`` for all unless given.

    Raises:
        RerouteError: a request without rows, or visual rows that are no whole number of images (``scope``).
    """
    width = len(real[0])
    columns = tuple(tuple(c for c, flag in enumerate(row) if flag) for row in real)
    for index, own in enumerate(columns):
        if not own:
            raise RerouteError(
                f"attention_mask[{index}]", "has no real column", "give at least one token per request"
            )
    plans = []
    for index, (own, flags) in enumerate(zip(columns, visual, strict=True)):
        routable = [flags[c] for c in own]
        spans = _images(schedule, sum(routable), images, index)
        own_schedule = schedule if schedules is None else schedules[index]
        plans.append(plan(own_schedule, num_layers, routable, spans))
    always = [[*row, False] for row in real]
    tables = []
    for own, request, row in zip(columns, plans, always, strict=True):
        tables.append([own[i] for i in request.visual_rows])
        for column in tables[-1]:
            row[column] = False
    most = max(len(table) for table in tables)
    last = [own[-schedule.score.n :] for own in columns]
    asking = max(len(rows) for rows in last)
    return Layout(
        num_columns=width,
        plans=tuple(plans),
        columns=columns,
        real=None if all(map(all, real)) else torch.tensor(real, device=device),
        always=torch.tensor(always, device=device),
        visual=_rectangle(tables, most + 1, width, device),
        queries=torch.tensor([[0] * (asking - len(rows)) + list(rows) for rows in last], device=device),
        asked=_left_padded([len(rows) for rows in last], device),
        stages=_stages(schedule, num_layers, plans, device),
    )


def _images(
    schedule: Schedule, flagged: int, images: Sequence[Sequence[int]] | int | None, request: int
) -> list[int] | None:
    if schedule.scope != "image" or images is None:
        return None
    if not isinstance(images, int):
        return list(images[request])
    if flagged % images:
        raise RerouteError(
            "scope",
            f"{flagged} visual rows are no whole number of images of {images} rows",
            "use scope 'request', or give whole images",
        )
    return [images] * (flagged // images)


def _stages(
    schedule: Schedule, num_layers: int, plans: Sequence[Plan], device: torch.device
) -> tuple[StageLayout, ...]:
    layers = [d.layer for d in schedule.decisions] if any(p.num_visual for p in plans) else []
    starts = ([] if 0 in layers else [0]) + layers
    ends = [*(start - 1 for start in starts[1:]), num_layers - 1]
    stages = []
    for first, last in zip(starts, ends, strict=True):
        rows = tuple(p.kv_rows[first] for p in plans)
        pads = None if len(set(rows)) == 1 else torch.tensor([max(rows) - r for r in rows], device=device)
        stages.append(StageLayout(first, last, rows, pads, _decision(layers, first, plans, device)))
    return tuple(stages)


def _decision(
    layers: Sequence[int], layer: int, plans: Sequence[Plan], device: torch.device
) -> DecisionLayout | None:
    if layer not in layers:
        return None
    stages = [decided_stage(p, layer) for p in plans]
    candidates = tuple(sum(s.pools) if s else 0 for s in stages)
    kept = tuple(sum(s.budgets) if s else 0 for s in stages)
    most = max(candidates)
    slots, groups = [], []
    for stage in stages:
        ranks: list[int] = []
        spans: list[int] = []
        for span, (k, pool) in enumerate(zip(stage.budgets, stage.pools, strict=True) if stage else ()):
            ranks += range(len(spans), len(spans) + k)
            spans += [span] * pool
        slots.append(ranks)
        groups.append(spans)
    padded = len(set(candidates)) > 1
    spanned = padded or any(stage is not None and len(stage.pools) > 1 for stage in stages)
    return DecisionLayout(
        index=layers.index(layer),
        candidates=candidates,
        kept=kept,
        slots=_rectangle(slots, max(kept), most, device),
        groups=_rectangle(groups, most, most, device) if spanned else None,
        real=torch.arange(most, device=device) < torch.tensor(candidates, device=device)[:, None]
        if padded
        else None,
    )


def decided_stage(request: Plan, layer: int) -> Stage | None:
    """The stage of a request that a decision at ``layer`` begins; None where it decides nothing there."""
    return next((stage for stage in request.stages if stage.index and stage.first == layer), None)


def _rectangle(rows: Sequence[Sequence[int]], width: int, fill: int, device: torch.device) -> Tensor:
    return torch.tensor(
        [[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long, device=device
    )


def _left_padded(counts: Sequence[int], device: torch.device) -> Tensor | None:
    """[B, max] bool, True for the last ``counts[b]`` places; None where all are equal."""
    most = max(counts)
    if len(set(counts)) == 1:
        return None
    return (
        torch.arange(most, device=device) >= torch.tensor([most - c for c in counts], device=device)[:, None]
    )
