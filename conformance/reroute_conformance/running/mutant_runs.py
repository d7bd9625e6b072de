"""Runs every mutant through the check that has to kill it, in one process or several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..checks import checks
from ..mutants import MUTANTS, Mutant, mutant
from ..targets.one_thread import use_one_thread
from .parallel import pool
from .results import CheckResult
from .runner import run_check


def run_mutants(chosen: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, CheckResult]]:
    """Every mutant through its check."""
    if jobs == 1:
        yield from ((entry, try_mutant(entry.name)) for entry in chosen)
        return
    with pool(jobs) as processes:
        yield from zip(chosen, processes.map(try_mutant, [entry.name for entry in chosen]), strict=True)


def try_mutant(name: str) -> CheckResult:
    """One mutant through the check that has to kill it; the result comes without the check, which no pipe takes."""
    use_one_thread()
    entry = next(entry for entry in MUTANTS if entry.name == name)
    check = next(check for check in checks() if check.name == entry.check)
    return replace(run_check(check, mutant(name), shrink=False), check=None)  # type: ignore[arg-type]
