"""The method: one request through a decoder whose decisions say which visual rows run (§4 to §9), top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from reroute_spec import DecisionRecord, Plan, RerouteError, RoutingTrace, Schedule, plan
from reroute_spec.trace import check_selection, record, select_in_spans
from torch import Tensor

from .cache import RowCache
from .inputs import Decoder, Prompt
from .score import attention_scores

Replay = Sequence[Sequence[int]]
"""Given selections of one request: ordinals per decision."""


@dataclass
class RoutedRow:
    """What one request's prefill leaves behind.

    Attributes:
        rows: prompt rows that are still there, ascending: all of them, or the survivors under ``delete``.
        hidden_states: their final hidden states after the last norm, [rows, d].
        residuals: per decision layer the residual stream at its input, and at key ``num_layers`` after the last
            block, [rows at that point, d].
        trace: the decisions.
        cache: keys and values per block, and the two counters.
    """

    rows: list[int]
    hidden_states: Float[Tensor, "rows d"]
    trace: RoutingTrace
    cache: RowCache
    residuals: dict[int, Tensor] = field(default_factory=dict)


def check_schedule(decoder: Decoder, schedule: Schedule) -> None:
    """Refuse what this decoder or this reference cannot run, before any tensor is touched (RR-CFG-008)."""
    if not isinstance(schedule, Schedule):
        raise RerouteError(
            "schedule", f"is a {type(schedule).__name__}", "give a Schedule; Schedule.load reads presets"
        )
    schedule.validate(decoder.num_layers)
    if schedule.score.source == "previous":
        raise RerouteError("score.source", "'previous' is not run by the reference", "use 'own'")
    if schedule.positions == "renumber":
        raise RerouteError("positions", "'renumber' is not run by the reference", "use 'preserve'")


def route(decoder: Decoder, prompt: Prompt, schedule: Schedule, replay: Replay | None = None) -> RoutedRow:
    """Prefill of one request.

    Args:
        decoder: of L blocks.
        prompt: S real rows.
        schedule: checked by :func:`check_schedule`.
        replay: selections to run instead of the scores' own; scores are recorded all the same.
    """
    request = plan(schedule, decoder.num_layers, prompt.visual, prompt.images)
    if replay is not None and len(replay) != sum(stage.index > 0 for stage in request.stages):
        raise RerouteError(
            "decisions", f"{len(replay)} given", f"the plan has {request.stages[-1].index} decisions"
        )
    hidden = prompt.embeddings  # X, the residual stream of all S rows
    cos, sin = decoder.rotary(prompt.positions)  # at original positions, whatever runs  RR-BLOCK-002
    cache = RowCache(
        length=len(prompt.visual), next_position=int(prompt.positions.max()) + 1
    )  # RR-KV-003 RR-KV-004
    text = sorted(set(range(request.num_rows)) - set(request.visual_rows))
    selected: tuple[int, ...] = tuple(range(request.num_visual))  # A_0 = V
    alive = list(range(request.num_rows))
    records: list[DecisionRecord] = []
    residuals: dict[int, Tensor] = {}

    for stage in request.stages:
        if stage.index > 0:
            residuals[stage.first] = hidden[alive]
            # every routable row is a candidate again, or only those that are left  RR-POOL-003 RR-POOL-004
            pool = tuple(range(request.num_visual)) if schedule.pool == "all" else selected
            scores = score(decoder, request, schedule, stage.first, hidden, cos, sin, alive, pool)
            own = select_in_spans(request, stage.index, pool, scores)
            chosen = own
            if replay is not None:
                name = f"decisions[{stage.index - 1}]"
                chosen = check_selection(request, stage.index, pool, replay[stage.index - 1], name)
            would = own if replay is not None else None
            records.append(record(request, stage.index, pool, scores, chosen, selected, would))
            selected = chosen

        active = sorted(text + [request.visual_rows[ordinal] for ordinal in selected])  # I_j  RR-POOL-005
        for layer in range(stage.first, stage.last + 1):
            hidden = routed_block(decoder, layer, hidden, active, cos, sin, cache)
        if schedule.action == "delete":
            alive = active  # the others are gone for good  RR-BLOCK-007

    residuals[decoder.num_layers] = hidden[alive]
    kv_rows = tuple(cache.rows(layer) for layer in range(decoder.num_layers))
    trace = RoutingTrace(request.num_rows, request.visual_rows, kv_rows, tuple(records))
    # deferred rows pass the final norm like any other  RR-BLOCK-008
    return RoutedRow(alive, decoder.final_norm(hidden[alive]), trace, cache, residuals)


def score(
    decoder: Decoder,
    request: Plan,
    schedule: Schedule,
    layer: int,
    hidden: Float[Tensor, "S d"],
    cos: Float[Tensor, "S h"],
    sin: Float[Tensor, "S h"],
    alive: list[int],
    pool: Sequence[int],
) -> list[float]:
    """Scores of the candidates at the input of block ``layer``, before it runs (§5).

    U is every row of ``alive``: all S rows under ``reroute``, deferred ones with the state they were left with, or
    the rows still there under ``delete`` (RR-SCORE-002). The asking row is the last prompt row.

    Raises:
        RerouteError: a NaN score, naming block and row (RR-SEL-005).
    """
    query, keys = decoder.query_key(layer, hidden[alive], cos[alive], sin[alive])
    asking = min(schedule.score.n, len(alive))
    scores = attention_scores(query[:, -asking:], keys, decoder.scaling(layer), schedule.score)
    place = {row: index for index, row in enumerate(alive)}
    values: list[float] = scores[[place[request.visual_rows[ordinal]] for ordinal in pool]].tolist()
    for ordinal, value in zip(pool, values, strict=True):
        if value != value:
            raise RerouteError(
                f"scores[{ordinal}]",
                f"is NaN at the decision of block {layer} (prompt row {request.visual_rows[ordinal]})",
                "look for NaN in the inputs or an overflow in an earlier block",
            )
    return values


def routed_block(
    decoder: Decoder,
    layer: int,
    hidden: Float[Tensor, "S d"],
    active: list[int],
    cos: Float[Tensor, "S h"],
    sin: Float[Tensor, "S h"],
    cache: RowCache,
) -> Float[Tensor, "S d"]:
    """Block ``layer`` on the active rows, in order and at their own positions; every other row bypasses it whole.

    A row that is not active passes neither attention nor MLP: it keeps its state bit for bit (RR-BLOCK-001), and
    leaves nothing in the block's cache (RR-KV-001).
    """
    routed = hidden.clone()
    routed[active] = decoder.block(
        layer, hidden[active], cos[active], sin[active], cache
    )  # RR-BLOCK-002 RR-BLOCK-003
    return routed


def extend(decoder: Decoder, cache: RowCache, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """A later turn of text or one decoded token: every row runs every block and joins every cache (RR-KV-002).

    Returns:
        Final hidden states of the new rows, after the last norm.
    """
    count = embeddings.shape[0]
    positions: Int[Tensor, " n"] = cache.next_position + torch.arange(count, device=embeddings.device)
    cos, sin = decoder.rotary(positions)
    hidden = embeddings
    for layer in range(decoder.num_layers):
        hidden = decoder.block(layer, hidden, cos, sin, cache)
    cache.length += count
    cache.next_position += count
    return decoder.final_norm(hidden)
