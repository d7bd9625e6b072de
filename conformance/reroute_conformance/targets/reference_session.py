"""Runs the reference one operation after another on one model and one cache: prefill, later turn, decode, crop and moves.

The reference as a target answers sessions by it, and the sessions of every target are judged by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reroute_reference import CanonicalDecoder, RoutedOutput, RowCache, forced_logits, run
from reroute_reference.routing import Replay
from reroute_spec import RerouteError, Schedule
from torch import Tensor, nn

from ..protocol import Model


def loaded(model: Model) -> nn.Module | CanonicalDecoder:
    """What the reference runs of what a target is given."""
    return CanonicalDecoder(*model) if isinstance(model, tuple) else model


def observe(output: RoutedOutput) -> list[dict[str, Any]]:
    """A run of the reference in the form that ``Target.run`` returns, copied: the cache may go on."""
    return [
        {
            "trace": trace,
            "residuals": output.residuals[row],
            "logits": output.logits[row][~output.logits[row].isnan().all(-1)],
            **_cached(output.cache[row]),
        }
        for row, trace in enumerate(output.traces)
    ]


def _cached(cache: RowCache) -> dict[str, list[Tensor]]:
    held = [cache.keys_values(layer) for layer in range(len(cache.storage.layers))]
    return {"keys": [keys.clone() for keys, _ in held], "values": [values.clone() for _, values in held]}


class ReferenceSession:
    """One model and the caches of a batch, which operations move on (see ``Target.session``).

    Attributes:
        model: the model that runs.
        schedule: the schedule of every prefill and of every later turn with visual rows.
        caches: one cache for each request.
        output: the output of the last prefill or turn; None before the first.
    """

    def __init__(self, model: nn.Module | CanonicalDecoder, schedule: Schedule) -> None:
        self.model, self.schedule = model, schedule
        self.caches: list[RowCache] = []
        self.output: RoutedOutput | None = None

    def step(
        self, operation: Mapping[str, Any], decisions: Sequence[Replay] | None = None
    ) -> list[dict[str, Any]]:
        """Do one operation; a refused one changes nothing.

        Args:
            operation: see ``Target.session``.
            decisions: selections of a prefill or turn to replay.

        Raises:
            RerouteError: it is refused.
        """
        kind, observed = operation["op"], list[dict[str, Any]]()
        if kind in ("prefill", "turn"):
            cache = None if kind == "prefill" else self.caches
            output = run(self.model, operation["inputs"], self.schedule, decisions=decisions, cache=cache)
            self.caches, observed, self.output = list(output.cache), observe(output), output
        else:
            moved = self._moved(kind, operation)
            if kind == "decode":
                tokens: Tensor = operation["tokens"]
                observed = [
                    {"logits": forced_logits(self.model, cache, tokens[b : b + 1])}
                    for b, cache in enumerate(moved)
                ]
            self.caches = moved
        observed = observed or [{} for _ in self.caches]
        return [
            {**entry, **_cached(cache), "length": cache.length}
            for entry, cache in zip(observed, self.caches, strict=True)
        ]

    def _moved(self, kind: str, operation: Mapping[str, Any]) -> list[RowCache]:
        """The caches after an operation that only moves or cuts them, copies all."""
        if kind in ("reorder", "select"):
            return [self.caches[place].copy() for place in operation["order"]]  # RR-KV-010
        if kind == "repeat":
            return [cache.copy() for cache in self.caches for _ in range(operation["times"])]
        moved = [cache.copy() for cache in self.caches]
        if kind == "crop":
            if operation["rows"] < 0:  # RR-KV-009
                raise RerouteError(
                    "rows", f"{operation['rows']} rows", "give how many rows to drop, 0 or more"
                )
            for cache in moved:
                cache.crop(-operation["rows"])
        elif kind != "decode":
            raise RerouteError("op", f"{kind!r} is not known", "see Target.session")
        return moved
