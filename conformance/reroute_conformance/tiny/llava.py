"""Builds a tiny LLaVA and a narrow one in code, with the real LLaVA processor and a drawn picture with a question.

The models are real transformers models with random weights. The tiny one takes milliseconds for a forward run. The
narrow one has a vision tower with the blocks and patches that Nüwa's first stage is defined for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

IMAGE_TOKEN = "<image>"
PATCHES_PER_IMAGE = 36
NARROW_IMAGE, NARROW_PATCHES = 190, 576
"""Placeholder token, and its rows per image, of :func:`narrow_llava`."""
WORDS = [
    "a",
    "an",
    "and",
    "are",
    "at",
    "ball",
    "big",
    "blue",
    "box",
    "circle",
    "color",
    "colour",
    "corner",
    "describe",
    "do",
    "does",
    "find",
    "green",
    "grey",
    "how",
    "in",
    "is",
    "it",
    "left",
    "many",
    "near",
    "of",
    "on",
    "orange",
    "purple",
    "question",
    "red",
    "right",
    "scene",
    "see",
    "shape",
    "small",
    "square",
    "the",
    "there",
    "this",
    "to",
    "triangle",
    "under",
    "user",
    "assistant",
    "what",
    "where",
    "which",
    "white",
    "yellow",
    "you",
    ":",
    "?",
    ".",
    ",",
]
_IMAGE_SIZE, _PATCH = 84, 14


def tiny_llava(
    seed: int = 0, *, num_layers: int = 8, attention: str = "sdpa"
) -> LlavaForConditionalGeneration:
    """A LLaVA-1.5 with 36 visual rows per image and random weights, in eval mode, float32.

    Args:
        seed: of the weights. The text decoder's matrices are drawn wide (std 0.15), so that attention is far from
            uniform and selections have margins.
        num_layers: decoder blocks.
        attention: ``sdpa`` or ``eager``.
    """
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=_IMAGE_SIZE,
            patch_size=_PATCH,
            projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tiny_processor().tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=tiny_processor().tokenizer.pad_token_id,
        ),
        image_token_index=tiny_processor().image_token_id,
        image_seq_length=PATCHES_PER_IMAGE,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # every parameter is drawn here: transformers' own initialisation reads the global generator
            std = 0.15 if "language_model" in name or "lm_head" in name else 0.1
            is_norm_weight = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_norm_weight else 0.0, std, generator=generator)
    model.generation_config.eos_token_id = None
    return model.eval()


def narrow_llava(
    seed: int = 0, *, num_layers: int = 32, heads: tuple[int, int] = (2, 2), attention: str = "eager"
) -> LlavaForConditionalGeneration:
    """A LLaVA-1.5 whose tower has the 24 blocks over 24 x 24 patches that Nüwa's first stage is defined for, all narrow.

    Args:
        seed: of the weights, random; in eval mode, float32.
        num_layers: decoder blocks.
        heads: query heads and key heads of the decoder.
        attention: ``eager`` or ``sdpa``.
    """
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=24,
            num_attention_heads=2,
            image_size=336,
            patch_size=14,
            projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=200,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=num_layers,
            num_attention_heads=heads[0],
            num_key_value_heads=heads[1],
            bos_token_id=None,
            eos_token_id=None,
        ),
        image_token_index=NARROW_IMAGE,
        image_seq_length=NARROW_PATCHES,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.ndim == 1 and name.endswith("weight")
            std = 0.3 if "vision" in name and "proj" in name else 0.1
            parameter.normal_(1.0 if norm else 0.0, std, generator=generator)
    return model.eval().requires_grad_(False)


@cache
def tiny_processor() -> LlavaProcessor:
    """The real LLaVA processor over a real CLIP image processor and a word-level tokenizer."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", IMAGE_TOKEN, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=[IMAGE_TOKEN],
        padding_side="left",
    )
    size = {"height": _IMAGE_SIZE, "width": _IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": _IMAGE_SIZE}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def picture(width: int = 320, height: int = 240) -> Image.Image:
    """A drawn scene: a red ball, a blue box and a green triangle on a grey ground."""
    image = Image.new("RGB", (width, height), (214, 228, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height * 0.7, width, height), fill=(128, 128, 128))
    draw.ellipse((width * 0.08, height * 0.45, width * 0.33, height * 0.78), fill=(200, 30, 30))
    draw.rectangle((width * 0.42, height * 0.40, width * 0.62, height * 0.75), fill=(30, 60, 190))
    corners = [(width * 0.70, height * 0.76), (width * 0.95, height * 0.76), (width * 0.82, height * 0.35)]
    draw.polygon(corners, fill=(40, 150, 60))
    return image


def picture_inputs(
    text: str = "user : <image> where is the red ball ? assistant :", images: int = 1
) -> dict[str, Any]:
    """What the processor makes of the picture and a question: input_ids, attention_mask, pixel_values."""
    batch = tiny_processor()(images=[picture()] * images or None, text=text, return_tensors="pt")
    return {name: value for name, value in batch.items() if value is not None}
