"""Tiny real transformers models, drawn so that selections have margins, and prompts for them."""

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

LAYERS, IMAGE, PATCHES = 6, 190, 16
TEXT = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def draw(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "vision" not in name:
                parameter.normal_(0, 0.2, generator=generator)
            elif name.endswith("bias") and "vision" not in name:
                parameter.normal_(0, 0.3, generator=generator)
            elif "norm" in name and "vision" not in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model.eval().requires_grad_(False)


def llava(attention="sdpa"):
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=32,
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
    )
    config._attn_implementation = attention
    model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    return draw(model)


def text_model(family="llama", attention="sdpa"):
    make, config = {
        "llama": (LlamaForCausalLM, LlamaConfig(**TEXT)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**TEXT)),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config(**TEXT)),
    }[family]
    config._attn_implementation = attention
    torch.manual_seed(0)
    return draw(make(config))


def row(before, images, after, seed=0):
    """Token ids: text, whole images, text. A negative ``after`` ends the prompt inside the last image."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 180, (before + max(after, 0),), generator=generator).tolist()
    return [1, *text[:before], *[IMAGE] * (images * PATCHES), *text[before:]]


def llava_inputs(rows, side="left", seed=0):
    """A batch of token rows, padded on ``side``, with one picture for every 16 placeholders."""
    width = max(map(len, rows))
    ids, mask = [], []
    for tokens in rows:
        pads = [0] * (width - len(tokens))
        ones = [1] * len(tokens)
        ids.append([*pads, *tokens] if side == "left" else [*tokens, *pads])
        mask.append([*pads, *ones] if side == "left" else [*ones, *pads])
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    pictures = sum(tokens.count(IMAGE) // PATCHES for tokens in rows)
    if pictures:
        generator = torch.Generator().manual_seed(seed)
        inputs["pixel_values"] = torch.randn(pictures, 3, 56, 56, generator=generator)
    return inputs


def text_inputs(flags, seed=0, width=64):
    """Embeddings [1, S, d] and a visual mask for one prompt of ``flags``, a string of t and v."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "inputs_embeds": torch.randn(1, len(flags), width, generator=generator),
        "visual_mask": torch.tensor([[flag == "v" for flag in flags]]),
    }
