"""Draws cases of profile ``low-precision``, whose weights and embeddings are rounded to float16 or bfloat16.

The float64 oracle computes with the same rounded numbers. The module also draws selections by close scores, and lists
cases that only a computation in a wide dtype gets right.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from hypothesis import strategies as st
from reroute_spec import DecoderShape
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor

from .case import KINDS, Case, Row, SelectCase
from .decoder import DecoderCase, GivenCase, decoder_config
from .fixed import filled
from .strategies import decoder_cases


class _Low(DecoderCase):
    """The base of cases whose weights and embeddings are rounded to ``dtype``, in which they are computed."""

    dtype: str

    @property
    def precision(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def inputs(self) -> dict[str, Any]:
        inputs = super().inputs()
        return {**inputs, "inputs_embeds": inputs["inputs_embeds"].to(self.precision)}

    def _weights(self) -> dict[str, Tensor]:
        return {name: weight.to(self.precision) for name, weight in super()._weights().items()}


@dataclass(frozen=True)
class LowCase(_Low):
    """A batch through a canonical decoder with seeded weights, computed in low precision.

    Attributes:
        dtype: ``float16`` or ``bfloat16``.
        scale: factor on the embeddings, which are scaled before they are rounded.
    """

    kind = "low"
    dtype: str = "bfloat16"
    scale: float = 1.0

    def inputs(self) -> dict[str, Any]:
        """Scaled before they are rounded."""
        inputs = DecoderCase.inputs(self)
        return {**inputs, "inputs_embeds": (inputs["inputs_embeds"] * self.scale).to(self.precision)}


@dataclass(frozen=True)
class LowGivenCase(_Low, GivenCase):
    """One request whose numbers are all given. Each of them is a number of the dtype, so that rounding changes none.

    Attributes:
        dtype: ``float16`` or ``bfloat16``.
    """

    kind = "low-given"
    dtype: str = "bfloat16"


KINDS.update({case.kind: case for case in (LowCase, LowGivenCase)})


@st.composite
def low_cases(draw: st.DrawFn, dtype: str, *, replay: bool = False) -> LowCase:
    """Batches as in float32, through grouped heads, biases, query and key norms."""
    case = draw(decoder_cases(gqa=True, batch=True, cache=True, replay=replay))
    values = {f.name: getattr(case, f.name) for f in fields(DecoderCase)}
    return LowCase(**values, dtype=dtype)


@st.composite
def low_select_cases(draw: st.DrawFn, dtype: str) -> SelectCase:
    """Scores that are float32 as ever: a few ulps apart, so that they are equal once they are narrowed to ``dtype``."""
    base = torch.tensor(draw(st.sampled_from((0.5, 0.0625, 1e-3)))).to(getattr(torch, dtype)).float()
    start = int(base.view(torch.int32))
    ulps = draw(st.lists(st.integers(0, 40), min_size=2, max_size=24))
    return SelectCase(bits=[start + i for i in ulps], k=draw(st.integers(1, len(ulps) - 1)))


def exact_cases(dtype: str) -> tuple[Case, ...]:
    """Cases that only a computation in a wide dtype gets right: a narrow one is off by more than its tolerance."""
    return (_far_logits(dtype), _many_rows(dtype), _large_states(dtype))


def _far_logits(dtype: str) -> LowGivenCase:
    """Logits of 8192 and a little, which is lost where they are narrowed; queries and keys are numbers of both dtypes.

    Row u is the token 2·e_u, of mean square 1. Channels 1 and 3 of a head turn by position · 10^-15. The query is
    (0, 128, 0, 1), the key of row u (0, 128, 0, x_u), the scale 1/2.
    """
    rows, little = 4, (0.0, 0.0, 7.5, -16.0)
    config = CanonicalConfig(
        DecoderShape(2, rows, 1, 1, 1, 4), vocab_size=2, rms_norm_eps=0.0, rope_theta=1e30
    )
    none = [0.0] * rows
    query, key = (
        [none, [64.0] * rows, none, [0.5] * rows],
        [none, [64.0] * rows, none, [x / 2 for x in little]],
    )
    given: dict[str, Any] = {}
    for layer in range(2):
        given[f"layers.{layer}.self_attn.q_proj.weight"] = query
        given[f"layers.{layer}.self_attn.k_proj.weight"] = key
    return LowGivenCase(
        schedule={"action": "reroute", "decisions": [{"layer": 0, "keep": 1}]},
        rows=[Row("vvvt")],
        config=config.to_dict(),
        embeddings=[[2.0 * (u == row) for u in range(rows)] for row in range(rows)],
        weights=filled(config, given),
        dtype=dtype,
    )


def _many_rows(dtype: str) -> LowCase:
    """Positions up to 800: neighbours are one number in bfloat16 from 256 on."""
    schedule = {"action": "reroute", "decisions": [{"layer": 1, "keep": "1/10"}]}
    config = decoder_config(2, heads=2, kv_heads=2)
    return LowCase(schedule, [Row("ttt" + "v" * 790 + "ttt")], 0, None, None, config, 1, dtype=dtype)


def _large_states(dtype: str) -> LowCase:
    """States of some hundreds, whose squares are infinite in float16."""
    case = _many_rows(dtype)
    return replace(case, rows=[Row("tvvvvvvt", 7)], scale=400.0)
