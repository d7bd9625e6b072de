"""Runs every case of the chosen suites on the targets and on what stands beside them, and returns the run as plain data.

The data have the form of ``schemas/bench.json``, but for the command and the date. A target that raises at a case, or
claims more than the machine can do, is left out of that case with the reason. The others are measured all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from reroute_spec import RerouteError, cost
from reroute_spec.errors import unknown
from reroute_spec.schemas import schema

from .admission import Admitted
from .floors import Floor
from .machine import Place, Rates, facts
from .memory import cache_bytes, fits, kv_bytes, peak_bytes_on
from .models import decoder
from .subjects import BESIDE, Subject, UnmeasuredError, subject_of
from .suites import PRESETS, SUITES, Case
from .timing import Call, CallError, Times, measure, times_faster, until_calm
from .works import PLAIN, UNROUTED, Work

FORMAT: str = schema("bench")["$id"]
DEFAULT = tuple(name for name in SUITES if name != "scaling")
_BASES = (UNROUTED, "reference")
_SLOW = ("reference",)
_CREDIBLE = 1.5
"""A target that seems to do more than so many times the measured rates of the machine does not do the work."""
_ALLOWANCE, _SCALING = 140.0, 240.0
"""Seconds that the attempts at all cases of a suite may take, so that it ends on a slow machine too."""


def chosen_suites(names: Sequence[str]) -> list[Case]:
    """The cases of the suites by name, in the order of the report.

    Raises:
        RerouteError: no such suite.
    """
    for name in names:
        if name not in SUITES:
            raise unknown("--suite", name, list(SUITES))
    return [case for name, cases in SUITES.items() if name in names for case in cases()]


def run_cases(
    cases: Sequence[Case],
    admitted: Sequence[Admitted],
    place: Place,
    rates: Rates,
    rounds: int,
    on_case: Callable[[Case], None] = lambda case: None,
    so_far: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Measure; the result has everything but the command and the date.

    Args:
        cases: in order.
        admitted: targets, those without one are only told of.
        place: where.
        rates: the most that it does.
        rounds: of every timed case.
        on_case: called before each.
        so_far: called after each, with what there is until then.
    """
    records: list[dict[str, Any]] = []
    record = {
        "format": FORMAT,
        "machine": facts(place),
        "rates": asdict(rates),
        "targets": [
            {
                "name": entry.name,
                "smoke": entry.smoke,
                "timed": entry.target is not None,
                "reason": entry.reason,
            }
            for entry in admitted
        ],
        "cases": records,
        "fits": fits(PRESETS) if any(case.suite == "memory" for case in cases) else [],
    }
    sharing = Counter(case.suite for case in cases)
    for case in cases:
        on_case(case)
        if case.suite == "memory":
            records.append(_weighed(case, admitted, place))
        else:
            seconds = (_SCALING if case.suite == "scaling" else _ALLOWANCE) / sharing[case.suite]
            records.append(_timed(case, admitted, place, rates, rounds, seconds))
        so_far(record)
    decoder.cache_clear()
    return record


def _timed(
    case: Case, admitted: Sequence[Admitted], place: Place, rates: Rates, rounds: int, seconds: float
) -> dict[str, Any]:
    work = case.make(place)
    calls: dict[str, Call] = {}
    unmeasured: dict[str, str] = {}
    subjects = {subject.name: subject for subject in _subjects(admitted)}
    for name, subject in subjects.items():
        if case.slow and name in _SLOW:
            unmeasured[name] = "too large for an implementation that is written to be read"
            continue
        try:
            calls[name] = subject.prepare(work)
        except UnmeasuredError as reason:
            unmeasured[name] = str(reason)

    def attempt() -> dict[str, Times]:
        return measure(calls, rounds, settle=place.settle, limit=seconds / 2)

    asked = {entry.name for entry in admitted}
    while True:
        base = next((name for name in _BASES if name in calls), next(iter(calls)))
        try:
            times, tries = until_calm(attempt, _unrest, patience=seconds)
            break
        except CallError as failure:  # the others are measured all the same
            if failure.name not in asked:
                raise
            del calls[failure.name]
            unmeasured[failure.name] = str(failure)
    measured = {
        name: _figures(own, times, base, subjects[name].routed, _floor(work, subjects[name], rates))
        for name, own in times.items()
    }
    for name in [name for name, own in measured.items() if own["reached"] > _CREDIBLE and name in asked]:
        reached = measured.pop(name)["reached"]
        unmeasured[name] = (
            f"it would do {reached:.1f} times what this machine can: what its prepare returns does not do the work"
        )
    return {
        **_named(case),
        "base": base,
        "tries": tries,
        "spread": _unrest(times),
        "measured": measured,
        "unmeasured": {entry.name: unmeasured[entry.name] for entry in admitted if entry.name in unmeasured},
    }


