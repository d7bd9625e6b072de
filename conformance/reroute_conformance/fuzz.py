"""Searching for cases that break a target: at random, for as long as there is time, in as many processes as wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from .checks import checks
from .protocol import families_of
from .runner import CheckResult, Report, Search, chosen_profiles, run_check
from .targets import TargetName


@dataclass(frozen=True)
class Find:
    """What one process found out about a check, without the check itself, which no pipe takes."""

    name: str
    result: CheckResult


def fuzz(
    target: TargetName,
    profiles: Iterable[str] | None,
    seconds: float,
    *,
    database: Path | None = None,
    jobs: int = 1,
    on_check: Callable[[str, int], None] = lambda name, cases: None,
) -> Report:
    """Every drawn check of the chosen profiles in turn, again and again; one that found something is done.

    Args:
        target: what is searched; every process makes its own.
        profiles: as for :func:`~reroute_conformance.runner.run_suite`.
        seconds: how long; a find is shrunk beyond that.
        database: folder shared with other searches: what they found is tried first.
        jobs: processes.
        on_check: called with a check's name and its new cases.

    Returns:
        A report of what was looked at; it is no verdict where nothing was found.
    """
    with target.made() as implementation:
        chosen = chosen_profiles(implementation, profiles)
        name, families = implementation.name, families_of(implementation)
    found: dict[str, CheckResult] = {}
    if jobs == 1:
        for find in _searched(target, chosen, seconds, database, on_check):
            _merge(found, find)
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            started = [pool.submit(_in_process, target, chosen, seconds, database) for _ in range(jobs)]
            for process in as_completed(started):
                for find in process.result():
                    on_check(find.name, find.result.examples)
                    _merge(found, find)
    return Report(name, chosen, [found[check.name] for check in checks() if check.name in found], families)


def _searched(
    target: TargetName,
    profiles: tuple[str, ...],
    seconds: float,
    database: Path | None,
    on_check: Callable[[str, int], None],
) -> list[Find]:
    """One process's search."""
    search, found = Search(time.monotonic() + seconds, database), dict[str, CheckResult]()
    with target.made() as implementation:
        families = families_of(implementation)
        pending = [
            check
            for check in checks()
            if check.claimed(profiles, families) and not isinstance(check.cases, tuple)
        ]
        while pending and time.monotonic() < search.until:
            for check in list(pending):
                result = run_check(check, implementation, search=search)
                on_check(check.name, result.examples)
                _merge(found, Find(check.name, result))
                if result.failure is not None:
                    pending.remove(check)
    return [Find(name, result) for name, result in found.items()]


def _in_process(
    target: TargetName, profiles: tuple[str, ...], seconds: float, database: Path | None
) -> list[Find]:
    import torch

    torch.set_num_threads(1)
    finds = _searched(target, profiles, seconds, database, lambda name, cases: None)
    return [Find(find.name, replace(find.result, check=None)) for find in finds]  # type: ignore[arg-type]


def _merge(found: dict[str, CheckResult], find: Find) -> None:
    """Add what was found out about a check to what is known of it."""
    known, new = found.get(find.name), find.result
    if known is None:
        check = next(check for check in checks() if check.name == find.name)
        found[find.name] = replace(new, check=check)
        return
    known.examples += new.examples
    known.exercised.update(new.exercised)
    known.decisions += new.decisions
    known.ambiguous += new.ambiguous
    known.seconds += new.seconds
    known.failure = known.failure or new.failure
