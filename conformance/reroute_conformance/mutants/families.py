"""Lists the mutants of model families, refusals, grouped heads and padding, and further mutants of blocks and scores.

The faults stand here beside the list, because some of them need more than one replaced function. The misreadings of
``verdicts/misreadings.py`` are mutants as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
from reroute_reference import CanonicalDecoder, routing
from reroute_reference.model import as_decoder
from reroute_reference.score import attention_scores
from reroute_spec import Decision, RerouteError, Schedule, ScoreRule
from torch import Tensor

from ..protocol import Model
from ..targets.reference_target import ReferenceTarget
from ..verdicts.misreadings import MISREADINGS
from . import faulty_functions as f
from .mutant import Mutant, answering

_routed_block, _route, _score = routing.routed_block, routing.route, routing.score
_Answers = list[dict[str, Any]]


# Blocks


def _identity(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    """A block that runs, and whose output nobody takes where rows were deferred."""
    routed = _routed_block(decoder, layer, hidden, active, *rest)
    return hidden if len(active) < hidden.shape[0] else routed


def _unsorted(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    """Active rows gathered in another order than the prompt's, all but the last."""
    order = active if len(active) == hidden.shape[0] else [*reversed(active[:-1]), active[-1]]
    return _routed_block(decoder, layer, hidden, order, *rest)


