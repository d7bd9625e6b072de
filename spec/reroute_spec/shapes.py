"""The sizes of a decoder: what a cost is computed from, and of the public models by name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

from .errors import RerouteError


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder of identical blocks (grouped-query attention, gated MLP).

    Biases and norms are not part of a shape: under a ten-thousandth of a block's weights in every model below.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise RerouteError(entry.name, f"{value!r} is no size", "give an integer >= 1")
        _check_groups(
            "num_key_value_heads", self.num_key_value_heads, self.num_attention_heads, "key/value head"
        )

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The blocks with plain q/k attention, ascending: those that cache keys and can hold a decision."""
        return tuple(range(self.num_layers))

    @property
    def query_size(self) -> int:
        """Width of a row's queries over all heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of a row's keys (and of its values) over all key/value heads."""
        return self.num_key_value_heads * self.head_dim

    @property
    def mlp_weights(self) -> int:
        """Elements of a block's gate, up and down projections."""
        return 3 * self.hidden_size * self.intermediate_size

    def mixer_weights(self, layer: int) -> int:
        """Elements of block ``layer``'s q, k, v and output projections, or what stands in their place.

        Every element is one multiply-add per row, so a block's projections cost 2 x rows x this many FLOPs.
        """
        return self.hidden_size * (2 * self.query_size + 2 * self.key_size)


@dataclass(frozen=True)
class HybridShape(DecoderShape):
    """Sizes of a decoder that mixes gated full attention with gated DeltaNet blocks (Qwen3.5).

    Full attention projects a query and a gate (twice the query width); the gate multiplies the attention's output.
    A DeltaNet block projects q, k, v, an output gate and two numbers per value head (write strength and decay), runs
    a depthwise convolution over q, k and v, and keeps one matrix ``[key_head_dim, value_head_dim]`` per value head
    instead of keys and values. Source: ``Qwen3_5Attention`` and ``Qwen3_5GatedDeltaNet`` of transformers 5.23.

    Attributes:
        full_attention_layers: the blocks with plain attention, ascending; all others are linear.
    """

    linear_num_key_heads: int
    linear_key_head_dim: int
    linear_num_value_heads: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    full_attention_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_groups(
            "linear_num_key_heads",
            self.linear_num_key_heads,
            self.linear_num_value_heads,
            "linear key head",
        )
        layers = self.full_attention_layers
        if not all(isinstance(layer, int) and 0 <= layer < self.num_layers for layer in layers) or any(
            after <= before for before, after in pairwise(layers)
        ):
            raise RerouteError(
                "full_attention_layers",
                f"{layers!r} are no blocks of {self.num_layers}",
                "give ascending block indices",
            )

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The blocks with plain q/k attention, ascending."""
        return self.full_attention_layers

    @property
    def linear_conv_size(self) -> int:
        """Channels of a linear block's convolution: its q, k and v side by side."""
        key = self.linear_num_key_heads * self.linear_key_head_dim
        return 2 * key + self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def linear_state_size(self) -> int:
        """Elements of a linear block's recurrent state, per request."""
        return self.linear_num_value_heads * self.linear_key_head_dim * self.linear_value_head_dim

    def mixer_weights(self, layer: int) -> int:
        """Elements of block ``layer``'s projections and, in a linear block, of its convolution."""
        if layer in self.full_attention_layers:
            return self.hidden_size * (3 * self.query_size + 2 * self.key_size)
        value = self.linear_num_value_heads * self.linear_value_head_dim
        projections = self.linear_conv_size + 2 * value + 2 * self.linear_num_value_heads
        return self.hidden_size * projections + self.linear_conv_size * self.linear_conv_kernel_dim


def _check_groups(field: str, groups: int, heads: int, name: str) -> None:
    if heads % groups:
        raise RerouteError(
            field,
            f"{groups} does not divide {heads} heads",
            f"every {name} serves the same number of heads",
        )


# Sizes of the public checkpoints, from each repository's config.json (text_config where it is nested).
DECODER_SHAPES: dict[str, DecoderShape] = {
    # llava-hf/llava-1.5-7b-hf: vicuna-7b-v1.5; its text_config leaves every size to LlamaConfig's defaults
    "llava-1.5-7b": DecoderShape(32, 4096, 11008, 32, 32, 128),
    # llava-hf/llava-1.5-13b-hf: vicuna-13b-v1.5
    "llava-1.5-13b": DecoderShape(40, 5120, 13824, 40, 40, 128),
    # Qwen/Qwen2.5-VL-3B-Instruct
    "qwen2.5-vl-3b": DecoderShape(36, 2048, 11008, 16, 2, 128),
    # Qwen/Qwen2.5-VL-7B-Instruct
    "qwen2.5-vl-7b": DecoderShape(28, 3584, 18944, 28, 4, 128),
    # Qwen/Qwen3-VL-8B-Instruct
    "qwen3-vl-8b": DecoderShape(36, 4096, 12288, 32, 8, 128),
    # Qwen/Qwen3.5-9B: full attention at 3, 7, ..., 31
    "qwen3.5-9b": HybridShape(
        32, 4096, 12288, 16, 4, 256, 16, 128, 32, 128, 4, full_attention_layers=tuple(range(3, 32, 4))
    ),
}
