"""The canonical decoder: the one network that every implementation, in any language, can be checked on.

Blocks are pre-norm: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``. RMSNorm with learned weight, grouped-query
attention with rotary embedding (half-split pairs), SwiGLU. A final RMSNorm and an untied head follow.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .errors import RerouteError
from .shapes import DecoderShape, HybridShape


@dataclass(frozen=True)
class CanonicalConfig:
    """Everything about a canonical decoder but its weights.

    Attributes:
        shape: sizes; ``head_dim`` is even.
        vocab_size: rows of the embedding and of the head.
        rms_norm_eps: added to the mean square inside the root.
        rope_theta: pair i of a head turns by ``position * rope_theta ** (-2 i / head_dim)``.
        attention_bias: whether q, k and v projections have biases (the output projection never has).
        qk_norm: whether queries and keys pass an RMSNorm over ``head_dim`` before the rotary embedding.
        mrope_section: pairs turned by time, height and width, where positions have three coordinates (RR-BLOCK-012).
        mrope_interleaved: whether these take turns from pair to pair, instead of one section after the other.
    """

    shape: DecoderShape
    vocab_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    attention_bias: bool = False
    qk_norm: bool = False
    mrope_section: tuple[int, int, int] | None = None
    mrope_interleaved: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.shape, HybridShape):
            raise RerouteError(
                "shape", "has linear-attention blocks", "a canonical decoder has full attention"
            )
        if self.shape.head_dim % 2:
            raise RerouteError(
                "shape.head_dim",
                f"{self.shape.head_dim} is odd",
                "rotary embedding pairs halves: give an even size",
            )

        section = self.mrope_section
        if section is not None:
            object.__setattr__(self, "mrope_section", tuple(section))
            if len(section) != 3 or min(section) < 0 or 2 * sum(section) != self.shape.head_dim:
                raise RerouteError(
                    "mrope_section",
                    f"{tuple(section)} with heads of {self.shape.head_dim} channels",
                    "give three counts that add up to half a head",
                )

    def coordinates(self) -> list[int]:
        """Which coordinate turns each pair of a head: 0 time, 1 height, 2 width; 0 alone without M-RoPE (RR-BLOCK-012)."""
        pairs = range(self.shape.head_dim // 2)
        if self.mrope_section is None:
            return [0 for _ in pairs]
        if self.mrope_interleaved:
            return [i % 3 if i < 3 * self.mrope_section[i % 3] else 0 for i in pairs]
        return [coordinate for coordinate, count in enumerate(self.mrope_section) for _ in range(count)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CanonicalConfig:
        """Reads what ``to_dict`` wrote."""
        return cls(**{**data, "shape": DecoderShape(**data["shape"])})

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight; matrices are ``[out, in]``."""
        s = self.shape
        query, key = s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (self.vocab_size, s.hidden_size)}
        for layer in range(s.num_layers):
            block = f"layers.{layer}."
            shapes[block + "input_layernorm.weight"] = (s.hidden_size,)
            for name, size in (("q", query), ("k", key), ("v", key)):
                shapes[f"{block}self_attn.{name}_proj.weight"] = (size, s.hidden_size)
                if self.attention_bias:
                    shapes[f"{block}self_attn.{name}_proj.bias"] = (size,)
            if self.qk_norm:
                shapes[block + "self_attn.q_norm.weight"] = (s.head_dim,)
                shapes[block + "self_attn.k_norm.weight"] = (s.head_dim,)
            shapes[block + "self_attn.o_proj.weight"] = (s.hidden_size, query)
            shapes[block + "post_attention_layernorm.weight"] = (s.hidden_size,)
            shapes[block + "mlp.gate_proj.weight"] = (s.intermediate_size, s.hidden_size)
            shapes[block + "mlp.up_proj.weight"] = (s.intermediate_size, s.hidden_size)
            shapes[block + "mlp.down_proj.weight"] = (s.hidden_size, s.intermediate_size)
        shapes["norm.weight"] = (s.hidden_size,)
        shapes["lm_head.weight"] = (self.vocab_size, s.hidden_size)
        return shapes
