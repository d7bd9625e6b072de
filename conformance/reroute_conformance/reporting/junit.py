"""Turns a report into JUnit XML, for systems that show test results.

Every check becomes a test suite, and every rule that it judges becomes a test in it. A rule that was not exercised, or
that no check looked at, is a skipped test, never a passed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite
from reroute_spec.rules import rules

from .records import Record, verdict_line


def junit(records: Sequence[Record]) -> str:
    """The records of a report as XML. What was not exercised, and what no check looked at, is skipped, never passed."""
    header, checks, footer = records[0], records[1:-1], records[-1]
    document: Any = JUnitXml(f"{header['target']}: {verdict_line(records)}")
    for check in checks:
        suite = TestSuite(f"{check['profile']}.{check['name']}")
        suite.add_testcases([_test(check, rule) for rule in judged_rules(check)])
        document.add_testsuite(suite)
    judged = {rule for check in checks for rule in judged_rules(check)}
    reasons = footer.get("reasons", {})
    unseen = [
        _skipped("profiles", name, f"not asked: {reasons[name]}" if name in reasons else "not exercised")
        for name in footer["missing"]
        if name not in rules()
    ]
    unseen += [
        _skipped("rules", _title(rule), "no check of the profiles that were run looks at it")
        for rule in footer["uncovered"]
        if rule not in judged
    ]
    if unseen:
        suite = TestSuite("not checked")
        suite.add_testcases(unseen)
        document.add_testsuite(suite)
    document.update_statistics()
    for suite, check in zip(document, checks, strict=False):
        suite.time = check["seconds"]  # of all rules together: they share the cases
    document.time = round(sum(check["seconds"] for check in checks), 3)
    return str(document.tostring(), "utf-8")


def judged_rules(check: Record) -> list[str]:
    """The rules that a check judged or should have judged, in order."""
    broken = [check["failure"]["rule"]] if "failure" in check else []
    return sorted({*check["exercised"], *check["missing"], *broken})


def _test(check: Record, rule: str) -> TestCase:
    place = f"{check['profile']}.{check['name']}"
    failure, skipped = check.get("failure"), check.get("skipped")
    if failure is not None and failure["rule"] == rule:
        result = Failure(f"{failure['where']}: {failure['detail']}", rule)
        replay = f"\nreplay: {failure['replay']}" if failure["replay"] else ""
        result.text = f"{failure['where']}: {failure['detail']}\npredicate: {failure['check']}{replay}\n"
        case = TestCase(_title(rule), place)
        case.result = [result]
        return case
    if rule in check["missing"]:
        reason = f"the target skipped {skipped['cases']} cases: {skipped['reason']}" if skipped else ""
        stopped = "not exercised: the check stopped at its first failure" if failure else "not exercised"
        return _skipped(place, _title(rule), reason or stopped)
    return TestCase(_title(rule), place)


def _skipped(place: str, name: str, reason: str) -> TestCase:
    case = TestCase(name, place)
    case.result = [Skipped(reason)]
    return case


def _title(rule: str) -> str:
    return f"{rule} {rules()[rule].title}"