def _normed(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    """Deferred rows pass the block's input norm."""
    routed = _routed_block(decoder, layer, hidden, active, *rest)
    deferred = sorted(set(range(hidden.shape[0])) - set(active))
    if deferred and isinstance(decoder, CanonicalDecoder):
        routed[deferred] = decoder._norm(f"layers.{layer}.input_layernorm", hidden[deferred])
    return routed


def _both_ways(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    """Every row attends to every other."""
    with mock.patch.object(Tensor, "tril", lambda visible, diagonal=0: visible):
        return _routed_block(decoder, layer, hidden, active, *rest)


def _compact_both_ways(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    """Every row attends to every other where rows were deferred, as if no mask were made for the active rows."""
    block = _both_ways if len(active) < hidden.shape[0] else _routed_block
    return block(decoder, layer, hidden, active, *rest)


# Scores


def _scored_with(states: Callable[[Any, Tensor, Tensor, list[int]], Tensor]) -> Callable[..., Any]:
    """A route whose decisions score ``states(prompt, hidden, entered, active)``: ``entered`` is what the block before
    was given, for ``active`` rows.
    """

    def route(decoder: Any, prompt: Any, *rest: Any, **named: Any) -> Any:
        last: dict[str, Any] = {}

        def block(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
            last.update(entered=hidden, active=active)
            return _routed_block(decoder, layer, hidden, active, *rest)

        def score(decoder: Any, request: Any, schedule: Any, layer: int, hidden: Tensor, *rest: Any) -> Any:
            everything = list(range(hidden.shape[0]))
            given = states(prompt, hidden, last.get("entered", hidden), last.get("active", everything))
            return _score(decoder, request, schedule, layer, given, *rest)

        with (
            mock.patch("reroute_reference.routing.routed_block", block),
            mock.patch("reroute_reference.routing.score", score),
        ):
            return _route(decoder, prompt, *rest, **named)

    return route


def _refreshed(prompt: Any, hidden: Tensor, entered: Tensor, active: list[int]) -> Tensor:
    """Rows that were deferred are taken back to their embeddings."""
    fresh: Tensor = prompt.embeddings.clone()
    fresh[active] = hidden[active]
    return fresh


def _a_block_early(prompt: Any, hidden: Tensor, entered: Tensor, active: list[int]) -> Tensor:
    """X^{d-1} in place of X^d."""
    return entered


def _padding_asks(prompt: Any, hidden: Tensor, entered: Tensor, active: list[int]) -> Tensor:
    """The last column of the batch asks, be it padding."""
    if int(prompt.rows[-1]) == prompt.padded_length - 1:
        return hidden
    padding = torch.full_like(hidden[-1:], 50.0)
    return torch.cat([hidden[:-1], padding])


def _heads_in_turns(query: Tensor, keys: Tensor, *rest: Any) -> Tensor:
    """Query head h reads key head h mod K."""
    return attention_scores(query, keys.repeat(query.shape[0] // keys.shape[0], 1, 1), *rest)


def _one_head_of_each_group(
    query: Tensor, keys: Tensor, scaling: float, rule: ScoreRule, *rest: Any
) -> Tensor:
    """One query head per key head is averaged."""
    return attention_scores(query[:: query.shape[0] // keys.shape[0]], keys, scaling, rule, *rest)


class PadIsACandidate(ReferenceTarget):
    """A target that takes padding for visual rows."""

    def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """Answer with the fault of this class."""
        real = inputs["attention_mask"]
        read = {"visual_mask": inputs["visual_mask"] | (real == 0), "attention_mask": torch.ones_like(real)}
        return super().run(model, {**inputs, **read}, schedule, **rest)


# Refusals


def _mending(change: Callable[[Any, dict[str, Any], Schedule], Schedule]) -> type[ReferenceTarget]:
    """A target that mends what it is given, model, inputs or schedule, instead of refusing it."""

    class Mends(ReferenceTarget):
        def run(self, model: Any, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
            given = dict(inputs)
            return super().run(model, given, change(model, given, schedule), **rest)

        def generate(self, model: Any, inputs: Mapping[str, Any], schedule: Schedule, count: int) -> Tensor:
            given = dict(inputs)
            return super().generate(model, given, change(model, given, schedule), count)

    return Mends


def _passing_over(*names: str) -> type[ReferenceTarget]:
    """A target that does not look at some of its inputs."""

    def change(model: Any, given: dict[str, Any], schedule: Schedule) -> Schedule:
        for name in names:
            given.pop(name, None)
        return schedule

    return _mending(change)


def _labels_under_delete(model: Any, given: dict[str, Any], schedule: Schedule) -> Schedule:
    if schedule.action == "delete":
        given.pop("labels", None)
    return schedule


def _mask_made_to_fit(model: Any, given: dict[str, Any], schedule: Schedule) -> Schedule:
    mask, ids = given.get("attention_mask"), given.get("input_ids")
    if isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.shape != ids.shape:
        given["attention_mask"] = torch.ones_like(ids)
    return schedule


def _snapped(model: Any, given: dict[str, Any], schedule: Schedule) -> Schedule:
    """A decision of another kind of block waits for the next one that can decide."""
    if isinstance(model, tuple):
        return schedule
    kinds = as_decoder(model, None).kinds
    decisions = []
    for decision in schedule.decisions:
        layer = decision.layer
        while kinds[layer] != "full_attention":
            layer += 1
        decisions.append(Decision(layer, decision.keep))
    return Schedule(schedule.action, tuple(decisions), schedule.score)


class TrainingModeAccepted(ReferenceTarget):
    """A target that accepts a model in training mode: it runs it in eval mode and puts it back."""

    def run(self, model: Any, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """Answer with the fault of this class."""
        training = not isinstance(model, tuple) and model.training
        if not training:
            return super().run(model, inputs, schedule, **rest)
        model.eval()
        try:
            return super().run(model, inputs, schedule, **rest)
        finally:
            model.train()


class RefusalEndsTraining(ReferenceTarget):
    """A target whose refusal of a model in training mode leaves it in eval mode."""

    def run(self, model: Any, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """Answer with the fault of this class."""
        try:
            return super().run(model, inputs, schedule, **rest)
        except RerouteError as refusal:
            if refusal.field == "model.training":
                model.eval()
            raise


class UndescribedRunsUnrouted(ReferenceTarget):
    """A target that accepts a model that nobody has described, and runs it unrouted."""

    def run(self, model: Any, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """Answer with the fault of this class."""
        try:
            return super().run(model, inputs, schedule, **rest)
        except RerouteError as refusal:
            if refusal.field != "model":
                raise
            return [{"logits": model(inputs["input_ids"] * 0).logits[0]}]


_CHECK_OF = {"RR-BLOCK-010": "qwen3_vl", "RR-BLOCK-011": "qwen3_5", "RR-BLOCK-013": "qwen3_5"}


def _block(name: str, rule: str, check: str, block: Any) -> Mutant:
    return Mutant(name, rule, check, {"reroute_reference.routing.routed_block": block})


def _route_of(name: str, rule: str, check: str, states: Any) -> Mutant:
    return Mutant(name, rule, check, {"reroute_reference.model.route": _scored_with(states)})


def _heads(name: str, score: Any) -> Mutant:
    return Mutant(name, "RR-SCORE-001", "trace-gqa", {"reroute_reference.routing.attention_scores": score})


FAMILY_MUTANTS = (
    *(Mutant(m.name, m.rule, _CHECK_OF[m.rule], m.patches()) for m in MISREADINGS),
    _block("identity", "RR-BLOCK-003", "route", _identity),
    _block("unsorted-gather", "RR-BLOCK-003", "route", _unsorted),
    _block("deferred-rows-norm-applied", "RR-BLOCK-001", "route", _normed),
    _block("non-causal-compact-attention", "RR-BLOCK-003", "route", _compact_both_ways),
    _block("first-rows-see-the-images", "RR-EQV-007", "text-first", _both_ways),
    _route_of("deferred-state-refreshed-from-embeddings", "RR-SCORE-008", "trace-again", _refreshed),
    _route_of("epsilon-off-at-the-stage-boundary", "RR-SCORE-001", "trace-again", _a_block_early),
    _route_of("last-row-of-the-padded-sequence", "RR-EQV-005", "trace-batch", _padding_asks),
    _heads("sum-over-the-wrong-heads-under-gqa", _heads_in_turns),
    _heads("one-head-of-each-group-scored", _one_head_of_each_group),
    answering("pad-as-a-candidate", "RR-EQV-005", "trace-batch", PadIsACandidate),
    Mutant(
        "scores-compared-in-half-precision",
        "RR-SEL-001",
        "select-attention",
        f.selecting(f.refusing_nan(f.order_by(lambda s, i: (-float(torch.tensor(s).half()), i)))),
    ),
    answering("linear-attention-decides", "RR-SCORE-006", "qwen3_5-refusals", _mending(_snapped)),
    answering("undescribed-family-run", "RR-ERR-002", "llava-refusals", UndescribedRunsUnrouted),
    answering("labels-accepted-under-delete", "RR-ERR-004", "llava-refusals", _mending(_labels_under_delete)),
    answering("mask-made-to-fit", "RR-ERR-005", "llava-refusals", _mending(_mask_made_to_fit)),
    answering("training-mode-accepted", "RR-ERR-005", "llava-refusals", TrainingModeAccepted),
    answering("refusal-ends-training-mode", "RR-ERR-001", "llava-refusals", RefusalEndsTraining),
    answering(
        "prefill-chunks-passed-over", "RR-KV-011", "llava-refusals", _passing_over("prefill_chunk_size")
    ),
    answering("given-cache-passed-over", "RR-KV-011", "llava-refusals", _passing_over("past_key_values")),
)
