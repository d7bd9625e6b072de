"""Judging what a decoder whose positions have three coordinates refuses (RR-CFG-011)."""

from __future__ import annotations

from typing import Any

from ..cases.mrope import MropeCase
from ..protocol import Target
from ..verdicts.verdict import Verdict
from .refusals import judge_refusal, refusal_of


def judge_renumber(case: MropeCase, target: Target) -> Verdict:
    """A schedule that renumbers is refused by its field ``positions``, whatever the rows."""
    verdict, schedule, where = Verdict(), case.routing(), "prefill"
    _, error = refusal_of(lambda: target.run(case.model(), case.inputs(), schedule))
    detail = "positions of three coordinates cannot be renumbered, yet the schedule was run"
    bound: dict[str, Any] = {"positions": schedule.positions, "coordinates": 3, "accepted": error is None}
    if verdict.require("RR-CFG-011", where, detail, **bound):
        judge_refusal(verdict, where, error, "positions")
    return verdict
