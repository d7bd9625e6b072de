"""Runs the checks of the chosen profiles against a target, and shrinks, saves and replays the cases that fail.

Unless it searches, a run gives the target the same cases in the same order every time. An exception of the target or an
answer that cannot be read is a failure of the target (RR-ERR-003) and never a crash of the suite.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from shlex import quote
from typing import Any, cast

from reroute_spec import RerouteError

from ..cases.case import Case
from ..checks import Check, checks
from ..judging.ranks import judge_ranks
from ..protocol import DTYPES, PROFILES, Target, dtypes_of, families_of, unavailable_of
from ..targets.answers import MalformedError, SkippedError, UnansweredError
from ..targets.ranks import RankedTarget
from ..tiny.zoo import forget_target_models
from ..verdicts.tolerance import AMBIGUOUS_SHARE
from ..verdicts.verdict import Verdict, Violation
from .drawing import Search, drive
from .results import CheckResult, Failure, Report
from .saved_failures import read_case, save_case


class _ViolationFoundError(Exception):
    pass


class _TargetRaisedError(Exception):
    pass


class _Guarded:
    """A target whose exceptions can be told apart from those of the suite.

    It has the members of the target. What a member raises is raised again as ``_TargetRaisedError``, unless it already
    says that the answer is malformed or that the case is skipped.

    Attributes:
        skipped: why the target skipped cases, one reason per case.
        hung: whether the target once did not answer in time. It is then asked no more.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.skipped: list[str] = []
        self.hung = False

    def __getattr__(self, member: str) -> Any:
        found = getattr(self._target, member)
        return _guarded(found) if callable(found) else found

    def judged(self, check: Check, case: Case) -> Verdict:
        """Judge a case by its check; where the target runs in several processes, judge what each of them answers."""
        if isinstance(self._target, RankedTarget):
            return judge_ranks(lambda view: check.judge(case, cast(Target, _Guarded(view))), self._target)
        return check.judge(case, cast(Target, self))


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (MalformedError, SkippedError):
            raise  # told apart already
        except KeyboardInterrupt:
            raise  # whoever runs the suite wants it to end
        except BaseException as error:  # a target that exits must not end the suite as a success
            raise _TargetRaisedError(_said(error)) from error

    return call


def _said(error: BaseException) -> str:
    """An exception in words, even where it cannot say itself."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def run_check(
    check: Check,
    implementation: Target,
    examples: int | None = None,
    tick: Callable[[], None] = lambda: None,
    search: Search | None = None,
    *,
    shrink: bool = True,
) -> CheckResult:
    """Run one check until it is done or a violation is found and shrunk.

    Shrinking keeps to the rule that broke first: a smaller case counts only if it breaks the same rule. With a
    ``search`` the cases are others every time, and none is judged once its time is up. Without ``shrink`` the case of a
    failure is the first one.
    """
    result, started, target = CheckResult(check), time.perf_counter(), _Guarded(implementation)
    forget_target_models()
    failing: dict[str, Failure] = {}  # by the case's digest
    # counted, not timed: the smallest case is the same on every machine; a search has little time for it
    shrinks_left = 4 * check.examples if search is None else check.examples

    def body(case: Case) -> None:
        nonlocal shrinks_left
        if search is not None and not failing and time.monotonic() > search.until:
            return
        if not failing:
            verdict = _judged(check, case, target)
            result.add(verdict)
            tick()
        elif case.digest() not in failing and shrinks_left > 0:
            shrinks_left -= 1
            verdict = _judged(check, case, target)
        else:
            verdict = Verdict()
        rule = next(iter(failing.values())).violation.rule if failing else None
        broken = next((v for v in verdict.violations if rule in (None, v.rule)), None)
        if broken is not None:
            failing[case.digest()] = Failure(broken, case)
        if case.digest() in failing:
            result.failure = failing[case.digest()]  # shrinking ends with the smallest
            raise _ViolationFoundError

    with suppress(_ViolationFoundError):
        drive(check, body, examples, search, shrink=shrink)
    limited = result.decisions and not check.dtype  # the limit is on float32 (RR-NUM-002)
    if result.failure is None and limited and result.ambiguous > AMBIGUOUS_SHARE * result.decisions:
        detail = f"{result.ambiguous} of {result.decisions} decisions are ambiguous, at most {AMBIGUOUS_SHARE:.0%} may be"
        result.failure = Failure(Violation("RR-NUM-002", check.name, detail), case=None)
    if target.skipped and result.failure is None:  # after a failure, smaller cases may have been skipped too
        result.skipped, result.skip_reason = len(target.skipped), target.skipped[0]
        result.examples -= result.skipped
    result.seconds = time.perf_counter() - started
    return result


def _judged(check: Check, case: Case, target: _Guarded) -> Verdict:
    """A verdict, whatever the target does: raising and malformed answers are its failures, not the suite's."""
    if target.hung:
        return Verdict()  # one failure is enough: every smaller case could cost the whole timeout again
    try:
        return target.judged(check, case)
    except MalformedError as error:
        target.hung = isinstance(error, UnansweredError) and error.hung
        return Verdict([Violation("RR-ERR-003", "answer of the target", f"malformed: {error}")])
    except SkippedError as error:
        target.skipped.append(str(error))
        return Verdict(skipped=str(error))
    except _TargetRaisedError as error:
        return Verdict([Violation("RR-ERR-003", "valid input", f"the target raised {error}")])


