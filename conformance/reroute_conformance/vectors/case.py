"""Turns a vector into a case of the suite, with the batch that it gives to a target and the values that it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from reroute_reference import CanonicalDecoder
from reroute_spec import DecisionRecord, Plan, RerouteError, plan
from reroute_spec.canonical import CanonicalConfig
from reroute_spec.trace import record as make_record
from torch import Tensor

from ..cases.case import KINDS, RoutedCase, Row
from ..cases.decoder import DecoderCase
from ..cases.mrope import MropeCase
from ..protocol import Model
from .files import V1, Vector, read_vector


@dataclass(frozen=True)
class VectorCase(RoutedCase):
    """A vector as a case, named by its path in ``v1`` or by any other path.

    The numbers stand in the files of the vector, so the saved form of the case is only its path.

    Attributes:
        where: the path.
        chosen: which requests of the vector make up the batch; None for all of them.
        padded: whether the requests have the padding that the vector gives them.
    """

    kind: ClassVar[str] = "vector"
    network_rules: ClassVar[tuple[str, ...]] = DecoderCase.network_rules
    rotary_rule: ClassVar[str] = DecoderCase.rotary_rule
    where: str = ""
    chosen: tuple[int, ...] | None = None  # some of its requests alone
    padded: bool = True

    @classmethod
    def of(cls, where: str, chosen: tuple[int, ...] | None = None, *, padded: bool = True) -> VectorCase:
        """The case of a vector, or of some of its requests, padded as they are or not at all.

        Raises:
            RerouteError: no vector, a damaged one, or one of a kind that is not run.
        """
        vector = _vector(where)
        if vector.data["kind"] == "session" or "expected" not in vector.data:
            raise RerouteError("CASE", f"{where} holds no expected values", "give a vector")
        requests = _requests(vector, chosen)
        mrope = vector.data["inputs"].get("decoder", {}).get("config", {}).get("mrope_section") is not None
        kind = MropeVectorCase if mrope else VectorCase
        rows = [
            Row(
                "".join("v" if flag else "t" for flag in r["visual"]), 0, *(_padding(r) if padded else (0, 0))
            )
            for r in requests
        ]
        given = [r["decisions"] for r in requests] if requests and "decisions" in requests[0] else None
        tokens = len(requests[0].get("continuation", [])) if requests else 0
        inputs = vector.data["inputs"]
        return kind(inputs.get("schedule", {}), rows, tokens, given, None, where, chosen, padded)

    @property
    def vector(self) -> Vector:
        """The vector that the case stands for."""
        return _vector(self.where)

    def to_dict(self) -> dict[str, Any]:
        """The kind of the case and its path."""
        return {"kind": self.kind, "where": self.where}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        """Reads what ``to_dict`` wrote."""
        return cls.of(data["where"])

    def only(self, request: int, *, padded: bool) -> Any:
        """One request alone: what the vector holds of it is held of it alone (RR-EQV-004)."""
        return self.of(self.where, (self.held_at(request),), padded=padded)

    def held_at(self, request: int) -> int:
        """Which request of the vector stands at a place of the batch."""
        return request if self.chosen is None else self.chosen[request]

    def model(self) -> Model:
        """Configuration and weights, fresh tensors every time."""
        return self._config(), {name: weight.clone() for name, weight in self.vector.weights().items()}

    def reference_model(self, dtype: torch.dtype) -> CanonicalDecoder:
        """The canonical decoder in ``dtype``."""
        return CanonicalDecoder(self._config(), self.vector.weights(), dtype)

    def inputs(self) -> dict[str, Any]:
        """The batch."""
        return batch_of(self.vector, self.chosen, padded=self.padded)

    def continuation(self) -> Tensor | None:
        """Tokens to feed after the prefill, [B, T]."""
        return continuation_of(self.vector, self.chosen)

    def _config(self) -> CanonicalConfig:
        return CanonicalConfig.from_dict(self.vector.data["inputs"]["decoder"]["config"])


@dataclass(frozen=True)
class MropeVectorCase(VectorCase):
    """A vector as a case where positions have three coordinates (M-RoPE)."""

    network_rules: ClassVar[tuple[str, ...]] = MropeCase.network_rules
    rotary_rule: ClassVar[str] = MropeCase.rotary_rule


KINDS[VectorCase.kind] = VectorCase


@dataclass(frozen=True)
class Held:
    """The values that a vector holds of one of its requests.

    Attributes:
        vector: the vector.
        request: the number of the request in it.
    """

    vector: Vector
    request: int

    def exact(self, name: str) -> Any:
        """The request's part of ``expected.exact``, or None."""
        parts = self.vector.data["expected"].get("exact", {}).get(name)
        return None if parts is None else parts[self.request]

    def close(self, quantity: str) -> list[Tensor] | None:
        """A quantity, such as ``logits`` or ``keys.0``: the plain run's tensor and the oracle's, or None."""
        names = self.vector.data["expected"].get("close", {}).get(f"requests.{self.request}.{quantity}")
        return (
            None
            if names is None
            else [self.vector.tensor(names[run]["tensor"]) for run in ("plain", "oracle")]
        )

    def records(self, request: Plan) -> list[list[DecisionRecord]]:
        """The decisions, with the plain run's scores and with the oracle's; ``would_select`` is what is expected."""
        made: list[list[DecisionRecord]] = [[], []]
        before: Sequence[int] = range(request.num_visual)
        for decision in self.exact("traces")["decisions"]:
            scores = self.close(f"scores.{decision['layer']}")
            if scores is None:
                raise RerouteError(self.vector.place, "holds no scores of a decision", "add them to `close`")
            selected = decision["selected"]
            for records, values in zip(made, scores, strict=True):
                records.append(
                    make_record(
                        request,
                        decision["stage"],
                        decision["pool"],
                        values.tolist(),
                        selected,
                        before,
                        selected,
                    )
                )
            before = selected
        return made


