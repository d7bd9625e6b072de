"""Defines misreadings of the rules about model families, as patches that make the reference read one thing wrongly.

The judge tells by them which rule a wrong value broke (``diagnosis``). They are also the mutants of those rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from reroute_reference import routing
from reroute_reference.families import PLAIN_ATTENTION
from reroute_reference.huggingface import HuggingFaceDecoder
from torch import Tensor

_routed_block, _cross_boundary = routing.routed_block, routing.cross_boundary
_rotary, _query_key, _block = (
    HuggingFaceDecoder.rotary,
    HuggingFaceDecoder.query_key,
    HuggingFaceDecoder.block,
)
_CLOSED = 1e4  # of a gate's logit: the gate is 1


@dataclass(frozen=True)
class Misreading:
    """One way in which a rule about model families is easily misread.

    Attributes:
        name: the name of the mutant.
        rule: the rule that is misread.
        words: says what the values then are; it goes on after the words "these are the values".
        applies: whether a model has what the misreading is about.
        patches: makes the wrong functions, by the dotted names of the functions of the reference that they replace.
    """

    name: str
    rule: str
    words: str
    applies: Callable[[Any], bool]
    patches: Callable[[], Mapping[str, Any]]

    def put(self, stack: ExitStack) -> None:
        """Misread until ``stack`` is left."""
        for name, replacement in self.patches().items():
            stack.enter_context(mock.patch(name, replacement))


def _without_features(hidden: Tensor, prompt: Any, layer: int) -> Tensor:
    return hidden


def _features_where(rows: Callable[[list[int], Any, Tensor], Tensor]) -> Callable[[], Mapping[str, Any]]:
    """Patches under which ``rows(active, prompt, features)`` [S, d] is added at a boundary."""

    def patches() -> Mapping[str, Any]:
        ran: list[int] = []

        def block(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
            ran[:] = active
            return _routed_block(decoder, layer, hidden, active, *rest)

        def boundary(hidden: Tensor, prompt: Any, layer: int) -> Tensor:
            if layer >= len(prompt.deepstack):
                return hidden
            return hidden + rows(ran, prompt, prompt.deepstack[layer])

        return _of_routing(routed_block=block, cross_boundary=boundary)

    return patches


def _active_alone(active: list[int], prompt: Any, features: Tensor) -> Tensor:
    added = torch.zeros_like(features)
    added[active] = features[active]
    return added


def _in_order_of_the_active(active: list[int], prompt: Any, features: Tensor) -> Tensor:
    visual = [row for row, flag in enumerate(prompt.visual) if flag]
    running = [row for row in visual if row in set(active)]
    added = torch.zeros_like(features)
    added[running] = features[visual[: len(running)]]
    return added


def linear_over_all_rows(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    """Linear attention over all rows; the deferred ones are put back."""
    if decoder.kinds[layer] == PLAIN_ATTENTION:
        return _routed_block(decoder, layer, hidden, active, *rest)
    routed = _routed_block(decoder, layer, hidden, list(range(hidden.shape[0])), *rest)
    deferred = sorted(set(range(hidden.shape[0])) - set(active))
    routed[deferred] = hidden[deferred]
    return routed


def _whole_head_rotated(decoder: HuggingFaceDecoder, positions: Tensor) -> tuple[Tensor, Tensor]:
    rotary: Any = getattr(decoder.decoder, decoder.parts.rotary)
    config: Any = decoder.decoder.config
    kept, width = rotary.inv_freq, decoder.head_dim
    exponents = torch.arange(0, width, 2, dtype=kept.dtype, device=kept.device) / width
    rotary.inv_freq = config.rope_parameters["rope_theta"] ** -exponents
    try:
        return _rotary(decoder, positions)
    finally:
        rotary.inv_freq = kept


def _with_query(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], function: Any) -> Any:
    """A function of a decoder and a layer, under which the block's query and gate are others."""

    def changed(decoder: HuggingFaceDecoder, layer: int, *rest: Any) -> Any:
        attention = getattr(decoder.blocks[layer], decoder.parts.attention, None)
        if attention is None:
            return function(decoder, layer, *rest)

        def hook(_module: Any, _args: Any, out: Tensor) -> Tensor:
            parts = out.view(*out.shape[:-1], -1, 2, int(attention.head_dim))
            return torch.stack(change(parts[..., 0, :], parts[..., 1, :]), dim=-2).flatten(-3)

        handle = getattr(attention, decoder.parts.query).register_forward_hook(hook)
        try:
            return function(decoder, layer, *rest)
        finally:
            handle.remove()

    return changed


def _of_routing(**functions: Any) -> dict[str, Any]:
    return {f"reroute_reference.routing.{name}": put for name, put in functions.items()}


def _of_decoder(**functions: Any) -> dict[str, Any]:
    return {
        f"reroute_reference.huggingface.HuggingFaceDecoder.{name}": put for name, put in functions.items()
    }


def with_features(decoder: Any) -> bool:
    """Whether features are added to its visual rows at block boundaries (RR-BLOCK-010)."""
    return isinstance(decoder, HuggingFaceDecoder) and decoder.parts.deepstack is not None


def gated(decoder: Any) -> bool:
    """Whether its attention is gated, and its heads rotated in part (RR-BLOCK-013)."""
    return isinstance(decoder, HuggingFaceDecoder) and decoder.parts.gated_query


MISREADINGS = (
    Misreading(
        "deepstack-left-out",
        "RR-BLOCK-010",
        "without the features of the block boundaries",
        with_features,
        lambda: _of_routing(cross_boundary=_without_features),
    ),
    Misreading(
        "deepstack-dropped-on-deferred-rows",
        "RR-BLOCK-010",
        "with the features of the block boundaries in the active rows alone",
        with_features,
        _features_where(_active_alone),
    ),
    Misreading(
        "deepstack-of-other-rows",
        "RR-BLOCK-010",
        "where the active rows get the features of the first visual rows",
        with_features,
        _features_where(_in_order_of_the_active),
    ),
    Misreading(
        "linear-state-sees-deferred-rows",
        "RR-BLOCK-011",
        "of linear attention that saw the deferred rows",
        lambda decoder: any(kind != PLAIN_ATTENTION for kind in decoder.kinds),
        lambda: _of_routing(routed_block=linear_over_all_rows),
    ),
    Misreading(
        "gate-used-as-query",
        "RR-BLOCK-013",
        "of the gate in place of the query",
        gated,
        lambda: _of_decoder(query_key=_with_query(lambda query, gate: (gate, query), _query_key)),
    ),
    Misreading(
        "attention-gate-dropped",
        "RR-BLOCK-013",
        "of attention without its gate",
        gated,
        lambda: _of_decoder(
            block=_with_query(lambda query, gate: (query, torch.full_like(gate, _CLOSED)), _block)
        ),
    ),
    Misreading(
        "whole-head-rotated",
        "RR-BLOCK-013",
        "of heads that were rotated whole",
        gated,
        lambda: _of_decoder(rotary=_whole_head_rotated),
    ),
)


def misreadings_of(decoder: Any) -> list[Misreading]:
    """Those that are about what this model has; none of a canonical decoder."""
    return [reading for reading in MISREADINGS if reading.applies(decoder)]
