"""``model.generate`` on a routed model, against routing by definition, teacher-forced."""

import pytest
import torch
from reroute_optimized import routed
from reroute_optimized.target import torch_target
from reroute_spec import Decision, RerouteError, Schedule
from transformers import DynamicCache, GenerationConfig

from . import oracle, tiny

TWO = (Decision(2, "0.5"), Decision(4, "0.25"))
ROWS = [tiny.row(4, 1, 5, 1), tiny.row(2, 2, 3, 2), tiny.row(6, 0, 0, 3)]


def single(inputs, request):
    real = inputs["attention_mask"][request].bool()
    images = [int((row == tiny.IMAGE).sum()) // tiny.PATCHES for row in inputs["input_ids"]]
    alone = {"input_ids": inputs["input_ids"][request, real][None]}
    if images[request]:
        alone["pixel_values"] = inputs["pixel_values"][sum(images[:request]) :][: images[request]]
    return alone


def assert_greedy(model, inputs, schedule, new):
    for request, tokens in enumerate(new):
        answer = oracle.run(model, single(inputs, request), schedule, later=tokens[:-1])
        assert answer.logits[-len(tokens) :].argmax(-1).tolist() == tokens.tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("action", ["reroute", "delete"])
@pytest.mark.parametrize(
    "rows", [ROWS[:1], ROWS[1:2], ROWS[2:], ROWS], ids=["image", "two images", "text", "batch"]
)
def test_generates_greedily(rows, action, attention):
    model, schedule, inputs = tiny.llava(attention), Schedule(action, TWO), tiny.llava_inputs(rows)
    model.generation_config.eos_token_id = None
    with routed(model, schedule) as result:
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert len(result.traces) == len(rows)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(tokens[:, :width], inputs["input_ids"])
    assert_greedy(model, inputs, schedule, tokens[:, width:])
    assert torch.equal(torch_target().generate(model, inputs, schedule, 6), tokens)


def test_generates_exactly_as_many_tokens_as_asked_whatever_ends_a_text():
    model, schedule, inputs = tiny.llava(), Schedule("reroute", TWO), tiny.llava_inputs(ROWS[:1])
    free = torch_target().generate(model, inputs, schedule, 6)
    model.generation_config.eos_token_id = free[0, -4].item()
    assert torch.equal(torch_target().generate(model, inputs, schedule, 6), free)
    assert model.generation_config.eos_token_id == free[0, -4].item()
    assert_greedy(model, inputs, schedule, [free[0, -6:]])


def test_beams_run():
    # one image each: transformers before 5.23 repeats the images of a request with several in the wrong order
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, 5), tiny.row(6, 0, 0), tiny.row(2, 1, 3)])
    with routed(model, Schedule("reroute", TWO)) as result:
        tokens = model.generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False, pad_token_id=0)
    assert len(tokens) == 3
    assert len(result.traces) == 6
    with routed(model, Schedule("reroute", TWO)):
        for request, beams in enumerate(tokens):
            one = single(inputs, request)
            alone = model.generate(**one, max_new_tokens=4, num_beams=2, do_sample=False, pad_token_id=0)
            assert torch.equal(alone[0, -4:], beams[-4:])
    for own in (result.traces[0:2], result.traces[4:6]):
        assert own[0].decisions[0].selected == own[1].decisions[0].selected


def test_a_users_cache_continues_over_two_generations():
    model, schedule, inputs = tiny.llava(), Schedule("reroute", TWO), tiny.llava_inputs(ROWS[:1])
    with routed(model, schedule):
        whole = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        cache = DynamicCache()
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False, past_key_values=cache)
        mask = torch.ones_like(first)
        second = model.generate(
            input_ids=first, attention_mask=mask, max_new_tokens=3, do_sample=False, past_key_values=cache
        )
    assert torch.equal(second, whole)


@pytest.mark.parametrize("option", [{"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 3}])
def test_ways_of_generating_that_cut_or_revise_a_prefill_are_refused(option):
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS[:1])
    with routed(model, Schedule("reroute", TWO)), pytest.raises(RerouteError, match=next(iter(option))):
        model.generate(**inputs, max_new_tokens=2, **option)


def test_generated_placeholders_are_text():
    model, schedule, inputs = tiny.llava(), Schedule("reroute", TWO), tiny.llava_inputs(ROWS[:1])
    with routed(model, schedule):
        cache = model(**inputs).past_key_values
        model(input_ids=torch.tensor([[tiny.IMAGE]]), past_key_values=cache)
    assert cache.routing.num_rows.tolist() == [len(ROWS[0]) + 1]


def test_right_padding_is_refused_where_it_would_go_wrong_and_only_there():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    right = {name: value.clone() for name, value in inputs.items()}
    for name in ("input_ids", "attention_mask"):
        for row, real in enumerate(inputs["attention_mask"].bool()):
            right[name][row] = torch.cat([inputs[name][row][real], inputs[name][row][~real]])
    with routed(model, Schedule("reroute", TWO)) as result:
        with pytest.raises(RerouteError, match=r"^attention_mask: pads on the right"):
            model.generate(**right, max_new_tokens=2, do_sample=False)
        unmasked = {name: value for name, value in right.items() if name != "attention_mask"}
        with pytest.raises(RerouteError, match=r"^attention_mask: pads on the right"):
            model.generate(**unmasked, pad_token_id=0, max_new_tokens=2, do_sample=False)
        model(**right)
        on_the_right = result.traces
        model(**inputs)
    assert [[d.selected for d in t.decisions] for t in on_the_right] == [
        [d.selected for d in t.decisions] for t in result.traces
    ]


def test_generation_that_would_decide_again_at_every_token_is_refused():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS[:1])
    with routed(model, Schedule("reroute", TWO)):
        with pytest.raises(RerouteError, match=r"^use_cache"):
            model.generate(**inputs, max_new_tokens=2, use_cache=False)
        model.generation_config.use_cache = False
        with pytest.raises(RerouteError, match=r"^use_cache"):
            model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=2))
        model.generation_config.use_cache = True
        with pytest.raises(RerouteError, match=r"^visual_mask"):
            model.generate(**inputs, max_new_tokens=2, visual_mask=inputs["input_ids"] == tiny.IMAGE)


def test_masks_of_other_values_than_0_and_1_are_refused():
    """An additive mask would be read the wrong way round."""
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS[:1])
    real = inputs["attention_mask"]
    with routed(model, Schedule("reroute", TWO)):
        for mask in (real * 2, (1.0 - real) * torch.finfo(torch.float32).min - 1.0):
            with pytest.raises(RerouteError, match=r"^attention_mask: holds other values"):
                model(**{**inputs, "attention_mask": mask})
        assert model(**{**inputs, "attention_mask": real.bool()}).logits.isfinite().all()


def test_a_later_mask_that_hides_cached_rows_is_refused():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS[:1])
    width = inputs["input_ids"].shape[1]
    with routed(model, Schedule("reroute", TWO)):
        cache = model(**inputs, use_cache=True).past_key_values
        mask = torch.ones(1, width + 2, dtype=torch.long)
        mask[0, width - 1] = 0
        tokens = torch.tensor([[5, 6]])
        with pytest.raises(RerouteError, match=r"^attention_mask: hides rows that are in the cache"):
            model(input_ids=tokens, attention_mask=mask, past_key_values=cache)
        assert cache.get_seq_length() == width
        model(input_ids=tokens, attention_mask=torch.ones_like(mask), past_key_values=cache)
        assert cache.get_seq_length() == width + 2
