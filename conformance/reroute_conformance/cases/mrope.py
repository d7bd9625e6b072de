"""Draws cases of profile ``mrope``: canonical decoders whose positions have three coordinates, as around images and videos."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from .case import KINDS
from .decoder import DecoderCase, decoder_config
from .strategies import batch_rows, layouts, schedules

_OF_PADDING = 77  # the position of a row that has none


@dataclass(frozen=True)
class MropeCase(DecoderCase):
    """A batch through a canonical decoder with ``mrope_section``, whose positions have three coordinates.

    Every run of visual rows consists of frames of ``grid`` patches. Its last frame is not always full.

    Attributes:
        grid: height and width of a frame, in patches.
    """

    kind: ClassVar[str] = "mrope"
    network_rules: ClassVar[tuple[str, ...]] = ("RR-BLOCK-004", "RR-BLOCK-006", "RR-BLOCK-012")
    rotary_rule: ClassVar[str] = "RR-BLOCK-012"
    grid: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))  # what JSON has is equal to what was drawn
        section = self.config.get("mrope_section")
        object.__setattr__(self, "config", {**self.config, "mrope_section": section and list(section)})

    def inputs(self) -> dict[str, Any]:
        """As of any decoder, with ``position_ids`` [3, B, S]."""
        inputs = super().inputs()
        real = inputs["attention_mask"].bool()
        positions = torch.full((3, *real.shape), _OF_PADDING)
        for index, row in enumerate(self.rows):
            positions[:, index, real[index]] = coordinates(row.layout, self.grid)
        return {**inputs, "position_ids": positions}


KINDS[MropeCase.kind] = MropeCase


def coordinates(layout: str, grid: tuple[int, int]) -> Tensor:
    """Time, height and width of every row, [3, S], as Qwen2.5-VL counts them: text goes on after the largest so far."""
    height, width = grid
    found: list[tuple[int, int, int]] = []
    for visual, run in groupby(layout, key=lambda letter: letter == "v"):
        start = 1 + max((max(row) for row in found), default=-1)
        for i, _ in enumerate(run):
            frame, patch = divmod(i, height * width)
            at = (
                (start + frame, start + patch // width, start + patch % width) if visual else (start + i,) * 3
            )
            found.append(at)
    return torch.tensor(found).T


@st.composite
def mrope_cases(draw: st.DrawFn, *, batch: bool = False, cache: bool = False) -> MropeCase:
    """Sections of any sizes, one after the other or interleaved; grouped heads, biases, query and key norms."""
    interleaved = draw(st.booleans())
    # interleaved, pair i takes height or width by i mod 3: what does not fit there is left to time
    sections = ((4, 2, 2), (3, 3, 2)) if interleaved else ((2, 3, 3), (4, 2, 2), (1, 3, 4), (8, 0, 0))
    layers = draw(st.integers(2, 5))
    config = decoder_config(
        layers,
        heads=draw(st.sampled_from((2, 4))),
        kv_heads=2,
        head_dim=16,
        attention_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        rope_theta=draw(st.sampled_from((10000.0, 50.0))),
        mrope_section=draw(st.sampled_from(sections)),
        mrope_interleaved=interleaved,
    )
    texts = layouts(max_size=3).flatmap(lambda head: layouts("vvvt", 9).map(lambda rest: f"{head}vvv{rest}"))
    return MropeCase(
        schedule=draw(schedules(layers)),
        rows=draw(batch_rows(texts, batch=batch)),
        new_tokens=draw(st.integers(1, 3)) if cache else 0,
        config=config,
        seed=draw(st.integers(0, 7)),
        grid=draw(st.sampled_from(((2, 2), (1, 3), (3, 2), (1, 1)))),
    )


@st.composite
def renumber_cases(draw: st.DrawFn) -> MropeCase:
    """Schedules that renumber, which is defined for scalar positions alone."""
    case = draw(mrope_cases())
    decisions = [{"layer": draw(st.integers(0, 1)), "keep": draw(st.sampled_from((1, 2, "1/2")))}]
    return replace(case, schedule={"action": "delete", "decisions": decisions, "positions": "renumber"})
