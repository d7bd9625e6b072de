"""Bad input on every family: a clear error that names the field, and nothing half-done."""

import copy
import dataclasses

import pytest
import torch
from reroute_reference import families, generate, run
from reroute_spec import RerouteError

from . import zoo
from .zoo import PICTURE, SMALL

LAYOUT = ("ttt", PICTURE, "tttt")
every_family = pytest.mark.parametrize("family", zoo.FAMILIES)
qwen_family = pytest.mark.parametrize("family", zoo.QWEN)


@pytest.fixture
def refused(family):
    """Refusal by field; afterwards the model answers a right request as it did before."""
    model, batch, routing = zoo.model(family), zoo.inputs(family, LAYOUT), zoo.pyramid(family)
    before = run(model, batch, routing).logits
    carried = getattr(model.model, "rope_deltas", None)
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())

    def check(field, changes, schedule=routing, **rest):
        given = {name: x for name, x in {**batch, **changes}.items() if x is not None}
        with pytest.raises(RerouteError) as error:
            run(model, given, schedule, **rest)
        assert error.value.field == field
        assert error.value.remedy
        return str(error.value)

    yield check
    assert torch.equal(run(model, batch, routing).logits, before)
    assert getattr(model.model, "rope_deltas", None) is carried
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == hooks


@every_family
def test_masks_of_another_shape(family, refused):
    length = zoo.inputs(family, LAYOUT)["input_ids"].shape[1]
    for mask in (torch.ones(1, 1, length, length), torch.ones(1, length + 1), torch.ones(length), "ones"):
        refused("attention_mask", {"attention_mask": mask})
    refused("visual_mask", {"visual_mask": torch.ones(1, 1, length, dtype=torch.bool)})
    refused("visual_mask", {"visual_mask": torch.ones(1, length)})
    refused("attention_mask[0]", {"attention_mask": torch.zeros(1, length)})


@every_family
def test_placeholders_that_are_not_as_many_as_the_features(family, refused):
    ids = zoo.inputs(family, LAYOUT)["input_ids"]
    image = zoo.model(family).config.image_token_id
    short = ids.clone()
    short[0, 4] = 7
    message = refused("pixel_values", {"input_ids": short})
    assert "35 rows" in message
    assert "36" in message
    assert "0" in refused("pixel_values", {"pixel_values": None})
    refused("pixel_values", {"input_ids": torch.where(ids == image, 7, ids)})


@every_family
def test_a_request_that_ends_inside_an_image(family):
    batch = zoo.inputs(family, ("tt", PICTURE, "tt"), ("t", PICTURE, "ttt"))
    image = zoo.model(family).config.image_token_id
    batch["input_ids"][0, 5], batch["input_ids"][1, -1] = 7, image
    with pytest.raises(RerouteError, match=r"pixel_values.*request 0 holds 35, its images 36"):
        run(zoo.model(family), batch, zoo.pyramid(family))


@qwen_family
@pytest.mark.parametrize("name", ["image_grid_thw", "mm_token_type_ids"])
def test_what_the_processor_returns_beside_the_pixels_is_needed(family, refused, name):
    refused(name, {name: None})


@every_family
def test_nan_names_the_block_and_the_row(family):
    batch, layer = zoo.inputs(family, LAYOUT), 3 if family == "qwen3_5" else 0
    embeds, _ = zoo.embeddings(family, batch)
    embeds[7, 3] = torch.nan
    given = {
        "inputs_embeds": embeds[None],
        "visual_mask": torch.tensor([zoo.visual_flags(family, batch)]),
    }
    with pytest.raises(RerouteError) as error:
        run(zoo.model(family), given, zoo.schedule((layer, "0.5")))
    assert error.value.field.startswith("scores[")
    # a block before the decision spreads NaN over the rows, through weights of zero: the row that had it is named
    for later in (layer, zoo.DECIDING[family][-1]):
        with pytest.raises(RerouteError) as error:
            run(zoo.model(family), given, zoo.schedule((later, "0.5")))
        assert f"block {later}: prompt row 7 is not finite as it enters" in error.value.problem
    batch["pixel_values"] = batch["pixel_values"] * torch.nan
    for call in (run, lambda *args: generate(*args, 2)):
        with pytest.raises(RerouteError, match=r"prompt row \d+ is not finite as it enters"):
            call(zoo.model(family), batch, zoo.pyramid(family))


@every_family
def test_nan_of_an_earlier_turn_is_said_to_be_cached(family):
    model, embeds = zoo.model(family), torch.randn(1, 5, 64)
    visual = torch.zeros(1, 5, dtype=torch.bool)
    broken = embeds.clone()
    broken[0, 2] = torch.inf
    cache = run(model, {"inputs_embeds": broken, "visual_mask": visual}, zoo.UNROUTED).cache
    later = {"inputs_embeds": embeds, "visual_mask": ~visual}
    with pytest.raises(RerouteError, match="the cache of earlier turns is not finite in block") as error:
        run(model, later, zoo.pyramid(family), cache=cache)
    assert error.value.field.startswith("scores[")


def test_nan_that_a_block_makes_is_looked_for_in_the_hidden_states():
    model, batch = copy.deepcopy(zoo.model("llava")), zoo.inputs("llava", LAYOUT)
    model.model.language_model.layers[0].mlp.down_proj.weight.data[:] = torch.inf
    with pytest.raises(RerouteError, match="block 3: look at the hidden state of prompt row 0"):
        run(model, batch, zoo.schedule((3, "0.5")))


