"""What ``Routed.show`` gives: the decisions of one request, each ordinal at its own place in its own picture."""

import pytest
import torch
from PIL import Image
from reroute_conformance.showing.trace import load_schedule, trace
from reroute_conformance.tiny import NARROW_IMAGE, narrow_llava, picture, tiny_llava, tiny_processor
from reroute_conformance.tiny.qwen import tiny_qwen
from reroute_optimized import apply, remove, routed
from reroute_reference.nuwa import first_stage
from reroute_spec import Decision, RerouteError, Schedule
from reroute_spec.grids import Place
from reroute_view.pictures import pixels

from ...painted import QWEN, painted, qwen_inputs
from ..tiny import text_inputs, text_model

HALF = Schedule("reroute", (Decision(1, "0.5"), Decision(3, "0.25")))


@pytest.fixture(scope="module")
def llava():
    return tiny_llava(num_layers=4)


def asked(texts, pictures):
    return dict(tiny_processor()(images=pictures, text=texts, return_tensors="pt", padding=True))


def test_a_request_of_a_batch_is_shown_with_its_own_pictures(llava):
    inputs = asked(
        ["<image> ?", "what is in <image> and in <image> ?"], [picture(), picture(90, 90), picture(60, 90)]
    )
    with routed(llava, HALF) as routing:
        llava(**inputs)
    for request, images in ((0, 1), (1, 2)):
        view = routing.show(inputs, tiny_processor(), request=request).view
        run = view.runs[0]
        assert run.trace == routing.traces[request]
        assert run.kept is None
        assert len(view.images) == images
        assert view.places(run)[-1] == Place(images - 1, 0, 5, 5)
    assert view.prompt == "what is in and in ?"
    assert pixels(view.images[1].pictures[0]).size == (84, 84)


def test_without_inputs_the_grid_is_shown_and_no_picture(llava):
    with routed(llava, "reroute-fastv-192") as routing:
        llava(**asked("<image> ?", [picture()]))
    view = routing.show().view
    assert (view.images[0].grid.rows, view.images[0].pictures) == (6, ())
    assert view.runs[0].name == "reroute-fastv-192"
    assert routing._repr_html_().startswith("<iframe srcdoc=")


def test_generate_with_beams_repeats_prompts_and_not_grids():
    model = tiny_qwen("qwen2_5_vl", num_layers=4)
    inputs = qwen_inputs("qwen2_5_vl", [painted(2, 5, (1, 3)), painted(3, 2)])
    with routed(model, HALF) as routing:
        model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
    assert len(routing.traces) == 2
    for request in (0, 1):
        view = routing.show(inputs, QWEN, request=request).view
        assert [(s.grid.rows, s.grid.columns) for s in view.images] == [(2, 5), (3, 2)]
        assert [len(s.pictures) for s in view.images] == [1, 1]
        assert view.places(view.runs[0])[8] == Place(0, 0, 1, 3)
        assert routing.show(request=request).view.places(view.runs[0])[8] == Place(0, 0, 1, 3)


def test_every_beam_is_shown_with_the_picture_of_its_own_prompt(llava):
    dark, light = Image.new("RGB", (84, 84), (10, 10, 10)), Image.new("RGB", (84, 84), (240, 240, 240))
    inputs = asked(["<image> ?", "what is <image> ?"], [dark, light])
    with routed(llava, HALF) as routing:
        llava.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
    seen = [routing.show(inputs, tiny_processor(), request=request).view for request in range(4)]
    assert [pixels(view.images[0].pictures[0]).getpixel((9, 9))[0] > 128 for view in seen] == [
        False,
        False,
        True,
        True,
    ]
    assert [view.prompt for view in seen] == ["?", "?", "what is ?", "what is ?"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_a_video_is_shown_frame_by_frame(family):
    model = tiny_qwen(family, num_layers=4)
    inputs = qwen_inputs(family, [[painted(2, 3, (0, 1)), painted(2, 3)], painted(1, 2)])
    schedule = Schedule("reroute", (Decision(3, "0.5"),))
    with routed(model, schedule) as routing:
        model(**inputs)
    view = routing.show(inputs, QWEN).view
    assert view.places(view.runs[0])[7] == Place(0, 1, 0, 1)
    assert [len(shown.pictures) for shown in view.images] == [2, 1]


def test_pillars_of_a_first_stage_stay_where_their_patches_were():
    model = narrow_llava(num_layers=32)
    ids = torch.tensor([[3, *[NARROW_IMAGE] * 576, 4, 5]])
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0)),
    }
    with routed(model, "reroute-nuwa-64") as routing:
        model(**inputs)
    run = routing.show().view.runs[0]
    assert list(run.kept) == first_stage(model, inputs, "64")["pillars"][0]
    assert len(routing.show().view.images) == 1
    name = "reroute-nuwa-64"
    same = trace(model, tiny_processor(), inputs, [(name, load_schedule(name, model))]).runs[0]
    assert (same.kept, same.trace.visual_rows) == (run.kept, run.trace.visual_rows)