def run_suite(
    target: Target,
    profiles: Iterable[str] | None = None,
    *,
    examples: int | None = None,
    on_check: Callable[[Check, int], Callable[[], None]] = lambda check, total: lambda: None,
) -> Report:
    """Run every check of the chosen profiles.

    Args:
        target: the implementation.
        profiles: names of :data:`PROFILES`; those the target claims if omitted.
        examples: cap on the examples of each check; None for the default run.
        on_check: called with each check and its number of examples; returns what to call after each of them.

    Raises:
        RerouteError: a profile that is unknown, or that the target does not claim.
    """
    chosen = chosen_profiles(target, profiles)
    results = [
        run_check(check, target, examples, on_check(check, total(check, examples)))
        for check in claimed_checks(target, chosen)
    ]
    return report_of(target, chosen, results)


def claimed_checks(target: Target, profiles: Iterable[str]) -> list[Check]:
    """The checks of ``profiles`` that are run of a target here, in the order of the report."""
    profiles = list(profiles)
    left_out = unavailable_of(target, profiles)
    chosen = [name for name in profiles if name not in left_out]
    dtypes = [name for name in dtypes_of(target) if name not in left_out]
    return [check for check in checks() if check.claimed(chosen, families_of(target), dtypes)]


def total(check: Check, examples: int | None = None) -> int:
    """Cases that a whole run of a check has, capped by ``examples``."""
    whole = len(check.cases) if isinstance(check.cases, tuple) else check.examples
    return whole if examples is None else min(examples, whole)


def report_of(target: Target, profiles: tuple[str, ...], results: list[CheckResult]) -> Report:
    """The report of what checks of a target showed."""
    left_out = unavailable_of(target, profiles)
    families = families_of(target) if "hf" in profiles and "hf" not in left_out else ()
    reasons = {
        f"dtype {name}" if name in DTYPES else f"profile {name}": reason for name, reason in left_out.items()
    }
    return Report(target.name, profiles, results, families, str(getattr(target, "device", "")), reasons)


def chosen_profiles(target: Target, profiles: Iterable[str] | None) -> tuple[str, ...]:
    """The profiles to run, in the order of the report.

    Raises:
        RerouteError: one that is unknown, or that the target does not claim.
    """
    names = list(target.profiles if profiles is None else profiles)
    for name in names:
        if name not in PROFILES:
            raise RerouteError("--profiles", f"{name!r} is not known", f"known: all, {', '.join(PROFILES)}")
        if name not in target.profiles:
            claimed = ", ".join(p for p in PROFILES if p in target.profiles)
            raise RerouteError(
                "--profiles", f"{target.name} does not claim {name!r}", f"it claims: {claimed}"
            )
    return tuple(name for name in PROFILES if name in names)


def save_failures(report: Report, target_name: str, folder: Path, option: str = "--target") -> None:
    """Write every failing case to a folder in ``folder`` and note the command that replays it, ``option`` naming the target."""
    for result in report.results:
        failure = result.failure
        if failure is None or failure.case is None:
            continue
        path = save_case(result.check, failure.violation.rule, failure.case, folder)
        command = f"vlm-reroute replay {quote(str(path))} {option} {quote(target_name)}"
        result.failure = Failure(failure.violation, failure.case, path, command)


def replay_case(path: Path, target: Target) -> Verdict:
    """Judge a saved case, or any vector, again.

    Raises:
        RerouteError: a path that is no saved case and no vector, or a damaged one.
    """
    check, case = read_case(path)
    for name, reason in unavailable_of(target, target.profiles).items():
        if name in (check.profile, check.dtype, *check.also):
            return Verdict(skipped=reason)
    forget_target_models()
    return _judged(check, case, _Guarded(target))
