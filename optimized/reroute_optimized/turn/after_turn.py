"""Computes what a cache remembers after a turn: which entries are rows, how many there were, and where positions go on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reroute_spec import Schedule
from torch import Tensor

from ..model.decoder import Decoder, largest
from .cache import Held, RoutingState
from .compaction import compaction
from .layout import Layout
from .past import Past
from .records import Prefill


def first_state(
    decoder: Decoder,
    schedule: Schedule,
    done: Prefill,
    positions: Tensor,
    hidden_columns: Tensor | None = None,
    columns: int | None = None,
) -> RoutingState:
    """The state of a cache after a prefill.

    Args:
        decoder: the decoder whose cache it is.
        schedule: the schedule that ran.
        done: what the prefill left behind.
        positions: [B or 1, S] or [3, B or 1, S].
        hidden_columns: [B], see :class:`RoutingState`.
        columns: number of columns that the prompt has for transformers; S unless given.
    """
    layout = done.layout
    batch = len(layout.plans)
    coordinates = largest(positions).expand(batch, -1)
    routed = _routed(schedule, layout)
    none = torch.zeros(batch, dtype=torch.long, device=coordinates.device)
    return RoutingState(
        columns=layout.num_columns if columns is None else columns,
        held=_held(decoder, layout, None, coordinates.device),
        num_rows=_num_rows(layout, coordinates.device),
        hidden_columns=none if hidden_columns is None else hidden_columns,
        next_positions=_reached(layout, routed, none[:, None], coordinates),
        reach=_num_rows(layout, coordinates.device).masked_fill(torch.tensor(routed, device=none.device), 0),
        renumbered=schedule.positions == "renumber",
        guard=done.guard,
    )


def later_state(
    decoder: Decoder,
    schedule: Schedule,
    state: RoutingState,
    past: Past,
    done: Prefill,
    positions: Tensor,
    hidden_columns: Tensor | None = None,
    columns: int | None = None,
) -> RoutingState:
    """The state of a cache after a later turn with visual rows, on top of ``state``.

    Arguments are those of :func:`first_state`; ``past`` is what the cache held before the turn.
    """
    layout = done.layout
    coordinates, routed = largest(positions).expand(len(layout.plans), -1), _routed(schedule, layout)
    num_rows = _num_rows(layout, coordinates.device)
    return RoutingState(
        columns=state.columns + (layout.num_columns if columns is None else columns),
        held=_held(decoder, layout, past, coordinates.device),
        num_rows=state.num_rows + num_rows,
        hidden_columns=state.hidden_columns
        if hidden_columns is None
        else state.hidden_columns + hidden_columns,
        next_positions=_reached(layout, routed, state.next_positions, coordinates),
        reach=(state.reach + num_rows).masked_fill(torch.tensor(routed, device=coordinates.device), 0),
        renumbered=schedule.positions == "renumber",
        guard=done.guard,
    )


def _routed(schedule: Schedule, layout: Layout) -> list[bool]:
    """Per request, whether anything was decided."""
    return [bool(schedule.decisions) and plan.num_visual > 0 for plan in layout.plans]


def _num_rows(layout: Layout, device: torch.device) -> Tensor:
    return torch.tensor([plan.num_rows for plan in layout.plans], device=device)


def _held(decoder: Decoder, layout: Layout, past: Past | None, device: torch.device) -> list[Held]:
    """Runs of blocks that now hold the same rows: stages, cut where the cache was cut before."""
    held = []
    for stage in layout.stages:
        real = None
        if stage.pads is not None:
            real = torch.arange(stage.width, device=device) >= stage.pads[:, None]
        first = stage.first
        while first <= stage.last:
            last = stage.last if past is None else min(stage.last, past.held[past.part(first)].last)
            valid = real
            attention = [layer for layer in range(first, last + 1) if decoder.attends[layer]]
            if past is not None:
                valid = None
                if attention:
                    valid = past.valid_with(attention[0], real, len(layout.plans), stage.width)
            held.append(Held(first, last, valid))
            first = last + 1
    return held


def _reached(layout: Layout, routed: Sequence[bool], before: Tensor, coordinates: Tensor) -> Tensor:
    """[B, 1 + t] next positions: with those before the turn and after each of its rows, where nothing was routed.

    Args:
        layout: of the turn.
        routed: per request.
        before: [B, 1 + t] next positions so far.
        coordinates: [B, S] largest coordinate of every column.
    """
    if layout.real is not None:
        coordinates = coordinates.masked_fill(~layout.real, -1)
    if all(routed):
        return torch.maximum(before[:, -1:], coordinates.amax(1, keepdim=True) + 1)
    if layout.real is not None:  # columns to the right, whatever the padding's side
        active = torch.nn.functional.pad(layout.real, (0, 1))
        width = coordinates.shape[1]
        columns, _ = compaction(active, width, width - layout.real.sum(1))
        coordinates = torch.nn.functional.pad(coordinates, (0, 1), value=-1).gather(1, columns)
    reached = torch.cat([before[:, -1:], coordinates + 1], dim=1).cummax(1).values
    return torch.cat([before, reached[:, 1:]], dim=1)