def test_the_command_shows_the_same(llava):
    inputs, name = asked("<image> ?", [picture()]), "reroute-pdrop-192"
    with routed(llava, name) as routing:
        llava(**inputs)
    own = routing.show(inputs, tiny_processor()).view
    view = trace(llava, tiny_processor(), inputs, [(name, load_schedule(name, llava))])
    assert view.images == own.images
    assert view.runs[0].schedule == own.runs[0].schedule
    for one, other in zip(view.runs[0].trace.decisions, own.runs[0].trace.decisions, strict=True):
        assert (one.selected, one.reentered) == (other.selected, other.reentered)


def test_where_a_caller_says_what_is_visual_no_place_is_guessed(llava):
    inputs = asked("what is <image> ?", [picture()])
    mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    mask[0, :36] = True  # as many as the image has, and words among them
    with routed(llava, HALF) as routing:
        llava(**inputs, visual_mask=mask)
    assert routing.show().view.images == ()
    assert "in the order of the prompt" in routing.show().html()
    decoder = text_model()
    with routed(decoder, HALF) as routing:
        decoder(**text_inputs("tvvvvvvt"))
    assert routing.show().view.images == ()


def test_a_later_turn_shows_its_own_image(llava):
    with routed(llava, HALF) as routing:
        first = llava(**asked("<image> ?", [picture()]))
        later = asked("and in <image> and <image> ?", [picture(), picture()])
        later.pop("attention_mask")
        llava(**later, past_key_values=first.past_key_values)
    view = routing.show(later, tiny_processor()).view
    assert len(view.images) == 2
    assert len(view.runs[0].trace.visual_rows) == 72
    assert view.runs[0].trace.kv_rows[0] > view.runs[0].trace.num_rows  # and those from before


def test_inputs_of_as_many_rows_in_other_grids_are_refused():
    model = tiny_qwen("qwen2_5_vl", num_layers=4)
    inputs = qwen_inputs("qwen2_5_vl", [painted(2, 3)])
    with routed(model, HALF) as routing:
        model(**inputs)
    with pytest.raises(RerouteError, match="inputs: are of another prompt"):
        routing.show(qwen_inputs("qwen2_5_vl", [painted(3, 2)]), QWEN)


def test_the_pruning_method_is_shown_beside(llava):
    inputs = asked("<image> ?", [picture()])
    with routed(llava, "pdrop-192") as pruning:
        llava(**inputs)
    with routed(llava, "reroute-pdrop-192") as routing:
        llava(**inputs)
    shown = routing.show(inputs, tiny_processor(), beside=pruning)
    assert [run.name for run in shown.view.runs] == ["reroute-pdrop-192", "pdrop-192"]
    assert [run.removes for run in shown.view.runs] == [False, True]
    with routed(llava, "pdrop-192") as other:
        llava(**asked("<image> what ?", [picture()]))
    with pytest.raises(RerouteError, match="beside: is of another prompt"):
        routing.show(beside=other)


def test_what_cannot_be_shown_is_refused(llava):
    inputs = asked("<image> ?", [picture()])
    routing = apply(llava, HALF)
    try:
        assert routing._repr_html_() is None
        with pytest.raises(RerouteError, match="show: no prefill has finished yet"):
            routing.show()
        llava(**inputs)
        for given, words in (
            ({"request": 1}, "request: 1 of a batch of 1"),
            ({"request": -1}, "request: -1"),
            ({"inputs": inputs}, "processor: is missing"),
            ({"processor": tiny_processor()}, "inputs: is missing"),
            (
                {"inputs": asked("<image> what ?", [picture()]), "processor": tiny_processor()},
                "inputs: are of another",
            ),
            ({"inputs": {}, "processor": tiny_processor()}, "inputs: are of another"),
            ({"inputs": picture(), "processor": tiny_processor()}, "inputs: are a Image"),
            ({"beside": "pdrop-192"}, "beside: is a str"),
        ):
            with pytest.raises(RerouteError, match=words):
                routing.show(**given)
    finally:
        remove(llava)
