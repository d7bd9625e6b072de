"""Loads the targets that are to be timed, by name or from a file, and lets each of them through the conformance smoke.

A target that fails the smoke gets no speed. Where the reference itself fails it, the suite does not work here, and
nothing is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch
from reroute_spec import RerouteError

from ...protocol import Target
from ...running.finding import load_target
from ...running.smoke import smoked
from ...targets.one_thread import use_one_thread
from ...targets.reference_target import ReferenceTarget
from .works import MAP, PLAIN, UNROUTED

PASSES, FAILS, NOT_ASKED = "passes", "fails", "not asked"
_FACTORY = "target"
TAKEN = (UNROUTED, PLAIN, MAP)
"""Names of what is measured beside the targets."""


@dataclass(frozen=True)
class Admitted:
    """A target that was asked for, and whether it is timed.

    Attributes:
        name: the name that it gives itself, with a number where that name is taken.
        target: the target; None where it is not timed.
        smoke: ``passes``, ``fails``, or ``not asked`` where it is not timed for another reason.
        reason: why it is not timed; empty where it is.
    """

    name: str
    target: Target | None
    smoke: str
    reason: str = ""


def admit(names: Sequence[str], files: Sequence[Path] = ()) -> list[Admitted]:
    """Load every target and let it through the smoke.

    Args:
        names: as for :func:`~reroute_conformance.running.finding.load_target`.
        files: Python files with a factory ``target()``, the adapter of an implementation that lives elsewhere.

    Raises:
        RerouteError: no such target or file.
    """
    loaded = _told_apart([_timed(load_target(name)) for name in names] + [_from_file(path) for path in files])
    threads = torch.get_num_threads()
    try:
        use_one_thread()
        return [entry if entry.target is None else _smoked(entry) for entry in loaded]
    finally:
        torch.set_num_threads(threads)


def _told_apart(entries: Sequence[Admitted]) -> list[Admitted]:
    """The same targets; one that calls itself like another before it, or like what stands beside all of them, is numbered."""
    found: dict[str, Admitted] = {}
    for entry in entries:
        name, number = entry.name, 2
        while name in found or name in TAKEN:
            name, number = f"{entry.name} ({number})", number + 1
        found[name] = replace(entry, name=name)
    return list(found.values())


def _from_file(path: Path) -> Admitted:
    """The target that a file's factory makes; the file may import what stands beside it."""
    if path.suffix != ".py" or not path.is_file():
        raise RerouteError(
            "--external", f"{path} is no Python file", f"give a file with a factory {_FACTORY}()"
        )
    name = f"reroute_external_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        problem = f"{path} cannot be loaded ({type(error).__name__}: {error})"
        raise RerouteError(
            "--external", problem, "mend the file, or make what it imports importable"
        ) from None
    return _timed(load_target(f"{name}:{_FACTORY}"))


def _timed(target: Target) -> Admitted:
    reason = str(getattr(target, "untimed", ""))
    return Admitted(target.name, None, NOT_ASKED, reason) if reason else Admitted(target.name, target, PASSES)


def _smoked(entry: Admitted) -> Admitted:
    assert entry.target is not None
    ours = type(entry.target) is ReferenceTarget  # which tells whether the suite works here
    report = smoked(entry.target, core=ours)
    if not report.results:
        reasons = ", ".join(dict.fromkeys(report.reasons.values())) or "it claims nothing that the smoke asks"
        return Admitted(entry.name, None, NOT_ASKED, reasons)
    broken = dict.fromkeys(failure.violation.rule for failure in report.failures)
    if not broken:
        return entry
    if ours:
        remedy = "see what vlm-reroute smoke says"
        raise RerouteError(
            "conformance smoke", "fails on the reference itself: the suite does not work here", remedy
        )
    reason = f"it breaks {', '.join(broken)}: what is not Reroute gets no speed"
    return Admitted(entry.name, None, FAILS, reason)
