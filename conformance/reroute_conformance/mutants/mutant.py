"""What a mutant is, and how its fault is kept out of the judge."""

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
    """A named fault.

    Attributes:
        name: from the list of faults seen in practice.
        rule: the rule it breaks; a failure of another rule does not count as a kill.
        check: the check that kills it.
        patches: dotted name of what is replaced, and by what.
        target: a target class with the fault, where it is not a patch.
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

    asked = [name for names in MEMBERS.values() for name in names]
    members = {name: faulty(getattr(entry.target, name)) for name in asked}
    target: ReferenceTarget = type("Patched", (entry.target,), {"name": f"mutant:{entry.name}", **members})()
    return target
