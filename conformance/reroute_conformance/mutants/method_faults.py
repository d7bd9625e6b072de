"""Presets and methods with one small thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, TypeAlias

from reroute_spec import Decision, Schedule
from reroute_spec.presets import preset, presets

from ..targets import ReferenceTarget

Change: TypeAlias = Callable[[Schedule, str, int, Sequence[int] | None], Schedule]


# Presets


class _OtherPresets(ReferenceTarget):
    def named(self, name: str, num_layers: int, blocks: Sequence[int] | None) -> Schedule:
        """The schedule of a preset."""
        return preset(name, num_layers, blocks)

    def schedule(self, given: Any, num_layers: int, attention_blocks: Any = None) -> Mapping[str, Any]:
        """See :class:`~reroute_conformance.protocol.Target`."""
        if not isinstance(given, str):
            return super().schedule(given, num_layers, attention_blocks)
        return self.named(given, num_layers, attention_blocks).to_dict()


def of_other_presets(change: Change) -> type[ReferenceTarget]:
    """A target whose presets, where there are any, are changed after the fact."""

    class Changed(_OtherPresets):
        def named(self, name: str, num_layers: int, blocks: Sequence[int] | None) -> Schedule:
            return change(preset(name, num_layers, blocks), name, num_layers, blocks)

    return Changed


def _moved(schedule: Schedule, layers: Sequence[int]) -> Schedule:
    if len(set(layers)) < len(layers) or (0 in layers and schedule.score.source == "previous"):
        return schedule
    moved = zip(layers, schedule.decisions, strict=True)
    return replace(schedule, decisions=tuple(Decision(layer, decision.keep) for layer, decision in moved))


def layers_truncated(schedule: Schedule, name: str, depth: int, blocks: Any) -> Schedule:
    """Scaled layers are cut down, not rounded."""
    published = [decision.layer for decision in preset(name).decisions]
    unchanged = blocks is not None or depth in (28, 32)
    return schedule if unchanged else _moved(schedule, [layer * depth // 32 for layer in published])


def keeps_of_another_tier(schedule: Schedule, name: str, depth: int, blocks: Any) -> Schedule:
    """The keeps of tier 128 in tier 192."""
    return preset(name.replace("-192", "-128"), depth, blocks) if name.startswith("pdrop") else schedule


def label_silent(schedule: Schedule, name: str, *_: Any) -> Schedule:
    """A label that says nothing but the name."""
    return replace(schedule, label=name)


class MergesCollisions(_OtherPresets):
    """Decisions that fall on one block become the later one of them."""

    def named(self, name: str, num_layers: int, blocks: Sequence[int] | None) -> Schedule:
        """As named."""
        if blocks is not None or name not in presets():
            return preset(name, num_layers, blocks)
        whole = preset(name)
        at = {int(Fraction(d.layer * num_layers, 32) + Fraction(1, 2)): d.keep for d in whole.decisions}
        if len(at) == len(whole.decisions) or max(at) >= num_layers:
            return preset(name, num_layers, blocks)
        return replace(whole, decisions=tuple(Decision(layer, keep) for layer, keep in at.items()))


def snaps_down(schedule: Schedule, name: str, depth: int, blocks: Sequence[int] | None) -> Schedule:
    """A layer without plain attention becomes the block before that has."""
    if blocks is None:
        return schedule
    layers = [decision.layer for decision in preset(name, depth).decisions]
    down = [max((block for block in blocks if block <= layer), default=layer) for layer in layers]
    return _moved(schedule, down)


def not_snapped(schedule: Schedule, name: str, depth: int, blocks: Sequence[int] | None) -> Schedule:
    """Layers stay, whatever their blocks are."""
    return schedule if blocks is None else replace(preset(name, depth), label=schedule.label)


class ReadsAnyBlock(_OtherPresets):
    """`previous` of a block without plain attention is taken."""

    def named(self, name: str, num_layers: int, blocks: Sequence[int] | None) -> Schedule:
        """As named."""
        if blocks is None or name not in presets() or preset(name).score.source == "own":
            return preset(name, num_layers, blocks)
        layers = [decision.layer for decision in preset(name, num_layers).decisions]
        return preset(name, num_layers, [*blocks, *(layer - 1 for layer in layers if layer in blocks)])


def scores_its_own_block(schedule: Schedule, *_: Any) -> Schedule:
    """FastV as its paper's successors run it."""
    return replace(schedule, score=replace(schedule.score, source="own"))


def keeps_positions(schedule: Schedule, *_: Any) -> Schedule:
    """PDrop without renumbering."""
    return replace(schedule, positions="preserve")


def first_stage_assumed(schedule: Schedule, name: str, depth: int, blocks: Any) -> Schedule:
    """Row counts at 28 blocks too, where no first stage left so many rows."""
    if "nuwa" not in name or depth != 28:
        return schedule
    keeps = preset(name).decisions
    moved = zip(schedule.decisions, keeps, strict=True)
    return replace(schedule, decisions=tuple(Decision(at.layer, decision.keep) for at, decision in moved))


class KeepsThroughFloats(ReferenceTarget):
    """Ratios are kept as binary floats, and written as their shortest decimals."""

    def schedule(self, given: Any, *rest: Any) -> Mapping[str, Any]:
        """As named."""
        data = dict(super().schedule(given, *rest))
        made = [(decision["layer"], decision["keep"]) for decision in data["decisions"]]
        data["decisions"] = [
            {"layer": layer, "keep": str(float(Fraction(keep))) if isinstance(keep, str) else keep}
            for layer, keep in made
        ]
        return data
