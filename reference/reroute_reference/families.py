"""What a model family is: where its placeholders, blocks, norms and projections are. One entry per family.

This is the only file that knows transformers class names, and the only one that the fast path shares with the
reference: it describes, it computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reroute_spec import RerouteError
from torch import Tensor, nn


@dataclass(frozen=True)
class TextDecoder:
    """A transformers text decoder class: attribute names inside it and inside its blocks.

    Attributes:
        class_name: the class, matched by name along the method resolution order.
        query_norm, key_norm: norms over ``head_dim`` inside the attention, or None.
    """

    class_name: str
    blocks: str = "layers"
    final_norm: str = "norm"
    rotary: str = "rotary_emb"
    input_norm: str = "input_layernorm"
    attention: str = "self_attn"
    query: str = "q_proj"
    key: str = "k_proj"
    query_norm: str | None = None
    key_norm: str | None = None


TEXT_DECODERS = (
    TextDecoder("LlamaModel"),
    TextDecoder("Qwen2Model"),
    TextDecoder("Qwen3Model", query_norm="q_norm", key_norm="k_norm"),
)


def _llava_features_per_image(config: Any) -> int:
    vision = config.vision_config
    patches = int(vision.image_size // vision.patch_size) ** 2
    return patches + int(config.vision_feature_select_strategy == "full")  # "full" keeps the class token


@dataclass(frozen=True)
class Family:
    """A model class with a language-model head.

    Attributes:
        name: what errors call it.
        class_name: the transformers class, matched by name along the method resolution order.
        merger: path of the module that sees placeholder ids and merges image features, or None where a model has
            no placeholders and the caller gives ``visual_mask``.
        text_decoder: path of the text decoder.
        placeholders: configuration fields that hold the ids of image and video placeholders.
        features_per_image: rows of one image from the configuration.
    """

    name: str
    class_name: str
    text_decoder: str
    merger: str | None = None
    placeholders: tuple[str, ...] = ()
    features_per_image: Callable[[Any], int] | None = None


FAMILIES = (
    Family(
        name="LLaVA",
        class_name="LlavaForConditionalGeneration",
        merger="model",
        text_decoder="model.language_model",
        placeholders=("image_token_id",),
        features_per_image=_llava_features_per_image,
    ),
    Family(name="Llama", class_name="LlamaForCausalLM", text_decoder="model"),
    Family(name="Qwen2", class_name="Qwen2ForCausalLM", text_decoder="model"),
    Family(name="Qwen3", class_name="Qwen3ForCausalLM", text_decoder="model"),
)


def _class_names(module: object) -> list[str]:
    return [cls.__name__ for cls in type(module).__mro__]


def family_of(model: object) -> Family:
    """The family of a model with a head, or an error that names the class (RR-ERR-002)."""
    names = _class_names(model)
    for family in FAMILIES:
        if family.class_name in names:
            return family
    known = ", ".join(family.class_name for family in FAMILIES)
    raise RerouteError("model", f"{type(model).__name__} is not described", f"described families: {known}")


def text_decoder_of(model: nn.Module) -> tuple[nn.Module, TextDecoder]:
    """The text decoder module of a model with a head, and its description."""
    family = family_of(model)  # first: it refuses what is no model at all
    module = model.get_submodule(family.text_decoder)
    names = _class_names(module)
    for description in TEXT_DECODERS:
        if description.class_name in names:
            return module, description
    known = ", ".join(description.class_name for description in TEXT_DECODERS)
    raise RerouteError(
        "model", f"its text decoder {type(module).__name__} is not described", f"described: {known}"
    )


def check_attention(decoder: nn.Module) -> None:
    """Refuse a decoder with a block whose attention is not plain q/k attention over all rows, by name (RR-SCORE-006)."""
    config: Any = decoder.config
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind != "full_attention":
            problem = f"block {layer} of its text decoder is {kind}"
            raise RerouteError(
                "model", problem, "every block of the families described today is full_attention"
            )


def placeholder_mask(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Flags of image and video placeholders in ``input_ids`` [B, S]; all False for a family without placeholders."""
    config: Any = model.config
    mask = input_ids != input_ids
    for name in family_of(model).placeholders:
        mask = mask | (input_ids == getattr(config, name))
    return mask


def features_per_image(model: nn.Module) -> int | None:
    """Rows of one image, where the family's images are all of one size; None where spans must be given."""
    count = family_of(model).features_per_image
    return None if count is None else count(model.config)


def part(module: nn.Module, path: str) -> Any:
    """A submodule by dotted path, typed as callable."""
    return module.get_submodule(path)
