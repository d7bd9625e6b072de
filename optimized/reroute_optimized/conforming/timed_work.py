"""Prepares the work of this package that a benchmark times through the target protocol.

The works are selection, scores, prefill, decode and the reordering of a cache. Everything that is not to be timed, such
as building a model, routing it and filling its cache, happens before the timed call is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from reroute_reference.families import text_decoder_of
from torch import nn

from ..api import apply
from ..model.decoder import Decoder
from ..stages.score import Universe, row_scores
from ..stages.selection import select_places

Given = Mapping[str, Any]


@torch.no_grad()
def prepared(
    work: str, given: Given, network: Callable[[Any], nn.Module], backend: str
) -> Callable[[], object] | None:
    """A call that does ``work`` each time; None where this backend does not do it by itself.

    Args:
        work: ``select``, ``score``, ``prefill``, ``decode`` or ``reorder``.
        given: ``scores`` [n] and ``k``, or ``model``, ``inputs`` and ``schedule``, with ``tokens`` [B, T] or ``order`` [B].
        network: makes a transformers model of the given one.
        backend: of the routing.
    """
    if work in ("select", "score"):
        if backend != "torch":  # its kernels select and score packed rows, inside a prefill
            return None
        return _select(given) if work == "select" else _score(given, network(given["model"]))
    model: Any = network(given["model"])
    apply(model, given["schedule"], backend=backend)

    def prefill() -> Any:
        return model(**given["inputs"], use_cache=True, logits_to_keep=1).past_key_values

    if work == "prefill":
        return prefill
    if work == "reorder":
        moved = prefill()
        return lambda: moved.reorder_cache(given["order"])
    if work != "decode":
        return None
    cache, tokens = prefill(), given["tokens"]

    def decode() -> None:
        for step in tokens.unbind(1):
            model(input_ids=step[:, None], past_key_values=cache, use_cache=True)
        cache.crop(-tokens.shape[1])

    return decode


def _select(given: Given) -> Callable[[], object]:
    scores, slots = given["scores"][None], torch.arange(given["k"], device=given["scores"].device)[None]
    return lambda: select_places(scores, slots)


def _score(given: Given, model: nn.Module) -> Callable[[], object]:
    decoder, rule = Decoder(*text_decoder_of(model)), given["schedule"].score
    hidden, layer = given["inputs"]["inputs_embeds"], given["schedule"].decisions[0].layer
    rows = hidden.shape[1]
    rotary = decoder.position_embeddings(hidden, torch.arange(rows, device=hidden.device)[None])
    last = torch.full((len(hidden), 1), rows - 1, device=hidden.device)
    universe = Universe(hidden, rotary, None, last, None)
    return lambda: row_scores(decoder.blocks[layer], decoder.names, rule, universe)
