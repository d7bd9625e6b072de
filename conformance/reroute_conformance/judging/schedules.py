"""Judges what a target does with a schedule given as data: it must refuse a wrong one (RR-CFG) and plan a right one."""

from __future__ import annotations

import re
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

from reroute_spec import Schedule, plan
from reroute_spec.predicates import holds

from ..cases.case import ConfigCase
from ..protocol import Target
from ..targets.answers import MalformedError
from ..verdicts.verdict import Verdict
from .refusals import refusal_of

_CHECKS = {
    "RR-CFG-001": ("data",),
    "RR-CFG-003": ("layers", "num_layers"),
    "RR-CFG-002": ("layers",),
    "RR-CFG-005": ("keeps",),
    "RR-CFG-004": ("keeps",),
    "RR-CFG-006": ("action", "pool", "keeps"),
    "RR-CFG-007": ("action", "positions", "source", "layers", "pool", "query", "n"),
}
_FIELDS = {
    "RR-CFG-001": ".",  # an unknown field names itself, a value its own field
    "RR-CFG-003": r"^decisions\[\d+\]\.layer$",
    "RR-CFG-002": r"^decisions\[\d+\]\.layer$",
    "RR-CFG-005": r"^decisions\[\d+\]\.keep$",
    "RR-CFG-004": r"^decisions\[\d+\]\.keep$",
    "RR-CFG-006": r"^(pool|decisions\[\d+\]\.keep)$",
    "RR-CFG-007": r"^(positions|score\.source|score\.n)$",
}
"""Which fields a refusal may name (RR-ERR-001)."""


def judge_config(case: ConfigCase, target: Target) -> Verdict:
    """Whether a schedule is accepted where, and only where, no rule refuses it; and what it plans."""
    verdict = Verdict()
    broken = broken_rules(case.schedule, case.num_layers)
    data = deepcopy(case.schedule)
    rows, error = refusal_of(lambda: target.plan(data, case.num_layers, case.visual(), list(case.images)))
    verdict.exercised.update(broken)
    if error is not None:
        if not broken:
            verdict.exercised["RR-ERR-003"] += 1
            verdict.violate("RR-ERR-003", "schedule", f"no rule refuses it, yet it was refused: {error}")
            return verdict
        said = SimpleNamespace(field=getattr(error, "field", ""), remedy=getattr(error, "remedy", ""))
        detail = f"refused, but the error names field {said.field!r} and remedy {said.remedy!r}: {error}"
        touched = data != case.schedule
        for rule in ("RR-CFG-008", "RR-ERR-001"):
            verdict.require(rule, "schedule", detail, accepted=False, error=said, touched=touched)
        if not any(re.search(_FIELDS[rule], str(said.field)) for rule in broken):
            detail = (
                f"the error names field {said.field!r}; {', '.join(broken)} are broken by {case.schedule}"
            )
            verdict.violate("RR-ERR-001", "schedule", detail)
        return verdict
    if broken:
        verdict.violate(broken[0], "schedule", f"it was accepted: {case.schedule}")
        return verdict
    request = plan(Schedule.from_dict(case.schedule), case.num_layers, case.visual(), case.images)
    try:
        planned = [int(count) for count in rows]
    except (TypeError, ValueError):
        raise MalformedError(f"plan returned {rows!r}, expected a row count per block") from None
    if len(planned) != request.num_layers:
        raise MalformedError(f"plan returned {len(planned)} row counts for {request.num_layers} blocks")
    for layer, (found, right) in enumerate(zip(planned, request.kv_rows, strict=True)):
        detail = f"{found} rows planned, {right} run; all: {planned}, expected {list(request.kv_rows)}"
        if not verdict.require("RR-KV-001", f"block {layer}", detail, cached_rows=found, rows_run=right):
            break
    return verdict


def broken_rules(data: dict[str, Any], num_layers: int) -> list[str]:
    """The rules that refuse a schedule: whose check does not allow to accept it, or cannot even read it."""
    score, action = data.get("score", {}), data["action"]
    values: dict[str, Any] = {
        "data": data,
        "num_layers": num_layers,
        "layers": [decision["layer"] for decision in data["decisions"]],
        "keeps": [decision["keep"] for decision in data["decisions"]],
        "action": action,
        "pool": data.get("pool", "survivors" if action == "delete" else "all"),
        "positions": data.get("positions", "preserve"),
        "source": score.get("source", "own"),
        "query": score.get("query", "last"),
        "n": score.get("n", 1),
    }
    return [
        rule for rule, names in _CHECKS.items() if not _allowed(rule, {name: values[name] for name in names})
    ]


def _allowed(rule: str, given: dict[str, Any]) -> bool:
    try:
        return holds(rule, accepted=True, **given)
    except (TypeError, ValueError, ArithmeticError):  # a value that the check cannot read
        return False
