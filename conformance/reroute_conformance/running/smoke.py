"""Runs one or two cases of every fast check, to tell in seconds whether a target runs at all and gets the plain things right.

The smoke leaves out the profiles of ``_SLOW`` and gives no verdict.
"""

from __future__ import annotations

from ..protocol import Target
from .results import Report
from .runner import chosen_profiles, claimed_checks, report_of, run_check

_EXAMPLES = 2
_SLOW = ("hf", "nuwa", "low-precision")
"""The profiles that a smoke leaves out. They run whole models; the others show the same of the canonical decoder in seconds."""


def smoked(target: Target, *, core: bool = False) -> Report:
    """What a few cases of ``target`` show.

    Args:
        target: asked in the profiles that it claims.
        core: whether no others are than ``core``: enough to tell whether the suite works here.
    """
    chosen = [
        check
        for check in claimed_checks(target, target.profiles)
        if (check.profile == "core" if core else check.profile not in _SLOW)
    ]
    results = [run_check(check, target, _EXAMPLES) for check in chosen]
    return report_of(target, chosen_profiles(target, None), results)
