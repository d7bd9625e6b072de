"""Defines a check: which cases are drawn, how they are judged, and which rules a run of it exercises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from ..cases.case import Case
from ..cases.sessions import SessionMachine
from ..protocol import DTYPES, Target
from ..verdicts.verdict import Verdict


@dataclass(frozen=True)
class Check:
    """A family of cases with the judge that compares a target with the specification on each of them.

    Attributes:
        name: the name that the report shows.
        kind: ``config``, ``preset``, ``select``, ``route``, ``trace`` or ``session``.
        profile: the profile that the check belongs to.
        rules: the MUST rules that a whole run of the check has to exercise.
        cases: a Hypothesis strategy, a state machine that draws sessions, or the fixed cases themselves.
        examples: how many cases the default run draws.
        judge: compares a target with the specification on one case.
        also: further profiles without which the check is not run.
        family: in profile ``hf``, the model family that the check runs. The check is run where the target claims that
            family.
        dtype: in profile ``low-precision``, the precision that the check computes in. The check is run where the target
            claims that precision.
    """

    name: str
    kind: str
    profile: str
    rules: tuple[str, ...]
    cases: st.SearchStrategy[Any] | type[SessionMachine] | tuple[Case, ...]
    examples: int
    judge: Callable[[Any, Target], Verdict]
    also: frozenset[str] = frozenset()
    family: str = ""
    dtype: str = ""

    def claimed(
        self, profiles: Iterable[str], families: Iterable[str], dtypes: Iterable[str] = DTYPES
    ) -> bool:
        """Whether the check is run for a target with these profiles, families and precisions."""
        run = not self.family or self.family in families
        return (
            run and {self.profile, *self.also} <= set(profiles) and (not self.dtype or self.dtype in dtypes)
        )


def ids(text: str) -> tuple[str, ...]:
    """Split a text of rule ids at its blanks."""
    return tuple(text.split())
