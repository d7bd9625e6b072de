"""Provides functions and targets that get presets, methods, M-RoPE, low precision or Nüwa's first stage wrong.

Each of them has one small thing wrong, and mutants put it in place of the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, TypeAlias

import torch
from reroute_reference import CanonicalDecoder, nuwa, routing
from reroute_reference.cache import RowCache
from reroute_spec import Decision, Schedule, ScoreRule, select
from reroute_spec.canonical import CanonicalConfig
from reroute_spec.presets import preset, presets
from torch import Tensor, nn

from ..targets.reference_target import ReferenceTarget

_score, _routed_block, _extend = routing.score, routing.routed_block, routing.extend
_metric, _weights = nuwa.metric, nuwa.weights
_first_position, _coordinates = RowCache.first_position, CanonicalConfig.coordinates
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
    """A target in whose presets decisions that fall on one block become the later one of them."""

    def named(self, name: str, num_layers: int, blocks: Sequence[int] | None) -> Schedule:
        """Answer with the fault of this class."""
        if blocks is not None or name not in presets():
            return preset(name, num_layers, blocks)
        whole = preset(name)
        at = {int(Fraction(d.layer * num_layers, 32) + Fraction(1, 2)): d.keep for d in whole.decisions}
        if len(at) == len(whole.decisions) or max(at) >= num_layers:
            return preset(name, num_layers, blocks)
        return replace(whole, decisions=tuple(Decision(layer, keep) for layer, keep in at.items()))


def snaps_down(schedule: Schedule, name: str, depth: int, blocks: Sequence[int] | None) -> Schedule:
    """A layer without plain attention becomes the nearest block before it that has plain attention."""
    if blocks is None:
        return schedule
    layers = [decision.layer for decision in preset(name, depth).decisions]
    down = [max((block for block in blocks if block <= layer), default=layer) for layer in layers]
    return _moved(schedule, down)


def not_snapped(schedule: Schedule, name: str, depth: int, blocks: Sequence[int] | None) -> Schedule:
    """Layers stay, whatever their blocks are."""
    return schedule if blocks is None else replace(preset(name, depth), label=schedule.label)


class ReadsAnyBlock(_OtherPresets):
    """A target that accepts a preset which scores by `previous` where the block before has no plain attention."""

    def named(self, name: str, num_layers: int, blocks: Sequence[int] | None) -> Schedule:
        """Answer with the fault of this class."""
        if blocks is None or name not in presets() or preset(name).score.source == "own":
            return preset(name, num_layers, blocks)
        layers = [decision.layer for decision in preset(name, num_layers).decisions]
        return preset(name, num_layers, [*blocks, *(layer - 1 for layer in layers if layer in blocks)])


def scores_its_own_block(schedule: Schedule, *_: Any) -> Schedule:
    """Every decision scores with its own block, as the successors of FastV's paper run it."""
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
    """A target that keeps ratios as binary floats and writes them as their shortest decimals."""

    def schedule(self, given: Any, *rest: Any) -> Mapping[str, Any]:
        """Answer with the fault of this class."""
        data = dict(super().schedule(given, *rest))
        made = [(decision["layer"], decision["keep"]) for decision in data["decisions"]]
        data["decisions"] = [
            {"layer": layer, "keep": str(float(Fraction(keep))) if isinstance(keep, str) else keep}
            for layer, keep in made
        ]
        return data


# The original methods


def previous_of_the_output() -> dict[str, Any]:
    """Patches by which `previous` asks the block before about what it gave, not what it was given."""
    given: list[Tensor] = []

    def routed_block(*args: Any) -> Tensor:
        given[:] = [_routed_block(*args)]
        return given[0]

    def score(decoder: Any, request: Any, schedule: Schedule, layer: int, hidden: Tensor, *rest: Any) -> Any:
        states = given[0] if schedule.score.source == "previous" else hidden
        return _score(decoder, request, schedule, layer, states, *rest)

    return {"reroute_reference.routing.routed_block": routed_block, "reroute_reference.routing.score": score}


def every_row(given: Mapping[str, Any]) -> list[int]:
    """All rows of the prompt, whatever `previous` ran."""
    rows: list[int] = given["alive"]
    return list(range(len(given["hidden"]))) if given["schedule"].score.source == "previous" else rows


