"""Cases of requests that begin alike, and of heads that are sharded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hypothesis import strategies as st

from . import strategies
from .case import KINDS, DecoderCase, Row, decoder_config


@dataclass(frozen=True)
class PrefixCase(DecoderCase):
    """Requests whose first ``shared`` rows are those of the first one; the last one's differ where ``stranger`` says."""

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


@dataclass(frozen=True)
class ShardsCase(DecoderCase):
    """A batch whose heads are sharded."""

    kind: ClassVar[str] = "shards"
    shards: int = 2


KINDS |= {PrefixCase.kind: PrefixCase, ShardsCase.kind: ShardsCase}


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


@st.composite
def shards_cases(draw: st.DrawFn) -> ShardsCase:
    """Batches through decoders whose key heads can be divided."""
    layers, kv_heads = draw(st.integers(1, 3)), draw(st.sampled_from([2, 4]))
    config = decoder_config(layers, heads=kv_heads * draw(st.sampled_from([1, 2])), kv_heads=kv_heads)
    return ShardsCase(
        draw(strategies.schedules(layers)),
        draw(strategies.batch_rows(strategies.layouts(), batch=True)),
        config=config,
        seed=draw(st.integers(0, 7)),
        shards=draw(st.sampled_from([n for n in (2, 4) if kv_heads % n == 0])),
    )
