"""From a batch of processor outputs to prompts: one per request, padding gone, placeholders found by mask (§1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    if isinstance(decoder, CanonicalDecoder):
        embeddings, positions = _need(inputs, "inputs_embeds"), inputs.get("position_ids")
        embeddings = embeddings.to(decoder.dtype)
    else:
        embeddings, positions = _merged_embeddings(decoder, inputs)
    batch, length = embeddings.shape[:2]
    real = _mask(inputs.get("attention_mask"), "attention_mask", batch, length, default=True)
    visual = _visual_mask(decoder, inputs, batch, length) & real
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


def _need(inputs: Mapping[str, Any], name: str) -> Tensor:
    if not isinstance(inputs.get(name), Tensor):
        raise RerouteError(f"inputs[{name}]", "is missing", "give a tensor")
    tensor: Tensor = inputs[name]
    return tensor


def _mask(mask: Any, field: str, batch: int, length: int, *, default: bool) -> Bool[Tensor, "B S"]:
    if mask is None:
        return torch.full((batch, length), default)
    if not isinstance(mask, Tensor) or tuple(mask.shape) != (batch, length):
        found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise RerouteError(
            f"inputs[{field}]", f"has shape {found}", f"give a mask of shape {(batch, length)}"
        )
    if field == "visual_mask" and mask.dtype != torch.bool:
        raise RerouteError(f"inputs[{field}]", f"holds {mask.dtype}", "give a bool mask")
    return mask.bool()


def _visual_mask(decoder: Decoder, inputs: Mapping[str, Any], batch: int, length: int) -> Bool[Tensor, "B S"]:
    """Placeholders by their ids, never by span arithmetic (RR-POOL-002)."""
    if inputs.get("visual_mask") is None and isinstance(decoder, HuggingFaceDecoder):
        if inputs.get("input_ids") is not None:
            return placeholder_mask(decoder.model, inputs["input_ids"])
        if family_of(decoder.model).placeholders:
            raise RerouteError(
                "inputs[visual_mask]", "is missing", "with inputs_embeds alone, say which rows are visual"
            )
    return _mask(inputs.get("visual_mask"), "visual_mask", batch, length, default=False)


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
    ours = ("visual_mask", "images")
    with _stopped_at(decoder.decoder) as given:
        decoder.model(**{name: value for name, value in inputs.items() if name not in ours})
    embeddings = given.get("inputs_embeds")
    if embeddings is None:
        embeddings = decoder.decoder.get_submodule("embed_tokens")(given["input_ids"])
    return embeddings, given.get("position_ids")
