"""Wrong implementations that the suite must kill: the reference with one small thing changed, and the rule it breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from reroute_reference import CanonicalDecoder, routing
from reroute_reference.score import attention_scores
from reroute_spec import Schedule, ScoreRule
from reroute_spec.budget import parse_keep
from reroute_spec.errors import unknown
from reroute_spec.plan import Plan
from torch import Tensor, nn

from .protocol import Model
from .targets import ReferenceTarget

_score, _routed_block, _extend = routing.score, routing.routed_block, routing.extend


@dataclass(frozen=True)
class Mutant:
    """A named fault.

    Attributes:
        name: from the list of faults seen in practice.
        rule: the rule it breaks; a failure of another rule does not count as a kill.
        check: the check that kills it.
        patches: dotted name of what is replaced, and by what.
        target: a target class with the fault, where it is not a patch.
    """

    name: str
    rule: str
    check: str
    patches: Mapping[str, Any]
    target: type[ReferenceTarget] = ReferenceTarget


def _order_by(key: Callable[[float, int], Any]) -> Callable[..., list[int]]:
    def select(scores: Sequence[float], k: int) -> list[int]:
        return sorted(sorted(range(len(scores)), key=lambda i: key(scores[i], i))[:k])

    return select


def _selecting(select: Callable[..., list[int]]) -> dict[str, Any]:
    return {"reroute_spec.trace.select": select, "reroute_conformance.targets.select": select}


def _refusing_nan(select: Callable[..., list[int]]) -> Callable[..., list[int]]:
    from reroute_spec.select import select as right

    def wrapped(scores: Sequence[float], k: int) -> list[int]:
        right(scores, k)
        return select(scores, k)

    return wrapped


class _FirstRowDecides(ReferenceTarget):
    """Row 0's decision for the whole batch, as far as its ordinals fit the other rows' budgets."""

    def run(
        self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any
    ) -> list[dict[str, Any]]:
        own = super().run(model, inputs, schedule, **rest)
        first = own[0]["trace"]
        shared = [
            [r.selected for r in (first if _same_shape(first, row["trace"]) else row["trace"]).decisions]
            for row in own
        ]
        return super().run(model, inputs, schedule, **{**rest, "decisions": shared})


def _same_shape(a: Any, b: Any) -> bool:
    return len(a.visual_rows) == len(b.visual_rows)


class _LeakingTarget(ReferenceTarget):
    """A text-only request sees something of the request with images before it: here, the mean of its logits."""

    def __init__(self) -> None:
        self.left_behind: Tensor | None = None

    def run(
        self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any
    ) -> list[dict[str, Any]]:
        observed = super().run(model, inputs, schedule, **rest)
        if any(row["trace"].visual_rows for row in observed):
            self.left_behind = observed[0]["logits"].mean()
        elif self.left_behind is not None and isinstance(model, nn.Module):
            for row in observed:
                row["logits"] = row["logits"] + self.left_behind
        return observed


def _deferred_through_mlp(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
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


def _renumbered(
    decoder: Any, layer: int, hidden: Tensor, active: list[int], cos: Tensor, sin: Tensor, cache: Any
) -> Tensor:
    cos, sin = cos.clone(), sin.clone()
    cos[active], sin[active] = cos[: len(active)].clone(), sin[: len(active)].clone()
    return _routed_block(decoder, layer, hidden, active, cos, sin, cache)


def _all_rows_cached(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    routed = _routed_block(decoder, layer, hidden, list(range(hidden.shape[0])), *rest)
    deferred = sorted(set(range(hidden.shape[0])) - set(active))
    routed[deferred] = hidden[deferred]
    return routed


def _score_with(**changed: Callable[..., Any]) -> Callable[..., list[float]]:
    names = ("decoder", "request", "schedule", "layer", "hidden", "cos", "sin", "alive", "pool")

    def score(*args: Any) -> list[float]:
        given = dict(zip(names, args, strict=True))
        return _score(**{**given, **{name: change(given) for name, change in changed.items()}})

    return score


def _visual_and_last(given: dict[str, Any]) -> list[int]:
    request: Plan = given["request"]
    return [row for row in given["alive"] if row in request.visual_rows or row == request.num_rows - 1]


def _rounded(keep: Any, n: int, *, min_keep: int = 1, pool: int | None = None) -> int:
    exact = parse_keep(keep)
    rows = exact if isinstance(exact, int) else round(exact * n)
    return min(n if pool is None else pool, max(min_keep, rows))


def _float_budget(keep: Any, n: int, *, min_keep: int = 1, pool: int | None = None) -> int:
    exact = parse_keep(keep)
    rows = exact if isinstance(exact, int) else int(float(exact) * n)
    return min(n if pool is None else pool, max(min_keep, rows))


def _in_half_precision(query: Tensor, keys: Tensor, scaling: float, rule: ScoreRule) -> Tensor:
    return attention_scores(query.half().to(query.dtype), keys.half().to(keys.dtype), scaling, rule)


def _decode_at_cache_length(decoder: Any, cache: Any, embeddings: Tensor) -> Tensor:
    cache.next_position = cache.rows(decoder.num_layers - 1)
    return _extend(decoder, cache, embeddings)


class _RemovesForGood(ReferenceTarget):
    """Deferred rows are never candidates again."""

    def run(
        self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any
    ) -> list[dict[str, Any]]:
        return super().run(model, inputs, replace(schedule, pool="survivors"), **rest)


_ROUTING = "reroute_reference.routing."
MUTANTS = (
    Mutant(
        "higher-ordinal-wins-ties",
        "RR-SEL-003",
        "select",
        _selecting(_refusing_nan(_order_by(lambda s, i: (-s, -i)))),
    ),
    Mutant(
        "lowest-scores", "RR-SEL-001", "select", _selecting(_refusing_nan(_order_by(lambda s, i: (s, i))))
    ),
    Mutant(
        "nan-accepted",
        "RR-SEL-005",
        "select-nan",
        _selecting(_order_by(lambda s, i: (math.inf if math.isnan(s) else -s, i))),
    ),
    Mutant(
        "negative-zero-below-zero",
        "RR-SEL-002",
        "select",
        _selecting(_refusing_nan(_order_by(lambda s, i: (-s, math.copysign(1, s) < 0, i)))),
    ),
    Mutant("row-0-decides-for-the-batch", "RR-EQV-004", "trace-batch", {}, _FirstRowDecides),
    Mutant(
        "deferred-rows-through-the-mlp",
        "RR-BLOCK-001",
        "route",
        {_ROUTING + "routed_block": _deferred_through_mlp},
    ),
    Mutant(
        "positions-renumbered-after-compaction",
        "RR-BLOCK-002",
        "route",
        {_ROUTING + "routed_block": _renumbered},
    ),
    Mutant(
        "kv-rows-for-the-full-length", "RR-KV-001", "route", {_ROUTING + "routed_block": _all_rows_cached}
    ),
    Mutant("remove-instead-of-defer", "RR-POOL-003", "trace", {}, _RemovesForGood),
    Mutant("k-rounded", "RR-BUD-001", "budgets", {"reroute_spec.plan.budget": _rounded}),
    Mutant("budget-in-binary-floats", "RR-BUD-001", "budgets", {"reroute_spec.plan.budget": _float_budget}),
    Mutant(
        "scores-in-half-precision",
        "RR-SCORE-003",
        "trace",
        {_ROUTING + "attention_scores": _in_half_precision},
    ),
    Mutant(
        "score-without-rope",
        "RR-SCORE-001",
        "trace",
        {
            _ROUTING + "score": _score_with(
                cos=lambda given: torch.ones_like(given["cos"]),
                sin=lambda given: torch.zeros_like(given["sin"]),
            )
        },
    ),
    Mutant(
        "softmax-over-visual-rows-only",
        "RR-SCORE-002",
        "trace",
        {_ROUTING + "score": _score_with(alive=_visual_and_last)},
    ),
    Mutant(
        "decode-position-from-cache-length",
        "RR-KV-004",
        "trace-cache",
        {"reroute_reference.model.extend": _decode_at_cache_length},
    ),
    Mutant("state-leaks-to-the-next-request", "RR-KV-006", "llava", {}, _LeakingTarget),
)


def mutant(name: str) -> ReferenceTarget:
    """The target of a mutant by name."""
    for entry in MUTANTS:
        if entry.name == name:
            return _patched(entry)
    raise unknown("--target mutant", name, [entry.name for entry in MUTANTS])


def _patched(entry: Mutant) -> ReferenceTarget:
    """The mutant's target; the patches hold only while it is called, so that the judge stays right."""

    class Patched(entry.target):  # type: ignore[name-defined, misc]
        name = f"mutant:{entry.name}"

        def select(self, *args: Any, **kwargs: Any) -> Any:
            with _patches(entry):
                return super().select(*args, **kwargs)

        def run(self, *args: Any, **kwargs: Any) -> Any:
            with _patches(entry):
                return super().run(*args, **kwargs)

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            with _patches(entry):
                return super().generate(*args, **kwargs)

    target: ReferenceTarget = Patched()
    return target


def _patches(entry: Mutant) -> ExitStack:
    stack = ExitStack()
    for name, replacement in entry.patches.items():
        stack.enter_context(mock.patch(name, replacement))
    return stack
