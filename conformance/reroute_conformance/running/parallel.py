"""Runs checks in several processes, each with a target of its own, and searches for failures at random for a given time.

Several processes find what one process would find, because every check draws its own cases. A check cannot travel
through a pipe, so a result comes back with the name of its check, which is looked up again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from ..checks import Check, checks
from ..protocol import Target
from ..targets.one_thread import use_one_thread
from .drawing import Search
from .finding import TargetName
from .results import CheckResult
from .runner import claimed_checks, run_check

_Given = TypeVar("_Given")
_ROUND = 25
"""How many cases of a check a search draws before it goes on to the next check, so that a short search looks at all checks."""


def run_checks(
    target: TargetName, chosen: list[Check], jobs: int, on_done: Callable[[CheckResult], None]
) -> list[CheckResult]:
    """Run checks in several processes, which find what one would find: every check draws its own cases."""
    found = {}
    # the longest first, so that none of them is left for the end
    names = [check.name for check in sorted(chosen, key=_cost, reverse=True)]
    for result in in_processes(partial(_whole, target), names, jobs):
        found[result.check.name] = result
        on_done(result)
    return [found[check.name] for check in chosen]


def fuzz(
    target: TargetName,
    profiles: tuple[str, ...],
    seconds: float,
    *,
    database: Path | None = None,
    jobs: int = 1,
    on_check: Callable[[CheckResult], None] = lambda result: None,
) -> list[CheckResult]:
    """Every drawn check of the profiles in turn, with other cases every time; one that found something is done.

    Args:
        target: what is searched; every process makes its own.
        profiles: those that it claims.
        seconds: how long; a find is shrunk beyond that.
        database: folder shared with other searches: what they found is tried first.
        jobs: processes.
        on_check: called with what a process found out, several times for every check.

    Returns:
        Per check what was found out; where nothing was found it is no verdict.
    """
    found: dict[str, CheckResult] = {}
    if jobs == 1:
        with target.made() as implementation:
            for result in _searched(implementation, profiles, Search(time.monotonic() + seconds, database)):
                on_check(result)
                _merge(found, result)
    else:
        search = partial(_search, target, profiles, seconds, database)
        with pool(jobs) as processes:
            for process in as_completed([processes.submit(search) for _ in range(jobs)]):
                for result in map(_with_check, process.result()):
                    on_check(result)
                    _merge(found, result)
    return [found[check.name] for check in checks() if check.name in found]


def in_processes(
    work: Callable[[_Given], tuple[str, CheckResult]], given: list[_Given], jobs: int
) -> Iterator[CheckResult]:
    """Yield the result of ``work`` for every check, as soon as it is there."""
    with pool(jobs) as processes:
        for done in as_completed([processes.submit(work, each) for each in given]):
            yield _with_check(done.result())


def without_check(result: CheckResult) -> tuple[str, CheckResult]:
    """A result and the name of its check, which itself goes through no pipe."""
    return result.check.name, replace(result, check=None)  # type: ignore[arg-type]


def _with_check(named: tuple[str, CheckResult]) -> CheckResult:
    name, result = named
    return replace(result, check=next(check for check in checks() if check.name == name))


def pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that begin like the command line does."""
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=use_one_thread)


def _cost(check: Check) -> int:
    """A guess of how long a check takes: transformers models are slow."""
    cases = len(check.cases) if isinstance(check.cases, tuple) else check.examples
    return cases * (20 if check.profile in ("hf", "nuwa") else 1)


def _whole(target: TargetName, name: str) -> tuple[str, CheckResult]:
    with target.made() as implementation:
        check = next(check for check in checks() if check.name == name)
        return without_check(run_check(check, implementation))


def _search(
    target: TargetName, profiles: tuple[str, ...], seconds: float, database: Path | None
) -> list[tuple[str, CheckResult]]:
    search = Search(time.monotonic() + seconds, database)
    with target.made() as implementation:
        return [without_check(result) for result in _searched(implementation, profiles, search)]


def _searched(implementation: Target, profiles: tuple[str, ...], search: Search) -> Iterator[CheckResult]:
    """One process's search, a result for every round of a check."""
    pending = [
        check for check in claimed_checks(implementation, profiles) if not isinstance(check.cases, tuple)
    ]
    while pending and time.monotonic() < search.until:
        for check in list(pending):
            result = run_check(check, implementation, _ROUND, search=search)
            if result.failure is not None:
                pending.remove(check)
            if result.examples:
                yield result


def _merge(found: dict[str, CheckResult], new: CheckResult) -> None:
    """Add what was found out about a check to what is known of it."""
    known = found.setdefault(new.check.name, new)
    if known is not new:
        known.join(new)
