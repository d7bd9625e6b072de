"""Lists the checks of the canonical decoder (schedules, selection, single requests, batches, decode) and of the tiny LLaVA."""

from __future__ import annotations

from ..cases import strategies
from ..cases.fixed import budgets, counterexample, example, large_selections, pictures, precise
from ..judging.equivalences import (
    judge_counterexample,
    judge_kept,
    judge_one_decision,
    judge_precision,
    judge_repeat,
)
from ..judging.following import judge_generation, judge_requests
from ..judging.routed_batch import judge
from ..judging.schedules import judge_config
from ..judging.selection import judge_nan, judge_select
from .check import Check, ids

_CONFIG = ids(
    "RR-CFG-001 RR-CFG-002 RR-CFG-003 RR-CFG-004 RR-CFG-005 RR-CFG-006 RR-CFG-007 RR-CFG-008 RR-ERR-001 RR-KV-001"
)
_SELECTION = ids("RR-SEL-001 RR-SEL-002 RR-SEL-003 RR-SEL-004")
_ROWS = ids("RR-POOL-001 RR-POOL-002 RR-POOL-003 RR-POOL-004 RR-POOL-005 RR-POOL-006 RR-BUD-001")
_SCORES = ids("RR-SCORE-001 RR-SCORE-002 RR-SCORE-003 RR-SCORE-004 RR-SCORE-009")
_BLOCKS = ids(
    "RR-BLOCK-001 RR-BLOCK-002 RR-BLOCK-003 RR-BLOCK-007 RR-BLOCK-008 RR-KV-001 RR-NUM-001 RR-EQV-001"
)
_NETWORK = ids("RR-BLOCK-004 RR-BLOCK-005 RR-BLOCK-006")
_TRACE = (*_ROWS, *_SCORES, *_BLOCKS, *_NETWORK, "RR-NUM-002", "RR-ERR-003")


def core_checks() -> tuple[Check, ...]:
    """The checks of this part, in the order of the report."""
    d = strategies.decoder_cases
    nans, poisoned = strategies.nan_select_cases(), strategies.poisoned_cases()
    one, by_hand = strategies.one_decision_cases(), (counterexample("reroute"), counterexample("delete"))
    batch, cached = ids("RR-EQV-004 RR-EQV-005 RR-BUD-002"), ids("RR-KV-002 RR-KV-004")
    rounded = ids("RR-BUD-001 RR-EQV-002 RR-CFG-009")
    images = ids("RR-POOL-002 RR-BUD-003 RR-KV-006")
    return (
        Check("config", "config", "core", _CONFIG, strategies.config_cases(), 600, judge_config),
        Check("select", "select", "core", _SELECTION, strategies.select_cases(), 400, judge_select),
        Check(
            "select-large",
            "select",
            "core",
            ("RR-SEL-001", "RR-SEL-003"),
            large_selections(),
            9,
            judge_select,
        ),
        Check("select-nan", "select", "core", ("RR-SEL-005",), nans, 50, judge_nan),
        Check("example", "trace", "core", ("RR-POOL-003",), (example(),), 1, judge),
        Check("trace", "trace", "core", (*_TRACE, "RR-BUD-002"), d(), 150, judge),
        Check("trace-ties", "trace", "core", ("RR-SEL-003",), strategies.tied_cases(), 30, judge),
        Check("trace-delete", "trace", "core", ("RR-BUD-004",), strategies.shrinking_cases(), 40, judge),
        Check("trace-again", "trace", "core", ("RR-SCORE-008",), strategies.reentering_cases(), 40, judge),
        Check("trace-peaked", "trace", "core", ("RR-NUM-002",), strategies.peaked_cases(), 60, judge),
        Check("keep-all", "trace", "core", ("RR-EQV-002",), strategies.kept_cases(), 30, judge_kept),
        Check("precision", "trace", "core", ("RR-NUM-001",), precise(), 4, judge_precision),
        Check("budgets", "trace", "core", rounded, budgets(), 23, judge),
        Check("trace-nan", "trace", "core", ("RR-SEL-005",), poisoned, 15, judge),
        Check("one-decision", "trace", "core", ("RR-EQV-003",), one, 40, judge_one_decision),
        Check("counterexample", "trace", "core", ("RR-EQV-006",), by_hand, 2, judge_counterexample),
        Check("repeat", "trace", "core", ("RR-NUM-004",), d(), 20, judge_repeat),
        Check("route", "route", "stagewise", (*_BLOCKS, "RR-NUM-003"), d(replay=True), 120, judge),
        Check("trace-gqa", "trace", "gqa", _TRACE, d(gqa=True), 120, judge),
        Check("trace-batch", "trace", "batch", batch, d(batch=True), 100, judge),
        Check("trace-cache", "trace", "cache", cached, d(batch=True, cache=True), 80, judge),
        Check("llava", "trace", "hf", images, strategies.llava_cases(), 30, judge_requests, family="llava"),
        Check(
            "llava-picture",
            "trace",
            "hf",
            ids("RR-POOL-002 RR-KV-002"),
            pictures(),
            8,
            judge_generation,
            family="llava",
        ),
    )
