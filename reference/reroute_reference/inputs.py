"""From a batch of processor outputs to prompts: one per request, padding gone, placeholders found by mask (§1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from reroute_spec import RerouteError
from torch import Tensor

from .cache import RowCache
from .check_media import check_types, features_given, features_of, without_padding
from .check_request import Decoder, check_inputs
from .families import family_of, features_per_image, placeholder_mask
from .huggingface import HuggingFaceDecoder
from .merge import Merged, merged


@dataclass(frozen=True)
class Prompt:
    """One request, or one turn of it.

    Attributes:
        embeddings: X^0, the S real rows.
        positions: pos(i) of every row, counting real rows (RR-BLOCK-002); three coordinates with M-RoPE (RR-BLOCK-012).
        visual: which rows are visual.
        images: rows of every image in order, or None where only the caller could know.
        rows: where the real rows stood in the padded batch row.
        padded_length: length of the padded batch row.
        deepstack: per block boundary from the first, what is added to the rows there; zero in text rows.
    """

    embeddings: Float[Tensor, "S d"]
    positions: Int[Tensor, "*axes S"]
    visual: list[bool]
    images: list[int] | None
    rows: Int[Tensor, " S"]
    padded_length: int
    deepstack: tuple[Float[Tensor, "S d"], ...] = ()


def read_prompts(
    decoder: Decoder, inputs: Mapping[str, Any], caches: Sequence[RowCache] | None = None
) -> list[Prompt]:
    """The prompts of a batch, without its padding (RR-EQV-005).

    Args:
        decoder: the model.
        inputs: what the model's processor returns. For a canonical decoder, and for a model without placeholders,
            ``inputs_embeds`` [B, S, d] and ``visual_mask`` [B, S] (bool). ``attention_mask`` [B, S] is 1 on real
            rows; ``position_ids`` [B, S] (with M-RoPE also [3, B, S]) overrides the model's own; ``images`` (a list
            of feature counts per batch row) overrides the spans.
        caches: of a later turn, whose inputs hold the new rows only: counting goes on at their next positions.

    Raises:
        RerouteError: a mask of the wrong shape or type, features without placeholders, or a row without real tokens.
    """
    check_inputs(decoder, inputs)
    if isinstance(decoder, HuggingFaceDecoder):
        inputs = without_padding(decoder, inputs)  # RR-POOL-002
    given = _merged(decoder, inputs)
    batch, length = given.embeddings.shape[:2]
    real = _mask(inputs.get("attention_mask"), given.embeddings, default=True)
    visual = _visual_mask(decoder, inputs, given.embeddings) & real
    spans = _spans(decoder, inputs, visual)
    prompts = []
    for row in range(batch):
        # padding goes here, and takes no further part  RR-EQV-005
        rows = real[row].nonzero()[:, 0]
        positions = torch.arange(len(rows), device=rows.device)
        if given.positions is not None:
            positions = given.positions[..., min(row, given.positions.shape[-2] - 1), :][..., rows]
        if caches is not None and inputs.get("position_ids") is None:
            positions = positions + caches[row].next_position  # RR-KV-004
        prompts.append(
            Prompt(
                embeddings=given.embeddings[row, rows],
                positions=positions,
                visual=visual[row, rows].tolist(),
                images=spans[row],
                rows=rows,
                padded_length=length,
                deepstack=tuple(added[row, rows] for added in given.deepstack),
            )
        )
    return prompts


def _merged(decoder: Decoder, inputs: Mapping[str, Any]) -> Merged:
    if isinstance(decoder, HuggingFaceDecoder):
        if inputs.get("input_ids") is not None:  # refuses what does not match, before the vision tower runs
            if not features_given(decoder, inputs):
                features_of(decoder, inputs)
            check_types(decoder, inputs)
        found = merged(decoder, inputs)
        # four axes of positions: the first counts text for packed sequences, the others are the coordinates
        positions = found.positions
        if positions is not None and positions.ndim == 3 and positions.shape[0] == 4:
            positions = positions[1:]
        return Merged(found.embeddings, positions, found.deepstack)
    if inputs.get("inputs_embeds") is None:
        raise RerouteError("inputs_embeds", "is missing", "a canonical decoder takes embeddings [B, S, d]")
    return Merged(inputs["inputs_embeds"].to(decoder.dtype), inputs.get("position_ids"))


def _mask(mask: Tensor | None, embeddings: Tensor, *, default: bool) -> Bool[Tensor, "B S"]:
    if mask is None:
        return torch.full(embeddings.shape[:2], default, device=embeddings.device)
    return mask.bool()


def _visual_mask(decoder: Decoder, inputs: Mapping[str, Any], embeddings: Tensor) -> Bool[Tensor, "B S"]:
    """Placeholders by their ids, never by span arithmetic (RR-POOL-002)."""
    if inputs.get("visual_mask") is None and isinstance(decoder, HuggingFaceDecoder):
        if inputs.get("input_ids") is not None:
            return placeholder_mask(decoder.model, inputs["input_ids"])
        if family_of(decoder.model).media:
            raise RerouteError(
                "visual_mask", "is missing", "with inputs_embeds alone, say which rows are visual"
            )
    return _mask(inputs.get("visual_mask"), embeddings, default=False)


def _spans(
    decoder: Decoder, inputs: Mapping[str, Any], visual: Bool[Tensor, "B S"]
) -> list[list[int] | None]:
    """Rows of every image or video per request: given, or by feature counts, never by gaps (RR-BUD-003)."""
    if inputs.get("images") is not None:
        for row, (given, flagged) in enumerate(
            zip(inputs["images"], visual.sum(dim=1).tolist(), strict=True)
        ):
            if sum(given) != flagged:
                problem = f"hold {sum(given)} features"
                raise RerouteError(
                    f"images[{row}]", problem, f"they must add up to the {flagged} visual rows"
                )
        return [list(counts) for counts in inputs["images"]]
    if not isinstance(decoder, HuggingFaceDecoder):
        return [None] * len(visual)
    counts = visual.sum(dim=1).tolist()
    if visual.shape[1] == 1:
        return [[1] * n for n in counts]
    if inputs.get("input_ids") is None or features_given(decoder, inputs):
        size = features_per_image(decoder.model)
        return [None if size is None or n % size else [size] * (n // size) for n in counts]
    left = {token: list(rows) for token, rows in features_of(decoder, inputs)}
    found = [_walk(ids, left) for ids in inputs["input_ids"].tolist()]
    # where the caller's masks hide or add visual rows, only the caller knows the spans
    return [spans if sum(spans) == n else None for spans, n in zip(found, counts, strict=True)]


def _walk(ids: list[int], left: dict[int, list[int]]) -> list[int]:
    """Spans of one request in prompt order; what it shows is taken from ``left``, in order of the batch."""
    spans, missing = [], 0
    for token in ids:
        if token not in left:
            continue
        if missing == 0:
            missing = left[token].pop(0)
            spans.append(missing)
        missing -= 1
    return spans
