"""What a model family is: where its placeholders, blocks, norms and projections are. One entry per family.

This is the only file that knows transformers class names, and the only one that the fast path shares with the
reference: it describes, it computes nothing but sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reroute_spec import RerouteError
from reroute_spec.grids import Grid, Kind
from torch import Tensor, nn

PLAIN_ATTENTION = "full_attention"
"""The kind of a block with plain q/k attention over all rows: only such a block can decide (RR-SCORE-006)."""


@dataclass(frozen=True)
class TextDecoder:
    """A transformers text decoder class: attribute names inside it and inside its blocks.

    Attributes:
        class_name: the class, matched by name along the method resolution order.
        query_norm, key_norm: norms over ``head_dim`` inside the attention, or None.
        gated_query: whether the query projection holds, head by head, a query and then a gate (RR-BLOCK-013).
        mrope: whether a position has three coordinates: time, height, width (RR-BLOCK-012).
        kinds: kinds of blocks it may have, in the words of its configuration's ``layer_types``.
        deepstack: keyword arguments of its forward that hold the mask of visual rows and, per block boundary from
            the first, what is added to them there (RR-BLOCK-010); or None.
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
    gated_query: bool = False
    mrope: bool = False
    kinds: tuple[str, ...] = (PLAIN_ATTENTION,)
    deepstack: tuple[str, str] | None = None


TEXT_DECODERS = (
    TextDecoder("LlamaModel"),
    TextDecoder("Qwen2Model"),
    TextDecoder("Qwen3Model", query_norm="q_norm", key_norm="k_norm"),
    TextDecoder("Qwen2_5_VLTextModel", mrope=True),
    TextDecoder(
        "Qwen3VLTextModel",
        query_norm="q_norm",
        key_norm="k_norm",
        mrope=True,
        deepstack=("visual_pos_masks", "deepstack_visual_embeds"),
    ),
    TextDecoder(
        "Qwen3_5TextModel",
        query_norm="q_norm",
        key_norm="k_norm",
        gated_query=True,
        mrope=True,
        kinds=(PLAIN_ATTENTION, "linear_attention"),
    ),
)


@dataclass(frozen=True)
class Medium:
    """One kind of visual input: images, or videos.

    Attributes:
        placeholder: configuration field that holds its placeholder id.
        pixels: the input that holds its pixels.
        grids: what every image (video) becomes, in order, from the configuration and the inputs.
        companions: inputs without which the model cannot place it; the first one holds the grids, in patches.
        tiled: of images of one size, whether their pixels are given by request: [requests, tiles, channels, height,
            width], not [images, channels, height, width].
    """

    placeholder: str
    pixels: str
    grids: Callable[[Any, Mapping[str, Any]], list[Grid]]
    companions: tuple[str, ...] = ()
    tiled: bool = False

    def features(self, config: Any, inputs: Mapping[str, Any]) -> list[int]:
        """Rows of every image (video), in order."""
        return [grid.size for grid in self.grids(config, inputs)]


@dataclass(frozen=True)
class VisionTower:
    """A vision tower whose patches can be scored by its class token.

    Attributes:
        class_name: of the tower, matched by name along the method resolution order.
        block_name: of its blocks.
        path, projector_path: of the tower and of what makes decoder rows of its output, in the model.
    """

    class_name: str
    block_name: str
    path: str
    projector_path: str
    input_norm: str = "layer_norm1"
    attention: str = "self_attn"
    query: str = "q_proj"
    key: str = "k_proj"

    def module(self, model: nn.Module) -> Any:
        """The tower."""
        return model.get_submodule(self.path)

    def projector(self, model: nn.Module) -> Any:
        """The projector."""
        return model.get_submodule(self.projector_path)

    def blocks(self, model: nn.Module) -> list[Any]:
        """The tower's blocks, in order."""
        return [block for block in self.module(model).modules() if self.block_name in _class_names(block)]


