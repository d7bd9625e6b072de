"""X^0 as the model itself makes it: its own forward merges text and images, stopped where the text decoder would begin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from .families import family_of
from .huggingface import HuggingFaceDecoder

OWN_INPUTS = ("visual_mask", "images", "labels")
"""Inputs of the reference that no model is given."""


@dataclass(frozen=True)
class Merged:
    """What a text decoder is given.

    Attributes:
        embeddings: of every column, padding included.
        positions: as the model computed them, or None where it leaves counting to its text decoder.
        deepstack: per block boundary from the first, what is added there: zero but in visual rows (RR-BLOCK-010).
    """

    embeddings: Float[Tensor, "B S d"]
    positions: Int[Tensor, "*axes B S"] | None = None
    deepstack: tuple[Float[Tensor, "B S d"], ...] = ()


def merged(decoder: HuggingFaceDecoder, inputs: Mapping[str, Any]) -> Merged:
    """The embeddings, positions and boundary features of a batch."""
    own = {name: value for name, value in inputs.items() if name not in OWN_INPUTS}
    if isinstance(own.get("inputs_embeds"), Tensor):
        own["inputs_embeds"] = own["inputs_embeds"].to(decoder.dtype)
    with _as_first_request(decoder.model), _stopped_at(decoder.decoder) as given:
        decoder.model(**own)
    embeddings = given.get("inputs_embeds")
    if embeddings is None:
        embeddings = decoder.decoder.get_submodule("embed_tokens")(given["input_ids"])
    return Merged(embeddings, given.get("position_ids"), _deepstack(decoder, given, embeddings))


def _deepstack(
    decoder: HuggingFaceDecoder, given: Mapping[str, Any], embeddings: Tensor
) -> tuple[Tensor, ...]:
    mask, features = (given.get(name) for name in decoder.parts.deepstack or ("", ""))
    if mask is None or features is None:
        return ()
    added = [embeddings.new_zeros(embeddings.shape) for _ in features]
    for everywhere, visual in zip(added, features, strict=True):
        everywhere[mask] = visual.to(embeddings.dtype)
    return tuple(added)


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


@contextmanager
def _as_first_request(model: nn.Module) -> Iterator[None]:
    """Hide what the model carries from request to request, and put it back: nothing leaks, either way (RR-KV-006)."""
    family = family_of(model)
    merger = model if family.merger is None else model.get_submodule(family.merger)
    carried = {name: getattr(merger, name, None) for name in family.carried}
    try:
        # RR-KV-006
        for name in carried:
            setattr(merger, name, None)
        yield
    finally:
        for name, value in carried.items():
            setattr(merger, name, value)
