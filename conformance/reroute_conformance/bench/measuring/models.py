"""Builds decoders with random weights and batches of requests for them, the same for everybody who is measured."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from reroute_spec import DecoderShape
from reroute_spec.canonical import CanonicalConfig
from reroute_spec.plan import visual_flags
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from .machine import Place

VOCABULARY = 1000
NARROW = DecoderShape(32, 512, 1376, 8, 8, 64)
"""LLaVA-1.5's depth with narrow blocks, for a CPU."""
VISUAL, TEXT, BEFORE = 576, 65, 35
"""LLaVA-1.5's visual rows, the text rows of a question, and how many of them stand before the image."""


@lru_cache(maxsize=1)  # cases that follow one another share it; two of them need not fit
def decoder(shape: DecoderShape, place: Place) -> Any:
    """A decoder of LLaVA's kind, in eval mode, with sdpa attention."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=16384,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.device(place.device):
        model: Any = LlamaForCausalLM(config)
    return model.to(place.dtype).eval().requires_grad_(False)


def own(model: nn.Module) -> nn.Module:
    """A model of its own modules and the same weights: who is measured may change it, and nobody else sees that."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def canonical(model: Any, shape: DecoderShape) -> tuple[CanonicalConfig, dict[str, Tensor]]:
    """The same decoder for who runs no transformers models, the weights shared."""
    config = CanonicalConfig(shape, VOCABULARY, rms_norm_eps=model.config.rms_norm_eps)
    return config, {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}


def rows(
    shape: DecoderShape,
    place: Place,
    visual: int = VISUAL,
    text: int = TEXT,
    before: int = BEFORE,
    batch: int = 1,
) -> dict[str, Tensor]:
    """Equal requests: ``inputs_embeds`` [B, S, d] and ``visual_mask`` [B, S]."""
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(batch, visual + text, shape.hidden_size, generator=generator)
    mask = torch.tensor([visual_flags(visual, text, before=before)]).expand(batch, -1).contiguous()
    return {
        "inputs_embeds": embeddings.to(place.device, place.dtype),
        "visual_mask": mask.to(place.device),
    }
