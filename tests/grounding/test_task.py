"""Scenes and questions are what they say they are, and training sees a question as answering it does."""

import random

import pytest
import torch

from benchmarks.grounding.batches import (
    BOX_PLACES,
    LENGTH,
    THERE_PLACES,
    batch,
    mask,
    positions,
    soft_edges,
)
from benchmarks.grounding.items import inputs, items
from benchmarks.grounding.model import build
from benchmarks.grounding.questions import (
    BINS,
    BOX_TOKENS,
    TOKEN,
    ask_box,
    ask_there,
    box_tokens,
    iou,
    read_box,
)
from benchmarks.grounding.scenes import HELD_OUT, KINDS, SHAPES, SIZES, scene

SCENES = [scene(f"train/test/{i}") for i in range(150)]


def test_a_scene_is_drawn_from_its_name_alone():
    assert scene("test/3") == scene("test/3") != scene("validation/3")
    assert scene("test/3").draw().tobytes() == scene("test/3").draw().tobytes()


def test_objects_of_a_scene_differ_and_do_not_touch():
    for one in SCENES:
        kinds = [thing.kind for thing in one.things]
        assert 3 <= len(kinds) == len(set(kinds)) <= 7
        assert all(iou(a.box, b.box) == 0 for a in one.things for b in one.things if a is not b)


def test_training_never_draws_a_held_out_kind_and_every_second_test_item_asks_for_one():
    assert {(size, shape) for size, _, shape in HELD_OUT} == {(a, b) for a in SIZES for b in SHAPES}
    drawn = {thing.kind for one in SCENES for thing in one.things}
    assert drawn == set(KINDS) - HELD_OUT
    asked = [item.box.target.kind in HELD_OUT for item in items("test", 40)]
    assert asked == [False, True] * 20
    assert not any(item.held_out for item in items("validation", 40))


def test_what_a_patch_shows_is_inside_its_object():
    for one in SCENES[:30]:
        labels = one.labels()
        for place, thing in enumerate(one.things):
            shown = {patch for patch, label in enumerate(labels) if label == place}
            assert shown <= set(thing.patches())
            assert shown or thing.kind[0] == "small"


def test_every_box_can_be_said():
    for one in SCENES:
        for thing in one.things:
            assert iou(read_box(list(box_tokens(thing.box))), thing.box) >= 0.5
    assert read_box([TOKEN["<5>"], TOKEN["<5>"], TOKEN["<4>"], TOKEN["<9>"]]) is None
    assert read_box([TOKEN["yes"], TOKEN["<5>"], TOKEN["<9>"], TOKEN["<9>"]]) is None


def test_a_side_tells_an_object_from_its_twin():
    drawn, sides = random.Random(0), 0
    for one in SCENES:
        for thing in one.things:
            question = ask_box(one, drawn, thing, True)
            alike = [t for t in one.things if t.kind[1:] == thing.kind[1:]]
            if question.kind == "side":
                sides += 1
                assert len(alike) == 2
                chosen = {
                    "left": min(alike, key=lambda t: t.centre[0]),
                    "right": max(alike, key=lambda t: t.centre[0]),
                    "upper": min(alike, key=lambda t: t.centre[1]),
                    "lower": max(alike, key=lambda t: t.centre[1]),
                }[question.words[0]]
                assert chosen is thing
            else:
                assert question.words[0] == thing.kind[0]
    assert sides > 50


def test_yes_and_no_are_true_and_as_frequent():
    drawn, yes = random.Random(0), 0
    for one in SCENES:
        question = ask_there(one, drawn)
        _, colour, shape, _ = question.words
        there = any(t.kind[1] == colour and shape in ("thing", t.kind[2]) for t in one.things)
        assert question.answer == (TOKEN["yes" if there else "no"],)
        yes += there
    assert 0.4 < yes / len(SCENES) < 0.6


def test_a_soft_label_is_highest_at_the_nearest_edge():
    soft = soft_edges(torch.tensor([0, 5, 96]))
    assert soft.argmax(-1).tolist() == [0, 1, BINS - 1]
    torch.testing.assert_close(soft.sum(-1), torch.ones(3))


@pytest.fixture(scope="module")
def model():
    return build(0, blocks=2, width=32).eval()


def test_a_question_behind_the_mask_is_answered_as_it_is_alone(model):
    """The rows of a batch's questions are those of a prompt of one question, so what is learnt is what is asked later."""
    made = batch("mask", 1)
    with torch.no_grad():
        images = model.model.get_image_features(made.pixel_values).pooler_output
        rows = model.get_input_embeddings()(made.input_ids)
        rows[:, 1 : 1 + images[0].shape[0]] = images[0]
        hidden = model.model.language_model(
            inputs_embeds=rows, attention_mask=mask(), position_ids=positions(), use_cache=False
        ).last_hidden_state
        together = model.lm_head(hidden)
        assert together.shape[1] == LENGTH
        asked = made.input_ids[0].tolist()
        for first, length in ((BOX_PLACES[BOX_TOKENS] - 3, 7), (THERE_PLACES[1] - 3, 4)):
            alone = asked[: 1 + images[0].shape[0]] + asked[first : first + length]
            ids = torch.tensor([alone])
            logits = model(input_ids=ids, pixel_values=made.pixel_values).logits
            torch.testing.assert_close(
                logits[0, -length:], together[0, first : first + length], atol=1e-4, rtol=1e-4
            )


def test_what_is_asked_of_the_model_is_a_prompt_without_padding(model):
    asked = items("validation", 2)
    given = inputs([item.scene for item in asked], [item.box for item in asked])
    assert given["input_ids"].shape == given["attention_mask"].shape
    assert (
        model.generate(**given, max_new_tokens=4, do_sample=False).shape[1] == given["input_ids"].shape[1] + 4
    )
