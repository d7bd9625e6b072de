"""One prompt through every kind of schedule, against routing by definition."""

import pytest
import torch
from reroute_optimized import routed
from reroute_optimized.conforming.target import torch_target
from reroute_spec import Decision, Schedule, ScoreRule
from torch.testing import assert_close

from .. import oracle, tiny

TWO = (Decision(2, "0.5"), Decision(4, "0.25"))
SCHEDULES = {
    "reroute": Schedule("reroute", TWO),
    "delete": Schedule("delete", TWO),
    "reroute at 0": Schedule("reroute", (Decision(0, "0.3"), Decision(1, "0.3"), Decision(5, "0.6"))),
    "delete at 0": Schedule("delete", (Decision(0, "0.6"), Decision(3, "0.2"))),
    "bypass without re-entry": Schedule("reroute", TWO, pool="survivors"),
    "growing": Schedule("reroute", (Decision(1, "0.1"), Decision(3, "0.9"))),
    "last 3": Schedule("reroute", TWO, score=ScoreRule(query="last_n", n=3)),
    "last 5, max, delete": Schedule("delete", TWO, score=ScoreRule(query="last_n", n=5, heads="max")),
    "more rows asked than there are": Schedule("delete", TWO, score=ScoreRule(query="last_n", n=99)),
    "counts": Schedule("reroute", (Decision(1, 2), Decision(2, 7))),
    "min_keep": Schedule("delete", (Decision(1, "0.01"),), min_keep=4),
    "at the last block": Schedule("reroute", (Decision(5, "0.2"),)),
}
PROMPTS = {
    "one image": "tttvvvvvvvvvvvvttttt",
    "ends in visual rows": "ttvvvvvvvvv",
    "islands": "vvvtvvvvtvtvvvttvt",
}


def check(model, inputs, schedule, **how):
    expected = oracle.run(model, inputs, schedule, **how)
    with routed(model, schedule) as result:
        logits = model(**inputs).logits[0]
    trace = result.traces[0]
    assert [record.selected for record in trace.decisions] == expected.selected
    for record, scores in zip(trace.decisions, expected.scores, strict=True):
        assert_close(torch.tensor(record.scores), torch.tensor(scores), atol=1e-6, rtol=1e-4)
    assert trace.kv_rows == expected.kv_rows == expected.plan.kv_rows == result.kv_lengths
    assert result.plan == [expected.plan]
    assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_equals_routing_by_definition(family, name, attention):
    check(tiny.text_model(family, attention), tiny.text_inputs(PROMPTS["one image"]), SCHEDULES[name])


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_layout_of_visual_rows(name, prompt):
    check(tiny.text_model(), tiny.text_inputs(PROMPTS[prompt], seed=3), SCHEDULES[name])


@pytest.mark.parametrize("action", ["reroute", "delete"])
def test_llava_routes_all_images_of_a_prompt(action):
    check(tiny.llava(), tiny.llava_inputs([tiny.row(4, 2, 5)]), Schedule(action, TWO))


def test_scope_image_keeps_its_budget_in_every_image():
    schedule = Schedule("reroute", TWO, scope="image")
    inputs = tiny.llava_inputs([tiny.row(4, 3, 5)])
    check(tiny.llava(), inputs, schedule, images=[16, 16, 16])


def test_scope_image_under_delete_keeps_spans_apart():
    inputs = tiny.llava_inputs([tiny.row(2, 2, 3)], seed=5)
    check(tiny.llava(), inputs, Schedule("delete", TWO, scope="image"), images=[16, 16])


def test_given_positions_are_used():
    inputs = tiny.text_inputs(PROMPTS["one image"])
    positions = torch.arange(20)[None] * 3 + 2
    schedule = SCHEDULES["reroute"]
    expected = oracle.run(tiny.text_model(), inputs, schedule, positions=positions)
    check(tiny.text_model(), {**inputs, "position_ids": positions}, schedule, positions=positions)
    assert expected.selected != oracle.run(tiny.text_model(), inputs, schedule).selected


