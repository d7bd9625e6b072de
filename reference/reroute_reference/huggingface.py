"""Presents the text decoder of a transformers model as blocks, by the same few functions as the canonical decoder.

The model's own layers are called whole.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from reroute_spec import RerouteError
from torch import Tensor, nn
from transformers import DynamicCache

from .cache import RowCache
from .families import PLAIN_ATTENTION, block_kinds, check_attention, text_decoder_of
from .score import apply_rotary


class HuggingFaceDecoder:
    """The text decoder and head of a described transformers model.

    Raises:
        RerouteError: a family or attention implementation that is not described, or a model in training mode.
    """

    def __init__(self, model: nn.Module) -> None:
        # dropout would draw: the same inputs would not give the same bits  RR-NUM-004
        for name, module in model.named_modules():
            if module.training:
                where = f"its {name} is" if name else "it is"
                raise RerouteError("model.training", f"{where} in training mode", "call model.eval() first")
        self.model, self.shards = model, 1
        self.decoder, self.parts = text_decoder_of(model)
        check_attention(self.decoder, self.parts.kinds)
        config: Any = self.decoder.config
        self.attention = str(config._attn_implementation)
        if self.attention not in ("eager", "sdpa") and not self.attention.startswith("flash_attention"):
            raise RerouteError(
                "attn_implementation",
                f"{self.attention!r} is not described",
                "use eager, sdpa or flash_attention_*",
            )
        # transformers lets num_hidden_layers cut the list of blocks short
        self.blocks: Any = list(getattr(self.decoder, self.parts.blocks))[: config.num_hidden_layers]
        self.num_layers = len(self.blocks)
        self.kinds = block_kinds(self.decoder)
        self.mrope = self.parts.mrope
        self.dtype: torch.dtype = next(self.decoder.parameters()).dtype
        self.key_heads = int(config.num_key_value_heads)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.head_dim, self.width = int(width), int(config.hidden_size)
        embedding: Any = self.decoder.get_submodule("embed_tokens")
        self.vocabulary = int(embedding.weight.shape[0])

    def storage(self) -> DynamicCache:
        """An empty cache: keys and values of a block with plain attention, the states of one with linear attention."""
        config: Any = self.decoder.config
        return DynamicCache(config=config)

    def embed(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Embeddings of new tokens."""
        embedding: Any = self.decoder.get_submodule("embed_tokens")
        return embedding(tokens)  # type: ignore[no-any-return]

    def rotary(self, positions: Int[Tensor, "*axes n"]) -> tuple[Float[Tensor, "n r"], Float[Tensor, "n r"]]:
        """cos and sin of every position, by the model's own rotary module.

        Positions are counts [n] or, with M-RoPE, three coordinates [3, n] (RR-BLOCK-012); r is smaller than the head
        where only a part of it is rotated (RR-BLOCK-013).
        """
        probe: Any = next(self.decoder.parameters())
        if self.mrope:
            # RR-BLOCK-012
            positions = positions.expand(3, -1)  # a count stands for three equal coordinates
        cos, sin = getattr(self.decoder, self.parts.rotary)(probe, position_ids=positions.unsqueeze(-2))
        return cos[0], sin[0]

    def query_key(
        self, layer: int, hidden: Float[Tensor, "n d"], cos: Float[Tensor, "n h"], sin: Float[Tensor, "n h"]
    ) -> tuple[Float[Tensor, "H n h"], Float[Tensor, "K n h"]]:
        """The block's own queries and keys of ``hidden``, normed, projected and rotated (RR-SCORE-001)."""
        block = self.blocks[layer]
        attention = getattr(block, self.parts.attention)
        normed = getattr(block, self.parts.input_norm)(hidden)
        projected = []
        width = int(attention.head_dim)
        for projection, norm, held in (
            (self.parts.query, self.parts.query_norm, 2 * width if self.parts.gated_query else width),
            (self.parts.key, self.parts.key_norm, width),
        ):
            heads = getattr(attention, projection)(normed).unflatten(-1, (-1, held))  # [n, heads, h or 2 h]
            # the gate, where there is one, takes no part in attention  RR-BLOCK-013
            heads = heads[..., :width]
            heads = heads if norm is None else getattr(attention, norm)(heads)
            projected.append(apply_rotary(heads.transpose(0, 1), cos, sin))
        return projected[0], projected[1]

    def scaling(self, layer: int) -> float:
        """Factor of the attention logits."""
        return float(getattr(self.blocks[layer], self.parts.attention).scaling)

    def block(
        self,
        layer: int,
        hidden: Float[Tensor, "n d"],
        cos: Float[Tensor, "n h"],
        sin: Float[Tensor, "n h"],
        cache: RowCache,
    ) -> Float[Tensor, "n d"]:
        """Block ``layer`` on rows in order, causal among themselves and after all rows of its cache.

        A block of linear attention takes them in order after the states in its cache (RR-BLOCK-011).
        """
        # RR-BLOCK-011
        output = self.blocks[
            layer
        ](
            hidden[None],
            attention_mask=self._mask(layer, hidden, hidden.shape[0] + cache.rows(layer)),
            position_embeddings=(cos[None], sin[None]),
            position_ids=None,  # positions with gaps would look like packed sequences; rotary is already applied
            past_key_values=cache.storage,
        )
        return (output[0] if isinstance(output, tuple) else output)[0]  # type: ignore[no-any-return]

    def _mask(self, layer: int, hidden: Float[Tensor, "n d"], total: int) -> Tensor | None:
        """Bottom-right causal over ``total`` keys (RR-BLOCK-003); None where the block makes just that itself."""
        new = hidden.shape[0]
        if self.kinds[layer] != PLAIN_ATTENTION:
            return None
        if self.attention.startswith("flash_attention") or (self.attention == "sdpa" and new in (1, total)):
            return None
        # a row sees what stands before it alone: rows before the first image are the unrouted ones  RR-EQV-007
        visible = torch.ones(new, total, dtype=torch.bool, device=hidden.device).tril(total - new)
        lowest = torch.finfo(hidden.dtype).min
        return torch.zeros_like(visible, dtype=hidden.dtype).masked_fill(~visible, lowest)[None, None]

    def final_norm(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The norm after the last block."""
        return getattr(self.decoder, self.parts.final_norm)(hidden)  # type: ignore[no-any-return]

    def head(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """Logits of normed hidden states."""
        model: Any = self.model
        return model.get_output_embeddings()(hidden)  # type: ignore[no-any-return]
