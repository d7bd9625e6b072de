"""A prefix that is computed once serves prompts as they are answered without it, in every family, and says what it saved."""

import contextlib
import copy

import pytest
import torch
from reroute_conformance.tiny import NARROW_IMAGE, NARROW_PATCHES, narrow_llava
from reroute_optimized import routed
from reroute_optimized.conforming.session import Session
from reroute_optimized.stages import engine
from reroute_spec import Decision, Schedule, ScoreRule

from .. import tiny
from ..beside import assert_same_answer
from ..hooks.test_wrappers import everywhere, with_adapter
from ..stages.test_no_host_reads import NoReads
from .begun import FAMILIES, beginning_of, joined, model_of, question, questions

TWO = (Decision(3, "0.5"), Decision(5, "0.25"))
HYBRID = (Decision(3, "0.5"), Decision(7, "0.25"))
SCHEDULES = {
    "reroute": Schedule("reroute", TWO),
    "delete": Schedule("delete", TWO),
    "survivors": Schedule("reroute", TWO, pool="survivors"),
    "per image": Schedule("reroute", TWO, scope="image"),
    "last 9": Schedule("reroute", TWO, score=ScoreRule(query="last_n", n=9, heads="max")),
    "nothing": Schedule("reroute", ()),
    "nothing removed": Schedule("delete", ()),
}
NOT_HYBRID = {
    "at once": Schedule("reroute", (Decision(0, "0.5"), Decision(2, "0.25"))),
    "at block 1": Schedule("reroute", (Decision(1, "0.5"), Decision(3, "0.25"))),
    "the block before": Schedule("delete", TWO, score=ScoreRule(source="previous"), pool="survivors"),
    "the block before, last 9": Schedule(
        "reroute", TWO[:1], score=ScoreRule(source="previous", query="last_n", n=9)
    ),
}
RENUMBERED = Schedule("delete", TWO, positions="renumber", pool="survivors")


def schedule_for(family, schedule):
    if family != "qwen3_5":
        return schedule
    return Schedule.from_dict(
        {
            **schedule.to_dict(),
            "decisions": Schedule("reroute", HYBRID[: len(schedule.decisions)]).to_dict()["decisions"],
        }
    )


def session_of(model, schedule, operations, beginning=None):
    """What every operation of a session shows, with all that is cached; its prefill starts after ``beginning``."""
    with routed(model, schedule) as result:
        session = Session(model, result)
        shown = []
        prefix = contextlib.nullcontext() if beginning is None else result.prefix(beginning)
        for operation in operations:
            with prefix if operation["op"] == "prefill" else contextlib.nullcontext():
                shown.append(session.step(operation))
    return shown


@torch.no_grad()
def assert_served_alike(model, schedule, beginning, operations):
    alone = session_of(model, schedule, operations)
    served = session_of(model, schedule, operations, beginning)
    for operation, expected, found in zip(operations, alone, served, strict=True):
        for request, (e, f) in enumerate(zip(expected, found, strict=True)):
            assert_same_answer(f"{operation['op']}, request {request}", e, f)


def prefill(inputs):
    return [{"op": "prefill", "inputs": inputs}]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_begin_alike_are_answered_as_each_by_itself(family, name, side):
    beginning = beginning_of(family)
    inputs = joined(beginning, questions(family), side)
    schedule = schedule_for(family, SCHEDULES[name])
    assert_served_alike(model_of(family), schedule, beginning, prefill(inputs))


@pytest.mark.parametrize("kind", ["image", "text", "two images"])
@pytest.mark.parametrize("name", NOT_HYBRID)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_wherever_the_first_decision_is_and_whatever_it_reads(family, name, kind):
    beginning = beginning_of(family, kind)
    inputs = joined(beginning, questions(family))
    assert_served_alike(model_of(family), NOT_HYBRID[name], beginning, prefill(inputs))


@pytest.mark.parametrize("kind", ["text", "two images", "video"])
@pytest.mark.parametrize("family", FAMILIES[1:])
def test_a_prefix_is_of_text_or_of_images_and_videos(family, kind):
    beginning, schedule = beginning_of(family, kind), schedule_for(family, SCHEDULES["reroute"])
    inputs = joined(beginning, questions(family))
    assert_served_alike(model_of(family), schedule, beginning, prefill(inputs))


