"""Defines mutants: wrong implementations that the checks must find, each the reference with one small thing changed.

``mutant`` says what a mutant is. ``faulty_functions`` and ``faulty_methods`` hold wrong functions of the reference,
``faulty_targets`` whole targets that are wrong, and ``core``, ``methods``, ``sessions`` and ``families`` list the
mutants, a file for each part of the specification. This room may import ``checks`` and every room before it, and the
reference. It must not import ``running``, which puts the mutants through their checks. To add a mutant, write its fault
in a ``faulty_…`` module or beside the list, and list it with the rule that it breaks and the check that kills it.
"""

from __future__ import annotations

from reroute_spec.errors import unknown

from ..targets.reference_target import ReferenceTarget
from .core import CORE_MUTANTS
from .families import FAMILY_MUTANTS
from .methods import METHODS_MUTANTS
from .mutant import Mutant, patched
from .sessions import SESSION_MUTANTS

__all__ = ["MUTANTS", "Mutant", "mutant"]

MUTANTS = (*CORE_MUTANTS, *METHODS_MUTANTS, *SESSION_MUTANTS, *FAMILY_MUTANTS)


def mutant(name: str) -> ReferenceTarget:
    """The target of a mutant by name."""
    for entry in MUTANTS:
        if entry.name == name:
            return patched(entry)
    raise unknown("--target mutant", name, [entry.name for entry in MUTANTS])
