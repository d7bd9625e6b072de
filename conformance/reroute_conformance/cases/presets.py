"""Draws cases of profile ``presets``: a preset by name for a decoder, or a schedule as data that is read and written again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis import strategies as st
from reroute_spec.budget import parse_keep

from .case import KINDS, Case
from .strategies import schedules

_METHODS = ("fastv", "pdrop", "reroute-fastv", "reroute-pdrop", "nuwa", "reroute-nuwa")
NAMES = (*(f"{m}-{tier}" for m in _METHODS for tier in (192, 128, 64)), "fastv-original", "pdrop-original")
"""All presets (RR-CFG-010, RR-CFG-013)."""
_UNKNOWN = (
    "",
    "fastv",
    "fastv-65",
    "FASTV-64",
    "nuwa",
    "fastv-original-64",
    "reroute-fastv-original",
    "pdrop-64 ",
)
_DEPTHS = (6, 12, 28, 28, 32, 32, 36, 40, 48, 64, 80)


@dataclass(frozen=True)
class PresetCase(Case):
    """A preset's name or a schedule as data, and the decoder that it is for.

    Attributes:
        preset: the name of the preset; None where a schedule is given.
        schedule: the schedule as data, where no name is given.
        num_layers: number of blocks of the decoder.
        attention_blocks: the blocks with plain attention; None for all of them.
    """

    kind: ClassVar[str] = "preset"
    preset: str | None = None
    schedule: dict[str, Any] = field(default_factory=dict)
    num_layers: int = 32
    attention_blocks: list[int] | None = None


KINDS[PresetCase.kind] = PresetCase


@st.composite
def preset_cases(draw: st.DrawFn) -> PresetCase:
    """Every preset, and some names of none, at public and odd depths; hybrids of period 4 and any other blocks."""
    depth = draw(st.sampled_from(_DEPTHS) | st.integers(1, 70))
    hybrid = [block for block in range(depth) if block % 4 == 3]
    some = st.sets(st.integers(0, depth - 1)).map(sorted)
    most = some.map(lambda left_out: [block for block in range(depth) if block not in left_out])
    blocks = draw(st.none() | st.none() | st.just(hybrid) | most | some)
    if draw(st.integers(0, 19)) == 19:
        return PresetCase(draw(st.sampled_from(_UNKNOWN)), {}, depth, blocks)
    return PresetCase(draw(st.sampled_from(NAMES)), {}, depth, blocks)


_DIGITS = st.integers(1, 10**40 - 1)
_RATIOS = (
    _DIGITS.map(lambda i: f"0.{i:040d}")
    | st.tuples(_DIGITS, _DIGITS).map(lambda pair: f"{min(pair)}/{max(pair)}")
    | st.sampled_from(["1/3", "0.1", "1e-05", ".5", "1.", "0.30000000000000004", "0.3"])
)


@st.composite
def read_back_cases(draw: st.DrawFn) -> PresetCase:
    """Schedules that are accepted, as data: every field, keeps of up to 40 digits."""
    data = draw(schedules(8, scopes=("request", "image")))
    if draw(st.booleans()):
        count = len(data["decisions"])
        keeps: Sequence[Any] = draw(st.lists(_RATIOS, min_size=count, max_size=count))
        keeps = sorted(keeps, key=parse_keep, reverse=True) if data["action"] == "delete" else keeps
        for decision, keep in zip(data["decisions"], keeps, strict=True):
            decision["keep"] = keep
    if data["action"] == "delete" and draw(st.booleans()):
        data["positions"] = "renumber"
    if data["decisions"][0]["layer"] > 0 and draw(st.booleans()):
        data["decisions"] = data["decisions"][:1]
        data.setdefault("score", {})["source"] = "previous"
    if draw(st.booleans()):
        data["label"] = draw(st.text(max_size=8))
    return PresetCase(None, data, 8)
