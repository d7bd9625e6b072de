"""The canonical decoder as a real transformers model, so that what the suite checks is what users run."""

from __future__ import annotations

from typing import Any

from reroute_spec.canonical import CanonicalConfig
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)


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
    state = {
        name if name.startswith("lm_head") else f"model.{name}": tensor for name, tensor in weights.items()
    }
    model: Any
    if config.qk_norm:
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, attention_bias=config.attention_bias))
        if config.attention_bias:  # Qwen3 biases the output projection too; the canonical decoder does not
            for layer in range(shape.num_layers):
                bias = weights["embed_tokens.weight"].new_zeros(shape.hidden_size)
                state[f"model.layers.{layer}.self_attn.o_proj.bias"] = bias
    elif config.attention_bias:
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    like = weights["embed_tokens.weight"]
    model.to(device=like.device, dtype=like.dtype).load_state_dict(state)
    built: nn.Module = model.eval().requires_grad_(False)
    return built
