"""The checks of presets, of the original methods' variants, of M-RoPE, of low precision and of Nüwa's first stage."""

from __future__ import annotations

from ..preset_cases import preset_cases, read_back_cases
from ..presets import judge_preset, judge_read_back
from .check import Check, ids


def methods_checks() -> tuple[Check, ...]:
    """In the order of the report."""
    named = ids("RR-CFG-010 RR-CFG-012 RR-CFG-013 RR-ERR-001")
    return (
        Check("preset", "preset", "presets", named, preset_cases(), 800, judge_preset),
        Check("read-back", "preset", "presets", ("RR-CFG-014",), read_back_cases(), 200, judge_read_back),
    )
