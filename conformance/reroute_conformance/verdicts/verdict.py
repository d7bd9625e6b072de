"""What a case showed. A rule is judged by its own check, as the text has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from reroute_spec.predicates import holds


@dataclass(frozen=True)
class Violation:
    """A rule that a target broke.

    Attributes:
        rule: its id.
        where: request, block, decision.
        detail: expected, found, the first differing ordinal or element.
        request: batch row, where it is one request's.
    """

    rule: str
    where: str
    detail: str
    request: int | None = None


@dataclass
class Verdict:
    """What one case showed: broken rules in the order in which they were found, and which rules were judged at all.

    ``differing`` are decisions of low precision that differ from the oracle's in rows that are not ambiguous: reported,
    never a violation (RR-NUM-002). ``skipped`` is why the target did not take the case.
    ``margins`` are those of the decisions that were compared with the oracle's, as the target's records have them; None where
    there is none. ``skipped`` is why the target did not take the case.
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
        """Take over what another run of the same case's requests showed."""
        self.violations += other.violations
        self.exercised.update(other.exercised)
        self.decisions += other.decisions
        self.ambiguous += other.ambiguous
        self.differing += other.differing
        self.margins += other.margins
