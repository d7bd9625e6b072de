"""The faults of the mutants: functions of the reference with one small thing wrong, and targets that answer wrongly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from reroute_reference import CanonicalDecoder, routing
from reroute_reference.cache import RowCache
from reroute_reference.score import attention_scores
from reroute_spec import Decision, DecisionRecord, Plan, RerouteError, Schedule, ScoreRule, plan
from reroute_spec.budget import parse_keep
from reroute_spec.trace import record
from torch import Tensor, nn

from .protocol import Model
from .targets import ReferenceTarget

_score, _routed_block, _extend = routing.score, routing.routed_block, routing.extend
_Answers = list[dict[str, Any]]


# Selection


def order_by(key: Callable[[float, int], Any]) -> Callable[..., list[int]]:
    """A selection in another order."""

    def select(scores: Sequence[float], k: int) -> list[int]:
        return sorted(sorted(range(len(scores)), key=lambda i: key(scores[i], i))[:k])

    return select


def selecting(select: Callable[..., list[int]]) -> dict[str, Any]:
    """Patches that put a selection in place of the right one."""
    return {"reroute_spec.trace.select": select, "reroute_conformance.targets.select": select}


def refusing_nan(select: Callable[..., list[int]]) -> Callable[..., list[int]]:
    """A wrong selection that refuses NaN all the same."""
    from reroute_spec.select import select as right

    def wrapped(scores: Sequence[float], k: int) -> list[int]:
        right(scores, k)
        return select(scores, k)

    return wrapped


def best_first(scores: Sequence[float], k: int) -> list[int]:
    """Reported in the order of the scores."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


# Budgets and rows


def wrong_budget(rows: Callable[[Any, int, int], int]) -> Callable[..., int]:
    """A budget whose floor of ``keep * n`` is another number, of ``keep``, ``n`` and the pool's size."""

    def budget(keep: Any, n: int, *, min_keep: int = 1, pool: int | None = None) -> int:
        exact, candidates = parse_keep(keep), n if pool is None else pool
        return min(candidates, max(min_keep, exact if isinstance(exact, int) else rows(exact, n, candidates)))

    return budget


def last_row_routable(
    schedule: Schedule, num_layers: int, visual: Sequence[bool], images: Any = None
) -> Plan:
    """A plan in which the last prompt row may be routed: that of the prompt with one more row after it."""
    longer = plan(schedule, num_layers, [*visual, False], images)
    return replace(longer, num_rows=len(visual), kv_rows=tuple(rows - 1 for rows in longer.kv_rows))


def first_image_only(schedule: Schedule, num_layers: int, visual: Sequence[bool], images: Any = None) -> Plan:
    """A plan that finds the first run of visual rows only."""
    start = next((row for row, flag in enumerate(visual) if flag), len(visual))
    end = next((row for row in range(start, len(visual)) if not visual[row]), len(visual))
    return plan(
        replace(schedule, scope="request"), num_layers, [start <= row < end for row in range(len(visual))]
    )


def everything_reenters(*given: Any) -> Any:
    """A record that takes every selected row for one that came back."""
    request, stage, pool, scores, selected, _, *rest = given
    return record(request, stage, pool, scores, selected, (), *rest)


def absolute_margin(scores: Sequence[float], selected: Sequence[int]) -> float | None:
    """The gap at the threshold, not relative to it."""
    left_out = [score for place, score in enumerate(scores) if place not in set(selected)]
    return min(scores[place] for place in selected) - max(left_out) if selected and left_out else None


# Schedules


def of_other_data(change: Callable[[dict[str, Any]], None]) -> type[ReferenceTarget]:
    """A target that mends a schedule instead of refusing it."""

    class Mends(ReferenceTarget):
        def plan(self, schedule: Mapping[str, Any], *layout: Any) -> Sequence[int]:
            data = deepcopy(dict(schedule))
            change(data)
            return super().plan(data, *layout)

    return Mends


