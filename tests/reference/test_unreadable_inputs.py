"""Inputs that nothing can be computed from are refused by their field, before the model sees them."""

import pytest
import torch
from reroute_conformance.cases.case import Row
from reroute_conformance.cases.decoder import DecoderCase, decoder_config
from reroute_reference import CanonicalDecoder, generate, run
from reroute_spec import RerouteError

from . import zoo
from .zoo import SMALL

LAYOUT = ("ttt", SMALL, "tttt")
every_family = pytest.mark.parametrize("family", zoo.FAMILIES)
qwen_family = pytest.mark.parametrize("family", zoo.QWEN)


@pytest.fixture
def unseen(family):
    """A model that must not be called; refusals by their field."""
    model, batch = zoo.model(family), zoo.inputs(family, LAYOUT)
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))

    def check(field, changes, schedule=zoo.UNROUTED, **rest):
        given = {name: x for name, x in {**batch, **changes}.items() if x is not None}
        with pytest.raises(RerouteError) as error:
            run(model, given, schedule, **rest)
        assert not calls
        assert error.value.field == field
        assert error.value.remedy
        return str(error.value)

    yield check
    handle.remove()


@every_family
def test_token_ids(family, unseen):
    ids = zoo.inputs(family, LAYOUT)["input_ids"]
    for dtype in (torch.bool, torch.uint8, torch.float32):
        unseen("input_ids", {"input_ids": ids.to(dtype)})
    for wrong in (-1, 10**6):
        changed = ids.clone()
        changed[0, 1] = wrong
        assert str(wrong) in unseen("input_ids", {"input_ids": changed})


@every_family
def test_embeddings(family, unseen):
    length = zoo.inputs(family, LAYOUT)["input_ids"].shape[1]
    visual = torch.zeros(1, length, dtype=torch.bool)
    unseen("inputs_embeds", {"inputs_embeds": torch.randn(1, length, 64)})
    alone = {"input_ids": None, "pixel_values": None, "visual_mask": visual}
    assert "63 wide" in unseen("inputs_embeds", {"inputs_embeds": torch.randn(1, length, 63), **alone})


@every_family
def test_labels_outside_the_vocabulary(family, unseen):
    ids = zoo.inputs(family, LAYOUT)["input_ids"]
    for wrong in (-1, -101, 10**6):
        labels = ids.clone()
        labels[0, 2] = wrong
        unseen("labels", {"labels": labels})
    unseen("labels", {"labels": ids.bool()})
    batch = zoo.inputs(family, LAYOUT)
    expected = run(zoo.model(family), {**batch, "labels": ids}, zoo.UNROUTED).loss
    found = run(zoo.model(family), {**batch, "labels": ids.int()}, zoo.UNROUTED).loss
    assert torch.equal(found, expected)


@every_family
def test_labels_outside_the_vocabulary_may_stand_in_padding(family):
    batch = zoo.inputs(family, LAYOUT, pads=[1])
    labels = batch["input_ids"].clone()
    expected = run(zoo.model(family), {**batch, "labels": labels}, zoo.UNROUTED).loss
    labels[0, 0] = -1
    assert torch.equal(run(zoo.model(family), {**batch, "labels": labels}, zoo.UNROUTED).loss, expected)


@every_family
@pytest.mark.parametrize(
    ("given", "field"),
    [
        ([None], "decisions[0]"),
        ([5], "decisions[0]"),
        (["ab"], "decisions[0]"),
        ("a", "decisions"),
        ([[5, 6]], "decisions[0][0]"),
        ([[[0], None]], "decisions[0][1]"),
        ([[[0.0]]], "decisions[0][0]"),
        ([[[True]]], "decisions[0][0]"),
        ([], "decisions"),
    ],
)
def test_decisions_of_another_nesting(family, unseen, given, field):
    unseen(field, {}, zoo.pyramid(family), decisions=given)


@every_family
def test_images(family, unseen):
    for wrong in ([5], [None], [[5.0]], [[0]], [[True]], ["36"]):
        unseen("images[0]", {"images": wrong})
    for wrong in ([[5]], [[]]):
        with pytest.raises(RerouteError, match="must add up") as error:
            run(zoo.model(family), {**zoo.inputs(family, LAYOUT), "images": wrong}, zoo.UNROUTED)
        assert error.value.field == "images[0]"


def test_pictures_of_another_size():
    batch = zoo.inputs("llava", LAYOUT)
    pixels = batch["pixel_values"]
    for wrong in (pixels[..., 1:], pixels[:, :1], pixels[0], pixels[None], pixels.tolist(), "pixels"):
        with pytest.raises(RerouteError) as error:
            run(zoo.model("llava"), {**batch, "pixel_values": wrong}, zoo.UNROUTED)
        assert error.value.field == "pixel_values"


@qwen_family
def test_patches_that_do_not_fit_the_grid(family, unseen):
    batch = zoo.inputs(family, LAYOUT)
    pixels, grid = batch["pixel_values"], batch["image_grid_thw"]
    for wrong in (pixels[1:], pixels[:, 1:], pixels[None], pixels.flatten(), pixels.tolist()):
        unseen("pixel_values", {"pixel_values": wrong})
    negative, odd = -grid, grid + torch.tensor([0, 1, 0])
    for wrong in (grid[0], grid[:, 1:], grid.float(), grid.bool(), 0 * grid, negative, odd, grid.tolist()):
        unseen("image_grid_thw", {"image_grid_thw": wrong})


def canonical(change=lambda weights: weights):
    case = DecoderCase(zoo.UNROUTED.to_dict(), [Row("tvvt")], 0, None, None, decoder_config(3, 2, 2), 0)
    config, weights = case.model()
    return CanonicalDecoder(config, change(weights))


def test_inputs_of_a_canonical_decoder():
    decoder = canonical()
    embeds, visual = torch.randn(2, 4, decoder.width), torch.zeros(2, 4, dtype=torch.bool)
    right = {"inputs_embeds": embeds, "visual_mask": visual}
    counts, axes = torch.arange(4).expand(2, 4), 3 if decoder.mrope else 1
    for field, changes in (
        ("inputs_embeds", {"inputs_embeds": embeds[..., 1:]}),
        ("input_ids", {"input_ids": torch.ones(1, 4, dtype=torch.long)}),
        ("position_ids", {"position_ids": counts.expand(4, 2, 4)}),
        ("position_ids", {"position_ids": counts.expand(axes + 1, 2, 4)}),
        ("position_ids", {"position_ids": counts.bool()}),
    ):
        for call in (run, lambda *given: generate(*given, 2)):
            tokens = {"input_ids": torch.ones(2, 4, dtype=torch.long)}
            with pytest.raises(RerouteError) as error:
                call(decoder, {**tokens, **right, **changes}, zoo.UNROUTED)
            assert error.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda w: {**w, "norm.weight": w["norm.weight"].tolist()}, "weights[norm.weight]"),
        (lambda w: {**w, "lm_head.weight": None}, "weights[lm_head.weight]"),
        (lambda w: {**w, "lm_head.weight": w["lm_head.weight"].double()}, "weights[lm_head.weight]"),
        (lambda w: {name: weight.long() for name, weight in w.items()}, "weights[embed_tokens.weight]"),
        (lambda w: list(w), "weights"),
    ],
)
def test_weights_of_another_type(change, field):
    with pytest.raises(RerouteError) as error:
        canonical(change)
    assert error.value.field == field
