"""Builds the specification's canonical decoder as a transformers model, so that the suite checks the code that users run.

A decoder with scalar positions becomes a Llama, Qwen2 or Qwen3. A decoder with positions of three coordinates becomes a
Qwen2.5-VL or a Qwen3-VL, or a Qwen3-VL with parts changed where no class has all that it asks for.
"""

from __future__ import annotations

from typing import Any

from reroute_spec.canonical import CanonicalConfig
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

_VISION = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "patch_size": 2}
"""A vision tower that never runs: canonical decoders are given embeddings."""


def build(config: CanonicalConfig, weights: dict[str, Tensor]) -> nn.Module:
    """A causal language model in eval mode, with sdpa attention, in the dtype and on the device of ``weights``.

    Args:
        config: of the decoder.
        weights: names and shapes as ``config.weight_shapes()``.
    """
    shape = config.shape
    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
    }
    if config.mrope_section is None:
        model, extra = _scalar(config, sizes, weights)
    else:
        model, extra = _three_coordinates(config, sizes, weights)
    prefix = "model." if config.mrope_section is None else "model.language_model."
    state = {
        name if name.startswith("lm_head") else prefix + name: tensor
        for name, tensor in {**weights, **extra}.items()
    }
    vision = {name: tensor for name, tensor in model.state_dict().items() if ".visual." in name}
    like = weights["embed_tokens.weight"]
    model.to(device=like.device)
    for parameter in model.parameters():  # inverse frequencies stay float32, as `from_pretrained` leaves them
        parameter.data = parameter.data.to(like.dtype)
    model.load_state_dict({**vision, **state})
    built: nn.Module = model.eval().requires_grad_(False)
    return built


def _scalar(
    config: CanonicalConfig, sizes: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[Any, dict[str, Tensor]]:
    """Llama, Qwen2 or Qwen3, and the weights that it has beyond those of the canonical decoder."""
    if config.qk_norm:
        biased = (
            config.attention_bias
        )  # Qwen3 biases the output projection too; the canonical decoder does not
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, attention_bias=biased))
        return model, _zeros(config, weights, "o", config.shape.hidden_size) if biased else {}
    # Llama refuses a hidden size that its heads do not divide; Qwen2 takes it, and has biases
    if config.attention_bias or config.shape.hidden_size % config.shape.num_attention_heads:
        return Qwen2ForCausalLM(Qwen2Config(**sizes)), _zero_biases(config, weights)
    return LlamaForCausalLM(LlamaConfig(**sizes)), {}


def _three_coordinates(
    config: CanonicalConfig, sizes: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[Any, dict[str, Tensor]]:
    """Qwen2.5-VL or Qwen3-VL; where a decoder mixes what they have, Qwen3-VL with a part of Qwen2.5-VL, or without norms."""
    rope = {**sizes.pop("rope_parameters"), "mrope_section": list(config.mrope_section or ())}
    attention = sizes.pop("attn_implementation")
    shape = config.shape
    vision: dict[str, Any] = {**_VISION, "out_hidden_size": shape.hidden_size}
    ids: dict[str, Any] = {f"{name}_token_id": 0 for name in ("image", "video", "vision_start", "vision_end")}
    plain = not config.mrope_interleaved and not config.qk_norm
    if plain and shape.head_dim * shape.num_attention_heads == shape.hidden_size:
        text = {**sizes, "rope_parameters": rope}
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids),
            attn_implementation=attention,
        )
        return model, _zero_biases(config, weights)
    text = {**sizes, "rope_parameters": {**rope, "mrope_interleaved": True}}
    vision |= {"num_position_embeddings": 4, "deepstack_visual_indexes": []}
    biased = config.attention_bias
    model = Qwen3VLForConditionalGeneration._from_config(
        Qwen3VLConfig(
            text_config={**text, "attention_bias": biased},
            vision_config=vision,
            tie_word_embeddings=False,
            **ids,
        ),
        attn_implementation=attention,
    )
    decoder = model.model.language_model
    if not config.mrope_interleaved:
        decoder.rotary_emb = Qwen2_5_VLRotaryEmbedding(config=decoder.config)
    if not config.qk_norm:
        for block in decoder.layers:
            block.self_attn.q_norm = block.self_attn.k_norm = nn.Identity()
    return model, _zeros(config, weights, "o", shape.hidden_size) if biased else {}


def _zero_biases(config: CanonicalConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Biases of queries, keys and values that do nothing, where the canonical decoder has none."""
    if config.attention_bias:
        return {}
    shape, extra = config.shape, dict[str, Tensor]()
    for name, heads in (
        ("q", shape.num_attention_heads),
        ("k", shape.num_key_value_heads),
        ("v", shape.num_key_value_heads),
    ):
        extra |= _zeros(config, weights, name, heads * shape.head_dim)
    return extra


def _zeros(
    config: CanonicalConfig, weights: dict[str, Tensor], projection: str, size: int
) -> dict[str, Tensor]:
    """Biases that do nothing."""
    like = weights["embed_tokens.weight"]
    return {
        f"layers.{layer}.self_attn.{projection}_proj.bias": like.new_zeros(size)
        for layer in range(config.shape.num_layers)
    }
