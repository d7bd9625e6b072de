"""Runs later turns of text, decode included: every block runs their rows, which attend all rows that the block has cached.

Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..model.decoder import Decoder, PositionEmbeddings, largest
from ..turn.cache import RoutedCache, RoutingState
from .masks import causal_mask

RunRow = Callable[[Tensor, Sequence[PositionEmbeddings], Callable[[Tensor], None] | None], Tensor]
"""Runs one row of every request, [B, 1, d], through all blocks, given its rotary embeddings and who observes; returns
the last block's output."""


def decode(
    decoder: Decoder,
    cache: RoutedCache,
    state: RoutingState,
    hidden_states: Tensor,
    position_ids: Tensor | None,
    observe: Callable[[Tensor], None] | None = None,
    *,
    run_row: RunRow | None = None,
) -> Tensor:
    """Run text rows on top of a filled cache. A chunk of rows gives the same as its rows one by one.

    Args:
        decoder: whose blocks run.
        cache: of the routed prefill; every block appends.
        state: the cache's own.
        hidden_states: [B, T, d] embeddings.
        position_ids: [B or 1, T] or [3, B or 1, T], or None to go on from the largest position so far, deferred rows
            included. Where positions are renumbered, blocks count on from their own rows instead.
        observe: called with every block's output.
        run_row: runs the blocks on a single row (T = 1), where an engine has a way of its own for it; None: they are
            called as they are.

    Returns:
        [B, T, d] after the final norm.
    """
    batch, new = hidden_states.shape[:2]
    rotaries: list[PositionEmbeddings] = []  # of a single row
    steps = torch.arange(new, device=hidden_states.device)
    if position_ids is None:
        position_ids = state.next_positions[:, -1:] + steps
    rotary = decoder.position_embeddings(hidden_states, position_ids)
    for held in state.held:
        attention = next(
            (layer for layer in range(held.first, held.last + 1) if decoder.attends[layer]), None
        )
        mask = None
        if attention is not None:
            rows = cache.get_seq_length(attention)
            valid = held.valid_of(rows + new)
            if state.renumbered:
                rotary = _counted_on(decoder, hidden_states, valid, rows, steps)
            implementation, dtype = decoder.implementation, hidden_states.dtype
            if run_row is None:
                mask = causal_mask(implementation, new, rows + new, valid, dtype, hidden_states.device)
        if run_row is not None:
            rotaries += [rotary] * sum(cache.layers[i].place == 0 for i in range(held.first, held.last + 1))
            continue
        for layer in range(held.first, held.last + 1):
            own = mask if decoder.attends[layer] else None
            hidden_states = decoder.run_block(layer, hidden_states, rotary, own, cache)
            if observe is not None:
                observe(hidden_states)
    if run_row is not None:
        angles = rotaries if state.renumbered else rotaries[:1]
        hidden_states = run_row(hidden_states, angles, observe)
    hidden_states = decoder.final_norm(hidden_states)
    positions = largest(position_ids).expand(batch, -1)
    reached = torch.cat([state.next_positions[:, -1:], positions + 1], dim=1).cummax(1).values
    state.next_positions = torch.cat([state.next_positions, reached[:, 1:]], dim=1)
    state.num_rows, state.reach = state.num_rows + new, state.reach + new
    state.columns += new
    return hidden_states


def _counted_on(
    decoder: Decoder, hidden: Tensor, valid: Tensor | None, rows: int, steps: Tensor
) -> PositionEmbeddings:
    counts = rows if valid is None else valid[:, :rows].sum(1, keepdim=True)
    return decoder.position_embeddings(hidden, (counts + steps).view(-1, len(steps)))
