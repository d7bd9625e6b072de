"""Makes the checks of the vectors, one check for all vectors of one kind that need the same profiles.

The vectors of the public release have checks of their own.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from reroute_spec import RerouteError

from ..protocol import PROFILES
from ..vectors.case import VectorCase
from ..vectors.judge import judge_vector
from ..vectors.manifest import Entry, damages, entries
from .check import Check


def vector_checks() -> tuple[Check, ...]:
    """The checks of the vectors, in the order of the profiles that they need, so that what needs least comes first.

    Raises:
        RerouteError: a file of v1 is not that of the manifest.
    """
    if found := damages():
        raise RerouteError(
            "vectors", found[0], "install the package anew, or run `vlm-reroute vectors regenerate`"
        )
    order = list(PROFILES)

    def key(entry: Entry) -> Any:
        return [order.index(name) for name in entry.profiles], entry.oracle == "release", entry.kind

    groups = groupby(sorted(entries(), key=key), key=key)
    return tuple(_check(tuple(group)) for _, group in groups)


def _check(group: tuple[Entry, ...]) -> Check:
    first = group[0]
    named = "release" if first.oracle == "release" else first.kind
    implied = {"route": ("stagewise",), "release": ("gqa", "cache")}.get(named, ())
    shown = [profile for profile in first.profiles if profile not in implied]
    return Check(
        name="-".join(("vectors", named, *shown)),
        kind=first.kind,
        profile=first.profiles[-1] if first.profiles else "core",
        rules=tuple(dict.fromkeys(rule for entry in group for rule in entry.rules)),
        cases=tuple(VectorCase.of(entry.place) for entry in group),
        examples=len(group),
        judge=judge_vector,
        also=frozenset(first.profiles[:-1]),
    )
