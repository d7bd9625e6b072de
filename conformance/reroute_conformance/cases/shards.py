"""Draws cases of profile ``shards``: batches through decoders whose heads are divided among processes (RR-EQV-008)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hypothesis import strategies as st

from . import strategies
from .case import KINDS
from .decoder import DecoderCase, decoder_config


@dataclass(frozen=True)
class ShardsCase(DecoderCase):
    """A batch through a decoder whose heads are divided among processes.

    Attributes:
        shards: the number of processes.
    """

    kind: ClassVar[str] = "shards"
    shards: int = 2


KINDS[ShardsCase.kind] = ShardsCase


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
