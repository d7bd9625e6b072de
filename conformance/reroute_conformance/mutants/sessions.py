"""Lists the mutants of later turns, crop, moved requests, shared prefixes and sharded heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from reroute_reference import RowCache, routing
from reroute_reference.score import reduced_heads
from reroute_spec import Schedule
from torch import Tensor

from ..protocol import Model
from ..targets.reference_session import ReferenceSession, loaded
from ..targets.reference_target import ReferenceTarget
from .faulty_functions import routed_in_a_fresh_cache
from .mutant import Mutant, answering

_route, _score, _crop = routing.route, routing.score, RowCache.crop
_shared_prefix = routing.shared_prefix
_Step = list[dict[str, Any]]


def _stepping(change: Any) -> type[ReferenceTarget]:
    """A target whose sessions show something else after a step: ``change(operation, step)``."""

    class Session(ReferenceSession):
        def step(self, operation: Mapping[str, Any], decisions: Any = None) -> _Step:
            shown = super().step(operation, decisions)
            change(operation, shown)
            return shown

    return _of(Session)


def _of(session: type[ReferenceSession]) -> type[ReferenceTarget]:
    """A target of another kind of session."""

    class Changed(ReferenceTarget):
        def opened(self, model: Model, schedule: Schedule) -> ReferenceSession:
            return session(loaded(model), schedule)

    return Changed


def _length_of_the_last_block(operation: Mapping[str, Any], shown: _Step) -> None:
    for row in shown:
        row["length"] = row["keys"][-1].shape[1]


def _one_row_comes_back(operation: Mapping[str, Any], shown: _Step) -> None:
    """A row that an earlier turn deferred runs the last block in the next turn of text."""
    for row in shown if operation["op"] == "turn" else ():
        if not row["trace"].visual_rows:
            for name in ("keys", "values"):
                row[name][-1] = torch.cat([row[name][-1][:, :1], row[name][-1]], dim=1)


class _KeepsTheCache(ReferenceSession):
    """A session that lets a new request go on over the last one's cache, where there are as many requests as before."""

    def step(self, operation: Mapping[str, Any], decisions: Any = None) -> _Step:
        goes_on = operation["op"] == "prefill" and len(self.caches) == len(
            operation["inputs"]["inputs_embeds"]
        )
        return super().step({**operation, "op": "turn"} if goes_on else operation, decisions)


class _LengthsStay(ReferenceSession):
    """A session in which keys and values move with a request, but its counters do not."""

    def _moved(self, kind: str, operation: Mapping[str, Any]) -> list[RowCache]:
        moved = super()._moved(kind, operation)
        if kind in ("reorder", "select"):
            for cache, stayed in zip(moved, self.caches, strict=False):
                cache.length, cache.next_position = stayed.length, stayed.next_position
        return moved


class _DecidesInDecode(ReferenceSession):
    """A session that drops every decoded token from the last block, as if it were a visual row that was not selected."""

    def step(self, operation: Mapping[str, Any], decisions: Any = None) -> _Step:
        shown = super().step(operation, decisions)
        if operation["op"] == "decode" and self.schedule.decisions:
            for row in shown:
                row["keys"][-1], row["values"][-1] = row["keys"][-1][:, :-1], row["values"][-1][:, :-1]
        return shown


def _text_alone(*args: Any, **kwargs: Any) -> Any:
    """A turn of text that does not see what its blocks cached."""
    cache = kwargs.get("cache", args[4] if len(args) > 4 else None)
    if cache is None or any(args[1].visual[:-1]) or len(args[1].visual) < 2:
        return _route(*args, **kwargs)
    with mock.patch("reroute_reference.routing.routed_block", routed_in_a_fresh_cache):
        return _route(*args, **kwargs)


def _without_earlier(*args: Any, earlier: Tensor | None = None) -> list[float]:
    """Scores over the rows of this turn alone."""
    return _score(*args)


def _crop_further(cache: RowCache, rows: int) -> None:
    """As far back as is asked for, whatever was routed."""
    dropped = min(-rows, cache.length - 1)
    cache.reach = [*[0] * (dropped + 1 - len(cache.reach)), *cache.reach]
    _crop(cache, -dropped)


def _crop_keeps_positions(cache: RowCache, rows: int) -> None:
    """The next position stays where it was."""
    position = cache.next_position
    _crop(cache, rows)
    cache.next_position = position


def _served_from_the_embeddings(*args: Any) -> Any:
    """A prefix whose rows are given to the first decision as they entered the decoder."""
    made = _shared_prefix(*args)
    return replace(made, hidden=made.embeddings)


def _trusted(decoder: Any, prompt: Any, schedule: Schedule, given: Any) -> int:
    """Whoever gives a prefix is believed."""
    return len(given.embeddings)


class OwnHeads(ReferenceTarget):
    """A target whose processes each average only their own heads."""

    def run_shards(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, shards: int) -> Any:
        """Answer with the fault of this class."""

        def own(rank: int) -> Any:
            def reduced(shares: Any, rule: Any) -> Tensor:
                return reduced_heads([shares[rank]], rule)

            with mock.patch("reroute_reference.score.reduced_heads", reduced):
                return super(OwnHeads, self).run_shards(model, inputs, schedule, shards)[rank]

        return [own(rank) for rank in range(shards)]


def _session(name: str, rule: str, patches: dict[str, Any]) -> Mutant:
    return Mutant(name, rule, "session", {f"reroute_reference.{at}": put for at, put in patches.items()})


SESSION_MUTANTS = (
    answering(
        "length-of-the-last-blocks-cache", "RR-KV-003", "session", _stepping(_length_of_the_last_block)
    ),
    _session("later-chunk-without-the-cache", "RR-KV-005", {"model.route": _text_alone}),
    answering("new-request-over-the-old-cache", "RR-KV-006", "session", _of(_KeepsTheCache)),
    _session("new-images-scored-by-themselves", "RR-KV-007", {"routing.score": _without_earlier}),
    answering("deferred-row-back-in-a-later-turn", "RR-KV-008", "session", _stepping(_one_row_comes_back)),
    answering("decision-in-decode", "RR-KV-008", "session", _of(_DecidesInDecode)),
    _session("crop-past-the-routed-turn", "RR-KV-009", {"cache.RowCache.crop": _crop_further}),
    _session("crop-keeps-the-position", "RR-KV-004", {"cache.RowCache.crop": _crop_keeps_positions}),
    answering("counters-stay-when-requests-move", "RR-KV-010", "session", _of(_LengthsStay)),
    Mutant(
        "prefix-served-from-embeddings",
        "RR-EQV-009",
        "prefix",
        {"reroute_reference.model.shared_prefix": _served_from_the_embeddings},
    ),
    Mutant(
        "prefix-not-compared", "RR-EQV-009", "prefix", {"reroute_reference.routing.check_prefix": _trusted}
    ),
    answering("mean-of-own-heads", "RR-EQV-008", "shards", OwnHeads),
)
