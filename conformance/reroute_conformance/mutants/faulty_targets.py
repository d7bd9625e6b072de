"""Provides targets that answer wrongly: they mend schedules, run other schedules, or change answers after the fact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from reroute_spec import Decision, DecisionRecord, RerouteError, Schedule
from torch import Tensor, nn

from ..protocol import Model
from ..targets.reference_target import ReferenceTarget

_Answers = list[dict[str, Any]]


# Schedules


def of_other_data(change: Callable[[dict[str, Any]], None]) -> type[ReferenceTarget]:
    """A target that mends a schedule instead of refusing it."""

    class Mends(ReferenceTarget):
        def plan(self, schedule: Mapping[str, Any], *layout: Any) -> Sequence[int]:
            data = deepcopy(dict(schedule))
            change(data)
            return super().plan(data, *layout)

    return Mends


def each_decision(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """A change of every decision of a schedule."""

    def changed(data: dict[str, Any]) -> None:
        for decision in data["decisions"]:
            change(decision)

    return changed


def layers_sorted(data: dict[str, Any]) -> None:
    """Layers in any order are put in order."""
    if all(isinstance(decision["layer"], int) for decision in data["decisions"]):
        layers = sorted(decision["layer"] for decision in data["decisions"])
        for decision, layer in zip(data["decisions"], layers, strict=True):
            decision["layer"] = layer


def layer_from_the_end(decision: dict[str, Any]) -> None:
    """A negative layer counts from the end of four blocks."""
    if isinstance(decision["layer"], int) and -4 <= decision["layer"] < 0:
        decision["layer"] += 4


def ratio_capped(decision: dict[str, Any]) -> None:
    """A ratio above 1 keeps all."""
    if decision["keep"] == "2":
        decision["keep"] = "1"


def float_read(decision: dict[str, Any]) -> None:
    """A binary float is read as its shortest decimal."""
    if isinstance(decision["keep"], float) and not decision["keep"].is_integer():
        decision["keep"] = str(decision["keep"])


def pool_of_delete(data: dict[str, Any]) -> None:
    """`delete` with all rows as candidates is taken as `survivors`."""
    if data["action"] == "delete" and data.get("pool") == "all":
        data["pool"] = "survivors"


def positions_preserved(data: dict[str, Any]) -> None:
    """`renumber` of `reroute` is passed over."""
    if data["action"] == "reroute" and data.get("positions") == "renumber":
        data["positions"] = "preserve"


class RefusesWithoutAField(ReferenceTarget):
    """A target whose refusals say neither where the fault is nor what would be right."""

    def plan(self, *given: Any) -> Sequence[int]:
        """Answer with the fault of this class."""
        try:
            return super().plan(*given)
        except ValueError as error:
            raise ValueError(str(error)) from None


def decides_anyway(schedule: Schedule) -> Schedule:
    """A schedule without decisions gets one."""
    return schedule if schedule.decisions else replace(schedule, decisions=(Decision(0, 1),))


def empty_decisions(row: dict[str, Any], schedule: Schedule) -> None:
    """Decisions about no rows are recorded for a request without any."""
    trace = row["trace"]
    if not trace.visual_rows:
        made = [
            DecisionRecord(d.layer, j, (), (), (), (), (), None)
            for j, d in enumerate(schedule.decisions, start=1)
        ]
        row["trace"] = replace(trace, decisions=tuple(made))


# Targets


class FirstRowDecides(ReferenceTarget):
    """A target that uses row 0's decision for the whole batch, as far as its ordinals fit the other rows' budgets."""

    def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """Answer with the fault of this class."""
        own = super().run(model, inputs, schedule, **rest)
        first = own[0]["trace"]
        shared = [
            [r.selected for r in (first if _same_shape(first, row["trace"]) else row["trace"]).decisions]
            for row in own
        ]
        observed = super().run(model, inputs, schedule, **{**rest, "decisions": shared})
        for row in observed if rest.get("decisions") is None else ():
            made = tuple(replace(record, would_select=None) for record in row["trace"].decisions)
            row["trace"] = replace(row["trace"], decisions=made)
        return observed


def _same_shape(a: Any, b: Any) -> bool:
    return len(a.visual_rows) == len(b.visual_rows)


class Leaking(ReferenceTarget):
    """A target that lets a text-only request see the mean logit of the request with images before it."""

    def __init__(self) -> None:
        self.left_behind: Tensor | None = None

    def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """Answer with the fault of this class."""
        observed = super().run(model, inputs, schedule, **rest)
        if any(row["trace"].visual_rows for row in observed):
            self.left_behind = observed[0]["logits"].mean()
        elif self.left_behind is not None and isinstance(model, nn.Module):
            for row in observed:
                row["logits"] = row["logits"] + self.left_behind
        return observed


def of_another_schedule(change: Callable[[Schedule], Schedule]) -> type[ReferenceTarget]:
    """A target that runs something else than what it is asked for."""

    class Changed(ReferenceTarget):
        def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
            return super().run(model, inputs, change(schedule), **rest)

    return Changed


def of_other_answers(change: Callable[[dict[str, Any], Schedule], None]) -> type[ReferenceTarget]:
    """A target whose answer to every request is changed after the fact."""

    class Changed(ReferenceTarget):
        def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
            observed = super().run(model, inputs, schedule, **rest)
            for row in observed:
                change(row, schedule)
            return observed

    return Changed


def survivors_only(row: dict[str, Any], schedule: Schedule) -> None:
    """Logits of the rows that ran last, whatever the action."""
    trace = row["trace"]
    if trace.decisions and schedule.action == "reroute":
        gone = {trace.visual_rows[ordinal] for ordinal in trace.decisions[-1].deferred}
        row["logits"] = row["logits"][[i for i in range(trace.num_rows) if i not in gone]]


def misplaced_write_back(row: dict[str, Any], schedule: Schedule) -> None:
    """Rows written back one place further after a stage of several blocks."""
    layers = [record.layer for record in row["trace"].decisions]
    for first, end in zip(layers, [*layers[1:], len(row["keys"])], strict=True):
        if end - first > 1:
            ran = row["residuals"][end].clone()
            ran[-2:] = ran[-2:].flip(0)
            row["residuals"][end] = ran


def without_last_key(row: dict[str, Any], schedule: Schedule) -> None:
    """A cache whose last row is missing in the last block."""
    for name in ("keys", "values"):
        row[name][-1] = row[name][-1][:, :-1]


def shortcut_where_all_run(row: dict[str, Any], schedule: Schedule) -> None:
    """Another path where every candidate is kept, and its output is off."""
    if row["trace"].decisions and not any(record.deferred for record in row["trace"].decisions):
        row["logits"] = row["logits"] * 1.001


def in_float16(row: dict[str, Any], schedule: Schedule) -> None:
    """Outputs that were float16 on their way."""
    row["residuals"] = {layer: x.half().to(x.dtype) for layer, x in row["residuals"].items()}


def noisy(row: dict[str, Any], schedule: Schedule) -> None:
    """Bits that depend on what was drawn before: within every tolerance."""
    row["logits"] = row["logits"] * (1 + 1e-7 * torch.rand(()))


def noisy_values(row: dict[str, Any], schedule: Schedule) -> None:
    """Cached values whose bits depend on what was drawn before: within every tolerance."""
    row["values"][-1] = row["values"][-1] * (1 + 1e-7 * torch.rand(()))


def would_select_what_ran(row: dict[str, Any], schedule: Schedule) -> None:
    """The replayed selection in place of what the scores would have selected."""
    made = tuple(replace(r, would_select=r.would_select and r.selected) for r in row["trace"].decisions)
    row["trace"] = replace(row["trace"], decisions=made)


class NamesAnotherField(ReferenceTarget):
    """A target whose errors always name the same field."""

    def plan(self, *given: Any) -> Sequence[int]:
        """Answer with the fault of this class."""
        try:
            return super().plan(*given)
        except RerouteError as error:
            raise RerouteError("label", error.problem, error.remedy) from None


class PaddingCounts(ReferenceTarget):
    """A target that treats padding as a row like any other."""

    def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """Answer with the fault of this class."""
        everything = {"attention_mask": torch.ones_like(inputs["attention_mask"])}
        return super().run(model, {**inputs, **everything}, schedule, **rest)


class IgnoresReplay(ReferenceTarget):
    """A target that decides for itself, whatever decisions it is given."""

    def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """Answer with the fault of this class."""
        return super().run(model, inputs, schedule, **{**rest, "decisions": None})


class RaisesOnOneVisualRow(ReferenceTarget):
    """A target that raises an error on a request with one visual row, like a kernel that cannot run one candidate."""

    def run(self, model: Model, inputs: Mapping[str, Any], schedule: Schedule, **rest: Any) -> _Answers:
        """Answer with the fault of this class."""
        observed = super().run(model, inputs, schedule, **rest)
        if any(len(row["trace"].visual_rows) == 1 for row in observed):
            raise ValueError("a tile needs two candidates")
        return observed
