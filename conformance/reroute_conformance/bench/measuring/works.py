"""Defines the works that are measured (select, score, prefill, decode, reorder), with their data and the least that they take.

A work is the same for everybody who does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from reroute_spec import DecoderShape, Plan, Schedule, plan
from reroute_spec.plan import visual_flags

from .floors import Part, decode_parts, prefill_parts, reorder_parts, score_parts, select_parts
from .machine import Place
from .models import BEFORE, TEXT, VISUAL, canonical, decoder, own, rows

UNROUTED, PLAIN, MAP = "unrouted", "floor", "attention map"
"""The names of what is measured beside the targets: the unrouted model, the plan's blocks called plainly, and scores that
are taken out of a whole attention map."""


@dataclass(frozen=True)
class Work:
    """One kind of work on given data, made for one place.

    Attributes:
        kind: a key of :data:`reroute_conformance.protocol.WORKS`.
        data: everything that the work is about but the model.
        parts: its FLOPs and bytes with routing, part by part.
        unrouted_parts: those of the same work without routing; empty where there is no such work.
        plan: the plan of each of its requests, which are equal; None where there is no request.
        shape: the shape of its decoder; None where there is none.
        place: the device and the dtype.
    """

    kind: str
    data: Mapping[str, Any]
    parts: list[Part]
    unrouted_parts: list[Part] = field(default_factory=list)
    plan: Plan | None = None
    shape: DecoderShape | None = None
    place: Place = field(default_factory=lambda: Place.of("cpu"))

    def given(self, *, module: bool = True) -> dict[str, Any]:
        """Everything that one who is measured is given, with a model of its own: a module, or a canonical decoder."""
        if self.shape is None:
            return dict(self.data)
        model = decoder(self.shape, self.place)
        return {**self.data, "model": own(model) if module else canonical(model, self.shape)}


@dataclass(frozen=True)
class Layout:
    """A batch of equal requests.

    Attributes:
        visual, text, before: how many visual rows and text rows a request has, and how many text rows stand before the
            visual ones.
        batch: how many requests there are.
    """

    visual: int = VISUAL
    text: int = TEXT
    before: int = BEFORE
    batch: int = 1

    def plan(self, schedule: Schedule, shape: DecoderShape) -> Plan:
        """The plan of one of the requests."""
        return plan(schedule, shape.num_layers, visual_flags(self.visual, self.text, before=self.before))


UNROUTED_SCHEDULE = Schedule("reroute", ())


def select_work(place: Place, candidates: int, kept: int) -> Work:
    """The selection of ``kept`` of ``candidates`` scores."""
    scores = torch.rand(candidates, generator=torch.Generator().manual_seed(2)).to(place.device)
    return Work("select", {"scores": scores, "k": kept}, select_parts(candidates, kept), place=place)


def score_work(place: Place, shape: DecoderShape, schedule: Schedule, layout: Layout) -> Work:
    """The scores of the first decision, at block 0."""
    parts = score_parts(layout.visual + layout.text, shape, place.element_bytes)
    data = {"inputs": _inputs(shape, place, layout), "schedule": schedule}
    return Work("score", data, parts, plan=layout.plan(schedule, shape), shape=shape, place=place)


def prefill_work(place: Place, shape: DecoderShape, schedule: Schedule, layout: Layout) -> Work:
    """A prefill through all blocks, into a cache, with the logits of the last row."""
    return _routed("prefill", place, shape, schedule, layout, prefill_parts, {})


def decode_work(place: Place, shape: DecoderShape, schedule: Schedule, layout: Layout, tokens: int) -> Work:
    """The decoding of ``tokens`` tokens of every request, one after another."""
    fed = torch.arange(tokens, device=place.device).expand(layout.batch, -1)

    def parts(plan: Plan, shape: DecoderShape, element_bytes: int, batch: int) -> list[Part]:
        return decode_parts(plan, shape, element_bytes, batch, tokens)

    return _routed("decode", place, shape, schedule, layout, parts, {"tokens": fed})


def reorder_work(place: Place, shape: DecoderShape, schedule: Schedule, layout: Layout) -> Work:
    """The reversal of the order of a cache's requests, which a search over beams moves in such a way."""
    order = torch.arange(layout.batch - 1, -1, -1, device=place.device)
    return _routed("reorder", place, shape, schedule, layout, reorder_parts, {"order": order})


def _routed(
    kind: str,
    place: Place,
    shape: DecoderShape,
    schedule: Schedule,
    layout: Layout,
    parts: Callable[[Plan, DecoderShape, int, int], list[Part]],
    more: Mapping[str, Any],
) -> Work:
    routed, dense = layout.plan(schedule, shape), layout.plan(UNROUTED_SCHEDULE, shape)
    return Work(
        kind,
        {"inputs": _inputs(shape, place, layout), "schedule": schedule, **more},
        parts(routed, shape, place.element_bytes, layout.batch),
        parts(dense, shape, place.element_bytes, layout.batch),
        routed,
        shape,
        place,
    )


def _inputs(shape: DecoderShape, place: Place, layout: Layout) -> dict[str, Any]:
    return rows(shape, place, layout.visual, layout.text, layout.before, layout.batch)
