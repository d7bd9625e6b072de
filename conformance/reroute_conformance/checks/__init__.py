"""Pairs the cases with their judges in named checks, and says which rules a whole run of each check must exercise.

This room may import ``vectors``, ``judging`` and every room before them. It must not import ``mutants`` or any room
after it, and it runs nothing: ``running`` does. To add a check, list a ``Check`` in the module of its part of the
specification. A new module has to be listed in ``checks`` of this file.
"""

from __future__ import annotations

from functools import cache

from .check import Check
from .core import core_checks
from .families import family_checks
from .methods import methods_checks
from .sessions import session_checks
from .vectors import vector_checks

__all__ = ["Check", "checks"]


@cache
def checks() -> tuple[Check, ...]:
    """All checks, in the order of the report."""
    return (*core_checks(), *methods_checks(), *session_checks(), *family_checks(), *vector_checks())
