"""Defines a mutant and makes its target, whose fault is active only while the target is called.

The judge uses the same reference, and it stays right because the fault is gone when the judge runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest import mock

from ..protocol import MEMBERS
from ..targets.reference_target import ReferenceTarget
from . import faulty_targets as t


@dataclass(frozen=True)
class Mutant:
    """A named fault of the reference, with the rule that it breaks and the check that has to find it.

    Attributes:
        name: the name of the fault, from the list of faults seen in practice.
        rule: the rule that the fault breaks. A failure of another rule does not count as a kill.
        check: the name of the check that kills the mutant.
        patches: the dotted name of everything that is replaced, and what replaces it.
        target: a target class that has the fault, where the fault is not a patch.
    """

    name: str
    rule: str
    check: str
    patches: Mapping[str, Any]
    target: type[ReferenceTarget] = ReferenceTarget


def answering(name: str, rule: str, check: str, target: type[ReferenceTarget]) -> Mutant:
    """A mutant that is a target of its own."""
    return Mutant(name, rule, check, {}, target)


def asking(name: str, rule: str, check: str, change: Any) -> Mutant:
    """A mutant that runs another schedule than the one it is given."""
    return answering(name, rule, check, t.of_another_schedule(change))


def patched(entry: Mutant) -> ReferenceTarget:
    """The mutant's target; the patches hold only while it is called, so that the judge stays right."""

    def faulty(method: Any) -> Any:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as stack:
                for name, replacement in entry.patches.items():
                    stack.enter_context(mock.patch(name, replacement))
                return method(*args, **kwargs)

        return call

    # `plan` stays right: what a fault does to a run is to be found by what the run shows
    asked = [name for names in MEMBERS.values() for name in names if name != "plan"]
    members = {name: faulty(getattr(entry.target, name)) for name in asked}
    target: ReferenceTarget = type("Patched", (entry.target,), {"name": f"mutant:{entry.name}", **members})()
    return target
