"""Lists the checks of model families: prompts of the Qwen families, and refusals and sessions of every family.

Two further checks need no family: selection by scores as attention makes them, and rows before the first visual row,
which routing leaves unchanged (RR-EQV-007).
"""

from __future__ import annotations

from typing import Any

from ..cases.families import family_sessions, qwen_cases, qwen_prompts, text_first_cases
from ..cases.real_scores import attention_cases
from ..cases.refusals import FAULTS, refusals
from ..judging.equivalences import judge_before_images
from ..judging.following import judge_generation, judge_requests
from ..judging.refusals import judge_refused
from ..judging.selection import judge_select
from ..judging.sessions import judge_session
from ..protocol import FAMILIES
from .check import Check, ids

_FAMILY = ids("RR-POOL-002 RR-BUD-003 RR-KV-006 RR-SCORE-001 RR-NUM-001 RR-EQV-004 RR-EQV-005")
_OWN = {
    "qwen2_5_vl": (),
    "qwen3_vl": ids("RR-BLOCK-010"),
    "qwen3_5": ids("RR-BLOCK-011 RR-BLOCK-013"),
}
"""Rules that only one family exercises."""


def family_checks() -> tuple[Check, ...]:
    """The checks of this part, in the order of the report."""
    real, order = attention_cases(), ids("RR-SEL-001 RR-SEL-003 RR-SEL-004")
    checks = [
        Check("select-attention", "select", "core", order, real, 60, judge_select),
        Check("text-first", "trace", "core", ("RR-EQV-007",), text_first_cases(), 40, judge_before_images),
    ]
    for family, own in _OWN.items():
        drawn, fixed = qwen_cases(family), qwen_prompts(family)
        greedy = ids("RR-KV-002 RR-KV-004")
        of: dict[str, Any] = {"family": family}
        checks += [
            Check(family, "trace", "hf", (*_FAMILY, *own), drawn, 10, judge_requests, **of),
            Check(f"{family}-prompt", "trace", "hf", greedy, fixed, len(fixed), judge_generation, **of),
        ]
    for family in FAMILIES:
        wrong = refusals(family)
        rules = tuple(dict.fromkeys((*(FAULTS[case.fault].rule for case in wrong), "RR-ERR-001")))
        of = {"family": family}
        checks.append(
            Check(f"{family}-refusals", "config", "hf", rules, wrong, len(wrong), judge_refused, **of)
        )
        turns = ids(
            "RR-KV-002 RR-KV-003 RR-KV-004 RR-KV-005 RR-KV-006 RR-KV-007 RR-KV-008 RR-KV-009 RR-KV-010"
        )
        checks.append(
            Check(
                f"{family}-session",
                "session",
                "hf",
                turns,
                family_sessions(family),
                8,
                judge_session,
                also=frozenset({"session"}),
                family=family,
            )
        )
    return tuple(checks)
