"""The original methods: scores of the block before, renumbered positions; whole sessions of them beside the reference."""

import random

import pytest
import torch
from reroute_conformance.cases.case import Row
from reroute_conformance.cases.decoder import DecoderCase, decoder_config
from reroute_optimized import routed
from reroute_spec import Decision, Schedule, ScoreRule

from .. import tiny
from ..beside import assert_same_session

SCORES = [
    ScoreRule(),
    ScoreRule(source="previous"),
    ScoreRule(source="previous", query="last_n", n=3, heads="max"),
    ScoreRule(source="previous", query="last_n", n=30),
]


def layout(draw, most=10):
    return "".join(draw.choice("tvv") for _ in range(draw.randint(2, most)))


def drawn(kind, seed):
    draw = random.Random(seed)
    depth = draw.randint(2, 5)
    layers = sorted(draw.sample(range(1, depth), min(depth - 1, draw.randint(1, 3))))
    keeps = sorted((draw.choice(["0.7", "0.5", "0.3"]) for _ in layers), reverse=True)
    decisions, score = tuple(map(Decision, layers, keeps)), draw.choice(SCORES)
    if kind == "survivors":
        schedule = Schedule("reroute", decisions, score=score, pool="survivors")
    elif kind == "one":
        schedule = Schedule("reroute", decisions[:1], score=score)
    else:
        if kind == "renumber" and score.source == "own" and draw.random() < 0.5:
            decisions = (Decision(0, "0.9"), *decisions)
        schedule = Schedule(
            "delete", decisions, score=score, positions="renumber" if kind == "renumber" else "preserve"
        )
    rows = [
        Row(layout(draw), seed * 10 + b, draw.choice([0, 2]), draw.choice([0, 0, 1]))
        for b in range(draw.randint(1, 3))
    ]
    config = decoder_config(depth, heads=2, kv_heads=1, head_dim=8)
    return draw, schedule, DecoderCase(schedule.to_dict(), rows, config=config, seed=seed % 5)


def drawn_session(kind, seed):
    """A decoder, a schedule, and a prefill with what may come after it."""
    draw, schedule, case = drawn(kind, seed)
    operations, requests = [{"op": "prefill", "inputs": case.inputs()}], len(case.rows)
    for step in range(5):
        operation = draw.choice(["text", "images", "images", "decode", "crop", "select"])
        if operation in ("text", "images"):
            one = "ttt" if operation == "text" else layout(draw, 7)
            layouts = [one, *("".join(draw.sample(one, len(one))) for _ in range(requests - 1))]
            rows = [Row(own, seed * 100 + step * 10 + b) for b, own in enumerate(layouts)]
            inputs = DecoderCase(case.schedule, rows, config=case.config, seed=case.seed).inputs()
            inputs.pop("attention_mask")
            operations.append({"op": "turn", "inputs": inputs})
        elif operation == "decode":
            operations.append({"op": "decode", "tokens": torch.arange(3, 3 + requests)})
        elif operation == "crop":
            operations.append({"op": "crop", "rows": draw.choice([0, 1, 2, 3])})
        else:
            order = [draw.randrange(requests) for _ in range(draw.randint(1, 3))]
            operations.append({"op": "select", "order": order})
            requests = len(order)
    return case.model, schedule, operations


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["delete", "renumber", "survivors", "one"])
def test_a_session_is_the_references(kind, seed):
    assert_same_session(*drawn_session(kind, seed))


@pytest.mark.parametrize("name", ["pdrop-original", "nuwa-64"])
def test_presets_of_original_methods_generate(name):
    model, inputs = tiny.text_model(), tiny.text_inputs("ttvvvvvvvvvvtttt")
    with routed(model, name) as result:
        model(**inputs)
    assert result.traces[0].decisions


def test_turns_of_different_schedules_meet_in_one_cache():
    model = tiny.text_model()
    first, second = tiny.text_inputs("ttvvvvvvtt", 1), tiny.text_inputs("tvvvvvt", 2)
    two = (Decision(1, "0.5"), Decision(4, "0.3"))
    three = (Decision(2, "0.6"), Decision(3, "0.5"), Decision(5, "0.2"))
    for later in (Schedule("reroute", three), Schedule("delete", three, positions="renumber")):
        with routed(model, Schedule("delete", two)):
            cache = model(**first).past_key_values
        with routed(model, later) as result:
            model(**second, past_key_values=cache)
            model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
        rows = [cache.get_seq_length(layer) for layer in range(tiny.LAYERS)]
        assert rows == [count + 2 for count in result.traces[0].kv_rows]
        assert cache.get_seq_length() == 19
