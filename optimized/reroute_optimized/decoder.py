"""A handle on a transformers text decoder: its blocks, called whole, and the little else that routing touches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reroute_reference.families import TextDecoder, part
from torch import Tensor, nn

PositionEmbeddings = tuple[Tensor, Tensor]
"""cos and sin, each [B, rows, rotary width], in the model's dtype."""


@dataclass(frozen=True)
class Decoder:
    """A text decoder and the names of its parts."""

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

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        """The norm after the last block, [..., d]."""
        normed: Tensor = part(self.module, self.names.final_norm)(hidden_states)
        return normed

    def position_embeddings(self, hidden_states: Tensor, positions: Tensor) -> PositionEmbeddings:
        """cos and sin of ``positions`` [B or 1, rows], expanded to the batch of ``hidden_states`` [B, rows, d]."""
        cos, sin = part(self.module, self.names.rotary)(hidden_states, position_ids=positions)
        batch = hidden_states.shape[0]
        return cos.expand(batch, -1, -1), sin.expand(batch, -1, -1)

    def run(
        self,
        first: int,
        last: int,
        hidden_states: Tensor,
        position_embeddings: PositionEmbeddings,
        mask: Tensor | None,
        cache: Any,
    ) -> Tensor:
        """Blocks ``first`` to ``last`` (inclusive) on [B, rows, d].

        ``position_ids`` stay None: positions with gaps look like packed sequences to transformers' attention, and
        RoPE is already in ``position_embeddings``.
        """
        for block in self.blocks[first : last + 1]:
            hidden_states = block(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=None,
                past_key_values=cache,
            )
        return hidden_states
