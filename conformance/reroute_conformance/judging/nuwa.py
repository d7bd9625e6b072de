"""Judges Nüwa's first stage: its metric, its pillars, the positions of rows, and what the pillars gather (RR-POOL-007 to 010)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from reroute_reference.nuwa import first_stage
from torch import Tensor

from ..cases.nuwa import NuwaCase
from ..protocol import Target
from ..targets.answers import MalformedError, first_difference
from ..tiny.llava import NARROW_IMAGE, NARROW_PATCHES
from ..verdicts.tolerance import Measured, close, describe
from ..verdicts.verdict import Verdict

_SIDE = 24
_OF_TIER = {"64": (1, 112), "128": (2, 224), "192": (3, 336)}  # patches per region, pillars
_AXES = {"inputs_embeds": 3, "visual_mask": 2, "attention_mask": 2, "position_ids": 2, "metric": 2}


def judge_first_stage(case: NuwaCase, target: Target) -> Verdict:
    """Judge exactly what is exact, and metric and embeddings against the reference with the target's own pillars."""
    verdict, inputs = Verdict(), case.inputs()
    answer = _read(target.first_stage(case.model(), case.inputs(), case.tier), inputs)
    replayed = partial(first_stage, case.reference_model(), inputs, case.tier, pillars=answer["pillars"])
    plain, oracle = replayed(), replayed(dtype=torch.float64)
    for image, pillars in enumerate(answer["pillars"]):
        metric = Measured(*(found["metric"][image] for found in (answer, plain, oracle)))
        where = f"image {image}"
        if not verdict.require(
            "RR-POOL-007", f"{where}, metric", partial(describe, metric), close=close, metric=metric
        ):
            return verdict
        best = partial(best_of_regions, tier=case.tier)
        detail = first_difference(sorted(best(metric.actual.tolist())), pillars)
        chosen: dict[str, Any] = {"metric": metric.actual.tolist(), "best_of_regions": best}
        if not verdict.require("RR-POOL-008", f"{where}, pillars", detail, pillars=pillars, **chosen):
            return verdict
    left = iter(answer["pillars"])
    for b, ids in enumerate(inputs["input_ids"]):
        tokens = ids[inputs["attention_mask"][b] == 1].tolist()
        _judge_request(verdict, b, _rows_left(tokens, left), tokens, (answer, plain, oracle))
    return verdict


def best_of_regions(metric: Sequence[float], tier: str) -> list[int]:
    """RR-POOL-008 in its own words; ties go to the lower patch."""
    per_region, count = _OF_TIER[tier]

    def best(patches: Sequence[int], number: int) -> list[int]:
        return sorted(patches, key=lambda patch: (-metric[patch], patch))[:number]

    regions: dict[tuple[int, int], list[int]] = {}
    for patch in range(len(metric)):
        row, column = divmod(patch, _SIDE)
        regions.setdefault((row // 2, column // 2), []).append(patch)
    return best([patch for region in regions.values() for patch in best(region, per_region)], count)


def _rows_left(tokens: Sequence[int], pillars: Any) -> list[int]:
    """The rows of a request that the first stage leaves: text, and of every image the pillars."""
    left, row = [], 0
    while row < len(tokens):
        if tokens[row] == NARROW_IMAGE:
            left += [row + patch for patch in next(pillars)]
            row += NARROW_PATCHES
        else:
            left.append(row)
            row += 1
    return left


def _judge_request(
    verdict: Verdict, b: int, rows: list[int], tokens: Sequence[int], found: Sequence[Mapping[str, Any]]
) -> None:
    """Positions, flags and embeddings of what is left of a request."""
    real = [stage["attention_mask"][b] == 1 for stage in found]
    where, positions = f"request {b}", found[0]["position_ids"][b, real[0]].tolist()
    detail = f"positions: {first_difference(rows, positions)}"
    bound: dict[str, Any] = {"positions_of_rows": positions, "positions_before": rows}
    if not verdict.require("RR-POOL-010", where, detail, request=b, **bound):
        return
    flags, right = found[0]["visual_mask"][b, real[0]].tolist(), [tokens[row] == NARROW_IMAGE for row in rows]
    visual_rows = [row for row, flag in enumerate(flags[:-1]) if flag]
    detail = f"visual flags: {first_difference(right, flags)}"
    named: dict[str, Any] = {"S": len(rows), "visual_rows": visual_rows, "visual": right}
    verdict.require("RR-POOL-002", where, detail, request=b, **named)
    features = Measured(*(stage["inputs_embeds"][b, of] for stage, of in zip(found, real, strict=True)))
    detail_ = partial(describe, features)
    verdict.require("RR-POOL-009", f"{where}, embeddings", detail_, request=b, close=close, features=features)


def _is_patch(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < NARROW_PATCHES


def _read(answer: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What ``Target.first_stage`` returned.

    Raises:
        MalformedError: anything of another form.
    """
    if not isinstance(answer, Mapping):
        raise MalformedError(f"first_stage returned a {type(answer).__name__}, expected a dict")
    read: dict[str, Any] = {}
    for name, axes in _AXES.items():
        value = answer.get(name)
        if not isinstance(value, Tensor) or value.ndim != axes:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise MalformedError(f"first_stage: {name} is {found}, expected a tensor of {axes} axes")
        read[name] = value.detach().cpu()
    shape = read["inputs_embeds"].shape[:2]
    for name in ("visual_mask", "attention_mask", "position_ids"):
        if read[name].shape != shape or read[name].is_floating_point():
            raise MalformedError(
                f"first_stage: {name} is {list(read[name].shape)}, expected integers {list(shape)}"
            )
    images, batch = len(inputs["pixel_values"]), len(inputs["input_ids"])
    pillars: Any = answer.get("pillars")
    listed = isinstance(pillars, (list, tuple)) and len(pillars) == images
    if not listed or not all(isinstance(one, (list, tuple)) and all(map(_is_patch, one)) for one in pillars):
        raise MalformedError(
            f"first_stage: pillars are no {images} lists of patches from 0 to {NARROW_PATCHES - 1}"
        )
    if read["metric"].shape != (images, NARROW_PATCHES) or shape[0] != batch:
        raise MalformedError(
            f"first_stage answered for another number of images or requests than {images}, {batch}"
        )
    return {**read, "pillars": [list(one) for one in pillars]}