def _llava_grid(config: Any, strategy: str | None = None) -> Grid:
    """A square of patches; the strategy ``full`` keeps the class token before them."""
    side = int(config.vision_config.image_size // config.vision_config.patch_size)
    strategy = strategy or config.vision_feature_select_strategy
    return Grid("image", 1, side, side, leading=int(strategy == "full"))


def _llava_grids(config: Any, inputs: Mapping[str, Any]) -> list[Grid]:
    one = _llava_grid(config, inputs.get("vision_feature_select_strategy"))
    return [one] * len(inputs["pixel_values"])


def _merged_grids(kind: Kind, name: str) -> Callable[[Any, Mapping[str, Any]], list[Grid]]:
    """Of patches [n, 3] (time, height, width), of which ``spatial_merge_size``² make one row."""

    def grids(config: Any, inputs: Mapping[str, Any]) -> list[Grid]:
        merge = int(config.vision_config.spatial_merge_size)
        return [Grid(kind, t, height // merge, width // merge) for t, height, width in inputs[name].tolist()]

    return grids


_QWEN_MEDIA = (
    Medium(
        "image_token_id",
        "pixel_values",
        _merged_grids("image", "image_grid_thw"),
        ("image_grid_thw", "mm_token_type_ids"),
    ),
    Medium(
        "video_token_id",
        "pixel_values_videos",
        _merged_grids("video", "video_grid_thw"),
        ("video_grid_thw", "mm_token_type_ids"),
    ),
)


@dataclass(frozen=True)
class Family:
    """A model class with a language-model head.

    Attributes:
        name: what errors call it.
        class_name: the transformers class, matched by name along the method resolution order.
        merger: path of the module that sees placeholder ids and merges image features, or None where a model has
            no placeholders and the caller gives ``visual_mask``.
        text_decoder: path of the text decoder.
        media: its images and videos.
        features_per_image: rows of one image from the configuration, where all are of one size.
        carried: attributes of the merger that one request leaves for the next.
        tower: its vision tower, where Nüwa's first stage is defined for it (RR-POOL-007).
    """

    name: str
    class_name: str
    text_decoder: str
    merger: str | None = None
    media: tuple[Medium, ...] = ()
    features_per_image: Callable[[Any], int] | None = None
    carried: tuple[str, ...] = ()
    tower: VisionTower | None = None


FAMILIES = (
    Family(
        name="LLaVA",
        class_name="LlavaForConditionalGeneration",
        merger="model",
        text_decoder="model.language_model",
        media=(Medium("image_token_id", "pixel_values", _llava_grids),),
        features_per_image=lambda config: _llava_grid(config).size,
        tower=VisionTower(
            "CLIPVisionModel", "CLIPEncoderLayer", "model.vision_tower", "model.multi_modal_projector"
        ),
    ),
    *(
        Family(
            name=name,
            class_name=class_name,
            merger="model",
            text_decoder="model.language_model",
            media=_QWEN_MEDIA,
            carried=("rope_deltas",),
        )
        for name, class_name in (
            ("Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration"),
            ("Qwen3-VL", "Qwen3VLForConditionalGeneration"),
            ("Qwen3.5", "Qwen3_5ForConditionalGeneration"),
        )
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
    # RR-ERR-002
    raise RerouteError("model", f"{type(model).__name__} is not described", f"described families: {known}")


def _check_entry(model: nn.Module, family: Family) -> None:
    """Refuse an entry that names what its model does not have."""
    modules = {name for name, _ in model.named_modules()}
    for field, path in (("text_decoder", family.text_decoder), ("merger", family.merger)):
        if path is not None and path not in modules:
            problem = f"{type(model).__name__} has no module {path!r}"
            raise RerouteError(f"family.{field}", problem, "give a path that named_modules() has")
    config: Any = model.config
    for medium in family.media:
        if not hasattr(config, medium.placeholder):
            problem = f"{type(config).__name__} has no field {medium.placeholder!r}"
            raise RerouteError("family.media", problem, "name the field that holds the placeholder's id")


def text_decoder_of(model: nn.Module) -> tuple[nn.Module, TextDecoder]:
    """The text decoder module of a model with a head, and its description."""
    family = family_of(model)  # first: it refuses what is no model at all
    _check_entry(model, family)
    module = model.get_submodule(family.text_decoder)
    names = _class_names(module)
    for description in TEXT_DECODERS:
        if description.class_name in names:
            return module, description
    known = ", ".join(description.class_name for description in TEXT_DECODERS)
    raise RerouteError(
        "model", f"its text decoder {type(module).__name__} is not described", f"described: {known}"
    )


def vision_tower_of(model: nn.Module) -> VisionTower:
    """The vision tower of a family for which Nüwa's first stage is defined, or an error that names the model."""
    family = family_of(model)
    if family.tower is None:
        raise RerouteError(
            "model",
            f"{family.name} has no described vision tower",
            "Nüwa's first stage is defined for LLaVA-1.5",
        )
    name = type(family.tower.module(model)).__name__
    if family.tower.class_name not in _class_names(family.tower.module(model)):
        raise RerouteError("model", f"its vision tower is a {name}", f"described: {family.tower.class_name}")
    return family.tower


def block_kinds(decoder: nn.Module) -> list[str]:
    """The kind of every block, in the words of the configuration's ``layer_types``."""
    config: Any = decoder.config
    kinds = getattr(config, "layer_types", None) or [PLAIN_ATTENTION] * config.num_hidden_layers
    return list(kinds)[: config.num_hidden_layers]


def check_attention(decoder: nn.Module, kinds: tuple[str, ...] = (PLAIN_ATTENTION,)) -> None:
    """Refuse a decoder with a block of another kind than ``kinds``, by name (RR-SCORE-006)."""
    for layer, kind in enumerate(block_kinds(decoder)):
        # RR-SCORE-006 RR-ERR-002
        if kind not in kinds:
            problem = f"block {layer} of its text decoder is {kind}"
            raise RerouteError("model", problem, f"every block that is run here is {' or '.join(kinds)}")


def placeholder_mask(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Flags of image and video placeholders in ``input_ids`` [B, S]; all False for a family without placeholders."""
    config: Any = model.config
    mask = input_ids != input_ids
    for medium in family_of(model).media:
        mask = mask | (input_ids == getattr(config, medium.placeholder))
    return mask


def features_per_image(model: nn.Module) -> int | None:
    """Rows of one image, where the family's images are all of one size; None where spans must be given."""
    count = family_of(model).features_per_image
    return None if count is None else count(model.config)


def part(module: nn.Module, path: str) -> Any:
    """A submodule by dotted path, typed as callable."""
    return module.get_submodule(path)
