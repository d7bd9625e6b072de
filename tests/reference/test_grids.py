"""Where a visual row stands is where the model looks: a patch of the picture changes just the row that its place says.

The towers have no blocks that would mix patches, so what a row holds comes from its own pixels; embedding, merging and order are
the model's and the processor's own.
"""

import pytest
import torch
from PIL import Image
from reroute_conformance.tiny.qwen import FAMILIES, tiny_qwen
from reroute_reference.families import family_of
from reroute_reference.huggingface import HuggingFaceDecoder
from reroute_reference.merge import merged
from reroute_spec.grids import Grid, in_prompt_order, place
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from ..painted import LLAVA_IMAGE, WORD, painted, qwen_inputs


def unmixed_qwen(family):
    model = tiny_qwen(family, num_layers=4)
    model.model.visual.blocks = torch.nn.ModuleList().eval()
    return model


def unmixed_llava(side):
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,  # the features are those before the last block
        num_attention_heads=2,
        image_size=14 * side,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=LLAVA_IMAGE, image_seq_length=side**2
    )
    torch.manual_seed(0)
    return Llava(config).eval()


def visual_rows(model, inputs):
    """Embeddings of the rows of all images, in prompt order."""
    with torch.no_grad():
        embeddings = merged(HuggingFaceDecoder(model), inputs).embeddings[0]
    tokens = [getattr(model.config, medium.placeholder) for medium in family_of(model).media]
    return embeddings[torch.isin(inputs["input_ids"][0], torch.tensor(tokens))]


def grids(model, inputs):
    media = {
        getattr(model.config, medium.placeholder): medium.grids(model.config, inputs)
        for medium in family_of(model).media
        if inputs.get(medium.pixels) is not None
    }
    return in_prompt_order(inputs["input_ids"].tolist(), media)[0]


def changed(model, before, after):
    """Places of the rows that two prompts do not share."""
    rows = (visual_rows(model, before) != visual_rows(model, after)).any(-1).nonzero()[:, 0].tolist()
    found = [place(grids(model, after), row) for row in rows]
    return [(p.image, p.frame, p.row, p.column) for p in found]


@pytest.mark.parametrize("side", [6, 24])
def test_a_patch_of_llava_is_where_the_picture_has_it(side):
    model = unmixed_llava(side)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 14 * side}, crop_size={"height": 14 * side, "width": 14 * side}
    )
    ids = torch.tensor([[WORD, *[LLAVA_IMAGE] * (2 * side**2), WORD]])

    def inputs(*cells):
        pictures = []
        for cell in cells:
            picture = Image.new("RGB", (14 * side, 14 * side), (90, 90, 90))
            if cell is not None:
                row, column = cell
                picture.paste((250, 20, 20), (column * 14, row * 14, (column + 1) * 14, (row + 1) * 14))
            pictures.append(picture)
        return {"input_ids": ids, **processor(images=pictures, return_tensors="pt")}

    assert grids(model, inputs(None, None)) == [Grid("image", 1, side, side)] * 2
    for image, cell in ((0, (0, 0)), (0, (1, side - 1)), (1, (side - 1, 2)), (1, (3, 4))):
        cells = [None, None]
        cells[image] = cell
        assert changed(model, inputs(None, None), inputs(*cells)) == [(image, 0, *cell)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_patch_is_where_the_picture_has_it(family):
    model = unmixed_qwen(family)
    before = qwen_inputs(family, [painted(3, 5), painted(4, 2)])
    assert grids(model, before) == [Grid("image", 1, 3, 5), Grid("image", 1, 4, 2)]
    for cell in ((0, 0), (0, 4), (2, 1), (1, 3)):
        assert changed(model, before, qwen_inputs(family, [painted(3, 5, cell), painted(4, 2)])) == [
            (0, 0, *cell)
        ]
    for cell in ((3, 0), (1, 1)):
        assert changed(model, before, qwen_inputs(family, [painted(3, 5), painted(4, 2, cell)])) == [
            (1, 0, *cell)
        ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_of_a_video_is_in_its_frame(family):
    model = unmixed_qwen(family)
    still, frames = painted(2, 3), [painted(2, 4)] * 3
    before = qwen_inputs(family, [frames, still])
    assert grids(model, before) == [Grid("video", 3, 2, 4), Grid("image", 1, 2, 3)]
    for frame, cell in ((0, (1, 3)), (1, (0, 2)), (2, (1, 0))):
        moved = list(frames)
        moved[frame] = painted(2, 4, cell)
        assert changed(model, before, qwen_inputs(family, [moved, still])) == [(0, frame, *cell)]
    assert changed(model, before, qwen_inputs(family, [frames, painted(2, 3, (1, 1))])) == [(1, 0, 1, 1)]


def test_a_class_token_stands_nowhere():
    model = unmixed_llava(6)
    given = {"pixel_values": torch.zeros(1, 3, 84, 84), "vision_feature_select_strategy": "full"}
    medium = family_of(model).media[0]
    assert medium.grids(model.config, given) == [Grid("image", 1, 6, 6, leading=1)]
    assert medium.features(model.config, given) == [37]
    assert place(medium.grids(model.config, given), 0) is None
