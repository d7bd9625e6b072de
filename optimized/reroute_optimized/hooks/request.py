"""Reads the arguments of a forward once, and checks their form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reroute_spec import RerouteError
from torch import Tensor

from ..model.decoder import Decoder
from ..turn.source import Source
from . import refusals


@dataclass(frozen=True)
class Request:
    """The arguments of a forward beside its cache (B requests in S columns).

    Attributes:
        embeddings: [B, S, d].
        ids: [B, S] token ids, or None where only embeddings were given.
        attention_mask: the mask as it was given.
        positions: [B or 1, S] or [3, B or 1, S], or None.
        visual_mask: [B, S] bool, or None.
        images: per request the rows of its images and videos, or None.
        features: a mask [B, S] and, per block boundary, what is added there to the rows of the mask; or None.
        keep_hidden_states: whether the caller wants the residual stream after every block.
        marked: whether a first stage has marked columns to leave out.
        source: the prompt before its images were merged, or None.
    """

    embeddings: Tensor
    ids: Tensor | None
    attention_mask: Tensor | None
    positions: Tensor | None
    visual_mask: Tensor | None
    images: Sequence[Sequence[int]] | None
    features: tuple[Tensor, Sequence[Tensor]] | None
    keep_hidden_states: bool
    marked: bool = False
    source: Source | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """B and S."""
        return self.embeddings.shape[0], self.embeddings.shape[1]


def read_request(
    decoder: Decoder,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    visual_mask: Tensor | None,
    keywords: Mapping[str, Any],
) -> Request:
    """What a forward was given, once its form is checked.

    Raises:
        RerouteError: naming what is of another form.
    """
    embeddings = _embeddings(decoder, input_ids, inputs_embeds)
    batch, columns = embeddings.shape[:2]
    positions = refusals.check_position_ids(position_ids, batch, columns, decoder.names.mrope)
    refusals.check_visual_mask(visual_mask, batch, columns)
    features = None
    if decoder.names.deepstack is not None:
        mask, added = (keywords.get(name) for name in decoder.names.deepstack)
        features = None if mask is None or not added else (mask, added)
    wanted = getattr(decoder.config, "output_hidden_states", False)
    return Request(
        embeddings,
        keywords.get("prompt_ids") if input_ids is None else input_ids,
        attention_mask,
        positions,
        visual_mask,
        keywords.get("visual_images"),
        features,
        bool(keywords.get("output_hidden_states", wanted)),
        bool(keywords.get("first_stage")),
        keywords.get("prompt_source"),
    )


def _embeddings(decoder: Decoder, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """[B, S, d] of ids or as given."""
    if (input_ids is None) == (inputs_embeds is None):
        raise RerouteError(
            "inputs_embeds", "exactly one of input_ids and inputs_embeds is needed", "give one of them"
        )
    module: Any = decoder.module
    embeddings: Tensor = module.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
    if embeddings.ndim != 3 or 0 in embeddings.shape:
        name = "input_ids" if inputs_embeds is None else "inputs_embeds"
        problem = f"make embeddings of shape {list(embeddings.shape)}"
        raise RerouteError(name, problem, "give ids [B, S] or embeddings [B, S, d], none of them empty")
    return embeddings
