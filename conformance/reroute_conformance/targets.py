"""Finding targets, and the reference as a target of its own suite."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, cast

import torch
from reroute_reference import CanonicalDecoder, forced_logits, generate, run
from reroute_spec import RerouteError, Schedule, plan, select
from reroute_spec.errors import unknown
from torch import Tensor, nn

from .protocol import PROFILES, Model, Target


class ReferenceTarget:
    """The reference behind the target protocol; mutants are small overrides of it."""

    name = "reference"
    profiles = frozenset(PROFILES)

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
        return observe(
            CanonicalDecoder(*model) if isinstance(model, tuple) else model,
            inputs,
            schedule,
            decisions,
            continuation,
        )

    def generate(
        self, model: nn.Module, inputs: Mapping[str, Any], schedule: Schedule, max_new_tokens: int
    ) -> Tensor:
        """See :class:`~reroute_conformance.protocol.Target`."""
        return generate(model, inputs, schedule, max_new_tokens)


def observe(
    model: nn.Module | CanonicalDecoder,
    inputs: Mapping[str, Any],
    schedule: Schedule,
    decisions: Sequence[Sequence[Sequence[int]]] | None,
    continuation: Tensor | None,
) -> list[dict[str, Any]]:
    """One run of the reference in the form that :meth:`Target.run` returns."""
    output = run(model, inputs, schedule, decisions=decisions)
    observed = []
    for row, trace in enumerate(output.traces):
        cached = [output.cache[row].keys_values(layer) for layer in range(len(output.kv_lengths))]
        logits = output.logits[row]
        observed.append(
            {
                "trace": trace,
                "residuals": output.residuals[row],
                "logits": logits[~logits.isnan().all(-1)],
                "keys": [keys.clone() for keys, _ in cached],
                "values": [values.clone() for _, values in cached],
                "decode_logits": torch.empty(0, logits.shape[-1], dtype=logits.dtype),
            }
        )
        if continuation is not None:
            observed[-1]["decode_logits"] = forced_logits(model, output.cache[row], continuation[row])
    return observed


def reference() -> Target:
    """The reference as a target."""
    return ReferenceTarget()


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
        from .mutants import (
            mutant,  # mutants are targets themselves: importing them at the top would be a cycle
        )

        return mutant(name.removeprefix("mutant:"))
    elif ":" in name:
        module, _, attribute = name.partition(":")
        if "" not in sys.path:
            sys.path.insert(0, "")  # a module in the working directory, as under `python -m`
        factory = _import(name, module, attribute)
    else:
        raise unknown("--target", name, [*points, "mutant:NAME", "package.module:factory"])
    target = _make(name, factory)
    missing = [
        member
        for member in ("name", "profiles", "select", "plan", "run", "generate")
        if not hasattr(target, member)
    ]
    if missing:
        raise RerouteError(
            "--target", f"{name!r} has no {', '.join(missing)}", "see reroute_conformance.protocol.Target"
        )
    if not isinstance(target.profiles, (set, frozenset, list, tuple)):
        raise RerouteError(
            f"{name}.profiles", f"is a {type(target.profiles).__name__}", "give a frozenset of names"
        )
    strange = set(target.profiles) - set(PROFILES)
    if strange:
        raise RerouteError(
            f"{name}.profiles", f"{sorted(map(str, strange))} are unknown", f"known: {', '.join(PROFILES)}"
        )
    return cast(Target, target)


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
