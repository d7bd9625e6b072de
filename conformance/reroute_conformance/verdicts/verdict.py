"""Collects what one case showed: the rules that were judged, and the violations that were found.

A rule is judged by its own check, as it stands in the text of the specification.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from reroute_spec.predicates import holds


@dataclass(frozen=True)
class Violation:
    """A rule that a target broke, with the place and the finding.

    Attributes:
        rule: the id of the rule.
        where: the request, block or decision at which it was broken.
        detail: what was expected and what was found, with the first differing ordinal or element.
        request: the batch row, where the violation is about one request; otherwise None.
    """

    rule: str
    where: str
    detail: str
    request: int | None = None


@dataclass
class Verdict:
    """The result of one case: the rules that broke, and the rules that were judged at all.

    Attributes:
        violations: the broken rules, in the order in which they were found.
        exercised: how often each rule was judged.
        decisions: how many decisions were compared with the oracle's.
        ambiguous: how many of these were ambiguous (RR-NUM-002).
        differing: how many decisions in low precision differ from the oracle's in rows that are not ambiguous. They are
            reported and are never a violation (RR-NUM-002).
        margins: the margins of the decisions that were compared with the oracle's, as the target's records have them;
            None for a decision without a margin.
        skipped: why the target did not take the case; empty where it took it.
    """

    violations: list[Violation] = field(default_factory=list)
    exercised: Counter[str] = field(default_factory=Counter)
    decisions: int = 0
    ambiguous: int = 0
    differing: int = 0
    margins: list[float | None] = field(default_factory=list)
    skipped: str = ""

    def require(
        self,
        rule: str,
        where: str,
        detail: str | Callable[[], str],
        *,
        request: int | None = None,
        counts: bool = True,
        **names: Any,
    ) -> bool:
        """Run a rule's check on what was observed, and note a violation where it is false.

        Args:
            rule: its id.
            where, detail, request: of the violation; ``detail`` is called only where there is one.
            counts: whether the observed values exercise the rule, rather than fulfil it for want of a case.
            names: what the check is about.
        """
        self.exercised[rule] += counts
        if holds(rule, **names):
            return True
        self.violate(rule, where, detail if isinstance(detail, str) else detail(), request)
        return False

    def violate(self, rule: str, where: str, detail: str, request: int | None = None) -> None:
        """Note a broken rule."""
        self.violations.append(Violation(rule, where, detail, request))

    def add(self, other: Verdict) -> None:
        """Add the verdict of another run of the same case's requests to this one."""
        self.violations += other.violations
        self.exercised.update(other.exercised)
        self.decisions += other.decisions
        self.ambiguous += other.ambiguous
        self.differing += other.differing
        self.margins += other.margins
