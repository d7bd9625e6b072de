"""The prefill: one pass over the stages, nothing read on the host between the first block and the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from reroute_spec import RerouteError, Schedule
from reroute_spec.trace import check_selection
from torch import Tensor

from .decoder import Decoder, PositionEmbeddings
from .layout import DecisionLayout, Layout, StageLayout
from .masks import causal_mask
from .records import Decided, NanGuard, Prefill, reads_at_once, refuse_nan
from .score import row_scores
from .selection import select_places
from .stream import ActiveRows, Stream, open_stream

Replay = Sequence[Sequence[Sequence[int]]]
"""Per request, per decision, ascending ordinals."""


@dataclass
class Probe:
    """What a conformance run may replay and observe; absent in ordinary use.

    Attributes:
        replay: selections to use instead of the scores' own.
        residuals: filled with the stream at the input of every decision block and, at key Λ, after the last block:
            hidden states [B, W, d] and which rows are real ([B, W] bool, None: all).
    """

    replay: Replay | None = None
    residuals: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)


def prefill(
    decoder: Decoder,
    schedule: Schedule,
    layout: Layout,
    hidden_states: Tensor,
    rotary: PositionEmbeddings,
    cache: Any,
    probe: Probe | None,
) -> tuple[Tensor, Prefill]:
    """Run a batch of prompts through the decoder.

    Args:
        decoder: whose blocks run.
        schedule: what is decided.
        layout: of this batch.
        hidden_states: [B, S, d] embeddings, left as they are.
        rotary: cos and sin of all columns, [B, S, rotary width].
        cache: filled with exactly the rows each block runs, or None.
        probe: see :class:`Probe`.

    Returns:
        The final hidden states, after the norm: [B, S, d] under ``reroute``, [B, R, d] with the last stage's survivors
        left-padded with NaN under ``delete``; and what was decided.

    Raises:
        RerouteError: a replayed selection that the plan refuses; NaN scores on a CPU, before the decision's block runs.
    """
    replay = None if probe is None else probe.replay
    replayed = None if replay is None else _replayed(schedule, layout, replay, hidden_states.device)
    done = Prefill(layout, [], NanGuard())
    stages = list(layout.stages)
    if stages[0].decision is None and layout.real is None:  # dense and unpadded: nothing to gather
        mask = _mask(decoder, stages[0], hidden_states)
        hidden_states = decoder.run(stages[0].first, stages[0].last, hidden_states, rotary, mask, cache)
        stages = stages[1:]
    if not stages:
        if probe is not None:
            probe.residuals[decoder.num_layers] = (hidden_states, None)
        return decoder.final_norm(hidden_states), done
    stream = open_stream(schedule.action, layout, hidden_states, rotary)
    for stage in stages:
        active = layout.always
        if stage.decision is None:
            active = active.scatter(1, layout.visual, True)
        else:
            if probe is not None:
                universe = stream.universe()
                probe.residuals[stage.first] = (universe.hidden_states.clone(), universe.real)
            decided = _decide(decoder, schedule, layout, stage, stage.decision, stream, done, replayed)
            active = active.scatter(1, layout.visual.gather(1, decided.selected), True)
        active[:, -1] = False  # the sentinel column took whatever was padding
        rows = ActiveRows.of(active, stage.width, stage.pads)
        compact, own_rotary = stream.gather(rows)
        mask = _mask(decoder, stage, compact)
        compact = decoder.run(stage.first, stage.last, compact, own_rotary, mask, cache)
        stream.scatter(rows, compact, own_rotary)
    return _finish(decoder, schedule, stream, done, probe), done


def _mask(decoder: Decoder, stage: StageLayout, hidden: Tensor) -> Tensor | None:
    implementation: str = decoder.config._attn_implementation
    return causal_mask(implementation, stage.width, stage.width, stage.pads, hidden.dtype, hidden.device)


def _decide(
    decoder: Decoder,
    schedule: Schedule,
    layout: Layout,
    stage: StageLayout,
    shape: DecisionLayout,
    stream: Stream,
    done: Prefill,
    replayed: list[Tensor] | None,
) -> Decided:
    """Score the candidates on the stream as it stands and select; adds the decision to ``done``."""
    pool = done.decided[-1].selected if done.decided and schedule.pool == "survivors" else None
    columns = layout.visual[:, : max(shape.candidates)] if pool is None else layout.visual.gather(1, pool)
    all_scores = row_scores(decoder.blocks[stage.first], decoder.names, schedule.score, stream.universe())
    scores = all_scores.gather(1, stream.columns_in_universe(columns))  # [B, C]
    _check_nan(shape, stage.first, scores, done.guard)
    places = select_places(scores, shape.slots, shape.groups)
    chosen = places if pool is None else _ordinals(pool, places, layout.visual.shape[1] - 1)
    if replayed is None:
        decided = Decided(shape, stage.first, pool, scores, chosen)
    else:
        decided = Decided(shape, stage.first, pool, scores, replayed[shape.index], chosen)
    done.decided.append(decided)
    return decided


def _ordinals(pool: Tensor, places: Tensor, sentinel: int) -> Tensor:
    """``pool`` [B, C] at ``places`` [B, K], where place C gives the sentinel."""
    return torch.cat([pool, pool.new_full((pool.shape[0], 1), sentinel)], dim=1).gather(1, places)


def _check_nan(shape: DecisionLayout, layer: int, scores: Tensor, guard: NanGuard) -> None:
    nan = scores.isnan()
    if shape.real is not None:
        nan = nan & shape.real
    flags = nan.any(1)  # [B]
    if reads_at_once(scores.device):
        refuse_nan(shape.index, layer, flags)
    else:
        guard.note(shape.index, layer, flags)


def _finish(
    decoder: Decoder, schedule: Schedule, stream: Stream, done: Prefill, probe: Probe | None
) -> Tensor:
    hidden, real = stream.result()
    if probe is not None:
        probe.residuals[decoder.num_layers] = (hidden.clone(), real)
    final = decoder.final_norm(hidden)
    if schedule.action == "delete" and real is not None:
        final = final.masked_fill(~real[..., None], torch.nan)
    poisoned = done.guard.requests()
    return final if poisoned is None else final.masked_fill(poisoned[:, None, None], torch.nan)


def _replayed(schedule: Schedule, layout: Layout, replay: Replay, device: torch.device) -> list[Tensor]:
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
