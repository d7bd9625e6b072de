"""Gives access to a transformers text decoder: its blocks, which are called whole, and the few other parts that routing touches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from reroute_reference.families import PLAIN_ATTENTION, TextDecoder, block_kinds, part
from torch import Tensor, nn

PositionEmbeddings = tuple[Tensor, Tensor]
"""cos and sin, each [B, rows, rotary width], in the model's dtype."""


@dataclass(frozen=True)
class Decoder:
    """A transformers text decoder and the names of its parts."""

    module: nn.Module
    names: TextDecoder

    @property
    def config(self) -> Any:
        """The text configuration."""
        return self.module.config

    @property
    def blocks(self) -> list[Any]:
        """The blocks that run, in order; transformers lets ``num_hidden_layers`` cut the list short."""
        return list(part(self.module, self.names.blocks))[: self.config.num_hidden_layers]

    @property
    def num_layers(self) -> int:
        """Blocks that run."""
        return len(self.blocks)

    @cached_property
    def attends(self) -> tuple[bool, ...]:
        """Per block, whether it has plain attention, and so keys and values; the others hold a state."""
        return tuple(kind == PLAIN_ATTENTION for kind in block_kinds(self.module))

    @property
    def hybrid(self) -> bool:
        """Whether some blocks hold a state instead of keys and values."""
        return not all(self.attends)

    @property
    def attention_layers(self) -> list[int]:
        """The blocks that can decide."""
        return [layer for layer, plain in enumerate(self.attends) if plain]

    @property
    def implementation(self) -> str:
        """How attention is computed, by transformers' name."""
        name: str = self.config._attn_implementation
        return name

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        """The norm after the last block, [..., d]."""
        normed: Tensor = part(self.module, self.names.final_norm)(hidden_states)
        return normed

    def position_embeddings(self, hidden_states: Tensor, positions: Tensor) -> PositionEmbeddings:
        """cos and sin of ``positions``, expanded to the batch of ``hidden_states`` [B, rows, d].

        Args:
            hidden_states: gives dtype, device and batch.
            positions: [B or 1, rows], or [3, B or 1, rows] with M-RoPE.
        """
        if self.names.mrope and positions.ndim == 2:
            positions = positions.expand(3, -1, -1)
        cos, sin = part(self.module, self.names.rotary)(hidden_states, position_ids=positions)
        batch = hidden_states.shape[0]
        return cos.expand(batch, -1, -1), sin.expand(batch, -1, -1)

    def run_block(
        self,
        layer: int,
        hidden_states: Tensor,
        position_embeddings: PositionEmbeddings,
        mask: Tensor | None,
        cache: Any,
    ) -> Tensor:
        """One block on [B, rows, d].

        ``position_ids`` stay None: positions with gaps look like packed sequences to transformers' attention, and
        RoPE is already in ``position_embeddings``.
        """
        output: Tensor = self.blocks[layer](
            hidden_states,
            attention_mask=mask,
            position_embeddings=position_embeddings,
            position_ids=None,
            past_key_values=cache,
        )
        return output


def largest(positions: Tensor) -> Tensor:
    """The largest coordinate of every position: [B, rows] of [B, rows] or [3, B, rows]."""
    return positions if positions.ndim == 2 else positions.amax(0)


def counted(real: Tensor | None, columns: int, device: torch.device) -> Tensor:
    """[B or 1, S] counts of real rows; padding is never a row, whatever the unrouted model counts."""
    if real is None:
        return torch.arange(columns, device=device)[None]
    return (real.long().cumsum(1) - 1).clamp(min=0)
