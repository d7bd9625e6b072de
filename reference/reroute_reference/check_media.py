"""Refuses images and videos that do not fit the placeholders of a prompt, before the vision tower runs (RR-ERR-005).

Placeholders without features are refused, and features without placeholders. So are pixels, grids and token types that
the model cannot read or would read otherwise. ``features_of`` also says how many rows every image or video has.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from reroute_spec import RerouteError
from torch import Tensor

from .families import Medium, family_of, placeholder_mask
from .huggingface import HuggingFaceDecoder


def features_given(decoder: HuggingFaceDecoder, inputs: Mapping[str, Any]) -> bool:
    """Whether the features were made beforehand, as ``mm_encoder_outputs``, and this transformers takes them."""
    merger = decoder.model.get_submodule(family_of(decoder.model).merger or "")
    takes = "mm_encoder_outputs" in inspect.signature(type(merger).forward).parameters
    return takes and inputs.get("mm_encoder_outputs") is not None


def without_padding(decoder: HuggingFaceDecoder, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs with no placeholder in padding, where it means nothing (RR-POOL-002).

    Where the features are as many as all placeholders, the mask hides rows of an image: those stay.
    """
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None or mask is None or features_given(decoder, inputs):
        return inputs
    config: Any = decoder.model.config
    tokens = {medium: int(getattr(config, medium.placeholder)) for medium in family_of(decoder.model).media}
    if not ((mask == 0) & placeholder_mask(decoder.model, ids)).any():
        return inputs
    word = next(word for word in range(len(tokens) + 1) if word not in tokens.values())
    for medium, token in tokens.items():
        shown = int(((ids == token) & (mask != 0)).sum())
        if sum(_rows_of(medium, config, inputs)) == shown:
            ids = ids.masked_fill((ids == token) & (mask == 0), word)
    return {**inputs, "input_ids": ids}


def features_of(decoder: HuggingFaceDecoder, inputs: Mapping[str, Any]) -> list[tuple[int, list[int]]]:
    """The placeholder id of each kind of visual input, and the rows of every image or video of that kind, in order.

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
                medium.pixels,
                f"placeholders and features do not match: {placeholders} rows of input_ids hold {medium.placeholder}, "
                f"the model would make {sum(rows)}",
                "give input_ids and pixels of one call of the processor; a placeholder's id that the model generated "
                "has no features and goes on as a turn of that one row, the text after it as the next turn",
            )
        _check_whole(inputs["input_ids"] == token, rows, medium)
        mask = inputs.get("attention_mask")
        hidden = mask is not None and bool(((inputs["input_ids"] == token) & (mask == 0)).any())
        if decoder.mrope and hidden and inputs.get("position_ids") is None:
            raise RerouteError(
                "attention_mask",
                "hides rows of an image, whose positions follow from its whole grid",
                "show whole images, or give position_ids",
            )
        found.append((token, rows))
    return found


def check_types(decoder: HuggingFaceDecoder, inputs: Mapping[str, Any]) -> None:
    """Refuse types that are not those of the tokens: M-RoPE would count other rows as the image's (RR-BLOCK-012)."""
    media, types = family_of(decoder.model).media, inputs.get("mm_token_type_ids")
    beside = {name for medium in media for name in medium.companions}
    if types is None or "mm_token_type_ids" not in beside:
        return
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if not isinstance(types, Tensor) or types.shape != ids.shape:
        found = f"shape {list(types.shape)}" if isinstance(types, Tensor) else f"type {type(types).__name__}"
        raise RerouteError("mm_token_type_ids", f"has {found}", f"give one of shape {list(ids.shape)}")
    if all(inputs.get(name) is None for name in beside - {"mm_token_type_ids"}):
        return  # nothing to place: the model does not read them
    expected = ids.new_zeros(ids.shape)
    for kind, medium in enumerate(media, start=1):  # 1 image, 2 video, as processors number them
        expected[ids == getattr(decoder.model.config, medium.placeholder)] = kind
    wrong = types != expected
    wrong = wrong if mask is None else wrong & (mask != 0)
    for row, column in wrong.nonzero()[:1].tolist():
        raise RerouteError(
            "mm_token_type_ids",
            f"is {types[row, column].item()} at row {column} of request {row}, whose token says "
            f"{int(expected[row, column])}",
            "give what the processor returned with these input_ids",
        )


def _check_whole(placeholders: Tensor, rows: list[int], medium: Medium) -> None:
    """Refuse a request that ends inside an image, whose rest another request would be given."""
    left = list(rows)
    for request, held in enumerate(placeholders.sum(dim=1).tolist()):
        whole = 0
        while whole < held:
            whole += left.pop(0)
        if whole != held:
            raise RerouteError(
                medium.pixels,
                f"placeholders and features do not match: request {request} holds {held}, its images {whole}",
                "give every request its own whole images, in the order of the batch",
            )


def _rows_of(medium: Medium, config: Any, inputs: Mapping[str, Any]) -> list[int]:
    if inputs.get(medium.pixels) is None:
        return []
    for name in medium.companions:
        if not isinstance(inputs.get(name), Tensor):
            raise RerouteError(
                name, f"is missing beside {medium.pixels}", "give all that the processor returns"
            )
    _check_pixels(medium, config.vision_config, inputs)
    return medium.features(config, inputs)


def _check_pixels(medium: Medium, vision: Any, inputs: Mapping[str, Any]) -> None:
    """Refuse pixels and grids that the vision tower cannot read."""
    pixels, field = inputs[medium.pixels], medium.pixels
    found = (
        f"has shape {list(pixels.shape)}" if isinstance(pixels, Tensor) else f"is a {type(pixels).__name__}"
    )
    if not medium.companions:  # images of one size
        size = vision.image_size  # one number, or height and width
        one = (vision.num_channels, *((size, size) if isinstance(size, int) else size))
        before = ("requests", "tiles") if medium.tiled else ("images",)
        if (
            not isinstance(pixels, Tensor)
            or pixels.ndim != len(before) + 3
            or tuple(pixels.shape[-3:]) != one
        ):
            raise RerouteError(field, found, f"give [{', '.join(map(str, (*before, *one)))}]")
        return
    # rows of patches, as many as the grid says
    name = medium.companions[0]
    grid, merge = inputs[name], int(vision.spatial_merge_size)
    if grid.ndim != 2 or grid.shape[1] != 3 or grid.dtype not in (torch.int32, torch.int64):
        problem = f"is {grid.dtype} {list(grid.shape)}"
        raise RerouteError(name, problem, "give [n, 3], integers: time, height, width in patches")
    for index, patches in enumerate(grid.tolist()):
        if min(patches) < 1 or patches[1] % merge or patches[2] % merge:
            problem = f"is {patches} at {index}"
            remedy = f"give counts >= 1, height and width in multiples of {merge}"
            raise RerouteError(name, problem, remedy)
    rows = int(grid.prod(dim=-1).sum())
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    if not isinstance(pixels, Tensor) or tuple(pixels.shape) != (rows, width):
        raise RerouteError(field, found, f"the grid says {rows} patches of {width} values")