def each_decision(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """A change of every decision of a schedule."""

    def changed(data: dict[str, Any]) -> None:
        for decision in data["decisions"]:
            change(decision)

    return changed


def layers_sorted(data: dict[str, Any]) -> None:
    """Decisions in any order are put in order."""
    if all(isinstance(decision["layer"], int) for decision in data["decisions"]):
        data["decisions"].sort(key=lambda decision: decision["layer"])


def layer_from_the_end(decision: dict[str, Any]) -> None:
    """A negative layer counts from the end of four blocks."""
    if isinstance(decision["layer"], int) and -4 <= decision["layer"] < 0:
        decision["layer"] += 4


def ratio_capped(decision: dict[str, Any]) -> None:
    """A ratio above 1 keeps all."""
    if decision["keep"] == "2":
        decision["keep"] = "1"


def float_read(decision: dict[str, Any]) -> None:
    """A binary float is read as its shortest decimal."""
    if isinstance(decision["keep"], float) and not decision["keep"].is_integer():
        decision["keep"] = str(decision["keep"])


def pool_of_delete(data: dict[str, Any]) -> None:
    """`delete` with all rows as candidates is taken as `survivors`."""
    if data["action"] == "delete" and data.get("pool") == "all":
        data["pool"] = "survivors"


def positions_preserved(data: dict[str, Any]) -> None:
    """`renumber` of `reroute` is passed over."""
    if data["action"] == "reroute" and data.get("positions") == "renumber":
        data["positions"] = "preserve"


class RefusesWithoutAField(ReferenceTarget):
    """An error that says neither where nor what would be right."""

    def plan(self, *given: Any) -> Sequence[int]:
        """As named."""
        try:
            return super().plan(*given)
        except ValueError as error:
            raise ValueError(str(error)) from None


def decides_anyway(schedule: Schedule) -> Schedule:
    """A schedule without decisions gets one."""
    return schedule if schedule.decisions else replace(schedule, decisions=(Decision(0, 1),))


def empty_decisions(row: dict[str, Any], schedule: Schedule) -> None:
    """Decisions about no rows are recorded for a request without any."""
    trace = row["trace"]
    if not trace.visual_rows:
        made = [
            DecisionRecord(d.layer, j, (), (), (), (), (), None)
            for j, d in enumerate(schedule.decisions, start=1)
        ]
        row["trace"] = replace(trace, decisions=tuple(made))


# Scores


def score_with(**changed: Callable[..., Any]) -> Callable[..., list[float]]:
    """A score of other arguments."""
    names = ("decoder", "request", "schedule", "layer", "hidden", "cos", "sin", "alive", "pool")

    def score(*args: Any) -> list[float]:
        given = dict(zip(names, args, strict=True))
        return _score(**{**given, **{name: change(given) for name, change in changed.items()}})

    return score


def visual_and_last(given: dict[str, Any]) -> list[int]:
    """U without text."""
    request: Plan = given["request"]
    return [row for row in given["alive"] if row in request.visual_rows or row == request.num_rows - 1]


def stale_scores() -> Callable[..., list[float]]:
    """The scores of a request's first decision at every decision."""
    seen: dict[int, tuple[Plan, dict[int, float]]] = {}

    def score(*args: Any) -> list[float]:
        request, pool = args[1], args[-1]
        values = _score(*args)
        if id(request) not in seen:
            seen[id(request)] = request, dict(zip(pool, values, strict=True))
        return [seen[id(request)][1][ordinal] for ordinal in pool]

    return score


def in_half_precision(query: Tensor, keys: Tensor, scaling: float, rule: ScoreRule) -> Tensor:
    """Scores of queries and keys that were rounded to float16."""
    return attention_scores(query.half().to(query.dtype), keys.half().to(keys.dtype), scaling, rule)


def largest_head(query: Tensor, keys: Tensor, scaling: float, rule: ScoreRule) -> Tensor:
    """The maximum over heads, whatever the rule says."""
    return attention_scores(query, keys, scaling, replace(rule, heads="max"))


# Blocks, cache, decode


def deferred_through_mlp(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    """A whole block on deferred rows that skip attention alone."""
    routed = _routed_block(decoder, layer, hidden, active, *rest)
    deferred = sorted(set(range(hidden.shape[0])) - set(active))
    if deferred and isinstance(decoder, CanonicalDecoder):
        name = f"layers.{layer}."
        gate, up, down = (decoder.weights[f"{name}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        weight = decoder.weights[name + "post_attention_layernorm.weight"]
        normed = F.rms_norm(hidden[deferred], weight.shape, weight, decoder.config.rms_norm_eps)
        routed[deferred] = hidden[deferred] + (F.silu(normed @ gate.T) * (normed @ up.T)) @ down.T
    elif deferred:
        block = decoder.blocks[layer]
        routed[deferred] = hidden[deferred] + block.mlp(block.post_attention_layernorm(hidden[deferred]))
    return routed


def renumbered(
    decoder: Any, layer: int, hidden: Tensor, active: list[int], cos: Tensor, sin: Tensor, cache: Any
) -> Tensor:
    """Active rows at the positions 0, 1, 2, …"""
    cos, sin = cos.clone(), sin.clone()
    cos[active], sin[active] = cos[: len(active)].clone(), sin[: len(active)].clone()
    return _routed_block(decoder, layer, hidden, active, cos, sin, cache)


def in_two_windows(
    decoder: Any, layer: int, hidden: Tensor, active: list[int], cos: Tensor, sin: Tensor, cache: RowCache
) -> Tensor:
    """The second half of the active rows does not attend the first."""
    routed = hidden
    for half in (active[: len(active) // 2], active[len(active) // 2 :]):
        if half:
            window = RowCache()
            routed = _routed_block(decoder, layer, routed, half, cos, sin, window)
            keys, values = window.keys_values(layer)
            cache.storage.update(keys[None], values[None], layer)
    return routed


def all_rows_cached(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    """A block that runs all rows, and puts the deferred ones back."""
    routed = _routed_block(decoder, layer, hidden, list(range(hidden.shape[0])), *rest)
    deferred = sorted(set(range(hidden.shape[0])) - set(active))
    routed[deferred] = hidden[deferred]
    return routed


def neighbours_paired(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of channels 2i and 2i + 1."""
    half = x.shape[-1] // 2
    cos, sin = (table[..., :half].repeat_interleave(2, dim=-1) for table in (cos, sin))
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos + turned * sin


def norm_without_weight(decoder: CanonicalDecoder, hidden: Tensor) -> Tensor:
    """A final norm whose weight was forgotten."""
    return F.rms_norm(hidden, hidden.shape[-1:], eps=decoder.config.rms_norm_eps)


def decode_at_cache_length(decoder: Any, cache: Any, embeddings: Tensor) -> Tensor:
    """Positions that continue from the rows of the last block's cache."""
    cache.next_position = cache.rows(decoder.num_layers - 1)
    return _extend(decoder, cache, embeddings)


def decoded_rows_forgotten(decoder: Any, cache: RowCache, embeddings: Tensor) -> Tensor:
    """Decoded rows that leave nothing in the last block's cache."""
    states = _extend(decoder, cache, embeddings)
    entry = cache.storage.layers[decoder.num_layers - 1]
    entry.keys, entry.values = (
        x[..., : x.shape[-2] - embeddings.shape[0], :] for x in (entry.keys, entry.values)
    )
    return states


# Targets


class FirstRowDecides(ReferenceTarget):
    """Row 0's decision for the whole batch, as far as its ordinals fit the other rows' budgets."""

    def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """As named."""
        own = super().run(model, inputs, schedule, **rest)
        first = own[0]["trace"]
        shared = [
            [r.selected for r in (first if _same_shape(first, row["trace"]) else row["trace"]).decisions]
            for row in own
        ]
        observed = super().run(model, inputs, schedule, **{**rest, "decisions": shared})
        for row in observed if rest.get("decisions") is None else ():
            made = tuple(replace(record, would_select=None) for record in row["trace"].decisions)
            row["trace"] = replace(row["trace"], decisions=made)
        return observed


def _same_shape(a: Any, b: Any) -> bool:
    return len(a.visual_rows) == len(b.visual_rows)


class Leaking(ReferenceTarget):
    """A text-only request sees something of the request with images before it: here, the mean of its logits."""

    def __init__(self) -> None:
        self.left_behind: Tensor | None = None

    def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """As named."""
        observed = super().run(model, inputs, schedule, **rest)
        if any(row["trace"].visual_rows for row in observed):
            self.left_behind = observed[0]["logits"].mean()
        elif self.left_behind is not None and isinstance(model, nn.Module):
            for row in observed:
                row["logits"] = row["logits"] + self.left_behind
        return observed


def of_another_schedule(change: Callable[[Schedule], Schedule]) -> type[ReferenceTarget]:
    """A target that runs something else than what it is asked for."""

    class Changed(ReferenceTarget):
        def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
            return super().run(model, inputs, change(schedule), **rest)

    return Changed


def of_other_answers(change: Callable[[dict[str, Any], Schedule], None]) -> type[ReferenceTarget]:
    """A target whose answer to every request is changed after the fact."""

    class Changed(ReferenceTarget):
        def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
            observed = super().run(model, inputs, schedule, **rest)
            for row in observed:
                change(row, schedule)
            return observed

    return Changed


def survivors_only(row: dict[str, Any], schedule: Schedule) -> None:
    """Logits of the rows that ran last, whatever the action."""
    trace = row["trace"]
    if trace.decisions and schedule.action == "reroute":
        gone = {trace.visual_rows[ordinal] for ordinal in trace.decisions[-1].deferred}
        row["logits"] = row["logits"][[i for i in range(trace.num_rows) if i not in gone]]


def misplaced_write_back(row: dict[str, Any], schedule: Schedule) -> None:
    """Rows written back one place further after a stage of several blocks."""
    layers = [record.layer for record in row["trace"].decisions]
    for first, end in zip(layers, [*layers[1:], len(row["keys"])], strict=True):
        if end - first > 1:
            ran = row["residuals"][end].clone()
            ran[-2:] = ran[-2:].flip(0)
            row["residuals"][end] = ran


def without_last_key(row: dict[str, Any], schedule: Schedule) -> None:
    """A cache whose last row is missing in the last block."""
    for name in ("keys", "values"):
        row[name][-1] = row[name][-1][:, :-1]


def noisy(row: dict[str, Any], schedule: Schedule) -> None:
    """Bits that depend on what was drawn before: within every tolerance."""
    row["logits"] = row["logits"] * (1 + 1e-7 * torch.rand(()))


def noisy_values(row: dict[str, Any], schedule: Schedule) -> None:
    """The same, of cached values."""
    row["values"][-1] = row["values"][-1] * (1 + 1e-7 * torch.rand(()))


def would_select_what_ran(row: dict[str, Any], schedule: Schedule) -> None:
    """The replayed selection in place of what the scores would have selected."""
    made = tuple(replace(r, would_select=r.would_select and r.selected) for r in row["trace"].decisions)
    row["trace"] = replace(row["trace"], decisions=made)


class NamesAnotherField(ReferenceTarget):
    """An error that always names the same field."""

    def plan(self, *given: Any) -> Sequence[int]:
        """As named."""
        try:
            return super().plan(*given)
        except RerouteError as error:
            raise RerouteError("label", error.problem, error.remedy) from None


class PaddingCounts(ReferenceTarget):
    """Padding is a row like any other."""

    def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """As named."""
        everything = {"attention_mask": torch.ones_like(inputs["attention_mask"])}
        return super().run(model, {**inputs, **everything}, schedule, **rest)


class IgnoresReplay(ReferenceTarget):
    """Decides for itself, whatever it is given."""

    def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """As named."""
        return super().run(model, inputs, schedule, **{**rest, "decisions": None})


class RaisesOnOneVisualRow(ReferenceTarget):
    """A kernel that cannot run one candidate."""

    def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """As named."""
        observed = super().run(model, inputs, schedule, **rest)
        if any(len(row["trace"].visual_rows) == 1 for row in observed):
            raise ValueError("a tile needs two candidates")
        return observed
