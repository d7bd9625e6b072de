"""``model.generate`` on a routed model, against routing by definition, teacher-forced."""

import pytest
import torch
from reroute_optimized import routed
from reroute_optimized.conforming.target import torch_target
from reroute_spec import Decision, RerouteError, Schedule
from torch.testing import assert_close
from transformers import DynamicCache

from .. import oracle, tiny

TWO = (Decision(2, "0.5"), Decision(4, "0.25"))
ROWS = [tiny.row(4, 1, 5, 1), tiny.row(2, 2, 3, 2), tiny.row(6, 0, 0, 3)]

MANY = [
    Schedule("reroute", TWO),
    Schedule("delete", TWO),
    Schedule("reroute", (Decision(0, "0.3"), Decision(3, "0.6"))),
]


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


@pytest.mark.parametrize("schedule", [*MANY, Schedule("delete", TWO, positions="renumber")], ids=str)
def test_without_a_cache_every_step_keeps_the_prompts_decisions(schedule):
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with routed(model, schedule) as result:
        cached = model.generate(**inputs, **options)
        traces = result.traces
        assert torch.equal(model.generate(**inputs, **options, use_cache=False), cached)
        assert [[d.selected for d in t.decisions] for t in result.traces] == [
            [d.selected for d in t.decisions] for t in traces
        ]
        model.generation_config.use_cache = False
        assert torch.equal(model.generate(**inputs, **options), cached)
        beams = {**options, "num_beams": 2, "num_return_sequences": 2}
        one_image = tiny.llava_inputs([tiny.row(4, 1, 5), tiny.row(6, 0, 0)])
        assert torch.equal(
            model.generate(**one_image, **beams), model.generate(**one_image, **beams, use_cache=True)
        )
        embeds = {"inputs_embeds": torch.randn(1, 8, 64), "visual_mask": torch.ones(1, 8, dtype=torch.bool)}
        whole = model.generate(**embeds, **options)
        assert torch.equal(model.generate(**embeds, **options, use_cache=True), whole)


def test_a_prompt_that_ends_in_an_image_goes_on_as_with_a_cache():
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, -1), tiny.row(2, 2, 3)])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    for schedule in MANY:
        with routed(model, schedule):
            assert torch.equal(
                model.generate(**inputs, **options, use_cache=False), model.generate(**inputs, **options)
            )


def test_samples_and_several_sequences_are_drawn_from_the_routed_logits():
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, 5), tiny.row(6, 0, 0)])
    options = {
        "max_new_tokens": 4,
        "do_sample": True,
        "top_k": 20,
        "num_return_sequences": 3,
        "pad_token_id": 0,
    }
    with routed(model, Schedule("reroute", TWO)) as result:
        torch.manual_seed(3)
        out = model.generate(**inputs, **options, output_scores=True, return_dict_in_generate=True)
        assert len(result.traces) == len(out.sequences) == 6
        greedy = model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=0)[:, -1]
        torch.manual_seed(3)
        assert torch.equal(model.generate(**inputs, **options), out.sequences)
    assert torch.equal(out.scores[0].argmax(-1), greedy.repeat_interleave(3))


def test_tokens_are_streamed():
    class Streamer:
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    model, inputs, streamer = tiny.llava(), tiny.llava_inputs(ROWS[:1]), Streamer()
    with routed(model, Schedule("reroute", TWO)):
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False, streamer=streamer)
    assert streamer.tokens == tokens[0].tolist()
    assert streamer.ended


def test_embeddings_are_generated_from_with_an_explicit_mask():
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, 5), tiny.row(6, 1, 3)])
    seen = {}
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    embeds = {"inputs_embeds": seen["inputs_embeds"], "attention_mask": inputs["attention_mask"]}
    mask = inputs["input_ids"] == tiny.IMAGE
    for schedule in (*MANY, Schedule("reroute", TWO, scope="image")):
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        with routed(model, schedule) as result:
            expected = model.generate(**inputs, **options)[:, -4:]
            traces = result.traces
            assert torch.equal(model.generate(**embeds, visual_mask=mask, **options), expected)
            assert [t.visual_rows for t in result.traces] == [t.visual_rows for t in traces]
            beams = model.generate(**embeds, visual_mask=mask, **options, num_beams=2)
            assert torch.equal(beams, model.generate(**inputs, **options, num_beams=2)[:, -4:])
            with pytest.raises(RerouteError, match=r"^visual_mask"):
                model.generate(**embeds, **options)


@pytest.mark.parametrize("schedule", MANY, ids=str)
def test_hidden_states_of_every_block_are_told(schedule):
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    decisions = [decision.layer for decision in schedule.decisions]
    with routed(model, schedule) as result:
        out = model(**inputs, output_hidden_states=True)
        assert out.hidden_states is not None
        assert model(**inputs).hidden_states is None
        trace = result.traces
        states = model.generate(
            **inputs,
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
            output_hidden_states=True,
            return_dict_in_generate=True,
        ).hidden_states
    assert len(out.hidden_states) == tiny.LAYERS + 1
    assert_close(model.lm_head(out.hidden_states[-1]), out.logits, equal_nan=True)
    answers = torch_target().run(model, inputs, schedule)
    real = inputs["attention_mask"].bool()
    for layer in decisions:
        for b, answer in enumerate(answers):
            if layer not in answer["residuals"]:
                continue
            hidden = out.hidden_states[layer][b]
            alive = (
                hidden[~hidden.isnan().any(-1)]
                if schedule.action == "delete" and layer > decisions[0]
                else hidden[real[b]]
            )
            assert torch.equal(alive, answer["residuals"][layer])
    if schedule.action == "reroute":
        own = trace[0].decisions[0]
        pads = int((~real[0]).sum())
        deferred = [pads + trace[0].visual_rows[ordinal] for ordinal in own.deferred]
        for layer in range(own.layer, decisions[1]):
            assert torch.equal(
                out.hidden_states[layer][0, deferred], out.hidden_states[own.layer][0, deferred]
            )
    assert [len(step) for step in states] == [tiny.LAYERS + 1] * 3
    assert all(hidden.shape == (3, 1, 64) for hidden in states[1])


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"cache_implementation": "quantized"}, "cache_implementation"),
        ({"cache_implementation": "offloaded"}, "cache_implementation"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"visual_mask": torch.ones(1, 7, dtype=torch.bool)}, "visual_mask"),
    ],
)
def test_ways_of_generating_that_are_not_defined_are_refused(option, field):
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS[:1])
    with routed(model, Schedule("reroute", TWO)) as result:
        with pytest.raises(RerouteError, match=f"^{field}"):
            model.generate(**{**inputs, "max_new_tokens": 2, **option})
        model.generate(**inputs, max_new_tokens=2)
        assert len(result.traces) == 1


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
