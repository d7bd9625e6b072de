"""Turns after the prefill: text rows run every block and attend all that its cache holds. No decision happens here."""

from __future__ import annotations

import torch
from torch import Tensor

from .cache import RoutedCache, RoutingState
from .decoder import Decoder
from .masks import causal_mask


def decode(
    decoder: Decoder,
    cache: RoutedCache,
    state: RoutingState,
    hidden_states: Tensor,
    position_ids: Tensor | None,
) -> Tensor:
    """Run text rows on top of a filled cache; a chunk of them equals one by one.

    Args:
        decoder: whose blocks run.
        cache: of the routed prefill; every block appends. Left as it was if a block raises.
        state: the cache's own.
        hidden_states: [B, T, d] embeddings.
        position_ids: [B or 1, T], or None to go on from the largest position so far, deferred rows included.

    Returns:
        [B, T, d] after the final norm.

    Raises:
        RerouteError: the prefill had NaN scores that nobody had read.
    """
    state.guard.check()
    state.guard.seen.clear()
    new = hidden_states.shape[1]
    if position_ids is None:
        position_ids = state.next_positions[:, -1:] + torch.arange(new, device=hidden_states.device)
    position_ids = position_ids.expand(hidden_states.shape[0], -1)
    rotary = decoder.position_embeddings(hidden_states, position_ids)
    lengths = [cache.get_seq_length(layer) for layer in range(decoder.num_layers)]
    implementation = decoder.config._attn_implementation
    state.open = True
    try:
        for first, last, pads in state.groups:
            keys = lengths[first] + new
            mask = causal_mask(implementation, new, keys, pads, hidden_states.dtype, hidden_states.device)
            hidden_states = decoder.run(first, last, hidden_states, rotary, mask, cache)
        hidden_states = decoder.final_norm(hidden_states)
    except BaseException:
        for layer, length in zip(cache.layers, lengths, strict=True):
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        raise
    finally:
        state.open = False
    reached = torch.cat([state.next_positions[:, -1:], position_ids + 1], dim=1).cummax(1).values
    state.next_positions = torch.cat([state.next_positions, reached[:, 1:]], dim=1)
    state.num_rows = state.num_rows + new
    state.columns += new
    return hidden_states
