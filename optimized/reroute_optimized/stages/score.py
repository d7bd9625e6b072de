"""Scores rows for a decision by the attention of the asking rows to all keys, in plain PyTorch.

Only the asking rows are multiplied with the keys, so that the square of attention is never computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from reroute_reference.families import TextDecoder, part
from reroute_spec import ScoreRule
from torch import Tensor

from ..model.decoder import PositionEmbeddings
from ..parallel.shards import over_all_heads


@dataclass(frozen=True)
class Universe:
    """The rows U that the softmax of a score runs over.

    Attributes:
        hidden_states: [B, W, d], input of the block in whose terms rows are scored.
        position_embeddings: cos and sin, [B, W, rotary width], at the rows' own positions.
        real: [B, W] bool, False for padding; None where there is none.
        queries: [B, n] columns of the asking rows, ascending.
        asked: [B, n] bool, False where a request has fewer than n rows; None where none has.
        cached: keys [B, Hkv, P, D] of earlier turns, and which of them are rows ([B, P] bool, None: all); None in a
            first turn.
    """

    hidden_states: Tensor
    position_embeddings: PositionEmbeddings
    real: Tensor | None
    queries: Tensor
    asked: Tensor | None
    cached: tuple[Tensor, Tensor | None] | None = None

    def beside(self, hidden_states: Tensor) -> Universe:
        """The same rows as ``hidden_states``, all on its device: blocks of one model may lie on several."""
        device = hidden_states.device
        if all(x is None or x.device == device for x in (self.real, self.queries, *self.position_embeddings)):
            return replace(self, hidden_states=hidden_states)
        cos, sin = self.position_embeddings
        return Universe(
            hidden_states,
            (cos.to(device), sin.to(device)),
            _moved(self.real, device),
            self.queries.to(device),
            _moved(self.asked, device),
            None if self.cached is None else (self.cached[0], _moved(self.cached[1], device)),
        )


def _moved(table: Tensor | None, device: torch.device) -> Tensor | None:
    return None if table is None else table.to(device)


def rows_of(table: Tensor, columns: Tensor) -> Tensor:
    """``table`` [B, W, x] at ``columns`` [B, n]: [B, n, x]."""
    return table.gather(1, columns[..., None].expand(-1, -1, table.shape[2]))


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE by half-split pairs on the leading ``cos.shape[-1]`` channels of [B, rows, heads, head_dim], as the block does it."""
    width = cos.shape[-1]
    turned, rest = states[..., :width], states[..., width:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos[:, :, None] + torch.cat((-second, first), dim=-1) * sin[:, :, None]
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def _project(
    attention: Any,
    projection: str,
    norm: str | None,
    hidden: Tensor,
    rotary: PositionEmbeddings,
    gated: bool = False,
) -> Tensor:
    """Queries or keys as the block makes them, [B, rows, heads, head_dim]; of a gated projection the queries."""
    flat: Tensor = part(attention, projection)(hidden)
    states = flat.view(*flat.shape[:-1], -1, attention.head_dim * (2 if gated else 1))
    if gated:  # head by head a query, then its gate
        states = states[..., : attention.head_dim]
    if norm is not None:
        states = part(attention, norm)(states)
    return _rotate(states, *rotary)


def _wide(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


@torch.no_grad()
def row_scores(block: Any, names: TextDecoder, rule: ScoreRule, universe: Universe) -> Tensor:
    """Score of every row of the universe, from the block's own norm, projections and RoPE.

    Logits, softmax and reductions are float32. Rows of ``last_n`` are averaged before heads are reduced. Where processes
    share the heads, all of them have to ask at once.

    Returns:
        [B, W] of the turn's own rows; padding scores 0.
    """
    attention = part(block, names.attention)
    universe = universe.beside(part(block, names.input_norm)(universe.hidden_states))
    hidden = universe.hidden_states
    cos, sin = universe.position_embeddings
    asking = (rows_of(cos, universe.queries), rows_of(sin, universe.queries))
    keys = _project(attention, names.key, names.key_norm, hidden, (cos, sin))  # [B, W, Hkv, D]
    asking_rows = rows_of(hidden, universe.queries)
    queries = _project(attention, names.query, names.query_norm, asking_rows, asking, gated=names.gated_query)
    if universe.cached is not None:
        keys = torch.cat([universe.cached[0].transpose(1, 2), keys], dim=1)
    queries, keys = _wide(queries), _wide(keys)
    queries = queries.reshape(
        *queries.shape[:2], keys.shape[2], -1, queries.shape[3]
    )  # [B, n, Hkv, group, D]
    logits: Tensor = torch.einsum("bnhgd,bwhd->bhgnw", queries, keys) * attention.scaling
    masked = _masked(universe)
    if masked is not None:
        logits = logits.masked_fill(masked[:, None, None], -torch.inf)
    scores = logits.softmax(-1).flatten(1, 2)  # [B, H, n, W]
    if universe.asked is None:
        scores = scores.mean(2)
    else:
        absent = ~universe.asked[:, None, :, None]
        scores = scores.masked_fill(absent, 0).sum(2) / universe.asked.sum(1)[:, None, None]
    query = part(attention, names.query)
    scores = over_all_heads(scores, rule.heads, attention.config.num_attention_heads, query)
    return scores if universe.cached is None else scores[:, universe.cached[0].shape[2] :]


def _masked(universe: Universe) -> Tensor | None:
    """[B, n, P + W], True where a query does not look; None where each looks at everything."""
    queries, real, cached = universe.queries, universe.real, universe.cached
    past, width = 0 if cached is None else cached[0].shape[2], universe.hidden_states.shape[1]
    if cached is not None and (real is not None or cached[1] is not None):
        own = queries.new_ones(len(queries), width, dtype=torch.bool) if real is None else real
        before = own.new_ones(len(own), past) if cached[1] is None else cached[1]
        real = torch.cat([before, own], dim=1)
    padding: Tensor | None = None if real is None else ~real[:, None]
    if queries.shape[1] == 1:
        return padding
    # rows before the last one must not see past themselves
    later: Tensor = torch.arange(past + width, device=queries.device) > queries[..., None] + past
    return later if padding is None else later | padding
