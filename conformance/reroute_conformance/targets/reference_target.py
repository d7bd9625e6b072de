"""Finding targets, and the reference as a target of its own suite."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, cast

from reroute_reference import CanonicalDecoder, forced_logits, generate, prefix_of, run
from reroute_reference.nuwa import first_stage
from reroute_spec import RerouteError, Schedule, plan, select
from reroute_spec.errors import unknown
from reroute_spec.presets import preset
from torch import Tensor, nn

from ..protocol import DTYPES, FAMILIES, PROFILES, Model, Target, missing_members
from .reference_session import ReferenceSession, loaded, observe
from .reference_work import prepared


class ReferenceTarget:
    """The reference behind the target protocol; mutants are small overrides of it."""

    name = "reference"
    profiles = frozenset(PROFILES)
    families = frozenset(FAMILIES)
    device = "cpu"

    def select(self, scores: Tensor, k: int) -> Sequence[int]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        return select(scores.tolist(), k)

    def plan(
        self, schedule: Mapping[str, Any], num_layers: int, visual: Sequence[bool], images: Sequence[int]
    ) -> Sequence[int]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        return plan(Schedule.from_dict(schedule), num_layers, visual, images).kv_rows

    def run(
        self,
        model: Model,
        inputs: Mapping[str, Any],
        schedule: Schedule,
        *,
        decisions: Sequence[Sequence[Sequence[int]]] | None = None,
        continuation: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        network = loaded(model)
        output = run(network, inputs, schedule, decisions=decisions)
        return [
            {**observed, "decode_logits": forced_logits(network, output.cache[b], continuation[b])}
            if continuation is not None
            else observed
            for b, observed in enumerate(observe(output))
        ]

    def generate(
        self, model: nn.Module, inputs: Mapping[str, Any], schedule: Schedule, max_new_tokens: int
    ) -> Tensor:
        """See :class:`~reroute_conformance.protocol.Target`."""
        return generate(model, inputs, schedule, max_new_tokens)

    def session(
        self, model: Model, schedule: Schedule, operations: Sequence[Mapping[str, Any]]
    ) -> list[list[dict[str, Any]] | Exception]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        session, done = self.opened(model, schedule), list[list[dict[str, Any]] | Exception]()
        for operation in operations:
            try:
                done.append(session.step(operation))
            except RerouteError as refusal:
                done.append(refusal)
        return done

    def opened(self, model: Model, schedule: Schedule) -> ReferenceSession:
        """A session in which nothing has been done yet."""
        return ReferenceSession(loaded(model), schedule)

    def schedule(
        self,
        given: str | Mapping[str, Any],
        num_layers: int,
        attention_blocks: Sequence[int] | None = None,
    ) -> Mapping[str, Any]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        if not isinstance(given, str):
            return Schedule.from_dict(given).to_dict()
        return preset(given, num_layers, attention_blocks).to_dict()

    def first_stage(self, model: nn.Module, inputs: Mapping[str, Any], tier: str) -> Mapping[str, Any]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        return first_stage(model, inputs, tier)

    def run_prefix(
        self, model: Model, inputs: Sequence[Mapping[str, Any]], schedule: Schedule, rows: int
    ) -> list[list[dict[str, Any]]]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        network = loaded(model)
        prefix = prefix_of(network, inputs[0], schedule, rows)
        return [observe(run(network, batch, schedule, prefix=prefix)) for batch in inputs]

    def run_shards(
        self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, shards: int
    ) -> list[list[dict[str, Any]]]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        if not isinstance(model, tuple):
            raise RerouteError("model", "is a module", "the reference shards canonical decoders only")
        output = run(CanonicalDecoder(*model, shards=shards), inputs, schedule)
        return [observe(output) for _ in range(shards)]

    def prepare(self, work: str, given: Mapping[str, Any]) -> Callable[[], object] | None:
        """See :class:`~reroute_conformance.protocol.Timed`."""
        return prepared(work, given)


def reference() -> Target:
    """The reference as a target."""
    return ReferenceTarget()


@dataclass(frozen=True)
class TargetName:
    """How the command line names a target; every process makes its own of it.

    Attributes:
        target: as for :func:`load_target`; None where there is a command.
        command: as for :class:`~reroute_conformance.targets.command.CommandTarget`.
        timeout: seconds that a command, or a process of several, may take for a case.
        processes: that run the target together.
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
        from .command import CommandTarget
        from .ranks import RankedTarget

        started: CommandTarget | RankedTarget
        if self.target is None:
            started = CommandTarget(str(self.command), self.timeout)
        else:
            started = RankedTarget(self.target, self.processes, self.timeout)
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
        from ..mutants import mutant

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
