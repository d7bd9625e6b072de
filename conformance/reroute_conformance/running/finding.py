"""Finds a target by the name of an entry point, as a mutant, from a module, as a command, or in several processes.

It refuses a target that lacks members of the protocol or claims a profile, family or precision that is unknown.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any, cast

from reroute_spec import RerouteError
from reroute_spec.errors import unknown

from ..mutants import mutant
from ..protocol import DTYPES, FAMILIES, PROFILES, Target, missing_members
from ..targets.command import CommandTarget
from ..targets.one_thread import use_one_thread
from ..targets.ranks import RankedTarget


@dataclass(frozen=True)
class TargetName:
    """The name of a target as the command line gives it, from which every process makes a target of its own.

    Attributes:
        target: a name that :func:`load_target` takes; None where a command is given.
        command: as for :class:`~reroute_conformance.targets.command.CommandTarget`; None where a name is given.
        timeout: seconds that a command, or one process of a target in several, may take for a case.
        processes: how many processes run the target together.
    """

    target: str | None
    command: str | None = None
    timeout: float = 60.0
    processes: int = 1

    @contextmanager
    def made(self) -> Iterator[Target]:
        """The target; its process, where it is one, ends with the block.

        Raises:
            RerouteError: no such target, none or two named.
        """
        if (self.target is None) == (self.command is None):
            problem = "are both missing" if self.command is None else "are both given"
            raise RerouteError("--target, --cmd", problem, "Missing option: give exactly one of the two")
        if self.processes > 1 and self.command is not None:
            raise RerouteError("--nproc", "is given with --cmd", "a command starts its own processes")
        if self.target is not None and self.processes == 1:
            yield load_target(self.target)
            return
        started: CommandTarget | RankedTarget
        if self.target is None:
            started = CommandTarget(str(self.command), self.timeout)
        else:
            started = RankedTarget(partial(load_in_process, self.target), self.processes, self.timeout)
        try:
            yield cast(Target, started)
        finally:
            started.close()


def load_target(name: str) -> Target:
    """A target by entry point name (group ``reroute.targets``), ``mutant:NAME``, or ``package.module:factory``.

    Raises:
        RerouteError: no such target, or an object that is none.
    """
    points = {point.name: point for point in entry_points(group="reroute.targets")}
    if name in points:
        module, _, attribute = points[name].value.partition(":")
        factory = _import(name, module, attribute)
    elif name.startswith("mutant:"):
        return mutant(name.removeprefix("mutant:"))
    elif ":" in name:
        module, _, attribute = name.partition(":")
        if "" not in sys.path:
            sys.path.insert(0, "")  # a module in the working directory, as under `python -m`
        factory = _import(name, module, attribute)
    else:
        raise unknown("--target", name, [*points, "mutant:NAME", "package.module:factory"])
    target = _make(name, factory)
    if missing := missing_members(target):
        raise RerouteError(
            "--target", f"{name!r} has no {', '.join(missing)}", "see reroute_conformance.protocol.Target"
        )
    if not isinstance(target.name, str) or not target.name.isprintable() or not target.name:
        raise RerouteError(f"{name}.name", f"is {target.name!r}", "give a printable string")
    for claim, known in (("profiles", PROFILES), ("families", FAMILIES), ("dtypes", ("float32", *DTYPES))):
        claimed: Any = getattr(target, claim, frozenset())
        if not isinstance(claimed, (set, frozenset, list, tuple)):
            raise RerouteError(
                f"{name}.{claim}", f"is a {type(claimed).__name__}", "give a frozenset of names"
            )
        strange = [entry for entry in claimed if entry not in list(known)]
        if strange:
            raise RerouteError(
                f"{name}.{claim}", f"{sorted(map(str, strange))} are unknown", f"known: {', '.join(known)}"
            )
    _check_reasons(name, getattr(target, "unavailable", {}))
    return cast(Target, target)


def load_in_process(name: str) -> Target:
    """:func:`load_target`, as the processes of a target in several do it."""
    use_one_thread()
    return load_target(name)


def _check_reasons(name: str, given: Any) -> None:
    known = (*PROFILES, *DTYPES)
    if not isinstance(given, Mapping):
        raise RerouteError(
            f"{name}.unavailable", f"is a {type(given).__name__}", "give a dict of names and reasons"
        )
    for entry, reason in given.items():
        if entry not in known:
            raise RerouteError(f"{name}.unavailable", f"{entry!r} is unknown", f"known: {', '.join(known)}")
        if not isinstance(reason, str) or not reason.strip():
            raise RerouteError(
                f"{name}.unavailable", f"{entry} has the reason {reason!r}", "say why in words"
            )


def _import(name: str, module: str, attribute: str) -> Any:
    if not module or not attribute:
        raise RerouteError(
            "--target", f"{name!r} is no package.module:factory", "name a module and a factory in it"
        )
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise _unloadable(name, error) from None
    if not callable(getattr(loaded, attribute, None)):
        raise RerouteError(
            "--target", f"{name!r} cannot be loaded: {module} has no callable {attribute!r}", "name a factory"
        )
    return getattr(loaded, attribute)


def _make(name: str, factory: Any) -> Any:
    try:
        return factory()
    except RerouteError:
        raise
    except (Exception, SystemExit) as error:
        raise _unloadable(name, error) from None


def _unloadable(name: str, error: BaseException) -> RerouteError:
    """The error for a target whose own code raised, and where it did."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f", {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    problem = f"{name!r} cannot be loaded ({type(error).__name__}: {error}{place})"
    return RerouteError("--target", problem, "mend the module or its factory")
