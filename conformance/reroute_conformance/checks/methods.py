"""Lists the checks of presets, the original methods' variants, M-RoPE, low precision and Nüwa's first stage."""

from __future__ import annotations

from typing import Any

from ..cases.low_precision import exact_cases, low_cases, low_select_cases
from ..cases.methods import method_cases
from ..cases.mrope import mrope_cases, renumber_cases
from ..cases.nuwa import nuwa_cases
from ..cases.presets import preset_cases, read_back_cases
from ..judging.nuwa import judge_first_stage
from ..judging.presets import judge_preset, judge_read_back
from ..judging.refusals import judge_renumber
from ..judging.routed_batch import judge
from ..judging.selection import judge_select
from ..protocol import DTYPES
from .check import Check, ids


def methods_checks() -> tuple[Check, ...]:
    """The checks of this part, in the order of the report."""
    named = ids("RR-CFG-010 RR-CFG-012 RR-CFG-013 RR-ERR-001")
    rows = ids("RR-SCORE-004 RR-SCORE-007 RR-BLOCK-007 RR-BLOCK-009 RR-KV-001")
    decoded, cache = ids("RR-BLOCK-009 RR-KV-002 RR-KV-004"), frozenset({"cache"})
    coordinates = ids("RR-BLOCK-002 RR-BLOCK-003 RR-BLOCK-012 RR-SCORE-001 RR-KV-001")
    padded, decoding = ids("RR-EQV-004 RR-EQV-005"), ids("RR-BLOCK-012 RR-KV-002 RR-KV-004")
    refused = ids("RR-CFG-011 RR-ERR-001")
    first = ids("RR-POOL-002 RR-POOL-007 RR-POOL-008 RR-POOL-009 RR-POOL-010")
    return (
        Check("preset", "preset", "presets", named, preset_cases(), 800, judge_preset),
        Check("read-back", "preset", "presets", ("RR-CFG-014",), read_back_cases(), 200, judge_read_back),
        Check("methods", "trace", "methods", rows, method_cases(), 120, judge),
        Check("methods-cache", "trace", "methods", decoded, method_cases(cache=True), 60, judge, also=cache),
        Check("mrope", "trace", "mrope", coordinates, mrope_cases(), 100, judge),
        Check(
            "mrope-batch",
            "trace",
            "mrope",
            padded,
            mrope_cases(batch=True),
            40,
            judge,
            also=frozenset({"batch"}),
        ),
        Check("mrope-cache", "trace", "mrope", decoding, mrope_cases(cache=True), 60, judge, also=cache),
        Check("mrope-renumber", "trace", "mrope", refused, renumber_cases(), 10, judge_renumber),
        Check("nuwa", "trace", "nuwa", first, nuwa_cases(), 4, judge_first_stage),
        *(check for dtype in DTYPES for check in _low(dtype)),
    )


def _low(dtype: str) -> tuple[Check, ...]:
    """The checks of one low precision.

    Selections and replayed decisions are judged. Decisions of the target's own that differ are only reported.
    """
    moved, stagewise = (
        ids("RR-BLOCK-001 RR-BLOCK-003 RR-KV-001 RR-KV-002 RR-NUM-001"),
        frozenset({"stagewise"}),
    )
    wide, scored = ids("RR-SCORE-003 RR-BLOCK-004 RR-BLOCK-005"), ids("RR-SCORE-001 RR-BLOCK-001 RR-NUM-001")
    lows, replayed = low_cases(dtype), low_cases(dtype, replay=True)

    def low(
        name: str, kind: str, rules: tuple[str, ...], cases: Any, examples: int, judged: Any = judge
    ) -> Check:
        also = stagewise if kind == "route" else frozenset[str]()
        name = f"{name}-{dtype}"
        return Check(name, kind, "low-precision", rules, cases, examples, judged, also, dtype=dtype)

    return (
        low("select", "select", ("RR-SEL-001", "RR-SEL-003"), low_select_cases(dtype), 40, judge_select),
        low("route", "route", moved, replayed, 60),
        low("trace", "trace", scored, lows, 40),
        low("wide", "trace", wide, exact_cases(dtype), 3),
    )