@pytest.mark.parametrize("action", ["reroute", "delete"])
def test_keep_all_is_the_unrouted_model(action):
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, 5), tiny.row(2, 2, 1)])
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    plain = model(**inputs, position_ids=positions).logits
    with routed(model, Schedule(action, (Decision(1, "1"), Decision(3, "1")))):
        out = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    assert_close(out[real], plain[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "schedule", [Schedule("reroute", TWO), Schedule("delete", TWO), Schedule("reroute", ())]
)
def test_text_alone_is_the_unrouted_model_bit_for_bit(schedule):
    model = tiny.llava()
    image, text = tiny.llava_inputs([tiny.row(4, 1, 5)]), tiny.llava_inputs([tiny.row(9, 0, 0)])
    plain = model(**text).logits
    with routed(model, schedule) as result:
        model(**image)
        out = model(**text).logits  # after a request with an image: nothing of it may remain
    assert torch.equal(out, plain)
    assert result.traces[0].decisions == ()
    assert result.kv_lengths == (text["input_ids"].shape[1],) * tiny.LAYERS


def test_deferred_rows_are_bitwise_unchanged():
    model, inputs = tiny.text_model(), tiny.text_inputs(PROMPTS["one image"])
    (answer,) = torch_target().run(model, inputs, SCHEDULES["counts"])
    first, second = answer["trace"].decisions
    rows = torch.tensor(answer["trace"].visual_rows)
    away = rows[list(first.deferred)]
    assert torch.equal(answer["residuals"][2][away], answer["residuals"][1][away])
    away = rows[list(second.deferred)]
    assert torch.equal(answer["residuals"][6][away], answer["residuals"][2][away])
    back = rows[list(second.reentered)]
    assert len(back)
    assert not torch.equal(answer["residuals"][6][back], answer["residuals"][2][back])


def test_rows_before_the_first_visual_row_are_untouched():
    model, inputs = tiny.text_model(), tiny.text_inputs(PROMPTS["one image"])
    plain = model(inputs_embeds=inputs["inputs_embeds"]).logits[0, :3]
    with routed(model, SCHEDULES["reroute"]):
        assert_close(model(**inputs).logits[0, :3], plain, atol=1e-5, rtol=1e-5)


def test_the_callers_embeddings_are_not_written_to():
    model, inputs = tiny.text_model(), tiny.text_inputs(PROMPTS["one image"])
    before = inputs["inputs_embeds"].clone()
    for name in ("reroute at 0", "delete at 0", "reroute"):
        with routed(model, SCHEDULES[name]):
            model(**inputs)
    assert torch.equal(inputs["inputs_embeds"], before)


def test_outputs_of_blocks_that_a_hook_kept_are_not_written_to():
    model, inputs = tiny.text_model(), tiny.text_inputs(PROMPTS["one image"])
    kept = []
    model.model.layers[1].register_forward_hook(
        lambda module, args, output: kept.append((output, output.clone()))
    )
    with routed(model, SCHEDULES["reroute"]):
        model(**inputs)
    assert torch.equal(*kept[0])


def test_gradients_flow_through_a_routed_forward():
    model, inputs = tiny.text_model(), tiny.text_inputs(PROMPTS["one image"])
    for action in ("reroute", "delete"):
        embeds = inputs["inputs_embeds"].clone().requires_grad_()
        with routed(model, Schedule(action, TWO)):
            model(**{**inputs, "inputs_embeds": embeds}).logits[0, -1].sum().backward()
        assert embeds.grad is not None
        assert embeds.grad.isfinite().all()


def test_logits_to_keep_asks_for_the_last_prompt_row():
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, 5)])
    for action in ("reroute", "delete"):
        with routed(model, Schedule(action, TWO)):
            assert_close(model(**inputs, logits_to_keep=1).logits[:, -1], model(**inputs).logits[:, -1])


def test_low_precision_runs_and_selects_in_float32():
    model, inputs = tiny.text_model().bfloat16(), tiny.text_inputs(PROMPTS["one image"])
    inputs["inputs_embeds"] = inputs["inputs_embeds"].bfloat16()
    check_scores = oracle.run(model, inputs, SCHEDULES["reroute"]).scores[0]
    with routed(model, SCHEDULES["reroute"]) as result:
        assert model(**inputs).logits.dtype == torch.bfloat16
    assert_close(
        torch.tensor(result.traces[0].decisions[0].scores), torch.tensor(check_scores), atol=1e-3, rtol=2e-2
    )
