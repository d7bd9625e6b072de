"""What is refused before a model sees anything (RR-ERR-001): inputs that are no batch, features without rows, foreign caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from reroute_spec import RerouteError, Schedule
from torch import Tensor

from .cache import RowCache
from .decoder import CanonicalDecoder
from .families import PLAIN_ATTENTION, Medium, family_of
from .huggingface import HuggingFaceDecoder

Decoder = CanonicalDecoder | HuggingFaceDecoder

_ELSEWHERE = {
    "past_key_values": "give cache=, the one that an earlier run returned",
    "prefill_chunk_size": "give the prompt whole: two calls are two turns",
    "assistant_model": "assisted generation is not defined for routed prompts",
}


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
            raise RerouteError(f"inputs[{name}]", "is not taken by the reference", remedy)
    tokens, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if tokens is None and embeds is None:
        raise RerouteError(
            "inputs[input_ids]", "is missing", "give input_ids [B, S], or inputs_embeds [B, S, d]"
        )
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
        if not right or value.is_floating_point() != floating:
            found = (
                f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            kind = "a floating" if floating else "an integer"
            axes = " or ".join(map(str, ndims))
            raise RerouteError(
                f"inputs[{name}]", f"is {found}", f"give {kind} tensor of {axes} axes, none of them empty"
            )
    columns: Any = tokens if embeds is None else embeds
    batch, length = columns.shape[:2]
    for name in ("attention_mask", "visual_mask", "labels"):
        _check_columns(f"inputs[{name}]", inputs.get(name), (batch, length))
    mask = inputs.get("attention_mask")
    for row in [] if mask is None else (mask != 0).any(dim=1).logical_not().nonzero()[:, 0].tolist():
        raise RerouteError(f"attention_mask[{row}]", "has no real row", "give at least one token per request")
    positions = inputs.get("position_ids")
    if positions is not None:
        shape = tuple(positions.shape)
        if shape[-1] != length or shape[-2] not in (1, batch) or shape[:-2] not in ((), (3,), (4,)):
            raise RerouteError(
                "inputs[position_ids]", f"have shape {list(shape)}", f"give [{batch}, {length}]"
            )
    if inputs.get("visual_mask") is not None and inputs["visual_mask"].dtype != torch.bool:
        raise RerouteError("inputs[visual_mask]", f"holds {inputs['visual_mask'].dtype}", "give a bool mask")
    images = inputs.get("images")
    if images is not None and (not isinstance(images, Sequence) or len(images) != batch):
        raise RerouteError(
            "inputs[images]", "is no list of one list per request", f"give {batch} lists of feature counts"
        )
    return int(batch)


def _check_columns(field: str, mask: Any, shape: tuple[int, int]) -> None:
    if mask is not None and (not isinstance(mask, Tensor) or tuple(mask.shape) != shape):
        found = f"shape {list(mask.shape)}" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
        raise RerouteError(field, f"has {found}", f"give one of shape {list(shape)}")


def features_of(decoder: HuggingFaceDecoder, inputs: Mapping[str, Any]) -> list[tuple[int, list[int]]]:
    """Per kind of visual input its placeholder id and the rows of every image or video, in order.

    Raises:
        RerouteError: a missing companion, or features that are not as many as the placeholders (RR-ERR-005).
    """
    config: Any = decoder.model.config
    media = family_of(decoder.model).media
    if inputs["input_ids"].shape[1] == 1 and all(inputs.get(medium.pixels) is None for medium in media):
        return []  # one row is never routable; a model may well generate a placeholder's id
    found = []
    for medium in media:
        token = int(getattr(config, medium.placeholder))
        placeholders = int((inputs["input_ids"] == token).sum())
        rows = _rows_of(medium, config, inputs)
        # RR-ERR-005
        if sum(rows) != placeholders:
            raise RerouteError(
                f"inputs[{medium.pixels}]",
                f"placeholders and features do not match: {placeholders} rows of input_ids hold {medium.placeholder}, "
                f"the model would make {sum(rows)}",
                "give input_ids and pixels of one call of the processor",
            )
        _check_whole(inputs["input_ids"] == token, rows, medium)
        mask = inputs.get("attention_mask")
        hidden = mask is not None and bool(((inputs["input_ids"] == token) & (mask == 0)).any())
        if decoder.mrope and hidden and inputs.get("position_ids") is None:
            raise RerouteError(
                "inputs[attention_mask]",
                "hides rows of an image, whose positions follow from its whole grid",
                "show whole images, or give position_ids",
            )
        found.append((token, rows))
    return found


def _check_whole(placeholders: Tensor, rows: list[int], medium: Medium) -> None:
    """Refuse a request that ends inside an image, whose rest another request would be given."""
    left = list(rows)
    for request, held in enumerate(placeholders.sum(dim=1).tolist()):
        whole = 0
        while whole < held:
            whole += left.pop(0)
        if whole != held:
            raise RerouteError(
                f"inputs[{medium.pixels}]",
                f"placeholders and features do not match: request {request} holds {held}, its images {whole}",
                "give every request its own whole images, in the order of the batch",
            )


def _rows_of(medium: Medium, config: Any, inputs: Mapping[str, Any]) -> list[int]:
    if inputs.get(medium.pixels) is None:
        return []
    for name in medium.companions:
        if not isinstance(inputs.get(name), Tensor):
            raise RerouteError(
                f"inputs[{name}]", f"is missing beside {medium.pixels}", "give all that the processor returns"
            )
    return medium.features(config, inputs)


def check_cache(decoder: Decoder, cache: Any, batch: int, schedule: Schedule) -> list[RowCache]:
    """The caches of a later turn, one per request, in any order the caller moved them to (RR-KV-010).

    Raises:
        RerouteError: a cache that the reference has not filled, or of another model, precision or batch (RR-KV-011).
    """
    if not isinstance(cache, (list, tuple)) or not all(isinstance(entry, RowCache) for entry in cache):
        raise RerouteError(
            "cache", f"is a {type(cache).__name__}", "give the cache that an earlier run returned"
        )
    if len(cache) != batch:
        raise RerouteError("cache", f"holds {len(cache)} requests", f"the inputs hold {batch}")
    for index, entry in enumerate(cache):
        filled = len(entry.storage.layers)
        if filled != decoder.num_layers:
            problem = f"is of {filled} blocks and {entry.length} rows"
            raise RerouteError(
                f"cache[{index}]", problem, f"give one that a run of these {decoder.num_layers} blocks filled"
            )
        dtypes = {entry.keys_values(layer)[0].dtype for layer in range(filled) if entry.rows(layer)}
        if not dtypes <= {decoder.dtype}:
            problem = f"holds {', '.join(map(str, dtypes))}"
            raise RerouteError(
                f"cache[{index}]", problem, f"continue in the precision it was filled in, not {decoder.dtype}"
            )
        if schedule.decisions and entry.renumbered != (schedule.positions == "renumber"):
            filled_under = "renumber" if entry.renumbered else "preserve"
            raise RerouteError(
                "positions",
                f"{schedule.positions!r} over a cache of {filled_under!r}",
                "keep one per session",
            )
    # each holds its caches, its length and its next position: requests move whole  RR-KV-010
    return list(cache)
