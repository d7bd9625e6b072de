"""Runs the blocks before the first decision where a prefix is reused: once on the prefix, then only on the rows after it.

Reusing them changes no decision, because these blocks run all rows in any case and no row attends a later one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.decoder import Decoder, PositionEmbeddings
from ..model.deepstack import DeepStack
from ..turn.cache import Held, RoutedCache, is_state, make_cache
from ..turn.compaction import take
from ..turn.layout import Layout, StageLayout
from ..turn.past import Past
from .linear_attention import run_linear
from .masks import causal_mask
from .stream import ActiveRows


@dataclass(frozen=True)
class Opening:
    """The result of the blocks before the first decision on a prefix of P rows.

    Attributes:
        hidden_states: [P, d] at the input of the first decision's block.
        before: [P, d] at the input of the block before that one, where the decision reads its scores; or None.
        layers: per block, its part of a cache of one request.
    """

    hidden_states: Tensor
    before: Tensor | None
    layers: tuple[Any, ...]


def begin(
    decoder: Decoder,
    layers: int,
    hidden_states: Tensor,
    rotary: PositionEmbeddings,
    features: DeepStack | None,
    previous: bool,
) -> Opening:
    """Run the first ``layers`` blocks on a prefix [1, P, d] without padding.

    ``previous`` says whether the first decision reads its scores from the last of these blocks.
    """
    width, device = hidden_states.shape[1], hidden_states.device
    cache = make_cache(decoder)
    every = StageLayout(0, layers - 1, (width,), None, None)
    columns = torch.arange(width, device=device)[None]
    hidden, before = _run(
        decoder, every, hidden_states, rotary, ActiveRows(columns, columns, None), cache, None, features
    )
    kept = before[0].to(device) if previous else None
    return Opening(hidden[0].to(device), kept, tuple(cache.layers[:layers]))


def resume(
    decoder: Decoder,
    opening: Opening,
    layout: Layout,
    hidden_states: Tensor,
    rotary: PositionEmbeddings,
    features: DeepStack | None,
    cache: RoutedCache | None,
) -> tuple[Tensor, Tensor | None]:
    """Run those blocks on what follows the prefix in every request.

    Args:
        decoder: whose blocks run.
        opening: the first P rows of every request, which has more.
        layout: of the batch.
        hidden_states: [B, S, d] embeddings, left as they are.
        rotary: of all columns.
        features: of the batch, or None.
        cache: empty; its blocks then hold what they would hold without a prefix. None to keep nothing.

    Returns:
        All rows [B, S, d] at the input of the first decision's block, and of the block before it where the prefix has
        that; padding is zero.
    """
    shared, layers = len(opening.hidden_states), len(opening.layers)
    batch, device = len(hidden_states), hidden_states.device
    counts = [len(own) - shared for own in layout.columns]
    width = max(counts)
    pads = None if len(set(counts)) == 1 else torch.tensor([width - n for n in counts], device=device)
    active = layout.always.new_zeros(batch, layout.num_columns + 1)
    later = torch.tensor(
        [[own[-1]] * (width - n) + list(own[shared:]) for own, n in zip(layout.columns, counts, strict=True)],
        device=device,
    )
    rows = ActiveRows.of(active.scatter(1, later, True), width, pads)
    first = torch.tensor([own[:shared] for own in layout.columns], device=device)
    own_cache = make_cache(decoder) if cache is None else cache
    _seed(own_cache, opening.layers, batch)
    past = Past(batch, (Held(0, layers - 1, None),), (shared,) * layers, device)
    stage = StageLayout(0, layers - 1, tuple(counts), pads, None)
    cos, sin = (take(table, rows.columns) for table in rotary)
    hidden, before = _run(
        decoder, stage, take(hidden_states, rows.columns), (cos, sin), rows, own_cache, past, features
    )
    if pads is not None:
        for layer in own_cache.layers[:layers]:
            _pad_left(layer, shared, pads)
    return (
        _whole(hidden_states, first, opening.hidden_states, rows, hidden),
        None if opening.before is None else _whole(hidden_states, first, opening.before, rows, before),
    )


def _run(
    decoder: Decoder,
    stage: StageLayout,
    hidden: Tensor,
    rotary: PositionEmbeddings,
    rows: ActiveRows,
    cache: RoutedCache,
    past: Past | None,
    features: DeepStack | None,
) -> tuple[Tensor, Tensor]:
    """The stage's blocks on [B, R, d]: what comes out, and what the last of them was given."""
    batch, width = hidden.shape[:2]
    real, before, mask, masked = rows.real, hidden, None, False
    for layer in range(stage.last + 1):
        before = hidden
        if decoder.attends[layer]:
            if not masked:
                valid = real if past is None else past.valid_with(layer, real, batch, width)
                keys = width if past is None else width + past.lengths[layer]
                mask = causal_mask(decoder.implementation, width, keys, valid, hidden.dtype, hidden.device)
                masked = True
            hidden = decoder.run_block(layer, hidden, rotary, mask, cache)
        else:
            hidden = run_linear(decoder, layer, hidden, rotary, stage, real, cache, past)
        if features is not None:
            hidden = features.add(layer, hidden.to(features.flat.device), rows.columns)
    return hidden, before


def _seed(cache: RoutedCache, layers: Sequence[Any], batch: int) -> None:
    """Make the first blocks of an empty cache hold the prefix for every request; the prefix's own stay as they are."""
    for place, kept in enumerate(layers):
        own = copy.copy(kept)
        if is_state(kept):  # written in place
            for name, table in vars(kept).items():
                if isinstance(table, dict):
                    setattr(own, name, dict(table))
            for states in (own.conv_states, own.recurrent_states):
                states.update(
                    {i: s if s is None else s.repeat_interleave(batch, 0) for i, s in states.items()}
                )
        else:  # grows by concatenation
            own.keys, own.values = (table.expand(batch, -1, -1, -1) for table in (kept.keys, kept.values))
        if place < len(cache.layers):
            cache.layers[place] = own
        else:
            cache.layers.append(own)


def _pad_left(layer: Any, shared: int, pads: Tensor) -> None:
    """Move the padding of [prefix, padding, rows] to the front, as every block's cache has it."""
    if is_state(layer):
        return
    device = layer.keys.device
    places = torch.arange(layer.keys.shape[2], device=device)
    own = pads.to(device)[:, None]
    moved = torch.where(places < own, places + shared, places - own)
    index = torch.where(places < own + shared, moved, places)[:, None, :, None]
    layer.keys, layer.values = (
        table.gather(2, index.expand(-1, table.shape[1], -1, table.shape[3]))
        for table in (layer.keys, layer.values)
    )


def _whole(like: Tensor, first: Tensor, prefix: Tensor, rows: ActiveRows, later: Tensor) -> Tensor:
    """[B, S, d] of the prefix's rows in columns ``first`` [B, P] and the later ones; everything else is zero."""
    batch, columns, width = like.shape
    whole = like.new_zeros(batch, columns + 1, width)
    whole.scatter_(1, first[..., None].expand(-1, -1, width), prefix.expand(batch, -1, -1))
    whole = whole.scatter(1, rows.columns[..., None].expand(-1, -1, width), later.to(like.device))
    return whole[:, :-1]
