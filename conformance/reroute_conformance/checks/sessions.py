"""Lists the checks of whole sessions, of shared prefixes and of sharded heads."""

from __future__ import annotations

from ..cases.prefix import prefix_cases
from ..cases.sessions import SessionMachine
from ..cases.shards import shards_cases
from ..judging.prefix import judge_prefix
from ..judging.sessions import judge_session
from ..judging.shards import judge_shards
from .check import Check, ids


def session_checks() -> tuple[Check, ...]:
    """The checks of this part, in the order of the report."""
    turns = ids(
        "RR-KV-002 RR-KV-003 RR-KV-004 RR-KV-005 RR-KV-006 RR-KV-007 RR-KV-008 RR-KV-009 RR-KV-010 RR-ERR-001"
    )
    return (
        Check("session", "session", "session", turns, SessionMachine, 60, judge_session),
        Check("prefix", "trace", "prefix", ("RR-EQV-009",), prefix_cases(), 60, judge_prefix),
        Check("shards", "trace", "shards", ("RR-EQV-008",), shards_cases(), 40, judge_shards),
    )