def _at_old_positions(given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    if given["schedule"].positions == "preserve":
        return given["cos"], given["sin"]
    cos, sin = given["decoder"].rotary(torch.arange(len(given["hidden"])))
    return cos, sin


def old_cos(given: Mapping[str, Any]) -> Tensor:
    """The cosines of the unrouted positions."""
    return _at_old_positions(given)[0]


def old_sin(given: Mapping[str, Any]) -> Tensor:
    """The sines of the unrouted positions."""
    return _at_old_positions(given)[1]


def at_logical_length(cache: RowCache, layer: int) -> int:
    """Renumbered rows go on from the logical length."""
    return cache.length if cache.renumbered else _first_position(cache, layer)


def at_last_blocks_rows(cache: RowCache, layer: int) -> int:
    """Renumbered rows go on from the last block's rows, in every block."""
    return _first_position(cache, len(cache.storage.layers) - 1)


# M-RoPE


def sections_interleaved(config: CanonicalConfig) -> list[int]:
    """Coordinates take turns, whatever the configuration says, and the other way round."""
    return _coordinates(replace(config, mrope_interleaved=not config.mrope_interleaved))


def time_alone(config: CanonicalConfig) -> list[int]:
    """Every pair takes time."""
    return [0 for _ in _coordinates(config)]


def extended_from_length(decoder: Any, cache: RowCache, embeddings: Tensor) -> Tensor:
    """Decoded rows at the number of rows so far, as if every row had a position of its own."""
    cache.next_position = cache.length
    return _extend(decoder, cache, embeddings)


# Low precision


def narrow_scores(query: Tensor, keys: Tensor, scaling: float, rule: ScoreRule, *_: Any) -> Tensor:
    """Logits, softmax and mean in the dtype of queries and keys."""
    keys = keys.repeat_interleave(len(query) // len(keys), dim=0)
    heads = (query @ keys.mT * scaling).softmax(dim=-1).mean(dim=1)
    return heads.amax(dim=0) if rule.heads == "max" else heads.mean(dim=0)


def narrow_rotary(decoder: CanonicalDecoder, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Positions, frequencies and angles in the model's dtype."""
    head_dim = decoder.config.shape.head_dim
    exponents = torch.arange(0, head_dim, 2) / head_dim
    frequencies = (decoder.config.rope_theta**-exponents).to(decoder.dtype)
    angles = positions.to(decoder.dtype)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def narrow_norm(decoder: CanonicalDecoder, hidden: Tensor) -> Tensor:
    """Squares, mean and root in the model's dtype."""
    root = torch.rsqrt((hidden * hidden).mean(-1, keepdim=True) + decoder.config.rms_norm_eps)
    return decoder.weights["norm.weight"] * (hidden * root)


def bypass_narrowed(decoder: Any, layer: int, hidden: Tensor, active: list[int], *rest: Any) -> Tensor:
    """Rows that bypass a block are kept in bfloat16 meanwhile."""
    routed = _routed_block(decoder, layer, hidden, active, *rest)
    deferred = sorted(set(range(len(hidden))) - set(active))
    routed[deferred] = hidden[deferred].bfloat16().to(hidden.dtype)
    return routed


def select_narrowed(scores: Sequence[float], k: int) -> list[int]:
    """A selection by scores that were rounded to bfloat16."""
    return select(torch.tensor(scores).bfloat16().tolist(), k)


# Nüwa's first stage


def metric_averaged(decoder: Any, tower: Any, *rest: Any) -> Tensor:
    """The mean over heads, which orders patches as the sum does."""
    heads = decoder.model.config.vision_config.num_attention_heads
    return _metric(decoder, tower, *rest) / float(heads)


def metric_of_the_block_before(decoder: Any, tower: Any, layer: int, entered: Tensor) -> Tensor:
    """Queries and keys of another block."""
    return _metric(decoder, tower, layer - 1, entered)


def best_of_all(scores: Sequence[float], tier: nuwa.Tier) -> list[int]:
    """The best patches, wherever they are."""
    return select(scores, tier.pillars)


def pillars_alone(states: Tensor, scores: Tensor, pillars: Tensor) -> Tensor:
    """Every pillar takes only itself."""
    return _weights(states, torch.zeros_like(scores), pillars)


class ClosesUpPositions(ReferenceTarget):
    """A target whose first stage counts the positions of the rows that are left from 0."""

    def first_stage(self, model: nn.Module, inputs: Mapping[str, Any], tier: str) -> Mapping[str, Any]:
        """Answer with the fault of this class."""
        left = dict(super().first_stage(model, inputs, tier))
        left["position_ids"] = torch.arange(left["position_ids"].shape[1]).expand_as(left["position_ids"])
        return left
