"""Inputs that a model would misread without a word are refused by name."""

import pytest
import torch
from reroute_reference import run
from reroute_spec import RerouteError

from . import zoo
from .zoo import SMALL

LAYOUT = ("ttt", SMALL, "tttt")
every_family = pytest.mark.parametrize("family", zoo.FAMILIES)
qwen_family = pytest.mark.parametrize("family", zoo.QWEN)


def assert_refused(field, family, changes, batch=None, schedule=zoo.UNROUTED, **rest):
    given = {**(batch or zoo.inputs(family, LAYOUT)), **changes}
    with pytest.raises(RerouteError) as error:
        run(zoo.model(family), given, schedule, **rest)
    assert error.value.field == field
    assert error.value.remedy
    return str(error.value)


@every_family
def test_a_mask_of_other_values_than_0_and_1(family):
    ones = zoo.inputs(family, LAYOUT)["attention_mask"]
    for value in (-1e9, torch.nan, 0.5, -torch.inf):
        mask = ones.float()
        mask[0, :2] = value
        message = assert_refused("attention_mask", family, {"attention_mask": mask})
        assert f"holds {mask[0, 0].item()}" in message
    for value in (2, -1):
        mask = ones.clone()
        mask[0, :2] = value
        assert_refused("attention_mask", family, {"attention_mask": mask})
    batch = zoo.inputs(family, LAYOUT, pads=[2])
    expected = run(zoo.model(family), batch, zoo.UNROUTED).logits
    for mask in (
        batch["attention_mask"].float(),
        batch["attention_mask"].bool(),
        batch["attention_mask"].int(),
    ):
        found = run(zoo.model(family), {**batch, "attention_mask": mask}, zoo.UNROUTED).logits
        assert torch.equal(found[:, 2:], expected[:, 2:])


@qwen_family
def test_token_types_that_are_not_those_of_the_tokens(family):
    types = zoo.inputs(family, LAYOUT)["mm_token_type_ids"]
    late = types.clone()
    late[0, 4] = 0
    for wrong in (
        torch.zeros_like(types),
        2 * types,
        late,
        torch.ones_like(types),
        types[:, 1:],
        types[0],
        "types",
    ):
        assert_refused("mm_token_type_ids", family, {"mm_token_type_ids": wrong})
    batch = zoo.inputs(family, ("tt", (2, 4, 6), "t", SMALL, "tt"), pads=[2])
    swapped = batch["mm_token_type_ids"] * 2 % 3
    assert_refused("mm_token_type_ids", family, {"mm_token_type_ids": swapped}, batch)
    padding = batch["mm_token_type_ids"].clone()
    padding[0, 0] = 1  # of a row of padding: nothing reads it
    found = run(zoo.model(family), {**batch, "mm_token_type_ids": padding}, zoo.UNROUTED).logits
    assert torch.equal(found[:, 2:], run(zoo.model(family), batch, zoo.UNROUTED).logits[:, 2:])


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_placeholder_in_padding_means_nothing(family, side):
    model = zoo.model(family)
    for layout in (LAYOUT, ("tttt",)):
        batch = zoo.inputs(family, layout, ("t" * 20,), side=side, pads=[3, 0])
        padded = batch["attention_mask"] == 0
        ids = batch["input_ids"].masked_fill(padded, model.config.image_token_id)
        expected = run(model, batch, zoo.pyramid(family))
        found = run(model, {**batch, "input_ids": ids}, zoo.pyramid(family))
        assert found.traces == expected.traces
        assert torch.equal(found.logits[~padded], expected.logits[~padded])
        assert ids[padded].eq(model.config.image_token_id).all()


@every_family
def test_a_generated_placeholder_goes_on_alone(family):
    model = zoo.model(family)
    cache = run(model, zoo.inputs(family, LAYOUT), zoo.pyramid(family)).cache
    ids = torch.tensor([[model.config.image_token_id, 5, 6]])
    message = assert_refused("pixel_values", family, {}, {"input_ids": ids}, zoo.pyramid(family), cache=cache)
    assert "goes on as a turn of that one row" in message
    alone = run(model, {"input_ids": ids[:, :1]}, zoo.pyramid(family), cache=cache)
    later = run(model, {"input_ids": ids[:, 1:]}, zoo.pyramid(family), cache=alone.cache)
    assert later.cache[0].length == cache[0].length + 3
