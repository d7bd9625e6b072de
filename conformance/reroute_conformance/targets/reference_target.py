"""Puts the reference behind the target protocol, so that the suite can be run on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reroute_reference import CanonicalDecoder, forced_logits, generate, prefix_of, run
from reroute_reference.nuwa import first_stage
from reroute_spec import RerouteError, Schedule, plan, select
from reroute_spec.presets import preset
from torch import Tensor, nn

from ..protocol import FAMILIES, PROFILES, Answer, Decisions, Inputs, Model, Target
from .reference_session import ReferenceSession, loaded, observe
from .reference_work import prepared


class ReferenceTarget:
    """The reference as a target. Mutants are small overrides of this class."""

    name = "reference"
    profiles = frozenset(PROFILES)
    families = frozenset(FAMILIES)
    device = "cpu"

    def select(self, scores: Tensor, k: int) -> Sequence[int]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        return select(scores.tolist(), k)

    def plan(
        self, schedule: Mapping[str, Any], num_layers: int, visual: Sequence[bool], images: Sequence[int]
    ) -> Sequence[int]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        return plan(Schedule.from_dict(schedule), num_layers, visual, images).kv_rows

    def run(
        self,
        model: Model,
        inputs: Inputs,
        schedule: Schedule,
        *,
        decisions: Decisions = None,
        continuation: Tensor | None = None,
    ) -> list[Answer]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        network = loaded(model)
        output = run(network, inputs, schedule, decisions=decisions)
        return [
            {**observed, "decode_logits": forced_logits(network, output.cache[b], continuation[b])}
            if continuation is not None
            else observed
            for b, observed in enumerate(observe(output))
        ]

    def generate(self, model: nn.Module, inputs: Inputs, schedule: Schedule, max_new_tokens: int) -> Tensor:
        """See :class:`~reroute_conformance.protocol.Target`."""
        return generate(model, inputs, schedule, max_new_tokens)

    def session(
        self, model: Model, schedule: Schedule, operations: Sequence[Mapping[str, Any]]
    ) -> list[list[Answer] | Exception]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        session, done = self.opened(model, schedule), list[list[Answer] | Exception]()
        for operation in operations:
            try:
                done.append(session.step(operation))
            except RerouteError as refusal:
                done.append(refusal)
        return done

    def opened(self, model: Model, schedule: Schedule) -> ReferenceSession:
        """A session in which nothing has been done yet."""
        return ReferenceSession(loaded(model), schedule)

    def schedule(
        self, given: str | Mapping[str, Any], num_layers: int, attention_blocks: Sequence[int] | None = None
    ) -> Mapping[str, Any]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        if not isinstance(given, str):
            return Schedule.from_dict(given).validate(num_layers, attention_blocks).to_dict()
        return preset(given, num_layers, attention_blocks).to_dict()

    def first_stage(self, model: nn.Module, inputs: Inputs, tier: str) -> Mapping[str, Any]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        return first_stage(model, inputs, tier)

    def run_prefix(
        self, model: Model, inputs: Sequence[Inputs], schedule: Schedule, rows: int
    ) -> list[list[Answer]]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        network = loaded(model)
        prefix = prefix_of(network, inputs[0], schedule, rows)
        return [observe(run(network, batch, schedule, prefix=prefix)) for batch in inputs]

    def run_shards(self, model: Model, inputs: Inputs, schedule: Schedule, shards: int) -> list[list[Answer]]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        if not isinstance(model, tuple):
            raise RerouteError("model", "is a module", "the reference shards canonical decoders only")
        output = run(CanonicalDecoder(*model, shards=shards), inputs, schedule)
        return [observe(output) for _ in range(shards)]

    def prepare(self, work: str, given: Mapping[str, Any]) -> Callable[[], object] | None:
        """See :class:`~reroute_conformance.protocol.Timed`."""
        return prepared(work, given)


def reference() -> Target:
    """The reference as a target."""
    return ReferenceTarget()
