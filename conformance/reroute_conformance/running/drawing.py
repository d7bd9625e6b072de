"""Gives the cases of a check to a function: fixed cases, or cases that Hypothesis draws from a strategy or a state machine.

A default run draws the same cases every time. A search draws other cases every time, and tries first what broke
something before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants
from hypothesis.stateful import run_state_machine_as_test

from ..cases.case import Case
from ..cases.sessions import machine
from ..checks import Check

_LONGEST_SESSION = 8  # operations
_SEED = 2606_12412
"""The seed of every default run. Without it Hypothesis would take one from the source of the function that it calls, so that an
edit there would draw other cases."""


@dataclass(frozen=True)
class Search:
    """A search for failing cases at random, in place of a run that draws the same cases every time.

    Attributes:
        until: when the search stops, on the clock of ``time.monotonic``.
        database: folder of cases that broke something before, which other searches can share; None for no folder.
    """

    until: float
    database: Path | None = None


def drive(
    check: Check,
    body: Callable[[Case], None],
    examples: int | None,
    search: Search | None = None,
    *,
    shrink: bool = True,
) -> None:
    """Give ``body`` the cases of a check: its fixed ones, or drawn ones, which ``shrink`` where it raises."""
    if isinstance(check.cases, tuple):
        for case in check.cases[:examples]:
            body(case)
        return
    again = search is None
    database = None if search is None or search.database is None else search.database
    configured = settings(
        max_examples=check.examples if examples is None else min(examples, check.examples),
        derandomize=again,  # two runs of the same versions draw the same cases
        database=None if database is None else DirectoryBasedExampleDatabase(database),
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=[
            phase
            for phase, wanted in ((Phase.reuse, not again), (Phase.generate, True), (Phase.shrink, shrink))
            if wanted
        ],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        stateful_step_count=_LONGEST_SESSION,
    )
    drawn: Any = machine(check.cases, body) if isinstance(check.cases, type) else given(check.cases)(body)
    drawn = seed(_SEED)(drawn) if again else drawn
    with _constants_of_no_module():
        if isinstance(check.cases, type):
            run_state_machine_as_test(drawn, settings=configured)
        else:
            # what a check finds is kept under its name; of a machine under its own
            drawn._hypothesis_internal_database_key = f"vlm-reroute:{check.name}".encode()
            configured(drawn)()


@contextmanager
def _constants_of_no_module() -> Iterator[None]:
    """Keep Hypothesis from drawing constants of the modules that happen to be loaded.

    Other modules are loaded for another target or in another process, and the cases would be others, too.
    """
    if not hasattr(providers, "_get_local_constants"):  # a Hypothesis that does no such thing
        yield
        return
    providers.CONSTANTS_CACHE.cache.clear()
    with mock.patch.object(providers, "_get_local_constants", Constants):
        yield
    providers.CONSTANTS_CACHE.cache.clear()
