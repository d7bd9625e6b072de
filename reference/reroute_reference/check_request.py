"""Refuses schedules, inputs and given selections that cannot be run, before the model sees anything (RR-ERR-001)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from reroute_spec import RerouteError, Schedule
from torch import Tensor

from .decoder import CanonicalDecoder
from .families import PLAIN_ATTENTION
from .huggingface import HuggingFaceDecoder

_INTEGERS = (torch.int32, torch.int64)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Decoder = CanonicalDecoder | HuggingFaceDecoder

_ELSEWHERE = {
    "past_key_values": "give cache=, the one that an earlier run returned",
    "prefill_chunk_size": "give the prompt whole: two calls are two turns",
    "cache_implementation": "leave it out: the reference makes its own cache",
    "assistant_model": "assisted generation is not defined for routed prompts",
    "prompt_lookup_num_tokens": "assisted generation is not defined for routed prompts",
}


def check_dtype(dtype: Any) -> None:
    """Refuse a precision that nothing is computed in."""
    if dtype is not None and dtype not in _DTYPES:
        raise RerouteError(
            "dtype", f"{dtype!r} is none of {', '.join(map(str, _DTYPES))}", "give one of them, or none"
        )


def check_schedule(decoder: Decoder, schedule: Schedule) -> None:
    """Refuse what this decoder cannot run, before any tensor is touched (RR-CFG-008)."""
    if not isinstance(schedule, Schedule):
        raise RerouteError(
            "schedule", f"is a {type(schedule).__name__}", "give a Schedule; Schedule.load reads presets"
        )
    schedule.validate(decoder.num_layers)
    if schedule.positions == "renumber" and decoder.mrope:  # RR-CFG-011
        raise RerouteError(
            "positions", "'renumber' with positions of three coordinates (M-RoPE)", "use 'preserve'"
        )
    plain = [layer for layer, kind in enumerate(decoder.kinds) if kind == PLAIN_ATTENTION]
    for index, decision in enumerate(schedule.decisions):  # RR-SCORE-006
        if decision.layer not in plain:
            raise RerouteError(
                f"decisions[{index}].layer",
                f"block {decision.layer} is {decoder.kinds[decision.layer]}: it has no plain attention to score with",
                f"decide at one of blocks {plain}",
            )
        if schedule.score.source == "previous" and decision.layer - 1 not in plain:  # RR-SCORE-007
            raise RerouteError(
                "score.source",
                f"'previous' at block {decision.layer}: block {decision.layer - 1} is "
                f"{decoder.kinds[decision.layer - 1]}",
                "use 'own'",
            )


def check_inputs(decoder: Decoder, inputs: Any) -> int:
    """Requests of the batch; what is no batch of tensors is refused (RR-ERR-005)."""
    if not isinstance(inputs, Mapping):
        raise RerouteError(
            "inputs", f"is a {type(inputs).__name__}", "give what the model's processor returns"
        )
    for name, remedy in _ELSEWHERE.items():  # RR-KV-011
        if inputs.get(name) is not None:
            raise RerouteError(name, "is not taken by the reference", remedy)
    tokens, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if tokens is None and embeds is None:
        raise RerouteError("input_ids", "is missing", "give input_ids [B, S], or inputs_embeds [B, S, d]")
    for name, ndims, floating in (
        ("input_ids", (2,), False),
        ("inputs_embeds", (3,), True),
        ("labels", (2,), False),
        ("position_ids", (2, 3) if decoder.mrope else (2,), False),
    ):
        value = inputs.get(name)
        if value is None:
            continue
        # RR-ERR-005
        right = isinstance(value, Tensor) and value.ndim in ndims and 0 not in value.shape
        if not right or not (value.is_floating_point() if floating else value.dtype in _INTEGERS):
            found = (
                f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            kind = "a floating" if floating else "an int64 or int32"
            axes = " or ".join(map(str, ndims))
            raise RerouteError(name, f"is {found}", f"give {kind} tensor of {axes} axes, none of them empty")
    if embeds is not None and embeds.shape[-1] != decoder.width:
        problem = f"are {embeds.shape[-1]} wide"
        raise RerouteError("inputs_embeds", problem, f"give [B, S, {decoder.width}]")
    if embeds is not None and tokens is not None:
        if isinstance(decoder, HuggingFaceDecoder):
            raise RerouteError("inputs_embeds", "are given beside input_ids", "give one of the two")
        _check_columns("input_ids", tokens, embeds.shape[:2])
    if tokens is not None:
        check_ids("input_ids", tokens, decoder.vocabulary)
    columns: Any = tokens if embeds is None else embeds
    batch, length = columns.shape[:2]
    for name in ("attention_mask", "visual_mask", "labels"):
        _check_columns(name, inputs.get(name), (batch, length))
    mask = inputs.get("attention_mask")
    if mask is not None:
        other = mask[(mask != 0) & (mask != 1)]  # NaN too: it is no number
        if len(other):
            raise RerouteError(
                "attention_mask",
                f"holds {other[0].item()}",
                "give 1 on real rows and 0 on padding: no additive mask, no numbers of packed segments",
            )
    for row in [] if mask is None else (mask != 0).any(dim=1).logical_not().nonzero()[:, 0].tolist():
        raise RerouteError(f"attention_mask[{row}]", "has no real row", "give at least one token per request")
    if inputs.get("labels") is not None:
        labels = inputs["labels"]
        answered = (labels != -100) if mask is None else (labels != -100) & (mask != 0)
        check_ids("labels", labels[answered], decoder.vocabulary)
    positions = inputs.get("position_ids")
    if positions is not None:
        shape = tuple(positions.shape)
        # a model may be given a fourth axis, which counts text for packed sequences
        packed = ((4,),) if isinstance(decoder, HuggingFaceDecoder) else ()
        axes_of_positions = ((), (3,), *packed)
        if shape[-1] != length or shape[-2] not in (1, batch) or shape[:-2] not in axes_of_positions:
            raise RerouteError("position_ids", f"have shape {list(shape)}", f"give [{batch}, {length}]")
    if inputs.get("visual_mask") is not None and inputs["visual_mask"].dtype != torch.bool:
        raise RerouteError("visual_mask", f"holds {inputs['visual_mask'].dtype}", "give a bool mask")
    images = inputs.get("images")
    if images is not None and (not isinstance(images, Sequence) or len(images) != batch):
        raise RerouteError(
            "images", "is no list of one list per request", f"give {batch} lists of feature counts"
        )
    for index, counts in enumerate(images or ()):
        if not isinstance(counts, (list, tuple)) or not all(_is_count(count) for count in counts):
            problem = f"is {counts!r}"
            raise RerouteError(
                f"images[{index}]",
                problem,
                "give a list of the feature count of every image, each >= 1",
            )
    return int(batch)


def check_decisions(decisions: Any, batch: int) -> None:
    """Refuse what is no selection per decision of every request; whether it could be made is seen as it is replayed."""
    if decisions is None:
        return
    if not isinstance(decisions, Sequence) or isinstance(decisions, str) or len(decisions) != batch:
        sized = isinstance(decisions, Sequence) and not isinstance(decisions, str)
        given = f"{len(decisions)} requests" if sized else f"a {type(decisions).__name__}"
        raise RerouteError("decisions", f"are for {given}", f"give one list for each of {batch} requests")
    for index, replay in enumerate(decisions):
        if not isinstance(replay, (list, tuple)):
            problem = f"is {replay!r}"
            raise RerouteError(f"decisions[{index}]", problem, "give a list of one selection per decision")
        for place, selected in enumerate(replay):
            if not isinstance(selected, (list, tuple)) or not all(
                isinstance(ordinal, int) and not isinstance(ordinal, bool) for ordinal in selected
            ):
                problem = f"is {selected!r}"
                raise RerouteError(
                    f"decisions[{index}][{place}]", problem, "give a list of visual ordinals (int), ascending"
                )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_ids(field: str, ids: Tensor, vocabulary: int) -> None:
    """Refuse token ids that have no embedding."""
    if ids.dtype not in _INTEGERS:
        raise RerouteError(field, f"holds {ids.dtype}", "give token ids as int64 or int32")
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if len(outside):
        raise RerouteError(field, f"holds {int(outside[0])}", f"give ids from 0 to {vocabulary - 1}")


def _check_columns(field: str, mask: Any, shape: Sequence[int]) -> None:
    if mask is not None and (not isinstance(mask, Tensor) or tuple(mask.shape) != tuple(shape)):
        found = f"shape {list(mask.shape)}" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
        raise RerouteError(field, f"has {found}", f"give one of shape {list(shape)}")
