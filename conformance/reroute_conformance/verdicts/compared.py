"""Puts a target's answer to one request beside the reference's runs of that request, and its runs under known misreadings."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reroute_reference import forced_logits, run
from reroute_reference.check_request import Decoder
from reroute_reference.inputs import read_prompts
from reroute_reference.model import RoutedOutput, as_decoder
from reroute_spec import DecisionRecord, Plan, RerouteError
from torch import Tensor

from ..cases.case import RoutedCase
from ..targets.answers import Answer
from .misreadings import Misreading, misreadings_of, with_features


@dataclass(frozen=True)
class Compared:
    """One request of a run beside the reference's runs of it, which replay the target's own decisions.

    Attributes:
        b: the request's row in the batch.
        case: the case that was run.
        answer: the target's answer, whose form has been checked.
        request: the plan of the request.
        models, outputs: the reference's model and output, first in the same dtype and then in float64, with the
            decisions replayed. Comparisons take the values from :meth:`computed`.
        earlier: how many rows every block held before this turn; empty before a prefill.
    """

    b: int
    case: RoutedCase
    answer: Answer
    request: Plan
    models: tuple[Any, Any]
    outputs: Sequence[RoutedOutput]
    earlier: tuple[int, ...]

    @property
    def visual(self) -> list[bool]:
        """A flag per row: routable rows, and the last row, whose flag no comparison reads."""
        return [row in set(self.request.visual_rows) for row in range(self.request.num_rows)]

    @property
    def deleting(self) -> bool:
        """Whether rows that are not selected are gone."""
        return self.case.routing().action == "delete"

    @property
    def renumbering(self) -> bool:
        """Whether active rows are counted anew."""
        return self.case.routing().positions == "renumber"

    @cached_property
    def decoder(self) -> Decoder:
        """The model as the reference sees it."""
        return as_decoder(self.models[0], None)

    @cached_property
    def features(self) -> list[tuple[Tensor, ...]]:
        """What the reference, in the same dtype and in float64, adds to the rows at every block boundary."""
        if not with_features(self.decoder) or not self.request.num_visual:
            return [(), ()]
        decoders = [as_decoder(model, None) for model in self.models]
        return [read_prompts(decoder, self.case.inputs())[self.b].deepstack for decoder in decoders]

    @cached_property
    def misread(self) -> list[tuple[Misreading, RoutedOutput]]:
        """The oracle's runs under every misreading that this model allows; none of a later turn."""
        model, runs = self.models[1], []
        replay = [[record.selected for record in trace.decisions] for trace in self.outputs[1].traces]
        for reading in [] if any(self.earlier) else misreadings_of(as_decoder(model, None)):
            with ExitStack() as stack, suppress(RerouteError):  # of values that are no numbers any more
                reading.put(stack)
                output = run(model, self.case.inputs(), self.case.routing(), decisions=replay)
                runs.append((reading, output))
        return runs

    def records(self) -> Sequence[Sequence[DecisionRecord]]:
        """The decisions of the run in the same dtype and of the oracle's."""
        return [output.traces[self.b].decisions for output in self.outputs]

    def computed(self, quantity: str, layer: int = 0) -> Sequence[Tensor] | None:
        """A quantity in the same dtype and in float64; None where nothing is known of it.

        Args:
            quantity: ``residuals``, ``keys``, ``values``, ``logits`` or ``decode_logits``.
            layer: of the first three.
        """
        if quantity == "residuals":
            return [output.residuals[self.b][layer] for output in self.outputs]
        if quantity == "logits":
            rows = [output.logits[self.b] for output in self.outputs]
            return [x[~x.isnan().all(-1)] for x in rows]
        if quantity == "decode_logits":
            tokens = self.case.continuation()
            assert tokens is not None
            return [
                forced_logits(model, output.cache[self.b], tokens[self.b])
                for model, output in zip(self.models, self.outputs, strict=True)
            ]
        cached = [output.cache[self.b].keys_values(layer) for output in self.outputs]
        return [entry[quantity == "values"] for entry in cached]
