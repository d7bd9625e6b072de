"""The picture of a view is what the model is given: resized, cropped, and every patch at its own place."""

import numpy as np
import pytest
import torch
from PIL import Image
from reroute_conformance.tiny import picture, tiny_llava, tiny_processor
from reroute_conformance.tiny.qwen import FAMILIES, tiny_qwen
from reroute_reference.families import family_of
from reroute_spec import RerouteError
from reroute_view.inputs import images_of, with_pictures
from reroute_view.pictures import pixels

from ..painted import QWEN, SIDE, painted, qwen_inputs


def shown(model, inputs, processor):
    """The images of the first request."""
    ids = inputs["input_ids"].tolist()
    found = images_of(family_of(model).media, model.config, ids, inputs)
    return with_pictures(found[0], model.config, inputs, processor)


def red(frame, rows, columns):
    """Cells of a picture that are red."""
    values = np.asarray(pixels(frame)).astype(int)
    values = values.reshape(rows, len(values) // rows, columns, -1, 3).mean((1, 3))
    return [tuple(cell) for cell in np.argwhere(values[..., 0] - values[..., 1] > 100).tolist()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_painted_patch_is_seen_at_its_place_in_every_frame(family):
    model = tiny_qwen(family, num_layers=4)
    video = [painted(2, 3, (1, 0)), painted(2, 3, (0, 2))]
    inputs = qwen_inputs(family, [painted(3, 5, (2, 1)), video, painted(4, 2, (0, 1))])
    first, clip, second = shown(model, inputs, QWEN)
    assert [(s.grid.kind, s.grid.frames, s.grid.rows, s.grid.columns) for s in (first, clip, second)] == [
        ("image", 1, 3, 5),
        ("video", 2, 2, 3),
        ("image", 1, 4, 2),
    ]
    assert pixels(first.pictures[0]).size == (5 * SIDE, 3 * SIDE)
    assert red(first.pictures[0], 3, 5) == [(2, 1)]
    assert [red(frame, 2, 3) for frame in clip.pictures] == [[(1, 0)], [(0, 2)]]
    assert red(second.pictures[0], 4, 2) == [(0, 1)]


def test_llava_sees_the_middle_of_a_wide_picture():
    wide = Image.new("RGB", (252, 84), (90, 90, 90))
    wide.paste((250, 20, 20), (0, 0, 84, 84))  # cropped away
    wide.paste((20, 20, 250), (84, 0, 98, 14))  # the first patch of what is left
    inputs = tiny_processor()(images=[wide], text="<image> what ?", return_tensors="pt")
    frame = shown(tiny_llava(num_layers=1), inputs, tiny_processor())[0].pictures[0]
    seen = np.asarray(pixels(frame)).astype(int)
    assert seen.shape == (84, 84, 3)
    assert red(frame, 6, 6) == []
    assert abs(seen[2:12, 2:12].mean((0, 1)) - [20, 20, 250]).max() < 12
    assert abs(seen[2:12, 16:].mean((0, 1)) - 90).max() < 12


def test_every_request_of_a_batch_has_its_own_images():
    model, processor = tiny_llava(num_layers=1), tiny_processor()
    pictures = [
        picture(),
        Image.new("RGB", (90, 90), (250, 20, 20)),
        Image.new("RGB", (90, 90), (20, 20, 20)),
    ]
    texts = ["<image> what ?", "<image> and <image> what ?"]
    inputs = processor(images=pictures, text=texts, return_tensors="pt", padding=True)
    ids = inputs["input_ids"].tolist()
    found = images_of(family_of(model).media, model.config, ids, inputs)
    assert [[given.index for given in own] for own in found] == [[0], [1, 2]]
    second = with_pictures(found[1], model.config, inputs, processor)
    assert [len(red(own.pictures[0], 6, 6)) for own in second] == [36, 0]


def test_pixels_may_be_gone_where_all_images_are_of_one_size():
    model = tiny_llava(num_layers=1)
    ids = [[1, *[model.config.image_token_index] * 72]]
    found = images_of(family_of(model).media, model.config, ids, {})
    assert [given.grid.size for given in found[0]] == [36, 36]
    with pytest.raises(RerouteError, match="pixel_values: are missing"):
        with_pictures(found[0], model.config, {}, tiny_processor())


def test_grids_that_are_gone_are_not_guessed():
    model = tiny_qwen("qwen2_5_vl", num_layers=4)
    inputs = qwen_inputs("qwen2_5_vl", [painted(2, 3)])
    ids = inputs["input_ids"].tolist()
    assert images_of(family_of(model).media, model.config, ids, {}) is None
    wrong = {**inputs, "image_grid_thw": torch.tensor([[1, 4, 8]])}
    assert images_of(family_of(model).media, model.config, ids, wrong) is None


def test_a_processor_has_to_say_its_colours():
    model = tiny_qwen("qwen2_5_vl", num_layers=4)
    inputs = qwen_inputs("qwen2_5_vl", [painted(2, 3)])
    with pytest.raises(RerouteError, match="processor: object has no image_mean"):
        shown(model, inputs, object())
