"""A family whose pixels are given by request, as tiles, some of them padding: SmolVLM, described as a user would."""

import pytest
import torch
from reroute_reference import families, run
from reroute_spec import RerouteError, Schedule
from reroute_spec.grids import Grid
from reroute_view.inputs import images_of, with_pictures
from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMVisionConfig

PLACEHOLDER, SIDE = 99, 56


def tiles(config, inputs):
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    shown = inputs["pixel_values"].flatten(2).any(-1)
    return [Grid("image", 1, side, side)] * int(shown.sum())


SMOLVLM = families.Family(
    name="SmolVLM",
    class_name="SmolVLMForConditionalGeneration",
    merger="model",
    text_decoder="model.text_model",
    media=(families.Medium("image_token_id", "pixel_values", tiles, tiled=True),),
)


class Processor:
    image_mean = image_std = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def model():
    text = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(image_size=SIDE, patch_size=14, **vision),
        text_config=LlamaConfig(vocab_size=100, num_hidden_layers=6, pad_token_id=0, **text),
        image_token_id=PLACEHOLDER,
        scale_factor=2,
    )
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "text_model" in name:
            parameter.normal_(0, 0.15)
    return model


@pytest.fixture
def inputs(monkeypatch):
    """Two requests: with two tiles, and with one and padding."""
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, SMOLVLM))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 90, (2, 12), generator=generator)
    ids[:, 2:6] = PLACEHOLDER
    ids[0, 7:11] = PLACEHOLDER
    pixels = torch.rand(2, 2, 3, SIDE, SIDE, generator=generator) * 2 - 1
    pixels[1, 1] = 0
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def schedule(keep):
    decisions = [{"layer": 1, "keep": keep}, {"layer": 3, "keep": keep}]
    return Schedule.from_dict({"action": "reroute", "decisions": decisions})


def test_keep_all_is_the_unrouted_model(model, inputs):
    output = run(model, inputs, schedule("1"))
    torch.testing.assert_close(output.logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_budgets_are_of_the_tiles_that_are_shown(model, inputs):
    traces = run(model, inputs, schedule("1/2")).traces
    assert [[len(decision.selected) for decision in trace.decisions] for trace in traces] == [[4, 4], [2, 2]]


def test_pixels_of_another_form_are_refused(model, inputs):
    wrong = {**inputs, "pixel_values": inputs["pixel_values"].flatten(0, 1)}
    with pytest.raises(RerouteError, match=r"pixel_values: .*; give \[requests, tiles, 3, 56, 56\]"):
        run(model, wrong, schedule("1/2"))


def test_the_pictures_are_the_tiles_without_the_padding(model, inputs):
    ids = inputs["input_ids"].tolist()
    first, second = images_of(SMOLVLM.media, model.config, ids, inputs)
    assert [image.index for image in (*first, *second)] == [0, 1, 2]
    shown = with_pictures([*first, *second], model.config, inputs, Processor())
    assert len({image.pictures for image in shown}) == 3
    assert {image.size for image in first + second} == {4}


def test_without_pixels_the_grid_is_not_known(model, inputs):
    ids = inputs["input_ids"].tolist()
    assert images_of(SMOLVLM.media, model.config, ids, {"input_ids": inputs["input_ids"]}) is None
