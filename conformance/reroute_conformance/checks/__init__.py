"""The checks: what is drawn, how it is judged, which rules it exercises. One file per part of the specification."""

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