def plans_of(case: VectorCase) -> list[Plan]:
    """Every request's plan, from the flags and counts that the vector gives."""
    layers = case.vector.data["inputs"]["decoder"]["config"]["shape"]["num_layers"]
    requests = _requests(case.vector, case.chosen)
    return [plan(case.routing(), layers, r["visual"], r.get("images")) for r in requests]


def batch_of(vector: Vector, chosen: Sequence[int] | None = None, *, padded: bool = True) -> dict[str, Any]:
    """A vector's requests, or some of them, as a batch that a target is given; without padding only one of them."""
    requests = _requests(vector, chosen)
    given_rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for request in requests:
        (left, right), rows = _padding(request), len(request["visual"])
        given = vector.tensor(request["embeddings"]["tensor"])
        if len(given) != left + rows + right:
            raise RerouteError(vector.place, f"has {len(given)} rows of embeddings", f"it flags {rows}")
        place = torch.arange(left, left + rows)
        mask = torch.zeros(len(given), dtype=torch.int64).index_fill_(0, place, 1)
        visual = torch.zeros(len(given), dtype=torch.bool)
        visual[place] = torch.tensor(request["visual"])
        counted = torch.arange(rows)
        if "positions" in request:
            counted = vector.tensor(request["positions"]["tensor"])
        spread = torch.zeros(*counted.shape[:-1], len(given), dtype=torch.int64)
        spread[..., place] = counted
        keep = slice(None) if padded else place
        given_rows.append((given[keep], visual[keep], mask[keep], spread[..., keep]))
    embeddings, flags, masks, positions = zip(*given_rows, strict=True)
    batch: dict[str, Any] = {
        "inputs_embeds": torch.stack(embeddings),
        "visual_mask": torch.stack(flags),
        "attention_mask": torch.stack(masks),
    }
    if any("positions" in request for request in requests):
        batch["position_ids"] = torch.stack(positions, dim=-2)
    if any("images" in request for request in requests):
        batch["images"] = [list(request["images"]) for request in requests]
    return batch


def continuation_of(vector: Vector, chosen: Sequence[int] | None = None) -> Tensor | None:
    """Tokens to feed after the prefill, [B, T]."""
    requests = _requests(vector, chosen)
    if not any("continuation" in request for request in requests):
        return None
    return torch.tensor([request["continuation"] for request in requests])


def _requests(vector: Vector, chosen: Sequence[int] | None) -> list[dict[str, Any]]:
    requests: list[dict[str, Any]] = vector.data["inputs"].get("requests", [])
    return requests if chosen is None else [requests[request] for request in chosen]


def _padding(request: Mapping[str, Any]) -> tuple[int, int]:
    return request.get("pad_left", 0), request.get("pad_right", 0)


@lru_cache(maxsize=16)
def _vector(where: str) -> Vector:
    return read_vector(V1 / where)  # an absolute path stays itself


def forget_vectors() -> None:
    """Read the next vector anew: its files may have changed."""
    _vector.cache_clear()
