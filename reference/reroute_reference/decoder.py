"""The canonical decoder in plain PyTorch, one sequence at a time (RR-BLOCK-006): weights in, hidden states out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from reroute_spec import RerouteError
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor
from transformers import DynamicCache

from .cache import RowCache
from .families import PLAIN_ATTENTION
from .score import apply_rotary


class CanonicalDecoder:
    """A decoder of identical pre-norm blocks, completely defined by a configuration and its weights.

    Args:
        config: sizes and constants.
        weights: one tensor per name of ``config.weight_shapes()``.
        dtype: computation dtype; that of the weights if omitted.
        shards: processes that the heads of a score are divided among, as far as its value can tell (RR-EQV-008).

    Raises:
        RerouteError: a missing, unknown or wrongly shaped weight.
    """

    def __init__(
        self,
        config: CanonicalConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        *,
        shards: int = 1,
    ) -> None:
        if not isinstance(weights, Mapping):
            raise RerouteError("weights", f"is a {type(weights).__name__}", "give one tensor per name")
        shapes = config.weight_shapes()
        norm = weights.get("norm.weight")
        if not isinstance(norm, Tensor):
            raise RerouteError("weights[norm.weight]", f"is a {type(norm).__name__}", "give a tensor")
        for name in sorted(shapes.keys() | weights.keys()):
            if not isinstance(weights.get(name, norm), Tensor):
                problem = f"is a {type(weights[name]).__name__}"
                raise RerouteError(f"weights[{name}]", problem, "give a tensor")
            found = tuple(weights[name].shape) if name in weights else None
            if found != shapes.get(name):
                raise RerouteError(f"weights[{name}]", f"has shape {found}", f"expected {shapes.get(name)}")
            if weights[name].dtype != norm.dtype or not norm.is_floating_point():
                problem = f"holds {weights[name].dtype}, norm.weight {norm.dtype}"
                raise RerouteError(f"weights[{name}]", problem, "give all weights in one floating precision")
        if shards < 1 or config.shape.num_key_value_heads % shards:
            remedy = f"give a divisor of the {config.shape.num_key_value_heads} key heads"
            raise RerouteError("shards", f"{shards}", remedy)
        self.config, self.shards = config, shards
        self.num_layers = config.shape.num_layers
        self.kinds = [PLAIN_ATTENTION] * self.num_layers
        self.mrope = config.mrope_section is not None
        self.weights = {
            name: weight if dtype is None else weight.to(dtype) for name, weight in weights.items()
        }
        self.dtype = self.weights["norm.weight"].dtype
        self.key_heads, self.head_dim = config.shape.num_key_value_heads, config.shape.head_dim
        self.vocabulary, self.width = self.weights["embed_tokens.weight"].shape

    def storage(self) -> DynamicCache:
        """An empty cache."""
        return DynamicCache()

    def embed(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Embeddings of new tokens."""
        return self.weights["embed_tokens.weight"][tokens]

    def rotary(self, positions: Int[Tensor, "*axes n"]) -> tuple[Float[Tensor, "n h"], Float[Tensor, "n h"]]:
        """cos and sin of every position; angles in float32, in float64 for the oracle (RR-BLOCK-005).

        Positions are counts [n] or, with M-RoPE, three coordinates [3, n] of which each pair takes one (RR-BLOCK-012).
        """
        angle_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        head_dim = self.config.shape.head_dim
        exponents = torch.arange(0, head_dim, 2, dtype=angle_dtype, device=positions.device) / head_dim
        # RR-BLOCK-012
        taken = positions.expand(3, -1)[self.config.coordinates()].T  # [n, h / 2]
        # RR-BLOCK-005
        angles = taken.to(angle_dtype) * self.config.rope_theta**-exponents
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def query_key(
        self, layer: int, hidden: Float[Tensor, "n d"], cos: Float[Tensor, "n h"], sin: Float[Tensor, "n h"]
    ) -> tuple[Float[Tensor, "H n h"], Float[Tensor, "K n h"]]:
        """The block's own queries and keys of ``hidden``, normed, projected and rotated (RR-SCORE-001)."""
        block = f"layers.{layer}."
        normed = self._norm(block + "input_layernorm", hidden)
        query, key = (self._heads(f"{block}self_attn.{name}_proj", normed) for name in ("q", "k"))
        if self.config.qk_norm:
            query, key = (
                self._norm(f"{block}self_attn.{name}_norm", x) for name, x in (("q", query), ("k", key))
            )
        return apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)

    def scaling(self, layer: int) -> float:
        """Factor of the attention logits."""
        return float(self.config.shape.head_dim**-0.5)

    def block(
        self,
        layer: int,
        hidden: Float[Tensor, "n d"],
        cos: Float[Tensor, "n h"],
        sin: Float[Tensor, "n h"],
        cache: RowCache,
    ) -> Float[Tensor, "n d"]:
        """Block ``layer`` on rows in order, causal among themselves and after all rows of its cache."""
        name = f"layers.{layer}."
        # RR-BLOCK-006
        query, key = self.query_key(layer, hidden, cos, sin)
        value = self._heads(f"{name}self_attn.v_proj", self._norm(name + "input_layernorm", hidden))
        keys, values = (x[0] for x in cache.storage.update(key[None], value[None], layer))  # [K, m, h]
        group = self.config.shape.num_attention_heads // self.config.shape.num_key_value_heads
        keys, values = (
            keys.repeat_interleave(group, dim=0),
            values.repeat_interleave(group, dim=0),
        )  # [H, m, h]
        logits = query @ keys.transpose(-1, -2) * self.scaling(layer)  # [H, n, m]
        new, total = logits.shape[-2:]
        visible = torch.ones(new, total, dtype=torch.bool, device=logits.device).tril(
            total - new
        )  # bottom-right causal (RR-KV-005)
        wide = torch.promote_types(logits.dtype, torch.float32)
        weights = logits.masked_fill(~visible, -torch.inf).softmax(dim=-1, dtype=wide)
        attention = weights.to(values.dtype) @ values  # [H, n, h]
        hidden = hidden + self._linear(f"{name}self_attn.o_proj", attention.transpose(0, 1).flatten(1))
        normed = self._norm(name + "post_attention_layernorm", hidden)
        gate, up = self._linear(name + "mlp.gate_proj", normed), self._linear(name + "mlp.up_proj", normed)
        return hidden + self._linear(name + "mlp.down_proj", F.silu(gate) * up)

    def final_norm(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The norm after the last block."""
        return self._norm("norm", hidden)

    def head(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """Logits of normed hidden states."""
        return self._linear("lm_head", hidden)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        """RMSNorm over the last axis, inner computation in at least float32 (RR-BLOCK-004)."""
        # RR-BLOCK-004
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return self.weights[name + ".weight"] * wide.to(x.dtype)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def _heads(self, name: str, x: Float[Tensor, "n d"]) -> Float[Tensor, "heads n h"]:
        return self._linear(name, x).view(x.shape[0], -1, self.config.shape.head_dim).transpose(0, 1)