def _unrest(times: dict[str, Times]) -> float:
    """The largest spread of anybody but the reference, whose time no figure of a fast implementation rests on."""
    return max((own.spread for name, own in times.items() if name not in _SLOW), default=0.0)


def _subjects(admitted: Sequence[Admitted]) -> Iterator[Subject]:
    for beside in BESIDE:
        yield beside()
    for entry in admitted:
        if entry.target is not None:
            yield subject_of(entry.target, entry.name)


def _floor(work: Work, subject: Subject, rates: Rates) -> Floor:
    return Floor.of(work.parts if subject.routed else work.unrouted_parts, rates)


def _figures(own: Times, times: dict[str, Times], base: str, routed: bool, floor: Floor) -> dict[str, Any]:
    low, high = own.quartiles
    figures: dict[str, Any] = {
        "median_s": own.median,
        "least_s": own.least,
        "quartiles_s": [low, high],
        "rounds": len(own.seconds),
        "calls": own.calls,
        "faster": list(times_faster(times[base], own)),
        "floor": asdict(floor),
        "reached": floor.seconds / own.median,
    }
    if "reference" in times:
        figures["of_reference"] = list(times_faster(times["reference"], own))
    if routed and PLAIN in times:
        figures["of_floor"] = list(times_faster(times[PLAIN], own))
    return figures


def _weighed(case: Case, admitted: Sequence[Admitted], place: Place) -> dict[str, Any]:
    """Bytes instead of seconds."""
    work = case.make(place)
    assert work.plan is not None
    assert work.shape is not None
    targets = {entry.name: entry.target for entry in admitted if entry.target is not None}
    routed, batch = (
        cost(work.plan, work.shape, place.element_bytes),
        len(work.data["inputs"]["inputs_embeds"]),
    )
    measured: dict[str, Any] = {}
    unmeasured: dict[str, str] = {}
    for subject in _subjects(admitted):
        try:
            with torch.no_grad():
                call = subject.prepare(work)
                weighed = {"peak_bytes": peak_bytes_on(place.device, call)}
                if subject.name == UNROUTED:
                    weighed["kv_bytes"] = cache_bytes(call())
            if subject.name in targets:
                weighed["kv_bytes"] = kv_bytes(targets[subject.name], work)
        except UnmeasuredError as reason:
            unmeasured[subject.name] = str(reason)
        except Exception as error:  # the others are weighed all the same
            if subject.name not in targets:
                raise
            unmeasured[subject.name] = f"it raised {type(error).__name__}: {error}"
        else:
            measured[subject.name] = weighed
    return {
        **_named(case),
        "plan_kv_bytes": batch * routed.kv_bytes,
        "unrouted_kv_bytes": batch * routed.unrouted_kv_bytes,
        "measured": measured,
        "unmeasured": {name: reason for name, reason in unmeasured.items() if name in targets},
    }


def _named(case: Case) -> dict[str, Any]:
    return {"suite": case.suite, "case": case.name, "parameters": dict(case.parameters), "axis": case.axis}


def check_device(device: str) -> Place:
    """Where to measure.

    Raises:
        RerouteError: no such device here.
    """
    if device not in ("cpu", "cuda"):
        raise unknown("--device", device, ["cpu", "cuda"])
    if device == "cuda" and not torch.cuda.is_available():
        raise RerouteError("--device", "'cuda' is not here", "use cpu, or a machine with a GPU")
    return Place.of(device)
