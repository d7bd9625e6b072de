"""Wrong implementations that the suite must kill: the reference with one small thing changed, and the rule it breaks.

``mutant`` says what one is, ``faults`` are functions of the reference with one small thing wrong, ``targets`` whole targets that
are wrong; the other files list the mutants, one file per part of the specification.
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
