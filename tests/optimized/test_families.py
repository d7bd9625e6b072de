"""Qwen2.5-VL, Qwen3-VL and Qwen3.5: images of any size and videos, batches, sessions, generate."""

import random
from functools import cache

import pytest
import torch
from reroute_conformance.tiny.qwen import IMAGE, VIDEO, qwen_inputs, tiny_qwen
from reroute_optimized import routed
from reroute_optimized.conforming.target import torch_target
from reroute_reference import forced_logits, run
from reroute_spec import Decision, RerouteError, Schedule, ScoreRule
from torch.testing import assert_close

from .beside import assert_same_session

FAMILIES = ["qwen2_5_vl", "qwen3_vl", "qwen3_5"]
TWO = (Decision(3, "0.5"), Decision(7, "0.25"))
SCHEDULES = {
    "reroute": Schedule("reroute", TWO),
    "delete": Schedule("delete", TWO),
    "survivors": Schedule("reroute", TWO, pool="survivors"),
    "per image": Schedule("reroute", TWO, scope="image"),
    "last 3": Schedule("delete", TWO, score=ScoreRule(query="last_n", n=3, heads="max")),
}
LAYOUTS = [
    ["ttt", (1, 8, 8), "ttttt"],
    ["tt", (1, 4, 8), "t", (1, 6, 4), "ttt"],
    ["tttttt"],
    ["t", (2, 4, 8), "tt", (1, 4, 4), "ttt"],
]


@cache
def model_of(family, attention="sdpa"):
    return tiny_qwen(family, attention=attention)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_images_and_videos_is_the_references(family, name, side):
    model, schedule = model_of(family), SCHEDULES[name]
    inputs = qwen_inputs(family, LAYOUTS, side=side)
    tokens = torch.randint(3, 180, (4, 3), generator=torch.Generator().manual_seed(5))
    expected = run(model, inputs, schedule)
    for b, answer in enumerate(torch_target().run(model, inputs, schedule, continuation=tokens)):
        trace, right = answer["trace"], expected.traces[b]
        assert [r.selected for r in trace.decisions] == [r.selected for r in right.decisions]
        assert (trace.num_rows, trace.visual_rows, trace.kv_rows) == (
            right.num_rows,
            right.visual_rows,
            right.kv_rows,
        )
        logits = expected.logits[b][~expected.logits[b].isnan().all(-1)]
        assert_close(answer["logits"], logits, atol=2e-3, rtol=2e-3)
        for layer, residual in expected.residuals[b].items():
            assert_close(answer["residuals"][layer], residual, atol=2e-3, rtol=2e-3)
        decoded = forced_logits(model, expected.cache[b], tokens[b])
        assert_close(answer["decode_logits"], decoded, atol=2e-3, rtol=2e-3)


def drawn_layout(draw):
    parts = ["t" * draw.randint(1, 4)]
    for _ in range(draw.choice([1, 1, 2])):
        parts += [draw.choice([(1, 8, 8), (1, 4, 8), (1, 4, 4), (2, 4, 4)]), "t" * draw.randint(1, 3)]
    return parts


def drawn_session(family, seed):
    """A batch, then text, new images, tokens, crops, and requests that move; what must be refused among them."""
    draw = random.Random(seed)
    layouts = [drawn_layout(draw) for _ in range(draw.randint(1, 3))] + [["tttt"]] * (seed % 2)
    inputs = qwen_inputs(family, layouts, seed=seed, side=draw.choice(["left", "right"]))
    operations, requests = [{"op": "prefill", "inputs": inputs}], len(layouts)
    for step in range(6):
        kind = draw.choice(["text", "images", "images", "decode", "crop", "select", "repeat"])
        if kind in ("text", "images"):
            equally_long = [
                ["t", (1, 4, 4), "tt", (1, 4, 8), "t"],
                ["ttt", (1, 4, 8), "t", (1, 4, 4)],
                ["t" * 20],
            ]
            rows = [["ttt"] if kind == "text" else draw.choice(equally_long) for _ in range(requests)]
            turn = qwen_inputs(family, rows, seed=seed * 10 + step)
            if turn.pop("attention_mask").all():
                operations.append({"op": "turn", "inputs": turn})
        elif kind == "decode":
            operations.append({"op": "decode", "tokens": torch.arange(3, 3 + requests)})
        elif kind == "crop":
            operations.append({"op": "crop", "rows": draw.choice([0, 1, 2])})
        elif kind == "select":
            order = [draw.randrange(requests) for _ in range(draw.randint(1, 3))]
            operations.append({"op": "select", "order": order})
            requests = len(order)
        elif requests < 3:
            operations.append({"op": "repeat", "times": 2})
            requests *= 2
    return operations


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_with_new_images_is_the_references(family, seed):
    name = list(SCHEDULES)[seed % len(SCHEDULES)]
    operations = drawn_session(family, seed)
    assert_same_session(lambda: model_of(family), SCHEDULES[name], operations)


def greedy(model, inputs, schedule, count):
    """Token by token through the reference."""
    cache = run(model, inputs, schedule)
    tokens, logits = [], [row[~row.isnan().all(-1)][-1] for row in cache.logits]
    for b, row in enumerate(logits):
        own = [row.argmax()]
        for _ in range(count - 1):
            own.append(forced_logits(model, cache.cache[b].copy(), torch.stack(own))[-1].argmax())
        tokens.append(torch.stack(own))
    return torch.stack(tokens)


