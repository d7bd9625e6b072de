"""Requests in a batch are independent, and padding changes nothing."""

import pytest
import torch
from reroute_optimized import routed
from reroute_optimized.conforming.target import torch_target
from reroute_optimized.stages import engine
from reroute_spec import Decision, RerouteError, Schedule, ScoreRule
from torch.testing import assert_close

from .. import oracle, tiny

TWO = (Decision(2, "0.5"), Decision(4, "0.25"))
SCHEDULES = {
    "reroute": Schedule("reroute", TWO),
    "delete": Schedule("delete", TWO),
    "reroute at 0": Schedule("reroute", (Decision(0, "0.3"), Decision(3, "0.6"))),
    "delete at 0": Schedule("delete", (Decision(0, "0.6"), Decision(3, "0.3"))),
    "bypass without re-entry": Schedule("reroute", TWO, pool="survivors"),
    "per image": Schedule("reroute", TWO, scope="image"),
    "per image, delete": Schedule("delete", TWO, scope="image"),
    "last 3": Schedule("delete", TWO, score=ScoreRule(query="last_n", n=3)),
    "more rows asked than most have": Schedule("reroute", TWO, score=ScoreRule(query="last_n", n=30)),
    "more rows asked than survive": Schedule("delete", TWO, score=ScoreRule(query="last_n", n=30)),
}
ROWS = [
    tiny.row(4, 1, 5, 1),
    tiny.row(2, 2, 3, 2),
    tiny.row(9, 0, 0, 3),
    tiny.row(1, 1, -1, 4),
    tiny.row(0, 0, 0, 5),
]


def alone(inputs, request):
    """One request of a batch, without padding."""
    real = inputs["attention_mask"][request].bool()
    ids = inputs["input_ids"][:, real] if request is None else inputs["input_ids"][request, real][None]
    images = [int((row == tiny.IMAGE).sum()) // tiny.PATCHES for row in inputs["input_ids"]]
    single = {"input_ids": ids}
    if images[request]:
        start = sum(images[:request])
        single["pixel_values"] = inputs["pixel_values"][start : start + images[request]]
    return single, [tiny.PATCHES] * images[request]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_request_equals_itself_alone(name, side, attention):
    model, schedule = tiny.llava(attention), SCHEDULES[name]
    inputs = tiny.llava_inputs(ROWS, side)
    answers = torch_target().run(model, inputs, schedule)
    for request, answer in enumerate(answers):
        single, images = alone(inputs, request)
        expected = oracle.run(model, single, schedule, images=images)
        assert [record.selected for record in answer["trace"].decisions] == expected.selected
        assert answer["trace"].kv_rows == expected.kv_rows
        assert_close(answer["logits"], expected.logits, atol=1e-4, rtol=1e-4)
        assert [keys.shape[1] for keys in answer["keys"]] == list(expected.kv_rows)
        assert set(answer["residuals"]) == {*expected.inputs, tiny.LAYERS}
        if schedule.action == "reroute":
            for layer, rows in expected.inputs.items():
                assert_close(answer["residuals"][layer], rows, atol=1e-4, rtol=1e-4)
            assert_close(answer["residuals"][tiny.LAYERS], expected.stream, atol=1e-4, rtol=1e-4)
        (same,) = torch_target().run(model, single, schedule)
        for own, other in zip(answer["keys"] + answer["values"], same["keys"] + same["values"], strict=True):
            assert_close(own, other, atol=1e-4, rtol=1e-4)


def test_equal_requests_need_no_padding_and_decide_alike():
    model, schedule = tiny.llava(), SCHEDULES["reroute"]
    inputs = tiny.llava_inputs([ROWS[0], ROWS[0]])
    inputs["pixel_values"][1] = inputs["pixel_values"][0]
    with routed(model, schedule) as result:
        model(**inputs)
    assert result.traces[0].decisions[0].selected == result.traces[1].decisions[0].selected


def test_holes_in_the_attention_mask_are_padding():
    model, schedule = tiny.text_model(), SCHEDULES["reroute"]
    inputs = tiny.text_inputs("tttvvvvvvtvvvttt")
    keep = [0, 1, 3, 4, 5, 7, 8, 9, 10, 12, 13, 15]
    mask = torch.zeros(1, 16, dtype=torch.long)
    mask[0, keep] = 1
    (holed,) = torch_target().run(model, {**inputs, "attention_mask": mask}, schedule)
    dense = {"inputs_embeds": inputs["inputs_embeds"][:, keep], "visual_mask": inputs["visual_mask"][:, keep]}
    expected = oracle.run(model, dense, schedule)
    assert [record.selected for record in holed["trace"].decisions] == expected.selected
    assert_close(holed["logits"], expected.logits, atol=1e-4, rtol=1e-4)


def test_removed_rows_are_padding_of_nan_on_the_left():
    model = tiny.llava()
    with routed(model, SCHEDULES["delete"]) as result:
        logits = model(**tiny.llava_inputs(ROWS, "right")).logits
    assert logits.shape[1] == max(trace.kv_rows[-1] for trace in result.traces)
    for row, trace in zip(logits, result.traces, strict=True):
        pads = len(row) - trace.kv_rows[-1]
        assert row[:pads].isnan().all()
        assert row[pads:].isfinite().all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", [name for name, schedule in SCHEDULES.items() if schedule.scope == "request"]
)
def test_what_the_caller_left_in_padding_is_never_read(name, attention):
    schedule = SCHEDULES[name]
    model, inputs = tiny.text_model(attention=attention), tiny.text_inputs("tttvvvvvvtvvvttt")
    batch = {name: tensor.repeat(2, *[1] * (tensor.ndim - 1)) for name, tensor in inputs.items()}
    batch["attention_mask"] = torch.tensor([[0] * 2 + [1] * 14, [1] * 13 + [0] * 3])
    clean = torch_target().run(model, batch, schedule)
    batch["inputs_embeds"][batch["attention_mask"] == 0] = torch.nan
    batch["visual_mask"][batch["attention_mask"] == 0] = True
    for own, other in zip(torch_target().run(model, batch, schedule), clean, strict=True):
        assert own["trace"] == other["trace"]
        assert torch.equal(own["logits"], other["logits"])


