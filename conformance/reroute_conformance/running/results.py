"""Holds the results of a run: the outcome of every check, its smallest failing case, and the verdict on the target.

The verdict is CONFORMS, FAILS or INCOMPLETE, and ``EXIT_CODES`` has the exit code of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reroute_spec.rules import rules

from ..cases.case import Case
from ..checks import Check
from ..protocol import FAMILIES
from ..verdicts.margins import Margins
from ..verdicts.verdict import Verdict, Violation

CONFORMS, FAILS, INCOMPLETE = "CONFORMS", "FAILS", "INCOMPLETE"
EXIT_CODES = {CONFORMS: 0, FAILS: 1, INCOMPLETE: 2}  # 3 is wrong usage or a broken harness


@dataclass(frozen=True)
class Failure:
    """A broken rule with the smallest case that breaks it.

    Attributes:
        violation: the rule, where it was broken, and what was found there.
        case: the smallest case; None where the failure is one of the whole check.
        path: the folder of the saved case; None until it is saved.
        replay: the command that judges the saved case again; empty until it is saved.
    """

    violation: Violation
    case: Case | None
    path: Path | None = None
    replay: str = ""


@dataclass
class CheckResult:
    """The outcome of one check, summed over its cases.

    Attributes:
        check: the check that was run.
        examples: how many cases were judged.
        exercised: how often each rule was judged.
        decisions: how many decisions were compared with the oracle's.
        ambiguous: how many of these were ambiguous (RR-NUM-002).
        differing: how many decisions in low precision differ from the oracle's in rows that are not ambiguous.
        margins: the margins of the decisions, counted in bins.
        failure: the first rule that broke, on its smallest case; None where nothing broke.
        seconds: how long the check took.
        skipped: how many cases the target did not take.
        skip_reason: why it did not take the first of them.
    """

    check: Check
    examples: int = 0
    exercised: Counter[str] = field(default_factory=Counter)
    decisions: int = 0
    ambiguous: int = 0
    differing: int = 0
    margins: Margins = field(default_factory=Margins)
    failure: Failure | None = None
    seconds: float = 0.0
    skipped: int = 0
    skip_reason: str = ""  # of the first case that was skipped

    def add(self, verdict: Verdict) -> None:
        """Count what one more case showed."""
        self.examples += 1
        self.exercised.update(verdict.exercised)
        self.decisions += verdict.decisions
        self.ambiguous += verdict.ambiguous
        self.differing += verdict.differing
        for margin in verdict.margins:
            self.margins.count(margin)

    def join(self, other: CheckResult) -> None:
        """Add what another run of the same check showed."""
        for name in ("examples", "decisions", "ambiguous", "differing", "seconds", "skipped"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.exercised.update(other.exercised)
        self.margins.add(other.margins)
        self.failure, self.skip_reason = self.failure or other.failure, self.skip_reason or other.skip_reason

    def missing(self) -> list[str]:
        """MUST rules that this check should have exercised but did not; all of them where a case was skipped."""
        if self.skipped:
            return list(self.check.rules)
        return [rule for rule in self.check.rules if not self.exercised[rule]]


@dataclass
class Report:
    """The outcome of a run of checks against one target.

    Attributes:
        target: the name of the target.
        profiles: the profiles that were asked for.
        results: the result of every check, in order.
        families: the model families that the target claims, where profile ``hf`` is among the profiles.
        device: where the target says that it computes.
        reasons: for an entry of :attr:`missing`, why the target says that it cannot be asked for it here.
    """

    target: str
    profiles: tuple[str, ...]
    results: list[CheckResult]
    families: tuple[str, ...] = ()
    device: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> list[Failure]:
        """All failures, in the order of the checks."""
        return [result.failure for result in self.results if result.failure is not None]

    @property
    def missing(self) -> list[str]:
        """What was not exercised: profiles, model families and precisions without a check that ran, rules of checks that did."""
        rules_missing = {
            rule for result in self.results if result.failure is None for rule in result.missing()
        }
        ran = {result.check.profile for result in self.results}
        run_families = {
            result.check.family or FAMILIES[0] for result in self.results if result.check.profile == "hf"
        }
        profiles = [f"profile {name}" for name in dict.fromkeys(("core", *self.profiles)) if name not in ran]
        families = [f"family {name}" for name in self.families if name not in run_families]
        others = [name for name in self.reasons if name not in profiles]
        return [*profiles, *families, *others, *sorted(rules_missing)]

    @property
    def uncovered(self) -> list[str]:
        """MUST rules that no check of this run looked at: what its verdict says nothing about."""
        exercised = {rule for result in self.results for rule, count in result.exercised.items() if count}
        return [rule.id for rule in rules().values() if rule.strength == "MUST" and rule.id not in exercised]

    @property
    def verdict(self) -> str:
        """CONFORMS, FAILS or INCOMPLETE."""
        if self.failures:
            return FAILS
        return INCOMPLETE if self.missing else CONFORMS