@pytest.mark.parametrize("action", ["reroute", "delete"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generates_as_the_reference_continues(family, action):
    model, schedule = model_of(family), Schedule(action, TWO)
    inputs = qwen_inputs(family, LAYOUTS)
    width = inputs["input_ids"].shape[1]
    tokens = torch_target().generate(model, inputs, schedule, 5)
    assert torch.equal(tokens[:, width:], greedy(model, inputs, schedule, 5))


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_attention_runs_alike(family):
    inputs, schedule = qwen_inputs(family, LAYOUTS), Schedule("reroute", TWO)
    answers = [torch_target().run(model_of(family, name), inputs, schedule) for name in ("sdpa", "eager")]
    for one, other in zip(*answers, strict=True):
        assert_close(one["logits"], other["logits"], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_request_leaves_on_the_model_reaches_nobody(family):
    model, schedule = tiny_qwen(family), Schedule("reroute", TWO)
    text, image = qwen_inputs(family, [["tttttttt"]]), qwen_inputs(family, LAYOUTS[:1])
    embeds = {
        "inputs_embeds": torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(1)),
        "visual_mask": torch.tensor([[False, True, True, True, True, True, False, False, False]]),
    }
    with routed(model, schedule):
        fresh = [model(**each).logits for each in (text, embeds)]
        model.generate(**image, max_new_tokens=3, do_sample=False, pad_token_id=0)
        kept = model(**image).past_key_values
        assert model.model.rope_deltas is None
        for each, expected in zip((text, embeds), fresh, strict=True):
            assert torch.equal(model(**each).logits, expected)
        step = model(input_ids=torch.tensor([[7]]), past_key_values=kept).logits
        again = model(**image).past_key_values
        assert torch.equal(model(input_ids=torch.tensor([[7]]), past_key_values=again).logits, step)


def test_the_next_position_is_one_more_than_the_largest_even_of_a_long_video():
    family = "qwen2_5_vl"
    model, inputs = model_of(family), qwen_inputs(family, [["t", (6, 4, 4), "tt"]])
    schedule = Schedule("reroute", TWO)
    with routed(model, schedule):
        cache = model(**inputs).past_key_values
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"]
    )
    model.model.rope_deltas = None
    assert positions.max() > positions[:, 0, -1].max()
    assert cache.routing.next_positions[0, -1] == positions.max() + 1
    tokens = torch_target().generate(model, inputs, schedule, 5)
    assert torch.equal(tokens[:, inputs["input_ids"].shape[1] :], greedy(model, inputs, schedule, 5))


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_that_cannot_be_placed_are_refused(family):
    model, inputs = model_of(family), qwen_inputs(family, LAYOUTS[:1])
    with routed(model, Schedule("reroute", TWO)):
        for name in ("mm_token_type_ids", "image_grid_thw"):
            less = {key: value for key, value in inputs.items() if key != name}
            with pytest.raises(RerouteError, match=f"^{name}"):
                model(**less)
            with pytest.raises(RerouteError, match=f"^{name}"):
                model.generate(**less, max_new_tokens=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_deferred_row_gets_the_features_between_blocks(family):
    model, inputs = model_of(family), qwen_inputs(family, LAYOUTS[:1])
    schedule = Schedule("reroute", (Decision(0 if family != "qwen3_5" else 3, "0.2"),))
    expected = run(model, inputs, schedule).residuals[0][8]
    (answer,) = torch_target().run(model, inputs, schedule)
    assert_close(answer["residuals"][8], expected, atol=2e-3, rtol=2e-3)


def test_decisions_fall_on_plain_attention_only_and_presets_go_there():
    model = tiny_qwen("qwen3_5", num_layers=32)
    with (
        pytest.raises(RerouteError, match=r"^decisions\[0\].layer"),
        routed(model, Schedule("reroute", (Decision(2, "0.5"),))),
    ):
        pass
    with routed(model, "reroute-pdrop-64") as result:
        model(**qwen_inputs("qwen3_5", LAYOUTS[:1]))
    assert [record.layer for record in result.traces[0].decisions] == [3, 7, 15, 23]
    assert [rows == 0 for rows in result.kv_lengths] == [layer % 4 != 3 for layer in range(32)]


def test_renumbering_three_coordinates_is_refused():
    schedule = Schedule("delete", TWO, positions="renumber")
    with pytest.raises(RerouteError, match=r"^positions"), routed(model_of("qwen2_5_vl"), schedule):
        pass


def test_spans_follow_the_grids_of_images_and_videos():
    family, schedule = "qwen3_vl", SCHEDULES["per image"]
    inputs = qwen_inputs(family, LAYOUTS)
    with routed(model_of(family), schedule) as result:
        model_of(family)(**inputs)
        embeds = {"inputs_embeds": torch.randn(1, 9, 64), "visual_mask": torch.ones(1, 9, dtype=torch.bool)}
        with pytest.raises(RerouteError, match=r"^images"):
            model_of(family)(**embeds)
        model_of(family)(**embeds, visual_images=[[4, 5]])
        assert [len(span) for span in result.plan[0].spans] == [4, 4]
        model_of(family)(**inputs)
    placeholders = [((row == IMAGE) | (row == VIDEO)).sum().item() for row in inputs["input_ids"]]
    assert [sum(map(len, plan.spans)) for plan in result.plan] == placeholders
    assert [[len(span) for span in plan.spans] for plan in result.plan] == [[16], [8, 6], [], [16, 4]]
