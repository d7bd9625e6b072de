"""The cost model on numbers worked out by hand, and hybrid decoders: what they cost and where they can decide."""

from fractions import Fraction

import pytest
from reroute_spec import (
    DECODER_SHAPES,
    HybridShape,
    RerouteError,
    Schedule,
    cost,
    decode_cost,
    plan,
    prefix_cost,
)
from reroute_spec.canonical import CanonicalConfig
from reroute_spec.plan import visual_flags

LLAVA, QWEN35 = DECODER_SHAPES["llava-1.5-7b"], DECODER_SHAPES["qwen3.5-9b"]
# 3 rows run the linear block 0, 2 rows the attention block 1
HYBRID = HybridShape(2, 8, 16, 2, 1, 4, 1, 2, 2, 3, 4, full_attention_layers=(1,))


def schedule(*pairs, action="reroute"):
    decisions = [{"layer": layer, "keep": keep} for layer, keep in pairs]
    return Schedule.from_dict({"action": action, "decisions": decisions})


def test_an_unrouted_llava_prefill_by_hand():
    costs = cost(plan(schedule(), 32, visual_flags(576, 65)), LLAVA)
    block = costs.blocks[0]
    assert block.projections == 2 * 641 * 67_108_864  # four square matrices of 4096
    assert block.mlp == 2 * 641 * 135_266_304  # three of 4096 x 11008
    assert block.attention == 2 * 2 * 4096 * 205_761  # 641 * 642 / 2 pairs of rows
    assert costs.flops == 32 * 262_816_153_600 == costs.unrouted_flops
    assert costs.kv_bytes == 641 * 32 * 16_384
    assert costs.flops_ratio == costs.kv_ratio == 1


def test_one_decision_on_llava_by_hand():
    costs = cost(plan(schedule((16, "0.25")), 32, visual_flags(576, 64)), LLAVA)
    assert [block.kv_rows for block in costs.blocks] == [640] * 16 + [208] * 16
    assert costs.blocks[16].scoring == 2 * 432 * 4096 * 4096 + 2 * 640 * 4096
    assert costs.kv_ratio == Fraction(640 + 208, 2 * 640)
    assert sum(block.scoring for block in costs.blocks) == costs.blocks[16].scoring


def test_a_prefix_costs_by_hand_what_every_request_after_it_saves():
    saved = prefix_cost(schedule((2, "0.25"), (16, "0.5")), LLAVA, 611)
    assert (saved.rows, len(saved.blocks)) == (2 * 611, 2)
    block = saved.blocks[0]
    assert block.projections == 2 * 611 * 67_108_864
    assert block.mlp == 2 * 611 * 135_266_304
    assert block.attention == 2 * 2 * 4096 * 611 * 612 // 2
    assert block.scoring == 0
    assert saved.flops == 2 * (block.projections + block.mlp + block.attention)
    # a request's own rows then attend to the prefix and to themselves: all pairs but the prefix's own
    whole = cost(plan(schedule((2, "0.25"), (16, "0.5")), 32, visual_flags(576, 65)), LLAVA).blocks[0]
    assert whole.attention - block.attention == 2 * 2 * 4096 * sum(range(612, 642))
    assert whole.projections - block.projections == 2 * 30 * 67_108_864


def test_a_prefix_saves_nothing_where_the_first_block_decides_and_every_block_where_none_does():
    assert prefix_cost(schedule((0, "0.5")), LLAVA, 600).flops == 0
    assert prefix_cost(schedule(), LLAVA, 600).rows == 32 * 600


def test_a_prefix_of_a_hybrid_decoder_has_its_linear_blocks():
    saved = prefix_cost(schedule((1, "0.5")), HYBRID, 5)
    (block,) = saved.blocks
    assert (block.rows, block.kv_rows) == (5, 0)
    assert block.state_bytes > 0


@pytest.mark.parametrize(
    ("rows", "layer", "field"), [(0, 3, "rows"), (True, 3, "rows"), (5, 40, r"decisions\[0\]\.layer")]
)
def test_a_prefix_that_cannot_be_has_no_cost(rows, layer, field):
    with pytest.raises(RerouteError, match=rf"^{field}"):
        prefix_cost(schedule((layer, "0.5")), LLAVA, rows)


def test_decode_reads_the_weights_once_for_the_batch_and_each_requests_rows():
    request = plan(schedule((16, "0.25")), 32, visual_flags(576, 64))
    step = decode_cost(request, LLAVA, batch=4, decoded=10)
    assert step.weight_bytes == 32 * (67_108_864 + 135_266_304) * 2
    assert step.unrouted_kv_bytes == 32 * 651 * 16_384
    assert step.kv_bytes == 16 * (651 + 219) * 16_384
    assert step.bytes_per_token == Fraction(step.weight_bytes, 4) + step.kv_bytes
    assert step.flops == 32 * 2 * (67_108_864 + 135_266_304) + 4 * 4096 * 16 * (651 + 219)
    assert step.unrouted_flops - step.flops == 4 * 4096 * 16 * 432
    assert step.bytes_ratio < 1
    assert (
        decode_cost(request, LLAVA, batch=1).bytes_ratio > decode_cost(request, LLAVA, batch=64).bytes_ratio
    )


