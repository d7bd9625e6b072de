"""One check: what is drawn, how it is judged, which rules it exercises."""

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
    """One family of cases.

    Attributes:
        name: shown in the report.
        kind: ``config``, ``preset``, ``select``, ``route``, ``trace`` or ``session``.
        profile: the profile it belongs to.
        rules: MUST rules that a whole run of it has to exercise.
        cases: strategy, a machine that draws sessions, or the fixed cases themselves.
        examples: how many cases the default run draws.
        judge: compares a target with the specification on one case.
        also: further profiles without which it is not run.
        dtype: of profile ``low-precision``, the precision that it computes in; it is run where the target claims that one.
        family: of profile ``hf``, the model family that it runs; it is run where the target claims that one.
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
        """Whether it is run of a target with these profiles, families and precisions."""
        run = not self.family or self.family in families
        return (
            run and {self.profile, *self.also} <= set(profiles) and (not self.dtype or self.dtype in dtypes)
        )


def ids(text: str) -> tuple[str, ...]:
    """Rules, separated by blanks."""
    return tuple(text.split())
