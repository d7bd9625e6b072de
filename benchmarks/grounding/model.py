"""The model: transformers' own LLaVA classes, small, with nothing in them that the project's families do not describe."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from reroute_spec import DecoderShape
from reroute_spec.model_config import shape_from_config
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.utils import logging as transformers_logging

from .questions import PROMPT_ROWS, TOKEN, VOCABULARY
from .scenes import GRID, PATCH, ROWS, SIDE

BLOCKS, WIDTH = 12, 128
"""Of the decoder. Three trainings in float16 are under 16 MB."""


def build(seed: int, *, blocks: int = BLOCKS, width: int = WIDTH) -> LlavaForConditionalGeneration:
    """An untrained model in float32.

    Args:
        seed: of its weights.
        blocks, width: of its decoder; the tower is as wide and has two blocks.
    """
    heads = width // 32
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=heads,
            image_size=SIDE,
            patch_size=PATCH,
            projection_dim=width,
        ),
        text_config=LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=2 * PROMPT_ROWS,
            bos_token_id=TOKEN["<s>"],
            eos_token_id=None,
            pad_token_id=TOKEN["<pad>"],
        ),
        image_token_index=TOKEN["<image>"],
        image_seq_length=ROWS,
        vision_feature_layer=-1,  # the tower is trained for this alone: its last block counts
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
    with torch.no_grad():  # where a patch is, from the start: a learnt table finds that out slowly
        table = model.model.vision_tower.embeddings.position_embedding.weight
        table[1:] = 0.5 * _places(width)
    return _quiet(model)


def _places(width: int) -> Tensor:
    """Sines and cosines of every patch's row and column, [ROWS, width]."""
    quarter = width // 4
    rates = torch.exp(-math.log(4.0 * GRID) * torch.arange(quarter) / quarter)
    angles = torch.arange(GRID)[:, None] * rates * math.pi / 2  # [GRID, quarter]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, GRID, -1), waves[None].expand(GRID, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(ROWS, width)


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """``config.json`` and ``model.safetensors`` in float16, as ``from_pretrained`` reads them; the model stays as it is."""
    halved = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    transformers_logging.disable_progress_bar()  # over a second or less
    model.save_pretrained(folder, state_dict=halved)


def load(folder: Path) -> LlavaForConditionalGeneration:
    """Trained weights, computed with in float32.

    Raises:
        OSError: there are none, or they cannot be read.
    """
    for name in ("model.safetensors", "config.json"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} holds no {name}")
    transformers_logging.disable_progress_bar()
    try:
        model = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        )
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise OSError(error) from error
    return _quiet(model).eval().requires_grad_(False)


def shape_of(model: LlavaForConditionalGeneration) -> DecoderShape:
    """Its decoder's sizes, for the cost model."""
    return shape_from_config(model.config.to_dict())


def _quiet(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Answers have a known length, so no token ends one."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = TOKEN["<pad>"]
    return model