@pytest.mark.parametrize("kind", ["image", "text"])
def test_positions_may_be_counted_anew(kind):
    beginning = beginning_of("llava", kind)
    inputs = joined(beginning, questions("llava"))
    assert_served_alike(model_of("llava"), RENUMBERED, beginning, prefill(inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_without_images_are_served_from_text(family):
    beginning = beginning_of(family, "text")
    inputs = joined(beginning, [question(family, 5, 1), question(family, 2, 2)])
    schedule = schedule_for(family, SCHEDULES["delete"])
    assert_served_alike(model_of(family), schedule, beginning, prefill(inputs))


@pytest.mark.parametrize("decoder", ["llama", "qwen2", "qwen3"])
def test_a_plain_decoder_is_given_embeddings(decoder):
    model = tiny.text_model(decoder)
    inputs = tiny.text_inputs("tttvvvvvvvvvvtttttt")
    beginning = {name: tensor[:, :11] for name, tensor in inputs.items()}  # ends within the image
    assert_served_alike(model, SCHEDULES["reroute"], beginning, prefill(inputs))
    both = {name: tensor.repeat(2, *[1] * (tensor.ndim - 1)) for name, tensor in inputs.items()}
    both["inputs_embeds"][1, 11:] *= 0.5
    both["attention_mask"] = torch.tensor([[1] * 19, [1] * 16 + [0] * 3])
    assert_served_alike(model, SCHEDULES["survivors"], beginning, prefill(both))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_goes_on_after_a_prefix_like_any_other(family, side):
    beginning, schedule = beginning_of(family), schedule_for(family, SCHEDULES["reroute"])
    turns = [
        joined(question(family, 2, seed), [question(family, 3, seed, image=True)] * 3) for seed in (7, 8)
    ]
    for turn in turns:
        del turn["attention_mask"]
    text = {"input_ids": torch.arange(3, 15).view(3, 4)}
    operations = [
        *prefill(joined(beginning, questions(family), side)),
        {"op": "decode", "tokens": torch.tensor([5, 6, 7])},
        {"op": "turn", "inputs": text},
        *([{"op": "crop", "rows": 3}] if family != "qwen3_5" else []),
        {"op": "reorder", "order": [2, 0, 1]},
        {"op": "turn", "inputs": turns[0]},
        {"op": "decode", "tokens": torch.tensor([5, 6, 7])},
        {"op": "repeat", "times": 2},
        {"op": "select", "order": [0, 3, 5]},
        {"op": "turn", "inputs": turns[1]},
    ]
    assert_served_alike(model_of(family), schedule, beginning, operations)


def test_what_was_not_routed_can_be_cropped_back_into_the_prefix():
    beginning = beginning_of("llava", "text")
    inputs = joined(beginning, [question("llava", 1, 1), question("llava", 4, 2)])
    operations = [
        *prefill(inputs),
        {"op": "crop", "rows": 6},
        {"op": "turn", "inputs": {"input_ids": torch.arange(3, 9).view(2, 3)}},
    ]
    assert_served_alike(model_of("llava"), SCHEDULES["reroute"], beginning, operations)


def counted_pictures(model):
    """How many pictures the tower is given, call by call."""
    seen = []
    tower = model.model.vision_tower if hasattr(model.model, "vision_tower") else model.model.visual

    def count(module, args, kwargs):
        grid = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
        seen.append(len(args[0] if grid is None else grid))

    return seen, tower.register_forward_pre_hook(count, with_kwargs=True)


OPTIONS = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 2, "num_return_sequences": 2},
    "without a cache": {"use_cache": False},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_makes_the_same_tokens(family, way):
    model, beginning = model_of(family), beginning_of(family)
    asked = questions(family)
    if family == "llava" and "num_return_sequences" in WAYS[way]:
        asked = asked[
            ::2
        ]  # transformers before 5.23 repeats pictures one by one, and so mixes up a request's
    inputs = joined(beginning, asked)
    with routed(model, schedule_for(family, SCHEDULES["reroute"])) as result:
        torch.manual_seed(3)
        expected, lengths = model.generate(**inputs, **{**OPTIONS, **WAYS[way]}), result.kv_lengths
        prefix = result.prefix(beginning)
        seen, handle = counted_pictures(model)
        try:
            with prefix:
                torch.manual_seed(3)
                tokens = model.generate(**inputs, **{**OPTIONS, **WAYS[way]})
        finally:
            handle.remove()
        assert torch.equal(tokens, expected)
        assert result.kv_lengths == lengths
        assert set(seen) <= {1, 2}  # only the second question's own image, which beams may repeat
        assert prefix.served >= len(asked)
        assert torch.equal(model.generate(**inputs, **OPTIONS), model.generate(**inputs, **OPTIONS))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_does_not_run_where_all_images_are_the_prefixs(family):
    model, beginning = model_of(family), beginning_of(family)
    inputs = joined(beginning, [question(family, 3, 1), question(family, 2, 2)])
    with routed(model, schedule_for(family, SCHEDULES["reroute"])) as result:
        prefix = result.prefix(beginning)
        seen, handle = counted_pictures(model)
        with prefix:
            model(**inputs)
            model.generate(**inputs, **OPTIONS)
            assert not seen
        model(**inputs)
        assert seen == [2]  # the same two pictures, outside the block
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_near_as_without_a_prefix(family):
    model = copy.deepcopy(model_of(family)).to(torch.bfloat16)
    beginning, schedule = beginning_of(family), schedule_for(family, SCHEDULES["nothing"])
    inputs = joined(beginning, questions(family))
    with torch.no_grad(), routed(model, schedule) as result:
        exact = copy.deepcopy(model_of(family)).double()(**inputs).logits
        alone = model(**inputs).logits
        with result.prefix(beginning):
            served = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    errors = [(logits.double() - exact)[real].abs().max() for logits in (served, alone)]
    assert errors[0] <= 2 * errors[1]


def test_eager_attention_is_served_too():
    model, beginning = tiny.llava("eager"), beginning_of("llava")
    inputs = joined(beginning, questions("llava"))
    assert_served_alike(model, SCHEDULES["survivors"], beginning, prefill(inputs))


@pytest.mark.parametrize("whole", [True, False])
def test_hooks_of_a_device_map_stay(whole):
    model, beginning = everywhere(tiny.llava(), whole), beginning_of("llava")
    inputs = joined(beginning, questions("llava"))
    assert_served_alike(model, SCHEDULES["reroute"], beginning, prefill(inputs))


def test_an_adapter_that_is_not_merged_belongs_to_the_prefix():
    adapted, beginning = with_adapter(tiny.llava()), beginning_of("llava")
    inputs = joined(beginning, questions("llava"))
    with torch.no_grad(), routed(adapted, SCHEDULES["reroute"]) as result:
        expected = adapted.generate(**inputs, **OPTIONS)
        with result.prefix(beginning) as prefix:
            assert torch.equal(adapted.generate(**inputs, **OPTIONS), expected)
            assert prefix.served == 3


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_prompts_may_be_given_as_embeddings(family):
    model, beginning = model_of(family), beginning_of(family)
    whole = joined(beginning, questions(family))
    seen = {}

    def keep(module, args, kwargs):
        seen.update(kwargs)

    with torch.no_grad(), routed(model, SCHEDULES["reroute"]) as result:
        handle = model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
        model(**whole)
        handle.remove()
        names = ("inputs_embeds", "visual_mask", "attention_mask")
        inputs = {name: seen[name] for name in names}
        pads = int((whole["attention_mask"][0] == 0).sum())
        rows = slice(pads, pads + beginning["input_ids"].shape[1])
        expected = model.generate(**inputs, **OPTIONS)
        with result.prefix({name: inputs[name][:1, rows] for name in names}) as prefix:
            assert torch.equal(model.generate(**inputs, **OPTIONS), expected)
            assert prefix.served == 3


@pytest.mark.parametrize("batch", [1, 3])
def test_nothing_is_read_on_the_host_between_the_first_block_and_the_output(batch, monkeypatch):
    model, beginning = tiny.llava(), beginning_of("llava")
    inputs = joined(beginning, questions("llava")[:batch])
    guard = NoReads()

    def refuse(*_):
        raise AssertionError("read on the host")

    def start(*_):
        guard.__enter__()
        for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"):
            monkeypatch.setattr(torch.Tensor, name, refuse)

    def stop(*_):
        guard.__exit__(None, None, None)
        monkeypatch.undo()

    with routed(model, SCHEDULES["reroute"]) as result, result.prefix(beginning) as prefix:
        monkeypatch.setattr(engine, "reads_at_once", lambda device: False)
        decoder = model.model.language_model
        decoder.layers[0].register_forward_pre_hook(start)
        decoder.norm.register_forward_hook(stop)
        model(**inputs)
        assert prefix.served == batch


def test_nuwas_first_stage_is_of_the_prefix():
    model = narrow_llava(num_layers=8)
    pixels = torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    head = [1, 5, 7, *[NARROW_IMAGE] * NARROW_PATCHES, 9]
    beginning = {"input_ids": torch.tensor([head]), "pixel_values": pixels[:1]}
    asked = [[11, 12, 13, 14], [15, *[NARROW_IMAGE] * NARROW_PATCHES, 16]]
    for tails in ([asked[0]], asked):
        longest = max(map(len, tails))
        inputs = {
            "input_ids": torch.tensor([[0] * (longest - len(tail)) + head + tail for tail in tails]),
            "attention_mask": torch.tensor(
                [[0] * (longest - len(t)) + [1] * (len(head) + len(t)) for t in tails]
            ),
            "pixel_values": torch.cat([pixels[:1], *([pixels] if len(tails) > 1 else [])]),
        }
        assert_served_alike(model, "reroute-nuwa-64", beginning, prefill(inputs))