@pytest.mark.parametrize("layer", [0, 1, 2, 4, 5, 6])
def test_a_decision_on_a_linear_attention_block(layer):
    batch = zoo.inputs("qwen3_5", LAYOUT)
    with pytest.raises(RerouteError) as error:
        run(zoo.model("qwen3_5"), batch, zoo.schedule((layer, "0.5"), (7, "0.5")))
    assert error.value.field == "decisions[0].layer"
    assert f"block {layer} is linear_attention" in error.value.problem
    assert "[3, 7]" in error.value.remedy


@every_family
def test_labels_that_cannot_be_answered(family, refused):
    ids = zoo.inputs(family, LAYOUT)["input_ids"]
    refused("labels", {"labels": ids}, zoo.pyramid(family, "delete"))
    refused("labels", {"labels": ids[:, 1:]})
    refused("labels", {"labels": ids.float()})


@every_family
def test_a_foreign_cache(family, refused):
    with torch.no_grad():
        filled = zoo.model(family)(**zoo.inputs(family, LAYOUT)).past_key_values
    if family != "llava":
        zoo.model(family).model.rope_deltas = None
    refused("cache", {}, cache=filled)
    refused("cache", {}, cache=(filled,))
    refused("past_key_values", {"past_key_values": filled})


@every_family
def test_a_schedule_that_the_decoder_cannot_hold(family, refused):
    refused("decisions[0].layer", {}, zoo.schedule((8, "0.5")))
    refused("decisions", {}, decisions=[[[0]]])


def test_spans_that_only_the_caller_knows():
    batch = zoo.inputs("qwen2_5_vl", LAYOUT)
    layer = zoo.DECIDING["qwen2_5_vl"][0]
    routing = zoo.schedule((layer, "0.5"), scope="image")
    mask = torch.tensor([zoo.visual_flags("qwen2_5_vl", batch)])
    mask[0, 6:9] = False
    with pytest.raises(RerouteError, match="images: is missing with scope 'image'"):
        run(zoo.model("qwen2_5_vl"), {**batch, "visual_mask": mask}, routing)
    given = {**batch, "visual_mask": mask, "images": [[13, 20]]}
    record = run(zoo.model("qwen2_5_vl"), given, routing).traces[0].decisions[0]
    assert (sum(o < 13 for o in record.selected), len(record.selected)) == (6, 16)


@every_family
def test_a_mask_that_hides_rows_of_an_image(family, refused):
    hiding = zoo.inputs(family, LAYOUT)["attention_mask"].clone()
    hiding[0, 5:8] = 0
    layer = zoo.DECIDING[family][0]
    scope = zoo.schedule((layer, "0.5"), scope="image")
    if family != "llava":
        refused("attention_mask", {"attention_mask": hiding})
        return
    refused("images", {"attention_mask": hiding}, scope)
    given = {**zoo.inputs(family, LAYOUT), "attention_mask": hiding, "images": [[33]]}
    assert len(run(zoo.model(family), given, scope).traces[0].decisions[0].selected) == 16


def test_a_described_decoder_with_a_block_that_is_not():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = zoo.model("qwen2_5_vl").config.to_dict()
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    config["text_config"].pop("layer_types")
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(config)).eval()
    with pytest.raises(RerouteError, match="block 2 of its text decoder is sliding_attention"):
        run(model, zoo.inputs("qwen2_5_vl", ("tt",)), zoo.UNROUTED)


def test_a_described_family_with_a_text_decoder_that_is_not():
    from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig

    config = zoo.model("llava").config
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    text = MistralConfig(**sizes, intermediate_size=8, vocab_size=70)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=config.vision_config, text_config=text)
    ).eval()
    with pytest.raises(RerouteError, match="text decoder MistralModel is not described"):
        run(model, zoo.inputs("llava", ("tt",)), zoo.UNROUTED)


@pytest.mark.parametrize(
    ("changes", "field", "named"),
    [
        ({"merger": "modle"}, "family.merger", "'modle'"),
        ({"text_decoder": "model.text"}, "family.text_decoder", "'model.text'"),
        (
            {"media": (families.Medium("image_id", "pixel_values", lambda *_: []),)},
            "family.media",
            "'image_id'",
        ),
    ],
)
def test_an_entry_that_names_what_its_model_has_not(monkeypatch, changes, field, named):
    entry = families.family_of(zoo.model("llava"))
    monkeypatch.setattr(families, "FAMILIES", (dataclasses.replace(entry, **changes),))
    with pytest.raises(RerouteError, match=named) as error:
        run(zoo.model("llava"), zoo.inputs("llava", LAYOUT), zoo.UNROUTED)
    assert error.value.field == field


def test_images_of_other_sizes_in_one_batch_reach_their_requests():
    """Nothing of what is refused above: the same as alone."""
    layouts = [("t", SMALL, "tt"), ("tt", PICTURE, "t", SMALL, "tt")]
    batch = zoo.inputs("qwen3_vl", *layouts)
    output = run(zoo.model("qwen3_vl"), batch, zoo.pyramid("qwen3_vl", scope="image"))
    assert [len(trace.visual_rows) for trace in output.traces] == [6, 42]
