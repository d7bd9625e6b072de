"""Lets a conformance run replay selections and observe the residual stream at every decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from reroute_spec import RerouteError, Schedule
from reroute_spec.trace import check_selection
from torch import Tensor

from .layout import Layout

Replay = Sequence[Sequence[Sequence[int]]]
"""Per request, per decision, ascending ordinals."""


@dataclass
class Probe:
    """The selections that a conformance run replays and the streams that it observes; in ordinary use there is none.

    Attributes:
        replay: selections to use instead of the scores' own.
        residuals: filled with the stream at the input of every decision block and, at key Λ, after the last block:
            hidden states [B, W, d] and which rows are real ([B, W] bool, None: all).
    """

    replay: Replay | None = None
    residuals: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)


def replayed_tables(schedule: Schedule, layout: Layout, replay: Replay, device: torch.device) -> list[Tensor]:
    """Given selections as tables [B, K], one per decision, after checking each against its request's plan."""
    if len(replay) != len(layout.plans):
        raise RerouteError(
            "decisions", f"hold {len(replay)} requests", f"give one list for each of {len(layout.plans)}"
        )
    sentinel = layout.visual.shape[1] - 1
    shapes = [stage.decision for stage in layout.stages if stage.decision is not None]
    tables: list[list[list[int]]] = [[] for _ in shapes]
    for request, (plan, given) in enumerate(zip(layout.plans, replay, strict=True)):
        expected = sum(stage.index > 0 for stage in plan.stages)
        if len(given) != expected:
            raise RerouteError(
                f"decisions[{request}]", f"hold {len(given)} selections", f"the plan decides {expected} times"
            )
        pool: Sequence[int] = range(plan.num_visual)
        for table, shape, stage in zip(tables, shapes, range(1, len(shapes) + 1), strict=True):
            if not expected:
                table.append([sentinel] * max(shape.kept))
                continue
            field_name = f"decisions[{request}][{stage - 1}]"
            rows = check_selection(plan, stage, pool, given[stage - 1], field_name)
            table.append([*rows, *[sentinel] * (max(shape.kept) - len(rows))])
            if schedule.pool == "survivors":
                pool = rows
    return [torch.tensor(table, dtype=torch.long, device=device) for table in tables]
