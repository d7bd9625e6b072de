"""Prepares the works of the reference that ``vlm-reroute bench`` times, and does beforehand what is not timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from reroute_reference import forced_logits, run
from reroute_reference.inputs import read_prompts
from reroute_reference.model import as_decoder
from reroute_reference.routing import score
from reroute_spec import plan, select

from .reference_session import loaded


def prepared(work: str, given: Mapping[str, Any]) -> Callable[[], object] | None:
    """See :meth:`~reroute_conformance.protocol.Timed.prepare`."""
    maker = _MAKERS.get(work)
    with torch.no_grad():
        return None if maker is None else maker(given)


def _select(given: Mapping[str, Any]) -> Callable[[], object]:
    values, kept = given["scores"].tolist(), given["k"]
    return lambda: select(values, kept)


def _score(given: Mapping[str, Any]) -> Callable[[], object]:
    decoder, schedule = as_decoder(loaded(given["model"]), None), given["schedule"]
    (prompt,) = read_prompts(decoder, given["inputs"])
    request = plan(schedule, decoder.num_layers, prompt.visual)
    cos, sin = decoder.rotary(prompt.positions)
    alive, pool = list(range(request.num_rows)), range(request.num_visual)
    layer = schedule.decisions[0].layer
    return lambda: score(decoder, request, schedule, layer, prompt.embeddings, cos, sin, alive, pool)


def _prefill(given: Mapping[str, Any]) -> Callable[[], object]:
    model = loaded(given["model"])
    return lambda: run(model, given["inputs"], given["schedule"])


def _decode(given: Mapping[str, Any]) -> Callable[[], object]:
    model, tokens = loaded(given["model"]), given["tokens"]
    caches = run(model, given["inputs"], given["schedule"]).cache

    def decode() -> None:
        for cache, fed in zip(caches, tokens, strict=True):
            forced_logits(model, cache, fed)
            cache.crop(-len(fed))

    return decode


def _reorder(given: Mapping[str, Any]) -> Callable[[], object]:
    caches = run(loaded(given["model"]), given["inputs"], given["schedule"]).cache
    order = given["order"].tolist()
    return lambda: [caches[place].copy() for place in order]


_MAKERS = {"select": _select, "score": _score, "prefill": _prefill, "decode": _decode, "reorder": _reorder}
