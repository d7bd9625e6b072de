"""Judges presets by the table and the lists of the rules, and schedules by what is read back of them (RR-CFG-010 to 014).

The table is read from the text of RR-CFG-010. The lists of RR-CFG-013 stand here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

from reroute_spec import RerouteError, Schedule
from reroute_spec.rules import rule

from ..cases.presets import PresetCase
from ..protocol import Target
from ..targets.answers import MalformedError
from ..verdicts.verdict import Verdict
from .refusals import judge_refusal, refusal_of

_ROW = re.compile(
    r"^\| `(?P<method>[\w-]+)` \| `(?P<action>\w+)` \| (?P<at_32>[\d, ]+) \[(?P<at_28>[\d, ]+)\] \|(?P<keeps>.+)\|$"
)
_TIERS = ("192", "128", "64")


@dataclass(frozen=True)
class Stated:
    """The schedule that a rule states for a preset.

    Attributes:
        rule: the rule that states it.
        action: the action of the schedule.
        layers: the layers of the decisions, by the number of blocks that they are stated for; 32 is always among these.
        keeps: the keeps of the schedule at 32 blocks.
        rest: the other fields of the schedule at 32 blocks.
        at_28: the fields that are different at 28 blocks.
    """

    rule: str
    action: str
    layers: Mapping[int, list[int]]
    keeps: Sequence[Any]
    rest: Mapping[str, Any] = field(default_factory=dict)
    at_28: Mapping[str, Any] = field(default_factory=dict)

    def schedule(self, num_layers: int, layers: Sequence[int]) -> Schedule:
        """The schedule of a decoder, deciding at ``layers``."""
        changed: dict[str, Any] = {
            "keeps": self.keeps,
            **self.rest,
            **(self.at_28 if num_layers == 28 else {}),
        }
        keeps = changed.pop("keeps")
        decisions = [{"layer": layer, "keep": keep} for layer, keep in zip(layers, keeps, strict=True)]
        return Schedule.from_dict({"action": self.action, "decisions": decisions, **changed})


@cache
def stated() -> dict[str, Stated]:
    """Every preset: those of the table as it stands in the text of RR-CFG-010, and the lists of RR-CFG-013."""
    found: dict[str, Stated] = {}
    for row in filter(None, map(_ROW.match, rule("RR-CFG-010").statement.splitlines())):
        layers = {blocks: [int(d) for d in row[f"at_{blocks}"].split(",")] for blocks in (32, 28)}
        for tier, cell in zip(_TIERS, row["keeps"].split("|"), strict=True):
            ratios, _, times = cell.strip().partition(" \N{MULTIPLICATION SIGN}")
            keeps = ratios.split() * int(times or 1)
            found[f"{row['method']}-{tier}"] = Stated("RR-CFG-010", row["action"], layers, keeps)
    own: dict[str, Any] = {"score": {"source": "previous"}}
    reads_three = {
        "keeps": ["1/10"],
        "score": {"source": "previous", "query": "last_n", "n": 3, "heads": "max"},
    }
    found["fastv-original"] = Stated("RR-CFG-013", "delete", {32: [2]}, ["1/2"], own)
    found["pdrop-original"] = Stated(
        "RR-CFG-013", "delete", {32: [8, 16, 24]}, ["1/2", "1/4", "1/8"], {"positions": "renumber"}
    )
    for tier, rows in zip(_TIERS, (48, 32, 16), strict=True):
        found[f"nuwa-{tier}"] = Stated("RR-CFG-013", "delete", {32: [16], 28: [15]}, [rows], own, reads_three)
        found[f"reroute-nuwa-{tier}"] = Stated(
            "RR-CFG-013", "reroute", {32: [16, 20, 24, 28]}, [rows] * 4, {}, {"keeps": ["1/10"] * 4}
        )
    return found


def judge_preset(case: PresetCase, target: Target) -> Verdict:
    """A preset is what the rules state, where they state one; else it is refused by the field ``preset``."""
    verdict, name, depth = Verdict(), str(case.preset), case.num_layers
    blocks = None if case.attention_blocks is None else list(case.attention_blocks)
    given = None if blocks is None else list(blocks)
    answer, error = refusal_of(lambda: target.schedule(name, depth, given))
    what = stated().get(name)
    where = f"preset {name!r}, {depth} blocks" + ("" if blocks is None else f", plain attention at {blocks}")
    everywhere = list(range(depth)) if blocks is None else blocks
    unsnapped = [] if what is None else what.layers.get(depth) or _scaled(what.layers[32], depth)
    snapped = [min((block for block in everywhere if block >= d), default=-1) for d in unsnapped]
    due = "RR-CFG-010" if what is None else _refused_by(what, depth, unsnapped, snapped, everywhere)
    if due:
        verdict.exercised[due] += 1
        if error is None:
            verdict.violate(due, where, f"it was accepted: {answer}")
        else:
            judge_refusal(verdict, where, error, "preset")
        return verdict
    if error is not None:
        verdict.exercised["RR-ERR-003"] += 1
        verdict.violate("RR-ERR-003", where, f"no rule refuses it, yet it was refused: {error}")
        return verdict
    assert what is not None
    schedule = _read(answer)
    layers, label = [decision.layer for decision in schedule.decisions], schedule.label
    detail = f"it decides at {layers}, expected {snapped}; label {label!r}"
    bound: dict[str, Any] = {
        "layers": layers,
        "label": label,
        "unsnapped": unsnapped,
        "attention_blocks": everywhere,
    }
    if blocks is not None and not verdict.require("RR-CFG-012", where, detail, **bound):
        return verdict
    # where layers moved, those before are the right ones by what was just judged
    before = unsnapped if blocks is not None else layers
    original = what.schedule(depth, layers if len(layers) == len(unsnapped) else unsnapped)
    detail = f"{detail}; it is {schedule.to_dict()}, stated is {original.to_dict()}"
    table = {"published": what.layers.get(depth), "published_32": what.layers[32], "num_layers": depth}
    # of an original method it is the layers and the label that this rule is about
    scaled: dict[str, Any] = {
        "layers": before,
        "label": label,
        "schedule": schedule,
        "original": schedule,
        **table,
    }
    if what.rule == "RR-CFG-010":
        scaled["original"] = original
    verdict.require("RR-CFG-010", where, detail, **scaled)
    if what.rule == "RR-CFG-013":
        verdict.require("RR-CFG-013", where, detail, schedule=schedule, original=original)
    return verdict


def _refused_by(
    what: Stated, depth: int, unsnapped: Sequence[int], snapped: Sequence[int], blocks: Sequence[int]
) -> str:
    """The rule that refuses a preset at a depth and with these blocks of plain attention, or nothing."""
    if len(set(unsnapped)) < len(unsnapped):
        return "RR-CFG-010"
    reads = what.schedule(32, what.layers[32]).score.source == "previous"
    apart = -1 not in snapped and len(set(snapped)) == len(snapped)
    return "" if apart and not (reads and any(d - 1 not in blocks for d in snapped)) else "RR-CFG-012"


def _scaled(layers: Sequence[int], depth: int) -> list[int]:
    """As RR-CFG-010 scales them; its check says so again of what was answered."""
    return [int(Fraction(d * depth, 32) + Fraction(1, 2)) for d in layers]


def judge_read_back(case: PresetCase, target: Target) -> Verdict:
    """A schedule as data is read as the same schedule that it says, whatever its keeps look like."""
    verdict, data = Verdict(), deepcopy(case.schedule)
    answer = target.schedule(data, case.num_layers, None)
    _read(answer)
    schedule = Schedule.from_dict(case.schedule)
    detail = f"{case.schedule} was read and written as {answer}"
    named: dict[str, Any] = {"from_dict": Schedule.from_dict, "to_dict": lambda _: answer}
    verdict.require("RR-CFG-014", "schedule", detail, schedule=schedule, **named)
    return verdict


def _read(answer: Any) -> Schedule:
    """A schedule that a target wrote as data.

    Raises:
        MalformedError: it is none.
    """
    try:
        return Schedule.from_dict(answer)
    except RerouteError as error:
        raise MalformedError(f"schedule returned {answer!r}, which is no schedule ({error})") from None
