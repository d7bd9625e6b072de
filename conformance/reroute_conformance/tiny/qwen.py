"""Builds tiny transformers models of the three Qwen families in code, and the inputs that a processor returns for them.

The models are real transformers models with random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
IMAGE, VIDEO, VISION_START, VISION_END = 190, 191, 192, 193
LAST_WORD = 180
_WORDS = (3, LAST_WORD)  # ids of text, past the special tokens and below the placeholders
_PATCH_VALUES = 3 * 2 * 14 * 14  # channels, frames per patch, height, width
_MERGED = 4  # patches per row: 2 x 2

_TEXT: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
}
_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": False,
}


def tiny_qwen(
    family: str, seed: int = 0, *, num_layers: int = 8, attention: str = "sdpa", std: float = 0.2
) -> nn.Module:
    """A model of one of :data:`FAMILIES` with random weights, in eval mode, float32.

    Qwen3.5 has plain attention in every fourth block (3, 7, ...), linear attention in the others.

    Args:
        family: ``qwen2_5_vl``, ``qwen3_vl`` or ``qwen3_5``.
        seed: of the weights. The text decoder's matrices are drawn wide, so that attention is far from uniform and
            selections have margins.
        num_layers: decoder blocks; a multiple of 4 for Qwen3.5.
        attention: ``sdpa`` or ``eager``.
        std: of the text decoder's matrices.
    """
    model_class, config = _config(family, num_layers)
    model: nn.Module = model_class._from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # every parameter is drawn here: transformers' own initialisation reads the global generator
            if "visual" in name:
                mean, spread = (1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0), 0.1
            elif name.endswith(("norm.weight", "layernorm.weight")):
                # Qwen3.5 stores norm weights around 0, but for the gated norm of its linear attention
                zero_centred = family == "qwen3_5" and "linear_attn" not in name
                mean, spread = (0.0 if zero_centred else 1.0), 0.1
            else:
                mean, spread = 0.0, std
            parameter.normal_(mean, spread, generator=generator)
    generation: Any = model.generation_config
    generation.eos_token_id = None
    return model.eval().requires_grad_(False)


def _config(family: str, num_layers: int) -> tuple[Any, Any]:
    text = {**_TEXT, "num_hidden_layers": num_layers}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if family == "qwen2_5_vl":
        text["rope_parameters"] = {**rope, "mrope_section": [2, 3, 3]}
        vision = {**_VISION, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 4}
        return Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, **_IDS
        )
    vision = {**_VISION, "num_position_embeddings": 64}
    if family == "qwen3_vl":
        text["head_dim"] = 16
        text["rope_parameters"] = {**rope, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
        vision["deepstack_visual_indexes"] = [0, 1]
        return Qwen3VLForConditionalGeneration, Qwen3VLConfig(text_config=text, vision_config=vision, **_IDS)
    text |= {
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "layer_types": [
            "full_attention" if layer % 4 == 3 else "linear_attention" for layer in range(num_layers)
        ],
        "rope_parameters": {
            **rope,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    }
    return Qwen3_5ForConditionalGeneration, Qwen3_5Config(text_config=text, vision_config=vision, **_IDS)


def qwen_inputs(
    family: str,
    layouts: Sequence[Sequence[str | tuple[int, int, int]]],
    *,
    seed: int = 0,
    side: str = "left",
    pads: Sequence[int] | None = None,
) -> dict[str, Any]:
    """What a processor returns for a batch.

    Args:
        family: one of :data:`FAMILIES`; Qwen3-VL and Qwen3.5 split a video into frames with text between them.
        layouts: per request a sequence of parts: a string of ``t`` (that many words), or a grid of patches
            ``(t, h, w)``: an image if ``t`` is 1, else a video of ``t`` frames.
        seed: of words and pixels.
        side: of the padding, ``left`` or ``right``.
        pads: per request, padding beyond what the longest one asks for.
    """
    generator = torch.Generator().manual_seed(seed)
    requests = [_tokens(family, layout, generator) for layout in layouts]
    extra = pads or [0] * len(requests)
    length = max(len(ids) + pad for ids, pad in zip(requests, extra, strict=True))
    input_ids, mask = (torch.zeros(len(requests), length, dtype=torch.long) for _ in range(2))
    for row, ids in enumerate(requests):
        place = slice(length - len(ids), length) if side == "left" else slice(0, len(ids))
        input_ids[row, place], mask[row, place] = torch.tensor(ids), 1
    kinds = (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()
    inputs = {"input_ids": input_ids, "attention_mask": mask, "mm_token_type_ids": kinds}
    grids = [part for layout in layouts for part in layout if not isinstance(part, str)]
    for medium, chosen in (
        ("image", [g for g in grids if g[0] == 1]),
        ("video", [g for g in grids if g[0] > 1]),
    ):
        if chosen:
            grid = torch.tensor(chosen)
            pixels = torch.randn(int(grid.prod(-1).sum()), _PATCH_VALUES, generator=generator)
            name = "pixel_values" if medium == "image" else "pixel_values_videos"
            inputs |= {name: pixels, f"{medium}_grid_thw": grid}
    return inputs


def _tokens(
    family: str, layout: Sequence[str | tuple[int, int, int]], generator: torch.Generator
) -> list[int]:
    ids: list[int] = []
    for part in layout:
        if isinstance(part, str):
            ids += _words(len(part), generator).tolist()
            continue
        frames, height, width = part
        rows = height * width // _MERGED
        if frames == 1:
            ids += [VISION_START, *[IMAGE] * rows, VISION_END]
        elif family == "qwen2_5_vl":
            ids += [VISION_START, *[VIDEO] * (frames * rows), VISION_END]
        else:  # a word stands for each frame's timestamp
            for _ in range(frames):
                ids += [*_words(1, generator).tolist(), VISION_START, *[VIDEO] * rows, VISION_END]
    return ids


def _words(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(*_WORDS, (count,), generator=generator)
