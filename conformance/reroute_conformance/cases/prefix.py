"""Draws cases of profile ``prefix``: requests that begin with the same rows, which a target computes once (RR-EQV-009)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hypothesis import strategies as st

from . import strategies
from .case import KINDS, Row
from .decoder import DecoderCase, decoder_config


@dataclass(frozen=True)
class PrefixCase(DecoderCase):
    """Requests whose first ``shared`` rows are those of the first request.

    Attributes:
        shared: how many rows the requests share.
        stranger: one of the shared rows that differs in the last request, which then must not be served from the
            prefix; None where every request begins alike.
    """

    kind: ClassVar[str] = "prefix"
    shared: int = 1
    stranger: int | None = None  # row of the last request that is another one's

    def batches(self) -> list[dict[str, Any]]:
        """A batch of one for every request."""
        alone = [replace(self, rows=[row]).inputs() for row in self.rows]
        for index, inputs in enumerate(alone):
            own = inputs["inputs_embeds"][:, : self.shared].clone()
            inputs["inputs_embeds"][:, : self.shared] = alone[0]["inputs_embeds"][:, : self.shared]
            if self.stranger is not None and index == len(alone) - 1:
                inputs["inputs_embeds"][:, self.stranger] = own[:, self.stranger]
        return alone


KINDS[PrefixCase.kind] = PrefixCase


@st.composite
def prefix_cases(draw: st.DrawFn) -> PrefixCase:
    """Two or three requests that share text and images, and ask on with text, or images of their own."""
    layers = draw(st.integers(1, 4))
    shared = draw(strategies.layouts(max_size=8))
    asked = draw(st.lists(strategies.layouts(max_size=5), min_size=2, max_size=3))
    rows = [Row(shared + own, 10 * draw(st.integers(0, 99)) + i) for i, own in enumerate(asked)]
    config = decoder_config(layers, heads=2, kv_heads=2)
    stranger = draw(st.none() | st.integers(0, len(shared) - 1))
    if stranger is not None and rows[-1].seed == rows[0].seed:
        stranger = None
    return PrefixCase(
        draw(strategies.schedules(layers)),
        rows,
        config=config,
        seed=draw(st.integers(0, 7)),
        shared=len(shared),
        stranger=stranger,
    )
