"""The target protocol: canonical decoders, replayed decisions, what a run shows."""

from itertools import product

import pytest
import torch
from reroute_conformance.cases.case import Row
from reroute_conformance.cases.decoder import DecoderCase, decoder_config
from reroute_optimized.conforming.canonical import build
from reroute_optimized.conforming.devices import placed
from reroute_optimized.conforming.target import torch_target, triton_target
from reroute_spec import Decision, DecoderShape, RerouteError, Schedule
from reroute_spec.canonical import CanonicalConfig
from torch.testing import assert_close

from .. import oracle, tiny
from ..beside import assert_same_session

SHAPE = DecoderShape(6, 64, 128, 4, 2, 16)
TWO = (Decision(2, "0.5"), Decision(4, "0.25"))


def canonical(bias, norm, dtype=torch.float32):
    config = CanonicalConfig(
        SHAPE, 200, rms_norm_eps=1e-5, rope_theta=5000.0, attention_bias=bias, qk_norm=norm
    )
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (torch.randn(shape, generator=generator) * 0.2 + (len(shape) == 1 and "norm" in name)).to(dtype)
        for name, shape in config.weight_shapes().items()
    }
    return config, weights


@pytest.mark.parametrize(("bias", "norm"), list(product([False, True], repeat=2)))
@pytest.mark.parametrize("action", ["reroute", "delete"])
def test_canonical_decoders_are_real_models(action, bias, norm):
    pair, inputs, schedule = (
        canonical(bias, norm),
        tiny.text_inputs("tttvvvvvvtvvvttt"),
        Schedule(action, TWO),
    )
    (answer,) = torch_target().run(pair, inputs, schedule)
    model = build(*pair)
    expected = oracle.run(model, inputs, schedule)
    assert [record.selected for record in answer["trace"].decisions] == expected.selected
    assert_close(answer["logits"], expected.logits, atol=1e-4, rtol=1e-4)
    for name, weight in pair[1].items():
        own = model.state_dict()[name if name == "lm_head.weight" else f"model.{name}"]
        assert torch.equal(own, weight)
    assert model.config.rms_norm_eps == 1e-5
    assert_close(model.model.rotary_emb.inv_freq[1], torch.tensor(5000.0) ** (-2 / 16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("section", [None, (4, 2, 2)])
def test_positions_far_away_are_turned_exactly_in_half_precision(dtype, section):
    config = CanonicalConfig(SHAPE, 50, mrope_section=section)
    weights = {name: torch.zeros(shape, dtype=dtype) for name, shape in config.weight_shapes().items()}
    model, positions = build(config, weights), torch.tensor([[0, 800, 5000]])
    decoder = model.model if section is None else model.model.language_model
    given = positions if section is None else positions.expand(3, -1, -1)
    cos, sin = decoder.rotary_emb(torch.zeros(1, 3, 64, dtype=dtype), position_ids=given)
    angles = positions[..., None] * 10000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    for found, right in ((cos, angles.cos()), (sin, angles.sin())):
        assert found.dtype == dtype
        assert (found[..., :8].double() - right).abs().max() <= torch.finfo(dtype).eps


@pytest.mark.parametrize("bias", [False, True])
def test_heads_need_not_divide_the_hidden_size(bias):
    config = decoder_config(2, heads=8, kv_heads=2, attention_bias=bias)
    config["shape"]["hidden_size"] = 20
    schedule = Schedule("reroute", (Decision(1, "0.5"),))
    case = DecoderCase(schedule.to_dict(), [Row("tvvvvt", 3)], config=config)
    operations = [{"op": "prefill", "inputs": case.inputs()}, {"op": "decode", "tokens": torch.tensor([5])}]
    assert_same_session(case.model, schedule, operations)


@pytest.mark.parametrize(
    ("bias", "norm", "interleaved", "heads"),
    list(product([False, True], [False, True], [False, True], [2, 4])),
)
def test_positions_of_three_coordinates_are_the_references(bias, norm, interleaved, heads):
    config = decoder_config(
        4,
        heads=heads,
        kv_heads=2,
        attention_bias=bias,
        qk_norm=norm,
        mrope_section=(2, 1, 1),
        mrope_interleaved=interleaved,
    )
    rows = [Row("ttvvvvvvtt", 1), Row("tvvvvtvvvt", 2)]
    case = DecoderCase(
        Schedule("reroute", (Decision(1, "0.5"), Decision(3, "0.25"))).to_dict(), rows, config=config
    )
    positions = torch.arange(10).expand(3, 2, 10).clone()
    positions[:, :, 2:8] = torch.tensor([[2] * 6, [2, 2, 2, 3, 3, 3], [2, 3, 4, 2, 3, 4]])[:, None]
    positions[:, :, 8:] -= 3
    turn = DecoderCase(case.schedule, [Row("ttvvvt", 3), Row("vvtvtt", 4)], config=config).inputs()
    del turn["attention_mask"]
    operations = [
        {"op": "prefill", "inputs": {**case.inputs(), "position_ids": positions}},
        {"op": "decode", "tokens": torch.tensor([5, 6])},
        {"op": "turn", "inputs": turn},
        {"op": "decode", "tokens": torch.tensor([7, 8])},
    ]
    assert_same_session(case.model, case.routing(), operations)


def test_double_precision_stays_double():
    pair, inputs = canonical(True, True, torch.float64), tiny.text_inputs("tttvvvvvvtvvvttt")
    inputs["inputs_embeds"] = inputs["inputs_embeds"].double()
    (answer,) = torch_target().run(pair, inputs, Schedule("reroute", TWO))
    assert answer["logits"].dtype == torch.float64


@pytest.mark.parametrize("action", ["reroute", "delete"])
def test_decisions_are_replayed_and_the_scores_own_choice_is_told(action):
    model, inputs = (
        tiny.llava(),
        tiny.llava_inputs([tiny.row(4, 1, 5, 1), tiny.row(6, 0, 0), tiny.row(1, 2, 3, 2)]),
    )
    schedule = Schedule(action, TWO)
    own = torch_target().run(model, inputs, schedule)
    first = list(range(8))
    given = [[first, first[::2]], [], [list(range(16)), list(range(0, 16, 2))]]
    answers = torch_target().run(model, inputs, schedule, decisions=given)
    for request, answer in enumerate(answers):
        records = answer["trace"].decisions
        assert [list(record.selected) for record in records] == given[request]
        if records:
            assert records[0].would_select == own[request]["trace"].decisions[0].selected
            assert records[0].scores == own[request]["trace"].decisions[0].scores
        assert all(record.would_select is not None for record in records)
    same = [[list(r.selected) for r in answer["trace"].decisions] for answer in own]
    again = torch_target().run(model, inputs, schedule, decisions=same)
    for answer, expected in zip(again, own, strict=True):
        assert torch.equal(answer["logits"], expected["logits"])
        assert all(record.would_select == record.selected for record in answer["trace"].decisions)


@pytest.mark.parametrize(
    "wrong",
    [[], [[]], [[[0, 1, 2, 3, 4]]], [[[4, 3, 2, 1], [0, 1]]], [[[0, 1], [0, 1]]], [[[0, 1, 2, 3], [4, 5]]]],
)
def test_decisions_that_the_plan_refuses_are_refused(wrong):
    model, inputs = tiny.text_model(), tiny.text_inputs("ttvvvvvvvvtt")
    with pytest.raises(RerouteError, match=r"^decisions"):
        torch_target().run(model, inputs, Schedule("delete", TWO), decisions=wrong)


def test_the_model_is_given_back():
    model = tiny.text_model()
    torch_target().run(model, tiny.text_inputs("ttvvvvvvvvtt"), Schedule("delete", TWO))
    assert type(model.model).__name__ == "LlamaModel"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs everything")
def test_the_triton_target_says_what_cannot_be_asked_of_it_here(monkeypatch):
    target = triton_target()
    assert set(target.unavailable) == {"bfloat16"}  # under the interpreter, as here
    monkeypatch.delenv("TRITON_INTERPRET")
    assert set(target.unavailable) == target.profiles
    with pytest.raises(RerouteError, match=r"^device.*backend='torch'"):
        target.run(canonical(False, False), tiny.text_inputs("tttvvvvvvtvvvttt"), Schedule("reroute", TWO))


@pytest.mark.parametrize(
    ("scores", "k", "expected"),
    [
        ([2.0, 3.0, 2.0, 2.0], 2, [0, 1]),
        ([-0.0, 0.0, torch.inf, -torch.inf], 3, [0, 1, 2]),
        ([1.0] * 300, 299, list(range(299))),
        ([1.0, 2.0], 0, []),
        ([], 0, []),
    ],
)
def test_the_triton_target_selects_by_the_kernel(scores, k, expected):
    assert triton_target().select(torch.tensor(scores), k) == expected
    with pytest.raises(RerouteError, match=r"^scores.*NaN"):
        triton_target().select(torch.tensor([*scores, torch.nan]), k)
    with pytest.raises(RerouteError, match=r"^k"):
        triton_target().select(torch.tensor(scores), len(scores) + 1)


class Elsewhere:
    place = torch.device("meta")

    @placed
    def run(self, model, inputs, *, continuation):
        _, weights = model
        found = [weights["w"], inputs["ids"], inputs["nested"][0]["x"], continuation]
        assert [x.device.type for x in found] == ["meta"] * 4
        assert inputs["kept"] == (1, "two")
        return [{"logits": torch.ones(2), "trace": "as it is"}]


def test_what_is_computed_elsewhere_is_moved_there_and_the_givers_tensors_stay():
    inputs = {"ids": torch.ones(2), "nested": [{"x": torch.ones(1)}], "kept": (1, "two")}
    (answer,) = Elsewhere().run(("config", {"w": torch.ones(3)}), inputs, continuation=torch.ones(1))
    assert answer["logits"].device.type == "cpu"
    assert answer["trace"] == "as it is"
    assert inputs["nested"][0]["x"].device.type == "cpu"