def poisoned(inputs, request):
    """Three requests, a NaN in a visual row of one."""
    embeds = inputs["inputs_embeds"].repeat(3, 1, 1)
    embeds[request, 4, 0] = torch.nan
    return {"inputs_embeds": embeds, "visual_mask": inputs["visual_mask"].repeat(3, 1)}


@pytest.mark.parametrize("name", ["reroute", "delete", "reroute at 0"])
def test_a_nan_score_is_raised_before_its_block_runs(name):
    model, inputs = tiny.text_model(), tiny.text_inputs("tttvvvvvvtvvvttt")
    schedule = SCHEDULES[name]
    first = schedule.decisions[0].layer
    ran = []
    for index, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    with routed(model, schedule) as result:
        model(**inputs)
        before = result.traces
        cache = type(model(**inputs, use_cache=True).past_key_values).__mro__[1]()
        ran.clear()
        with pytest.raises(RerouteError, match=f"block {first}, batch row 1"):
            model(**poisoned(inputs, 1), past_key_values=cache)
        assert ran == list(range(first))
        assert type(cache).__name__ == "DynamicCache"
        assert cache.get_seq_length() == 0
        assert result.traces == before
        assert_close(
            model(**inputs).logits[0], oracle.run(model, inputs, schedule).logits, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("request_", [0, 2])
@pytest.mark.parametrize("name", ["reroute", "delete", "delete at 0"])
def test_on_an_asynchronous_device_only_that_request_is_nan_and_reading_raises(
    name, request_, attention, monkeypatch
):
    monkeypatch.setattr(engine, "reads_at_once", lambda device: False)
    model, inputs = tiny.text_model(attention=attention), tiny.text_inputs("tttvvvvvvtvvvttt")
    batch = poisoned(inputs, request_)
    batch["attention_mask"] = torch.ones(3, 16, dtype=torch.long)
    batch["attention_mask"][0, :1] = batch["attention_mask"][2, :2] = (
        0  # padding, which no NaN may reach or leave
    )
    clean = {**batch, "inputs_embeds": inputs["inputs_embeds"].repeat(3, 1, 1)}
    others = [b for b in range(3) if b != request_]
    with routed(model, SCHEDULES[name]) as result:
        expected = model(**clean).logits
        out = model(**batch)
        assert out.logits[request_].isnan().all()
        real = batch["attention_mask"].bool() if out.logits.shape[1] == 16 else expected.isfinite().all(-1)
        for other in others:
            assert_close(out.logits[other][real[other]], expected[other][real[other]])
        with pytest.raises(RerouteError, match=f"batch row {request_}"):
            _ = result.traces
        for _ in range(2):
            with pytest.raises(RerouteError, match=f"batch row {request_}"):
                model(input_ids=torch.ones(3, 1, dtype=torch.long), past_key_values=out.past_key_values)
        model(**clean)
        assert len(result.traces) == 3