def test_a_hybrid_by_hand():
    linear, attending = cost(plan(schedule((1, 1)), 2, visual_flags(2, 1)), HYBRID).blocks
    # in: q 2 + k 2 + v 6, gate 6, two numbers for each of 2 heads; out: 6; the convolution is 10 channels of 4
    assert linear.projections == 2 * 3 * (8 * (10 + 6 + 2 + 2 + 6) + 10 * 4)
    assert linear.attention == 2 * 3 * 3 * (2 * 2 * 3)
    assert (linear.rows, linear.kv_rows) == (3, 0)
    assert linear.state_bytes == 10 * 3 * 2 + 2 * 2 * 3 * 4
    # query and gate 16, k and v 4 each, out 8
    assert attending.projections == 2 * 2 * 8 * (16 + 4 + 4 + 8)
    assert attending.attention == 2 * 2 * 8 * 3
    assert (attending.kv_rows, attending.state_bytes) == (2, 0)
    assert attending.scoring == 2 * 1 * 8 * 4 + 2 * 3 * 8  # the gate scores nothing


def test_a_linear_block_costs_in_proportion_to_its_rows_and_its_state_does_not_grow():
    one, two = (cost(plan(schedule(), 2, visual_flags(n, 1)), HYBRID).blocks[0] for n in (9, 19))
    assert two.flops == 2 * one.flops
    assert two.state_bytes == one.state_bytes


def test_a_hybrids_decode_step_reads_states_instead_of_rows():
    step = decode_cost(plan(schedule((1, 1)), 2, visual_flags(2, 1)), HYBRID, decoded=5)
    assert step.kv_bytes == (2 + 6) * 2 * 4 * 2
    assert step.unrouted_kv_bytes == (3 + 6) * 2 * 4 * 2
    assert step.state_bytes == 10 * 3 * 2 + 2 * 2 * 3 * 4
    weights = 8 * 26 + 40 + 8 * 32 + 2 * 3 * 8 * 16
    assert step.weight_bytes == 2 * weights
    assert step.flops == 2 * weights + 2 * 3 * 12 + 4 * 8 * (2 + 6)


def test_qwen35_caches_rows_in_a_quarter_of_its_blocks():
    costs = cost(plan(Schedule("reroute", ()), 32, visual_flags(576, 65)), QWEN35)
    assert [layer for layer, block in enumerate(costs.blocks) if block.kv_rows] == list(range(3, 32, 4))
    # a convolution of 8192 channels and 32 matrices of 128 x 128, in each of 24 blocks
    assert costs.state_bytes == 24 * (8192 * 3 * 2 + 32 * 128 * 128 * 4)


@pytest.mark.parametrize("function", [cost, decode_cost])
def test_costs_refuse_a_decision_at_a_linear_block(function):
    request = plan(schedule((1, "0.5"), (2, "0.5")), 32, visual_flags(8, 1))
    with pytest.raises(RerouteError, match=r"decisions\[0\].layer: 1 is a block without plain attention"):
        function(request, QWEN35)


@pytest.mark.parametrize(
    ("name", "value"), [("batch", 0), ("decoded", -1), ("element_bytes", 0), ("batch", True)]
)
def test_impossible_counts_are_refused_by_name(name, value):
    with pytest.raises(RerouteError, match=f"{name}: "):
        decode_cost(plan(schedule(), 32, visual_flags(8, 1)), LLAVA, **{name: value})


def test_a_preset_snaps_up_to_plain_attention_and_says_so():
    pyramid = Schedule.load("reroute-pdrop-64", 32, QWEN35.attention_layers)
    assert [decision.layer for decision in pyramid.decisions] == [3, 7, 15, 23]
    assert pyramid.label == "reroute-pdrop-64, 32 blocks, published, snapped to plain attention (2 to 3)"
    assert Schedule.load("fastv-64", 32, QWEN35.attention_layers).label == "fastv-64, 32 blocks, published"
    scaled = Schedule.load("reroute-fastv-64", 64, range(3, 64, 4))  # 6, 14, 30, 46
    assert [decision.layer for decision in scaled.decisions] == [7, 15, 31, 47]
    assert "scaled from 32 blocks, snapped" in scaled.label


@pytest.mark.parametrize("layers", [[3, 15, 23], [3, 7, 15], []])
def test_a_preset_that_snaps_onto_itself_or_off_the_end_is_refused(layers):
    with pytest.raises(RerouteError, match="give an explicit schedule"):
        Schedule.load("reroute-fastv-64", 32, layers)


def test_an_explicit_schedule_is_refused_by_the_decision_that_cannot_be():
    with pytest.raises(RerouteError, match=r"decisions\[1\].layer: 8 .* one of 3, 7, 11"):
        schedule((3, "0.5"), (8, "0.5")).validate(32, QWEN35.attention_layers)


def test_a_canonical_decoder_has_no_linear_blocks():
    with pytest.raises(RerouteError, match="shape: has linear-attention blocks"):
        CanonicalConfig(HYBRID, 32)


@pytest.mark.parametrize("layers", [(1, 1), (1, 0), (2,), (-1,)])
def test_a_hybrids_attention_blocks_are_ascending_blocks_of_it(layers):
    with pytest.raises(RerouteError, match="full_attention_layers"):
        HybridShape(2, 8, 16, 2, 1, 4, 1, 2, 2, 3, 4, full_attention_layers=layers)


@pytest.mark.parametrize(
    ("score", "logits", "keys"),
    [({}, 1, True), ({"query": "last_n", "n": 3}, 3, True), ({"source": "previous"}, 1, False)],
)
def test_scoring_costs_what_the_score_rule_has_to_compute(score, logits, keys):
    shape = DECODER_SHAPES["llava-1.5-7b"]
    decisions = [{"layer": 3, "keep": 64}]
    schedule = Schedule.from_dict({"action": "delete", "decisions": decisions, "score": score})
    block = cost(plan(schedule, 32, visual_flags(576, 65)), shape).blocks[3]
    assert block.scoring == logits * 2 * 641 * 4096 + keys * 2 * (641 - 129) * 4096 * 4096
