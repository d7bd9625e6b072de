"""From a batch of processor outputs to prompts: one per request, padding gone, placeholders found by mask (§1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from reroute_spec import RerouteError
from torch import Tensor, nn

from .decoder import CanonicalDecoder
from .families import family_of, features_per_image, placeholder_mask
from .huggingface import HuggingFaceDecoder

Decoder = CanonicalDecoder | HuggingFaceDecoder


@dataclass(frozen=True)
class Prompt:
    """One request.

    Attributes:
        embeddings: X^0, the S real rows.
        positions: pos(i) of every row, counting real rows (RR-BLOCK-002).
        visual: which rows are visual.
        images: rows of every image in order, or None where only the caller could know.
        rows: where the real rows stood in the padded batch row.
        padded_length: length of the padded batch row.
    """

    embeddings: Float[Tensor, "S d"]
    positions: Int[Tensor, " S"]
    visual: list[bool]
    images: list[int] | None
    rows: Int[Tensor, " S"]
    padded_length: int


def read_prompts(decoder: Decoder, inputs: Mapping[str, Any]) -> list[Prompt]:
    """The prompts of a batch.

    Args:
        decoder: the model.
        inputs: what the model's processor returns. For a canonical decoder, and for a model without placeholders,
            ``inputs_embeds`` [B, S, d] and ``visual_mask`` [B, S] (bool). ``attention_mask`` [B, S] is 1 on real
            rows; ``position_ids`` [B, S] overrides the count of real rows; ``images`` (a list of feature counts per
            batch row) overrides the spans.

    Raises:
        RerouteError: a mask of the wrong shape or type, or a row without real tokens.
    """
    _check_types(inputs)
    if isinstance(decoder, CanonicalDecoder):
        if inputs.get("inputs_embeds") is None:
            raise RerouteError(
                "inputs[inputs_embeds]", "is missing", "a canonical decoder takes embeddings [B, S, d]"
            )
        embeddings, positions = inputs["inputs_embeds"].to(decoder.dtype), inputs.get("position_ids")
    else:
        embeddings, positions = _merged_embeddings(decoder, inputs)
    batch, length = embeddings.shape[:2]
    if positions is not None and tuple(positions.shape) not in ((batch, length), (1, length)):
        raise RerouteError(
            "inputs[position_ids]", f"have shape {list(positions.shape)}", f"give [{batch}, {length}]"
        )
    positions = None if positions is None else positions.expand(batch, -1)
    real = _mask(inputs.get("attention_mask"), "attention_mask", embeddings, default=True)
    visual = _visual_mask(decoder, inputs, embeddings) & real
    images = inputs.get("images")
    if images is not None and (not isinstance(images, Sequence) or len(images) != batch):
        raise RerouteError(
            "inputs[images]", "is no list of one list per request", f"give {batch} lists of feature counts"
        )
    prompts = []
    for row in range(batch):
        rows = real[row].nonzero()[:, 0]
        if len(rows) == 0:
            raise RerouteError(
                f"attention_mask[{row}]", "has no real row", "give at least one token per request"
            )
        flags: list[bool] = visual[row, rows].tolist()
        prompts.append(
            Prompt(
                embeddings=embeddings[row, rows],
                positions=torch.arange(len(rows), device=rows.device)
                if positions is None
                else positions[row, rows],
                visual=flags,
                images=_images(decoder, inputs, row, sum(flags)),
                rows=rows,
                padded_length=length,
            )
        )
    return prompts


def _check_types(inputs: Any) -> None:
    """Refuse what is no batch of tensors before a model sees it (RR-ERR-001)."""
    if not isinstance(inputs, Mapping):
        raise RerouteError(
            "inputs", f"is a {type(inputs).__name__}", "give what the model's processor returns"
        )
    if inputs.get("input_ids") is None and inputs.get("inputs_embeds") is None:
        raise RerouteError(
            "inputs[input_ids]", "is missing", "give input_ids [B, S], or inputs_embeds [B, S, d]"
        )
    for name, ndim, floating in (
        ("input_ids", 2, False),
        ("inputs_embeds", 3, True),
        ("position_ids", 2, False),
    ):
        value = inputs.get(name)
        if value is None:
            continue
        if (
            not isinstance(value, Tensor)
            or value.ndim != ndim
            or value.is_floating_point() != floating
            or 0 in value.shape
        ):
            found = (
                f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            kind = "a floating" if floating else "an integer"
            raise RerouteError(
                f"inputs[{name}]", f"is {found}", f"give {kind} tensor of {ndim} axes, none of them empty"
            )


def _mask(mask: Any, field: str, embeddings: Tensor, *, default: bool) -> Bool[Tensor, "B S"]:
    shape = tuple(embeddings.shape[:2])
    if mask is None:
        return torch.full(shape, default, device=embeddings.device)
    if not isinstance(mask, Tensor) or tuple(mask.shape) != shape:
        found = f"shape {list(mask.shape)}" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
        raise RerouteError(f"inputs[{field}]", f"has {found}", f"give a mask of shape {list(shape)}")
    if field == "visual_mask" and mask.dtype != torch.bool:
        raise RerouteError(f"inputs[{field}]", f"holds {mask.dtype}", "give a bool mask")
    return mask.bool()


def _visual_mask(decoder: Decoder, inputs: Mapping[str, Any], embeddings: Tensor) -> Bool[Tensor, "B S"]:
    """Placeholders by their ids, never by span arithmetic (RR-POOL-002)."""
    if inputs.get("visual_mask") is None and isinstance(decoder, HuggingFaceDecoder):
        if inputs.get("input_ids") is not None:
            return placeholder_mask(decoder.model, inputs["input_ids"])
        if family_of(decoder.model).placeholders:
            raise RerouteError(
                "inputs[visual_mask]", "is missing", "with inputs_embeds alone, say which rows are visual"
            )
    return _mask(inputs.get("visual_mask"), "visual_mask", embeddings, default=False)


def _images(decoder: Decoder, inputs: Mapping[str, Any], row: int, visual: int) -> list[int] | None:
    """Rows of every image of a batch row: given, or by the family's one image size."""
    if inputs.get("images") is not None:
        return list(inputs["images"][row])
    size = features_per_image(decoder.model) if isinstance(decoder, HuggingFaceDecoder) else None
    if size is None:
        return None
    return [size] * (visual // size) if visual % size == 0 else None


class _StopForwardError(Exception):
    pass


@contextmanager
def _stopped_at(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Let a forward call run up to ``module`` and hold what it is given there."""
    seen: dict[str, Any] = {}

    def stop(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)
        raise _StopForwardError

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield seen
    except _StopForwardError:
        pass
    finally:
        handle.remove()


def _merged_embeddings(
    decoder: HuggingFaceDecoder, inputs: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """X^0 as the model itself makes it: its own forward, stopped where the text decoder would begin."""
    own = {name: value for name, value in inputs.items() if name not in ("visual_mask", "images")}
    for name, value in own.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            own[name] = value.to(decoder.dtype)
    with _stopped_at(decoder.decoder) as given:
        decoder.model(**own)
    embeddings = given.get("inputs_embeds")
    if embeddings is None:
        embeddings = decoder.decoder.get_submodule("embed_tokens")(given["input_ids"])
    return embeddings, given.get("position_ids")
