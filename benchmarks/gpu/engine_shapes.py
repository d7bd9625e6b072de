"""Text decoders of public models' shapes with random weights, and prompts of them; and a tiny one, to rehearse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from reroute_spec import DecoderShape, shape_from_config
from reroute_spec.plan import visual_flags
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM


@dataclass(frozen=True)
class Shape:
    """A text decoder, and a prompt."""

    name: str
    kind: type
    config: dict[str, Any]
    visual: int = 576
    text: int = 64
    before: int = 35

    @property
    def decoder(self) -> DecoderShape:
        """For the cost model."""
        return shape_from_config(self.config | {"model_type": "llama"})

    def build(
        self, layers: int | None = None, dtype: torch.dtype = torch.bfloat16, device: str = "cuda"
    ) -> Any:
        """With random weights."""
        model, config = self.kind
        torch.manual_seed(0)
        own = {**self.config, **({} if layers is None else {"num_hidden_layers": layers})}
        with torch.device(device):
            built = model._from_config(config(**own), dtype=dtype, attn_implementation="sdpa")
        return built.eval().requires_grad_(False)

    def inputs(self, batch: int, like: Any, seed: int = 1) -> dict[str, Tensor]:
        """Embeddings [B, S, d] and which rows are visual."""
        weight = like.get_input_embeddings().weight
        chance = torch.Generator(weight.device).manual_seed(seed)
        rows = self.visual + self.text
        shape = (batch, rows, weight.shape[1])
        flags = torch.tensor([visual_flags(self.visual, self.text, before=self.before)] * batch)
        embeddings = torch.randn(shape, generator=chance, device=weight.device, dtype=torch.float32)
        return {"inputs_embeds": embeddings.to(weight.dtype), "visual_mask": flags.to(weight.device)}


LARGE = [
    Shape(
        "LLaVA-1.5-7B",
        (LlamaForCausalLM, LlamaConfig),
        {"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32},
    ),
    Shape(
        "Qwen2.5-VL-7B",
        (Qwen2ForCausalLM, Qwen2Config),
        {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
         "num_attention_heads": 28, "num_key_value_heads": 4},
    ),
]  # fmt: skip
SMALL = [
    Shape(
        "tiny",
        (LlamaForCausalLM, LlamaConfig),
        {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
         "num_attention_heads": 2, "num_key_value_heads": 1},
        visual=6, text=4, before=2,
    ),
]  # fmt: skip
