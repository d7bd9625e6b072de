"""The method: one request through a decoder whose decisions say which visual rows run (§4 to §9), top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from reroute_spec import DecisionRecord, Plan, RerouteError, RoutingTrace, Schedule, plan
from reroute_spec.trace import check_selection, record, select_in_spans
from torch import Tensor

from .cache import RowCache
from .check_request import Decoder
from .inputs import Prompt
from .prefix import Prefix, begin, check_prefix, end_of_stage_0
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


def route(
    decoder: Decoder,
    prompt: Prompt,
    schedule: Schedule,
    replay: Replay | None = None,
    cache: RowCache | None = None,
    prefix: Prefix | None = None,
) -> RoutedRow:
    """Prefill of one request, or a later turn of it.

    Args:
        decoder: of L blocks.
        prompt: S real rows.
        schedule: checked by :func:`~reroute_reference.check_request.check_schedule`.
        replay: selections to run instead of the scores' own; scores are recorded all the same (RR-NUM-003).
        cache: of the turns before, left as it is. Rows of those turns stay as they were cached: the candidates are
            the new visual rows (RR-KV-007).
        prefix: what stage 0 made of the rows that the prompt begins with: it is not computed again (RR-EQV-009).
    """
    served = 0 if prefix is None else check_prefix(decoder, prompt, schedule, prefix)
    request = plan(schedule, decoder.num_layers, prompt.visual, prompt.images)
    if replay is not None and len(replay) != sum(stage.index > 0 for stage in request.stages):
        raise RerouteError(
            "decisions", f"{len(replay)} given", f"the plan has {request.stages[-1].index} decisions"
        )
    renumbers = schedule.positions == "renumber"
    cache = RowCache(decoder.storage(), renumbered=renumbers) if cache is None else cache.copy()
    earlier = [cache.rows(layer) for layer in range(decoder.num_layers)]
    if prefix is not None:
        cache = replace(prefix.cache.copy(), renumbered=renumbers)
    hidden = prompt.embeddings  # X, the residual stream of all S rows
    entered = hidden  # what the block that ran last was given
    cos, sin = decoder.rotary(prompt.positions)  # at original positions, whatever runs  RR-BLOCK-002
    text = sorted(set(range(request.num_rows)) - set(request.visual_rows))
    selected: tuple[int, ...] = tuple(range(request.num_visual))  # A_0 = V
    active = alive = list(range(request.num_rows))
    records: list[DecisionRecord] = []
    residuals: dict[int, Tensor] = {}

    for stage in request.stages:
        if stage.index > 0:
            residuals[stage.first] = hidden[alive]
            # every routable row is a candidate again, or only those that are left  RR-POOL-003 RR-POOL-004
            pool = tuple(range(request.num_visual)) if schedule.pool == "all" else selected
            # U: under `reroute` deferred rows share the softmax, so a monotone one is not `delete`  RR-EQV-006
            asked, states, rows = stage.first, hidden, alive
            if schedule.score.source == "previous":  # the block before, on the rows it ran  RR-SCORE-007
                asked, states, rows = stage.first - 1, entered, active
            if cache.renumbered:  # at the positions of the stage that ends  RR-BLOCK-009
                cos, sin = decoder.rotary(renumbered(prompt.positions, rows, earlier[asked]))
            ask = score
            if earlier[asked]:  # U holds what earlier turns cached there  RR-KV-007
                ask = partial(score, earlier=cache.keys_values(asked)[0][:, : earlier[asked]])
            try:
                scores = ask(decoder, request, schedule, asked, states, cos, sin, rows, pool)
            except RerouteError as error:
                raise _traced(error, asked, prompt, cache, earlier) from None
            records.append(choose(request, stage.index, pool, scores, selected, replay))
            selected = records[-1].selected

        # with every row selected this is the unrouted model; both actions run the same rows  RR-EQV-002 RR-EQV-003
        active = sorted(text + [request.visual_rows[ordinal] for ordinal in selected])  # I_j  RR-POOL-005
        for layer in range(stage.first, stage.last + 1):
            if cache.renumbered:
                cos, sin = decoder.rotary(renumbered(prompt.positions, active, earlier[layer]))
            entered = hidden
            behind = active if prefix is None or layer >= prefix.end else active[served:]
            hidden = routed_block(decoder, layer, hidden, behind, cos, sin, cache)
            hidden = cross_boundary(hidden, prompt, layer)
            if (
                prefix is not None and layer + 1 == prefix.end
            ):  # what the rows served had become here  RR-EQV-009
                hidden = torch.cat([prefix.hidden, hidden[served:]])
                entered = torch.cat([prefix.entered, entered[served:]])
        if schedule.action == "delete":
            alive = active  # the others are gone for good  RR-BLOCK-007

    residuals[decoder.num_layers] = hidden[alive]
    cache.advance(prompt.positions, routed=bool(records))  # deferred states are dropped here  RR-KV-008
    kv_rows = tuple(cache.rows(layer) for layer in range(decoder.num_layers))
    trace = RoutingTrace(request.num_rows, request.visual_rows, kv_rows, tuple(records))
    # deferred rows pass the final norm like any other  RR-BLOCK-008
    return RoutedRow(alive, decoder.final_norm(hidden[alive]), trace, cache, residuals)


def shared_prefix(decoder: Decoder, prompt: Prompt, schedule: Schedule, rows: int) -> Prefix:
    """What stage 0 makes of the first ``rows`` rows of a prompt, for all prompts that begin with them (RR-EQV-009)."""
    first, end = begin(prompt, rows), end_of_stage_0(decoder, schedule)
    hidden = entered = first.embeddings
    cos, sin = decoder.rotary(first.positions)
    cache = RowCache(decoder.storage())
    for layer in range(end):
        entered = hidden
        hidden = cross_boundary(decoder.block(layer, hidden, cos, sin, cache), first, layer)
    return Prefix(first.embeddings, first.positions, hidden, entered, cache, end)


def choose(
    request: Plan,
    stage: int,
    pool: Sequence[int],
    scores: list[float],
    previous: tuple[int, ...],
    replay: Replay | None,
) -> DecisionRecord:
    """The decision: what the scores select, or what is replayed, beside what they would have selected (RR-NUM-003)."""
    own = select_in_spans(request, stage, pool, scores)
    if replay is None:
        return record(request, stage, pool, scores, own, previous)
    # RR-NUM-003
    given = check_selection(request, stage, pool, replay[stage - 1], f"decisions[{stage - 1}]")
    return record(request, stage, pool, scores, given, previous, own)


def renumbered(positions: Int[Tensor, "*axes S"], rows: list[int], first: int) -> Int[Tensor, "*axes S"]:
    """Positions under ``positions = renumber``: ``rows`` count on from ``first``, gaps closed (RR-BLOCK-009)."""
    counted = positions.clone()
    counted[..., rows] = first + torch.arange(len(rows), device=positions.device)
    return counted


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
    *,
    earlier: Float[Tensor, "K rows h"] | None = None,
) -> list[float]:
    """Scores of the candidates by block ``layer``, given what entered it (§5).

    U is every row of ``alive``: all S rows under ``reroute``, deferred ones with the state they were left with
    (RR-SCORE-008), or the rows still there under ``delete`` (RR-SCORE-002); and the rows of ``earlier`` turns. The
    asking row is the last real prompt row (RR-SCORE-009).

    Raises:
        RerouteError: a NaN score, naming block and row (RR-SEL-005).
    """
    # RR-SCORE-001 RR-SCORE-008
    query, keys = decoder.query_key(layer, hidden[alive], cos[alive], sin[alive])
    if earlier is not None:
        keys = torch.cat([earlier, keys], dim=1)
    asking = min(schedule.score.n, len(alive))
    # RR-SCORE-009
    scores = attention_scores(
        query[:, -asking:], keys, decoder.scaling(layer), schedule.score, decoder.shards
    )[-len(alive) :]
    place = {row: index for index, row in enumerate(alive)}
    values: list[float] = scores[[place[request.visual_rows[ordinal]] for ordinal in pool]].tolist()
    for ordinal, value in zip(pool, values, strict=True):
        # NaN is never ordered  RR-SEL-005
        if value != value:
            broken = [row for row in alive if not hidden[row].isfinite().all()]  # one spoils every score
            row = broken[0] if broken else request.visual_rows[ordinal]
            raise RerouteError(
                f"scores[{ordinal}]",
                f"is NaN at the decision that asks block {layer}: look at the hidden state of prompt row {row}",
                "look for NaN in the inputs or an overflow in an earlier block",
            )
    return values


def _traced(
    error: RerouteError, layer: int, prompt: Prompt, cache: RowCache, earlier: Sequence[int]
) -> RerouteError:
    """The error of a NaN score, naming what was not finite before the first block, where something was."""
    broken = prompt.embeddings.isfinite().all(dim=-1).logical_not().nonzero()[:, 0].tolist()
    asks = f"is NaN at the decision that asks block {layer}"
    if broken:
        problem = f"{asks}: prompt row {broken[0]} is not finite as it enters the decoder"
        return RerouteError(
            error.field, problem, "look at the inputs, or at what the vision tower makes of them"
        )
    for block in range(layer + 1):
        for held in cache.keys_values(block) if earlier[block] else ():
            if not held[:, : earlier[block]].isfinite().all():
                problem = f"{asks}: the cache of earlier turns is not finite in block {block}"
                return RerouteError(error.field, problem, "run the earlier turns anew, from finite inputs")
    return error


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
    # RR-BLOCK-001
    routed = hidden.clone()
    # gathered at every block: gathering once per stage is the same  RR-BLOCK-002 RR-BLOCK-003 RR-EQV-001
    routed[active] = decoder.block(layer, hidden[active], cos[active], sin[active], cache)
    return routed


def cross_boundary(hidden: Float[Tensor, "S d"], prompt: Prompt, layer: int) -> Float[Tensor, "S d"]:
    """X^{l+1} = Y^l + δ^l: what the boundary after block ``layer`` adds to every visual row, deferred or not.

    Y^l is the block's output, or the state that bypassed it (RR-BLOCK-010).
    """
    # RR-BLOCK-010
    return hidden + prompt.deepstack[layer] if layer < len(prompt.deepstack) else hidden


def extend(decoder: Decoder, cache: RowCache, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """A later chunk of text or one decoded token: every row runs every block and joins every cache (RR-KV-002).

    Returns:
        Final hidden states of the new rows, after the last norm.
    """
    counted: Int[Tensor, " n"] = torch.arange(embeddings.shape[0], device=embeddings.device)
    positions = cache.next_position + counted
    hidden = embeddings
    for layer in range(decoder.num_layers):
        cos, sin = decoder.rotary(cache.first_position(layer) + counted)  # RR-BLOCK-009 where renumbered
        hidden = decoder.block(layer, hidden, cos, sin, cache)
    cache.advance(positions)
    return decoder.final_norm(hidden)
