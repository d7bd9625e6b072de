"""RR-BUD, RR-POOL, RR-SEL, RR-KV-001 and the cost model, on numbers worked out by hand or published."""

import json
import math
from fractions import Fraction

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reroute_spec import (
    DECODER_SHAPES,
    DecoderShape,
    RerouteError,
    RoutingTrace,
    Schedule,
    budget,
    cost,
    plan,
    select,
)
from reroute_spec.plan import visual_flags
from reroute_spec.schemas import schema
from reroute_spec.trace import check_selection, record, select_in_spans


def schedule(*pairs, action="reroute", **rest):
    return Schedule.from_dict(
        {"action": action, "decisions": [{"layer": layer, "keep": k} for layer, k in pairs], **rest}
    )


@pytest.mark.parametrize(
    ("keep", "n", "options", "rows"),
    [
        ("0.29", 100, {}, 29),  # a binary float makes 28 of this
        ("0.1392", 3125, {}, 435),  # the release's float makes 434 of this
        ("0.5", 7, {}, 3),
        ("1", 7, {}, 7),
        ("0.001", 7, {}, 1),
        ("0.001", 7, {"min_keep": 3}, 3),
        ("0.9", 10, {"pool": 4}, 4),
        (5, 3, {}, 3),
        (5, 30, {"pool": 2}, 2),
        (2, 30, {"min_keep": 4}, 4),
        ("0.5", 0, {}, 0),
        (Fraction(1, 3), 3, {}, 1),
    ],
)
def test_budgets(keep, n, options, rows):
    assert budget(keep, n, **options) == rows


@pytest.mark.parametrize(("name", "arguments"), [("keep", (0.5, 4)), ("n", ("0.5", -1)), ("n", ("0.5", 2.0))])
def test_budget_refuses_by_name(name, arguments):
    with pytest.raises(RerouteError) as error:
        budget(*arguments)
    assert error.value.field == name


def test_selection_breaks_ties_by_ordinal_and_reports_ascending():
    assert select([1.0, 3.0, 2.0, 3.0], 2) == [1, 3]
    assert select([1.0, 1.0, 1.0], 2) == [0, 1]
    assert select([0.0, -0.0, 0.0], 1) == [0]
    assert select([-0.0, 0.0], 1) == [0]
    assert select([-math.inf, math.inf, 0.0], 2) == [1, 2]
    assert select([5e-324, 0.0], 1) == [0]
    assert select([], 0) == []
    assert select([2.0], 0) == []


def test_a_nan_score_is_an_error_that_names_the_row():
    with pytest.raises(RerouteError, match=r"scores\[1\]: is NaN"):
        select([1.0, math.nan], 1)


@pytest.mark.parametrize("k", [-1, 3, 1.0, True])
def test_an_impossible_k_is_refused(k):
    with pytest.raises(RerouteError, match="k: "):
        select([1.0, 2.0], k)


@given(st.lists(st.floats(allow_nan=False), min_size=1), st.data())
def test_whoever_is_left_out_is_not_before_whoever_is_in(scores, data):
    k = data.draw(st.integers(0, len(scores)))
    chosen = select(scores, k)
    assert len(chosen) == k
    assert chosen == sorted(set(chosen))
    for inside in chosen:
        for outside in set(range(len(scores))) - set(chosen):
            assert scores[inside] > scores[outside] or (
                scores[inside] == scores[outside] and inside < outside
            )


def test_plan_by_hand():
    flags = [False, True, True, True, True, True, True, False, False]  # 6 visual, 3 text
    request = plan(schedule((1, "0.5"), (3, "0.34")), 5, flags)
    assert [(s.index, s.first, s.last, s.kept) for s in request.stages] == [
        (0, 0, 0, 6),
        (1, 1, 2, 3),
        (2, 3, 4, 2),
    ]
    assert request.kv_rows == (9, 6, 6, 5, 5)
    assert request.average_visual == Fraction(6 + 3 + 3 + 2 + 2, 5)
    assert request.visual_rows == (1, 2, 3, 4, 5, 6)


def test_a_decision_at_block_0_and_at_the_last_block():
    request = plan(schedule((0, 1), (4, 2)), 5, visual_flags(4, 2, before=1))
    assert request.kv_rows == (3, 3, 3, 3, 4)
    assert request.stages[0].index == 1


def test_the_last_row_is_never_routable():
    assert plan(schedule((0, 1)), 1, [True]).visual_rows == ()
    assert plan(schedule((0, 1)), 1, [True, True]).visual_rows == (0,)
    assert plan(schedule((0, 1)), 1, [False, True]).kv_rows == (2,)


def test_without_visual_rows_nothing_is_decided():
    request = plan(schedule((1, "0.5"), (2, "0.5")), 4, [False] * 3)
    assert [stage.index for stage in request.stages] == [0]
    assert request.kv_rows == (3, 3, 3, 3)
    assert request.average_visual == 0


def test_no_decisions_is_unrouted():
    assert plan(schedule(), 4, visual_flags(5, 2)).kv_rows == (7, 7, 7, 7)


def test_survivors_shrink_the_pool_and_counts_follow():
    request = plan(schedule((0, 5), (1, 5), action="delete"), 2, visual_flags(4, 1))
    assert request.kv_rows == (5, 5)
    shrinking = plan(schedule((0, 2), (1, 4), pool="survivors"), 2, visual_flags(6, 1))
    assert [stage.pools for stage in shrinking.stages] == [(6,), (2,)]
    assert shrinking.kv_rows == (3, 3)


def test_scope_image_budgets_every_span():
    touching = [False] + [True] * 7 + [False]
    request = plan(schedule((0, "0.5"), scope="image"), 1, touching, images=[4, 3])
    assert request.spans == (range(4), range(4, 7))
    assert request.stages[0].budgets == (2, 1)
    assert request.kv_rows == (5,)


def test_a_span_without_routable_rows_is_skipped():
    request = plan(schedule((0, 1), scope="image"), 1, [True, True, True], images=[2, 1])
    assert request.spans == (range(2),)


@pytest.mark.parametrize("images", [None, [3], [2, 3], [0, 4], [True, 3]])
def test_images_that_do_not_add_up_are_refused(images):
    with pytest.raises(RerouteError, match="images"):
        plan(schedule((0, 1), scope="image"), 1, visual_flags(4, 1), images=images)


@pytest.mark.parametrize("visual", [[], [1, 0], [None]])
def test_flags_are_checked(visual):
    with pytest.raises(RerouteError, match="visual"):
        plan(schedule((0, 1)), 1, visual)


@pytest.mark.parametrize(
    ("name", "average"), [("reroute-fastv-64", "63.97"), ("reroute-pdrop-64", "84.12"), ("pdrop-64", "80.44")]
)
def test_average_visual_rows_of_the_presets(name, average):
    request = plan(Schedule.load(name), 32, visual_flags(576, 65))
    assert float(request.average_visual) == pytest.approx(float(average), abs=0.006)


def test_cost_by_hand():
    shape = DecoderShape(
        2, hidden_size=4, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1, head_dim=2
    )
    costs = cost(plan(schedule((1, 1)), 2, visual_flags(2, 1)), shape, element_bytes=2)
    dense, routed = costs.blocks
    assert (dense.rows, routed.rows) == (3, 2)
    assert dense.projections == 2 * 3 * 4 * (4 + 2 + 2 + 4)
    assert dense.mlp == 2 * 3 * 3 * 4 * 8
    assert dense.attention == 2 * 2 * 4 * (1 + 2 + 3)
    assert dense.scoring == 0
    assert routed.scoring == 2 * 1 * 4 * 2 + 2 * 3 * 4
    assert costs.kv_bytes == (3 + 2) * 2 * 1 * 2 * 2
    assert costs.kv_ratio == Fraction(5, 6)


def test_cost_needs_the_plans_depth():
    with pytest.raises(RerouteError, match="num_layers"):
        cost(plan(schedule((1, 1)), 2, visual_flags(2, 1)), DECODER_SHAPES["llava-1.5-7b"])


def test_records_derive_deferred_reentered_and_margin():
    request = plan(schedule((0, 2), (1, 2)), 2, visual_flags(4, 1))
    first = record(request, 1, range(4), [0.4, 0.1, 0.2, 0.3], [0, 3], range(4))
    second = record(request, 2, range(4), [0.1, 0.4, 0.3, 0.2], [1, 2], first.selected)
    assert (first.layer, first.stage, first.deferred, first.reentered) == (0, 1, (1, 2), ())
    assert first.margin == pytest.approx(1 / 3)
    assert (second.deferred, second.reentered) == ((0, 3), (1, 2))
    trace = RoutingTrace(5, request.visual_rows, request.kv_rows, (first, second))
    data = json.loads(json.dumps(trace.to_dict()))
    jsonschema.validate(data, schema("trace"))
    assert RoutingTrace.from_dict(data) == trace


def test_a_margin_is_none_where_nothing_was_left_out():
    request = plan(schedule((0, 4)), 1, visual_flags(4, 1))
    assert record(request, 1, range(4), [0.4, 0.1, 0.2, 0.3], range(4), range(4)).margin is None


def test_spans_select_their_own_best():
    request = plan(schedule((0, 1), scope="image"), 1, visual_flags(4, 1), images=[2, 2])
    assert select_in_spans(request, 1, range(4), [0.1, 0.2, 0.9, 0.8]) == (1, 2)


@pytest.mark.parametrize("rows", [[0], [0, 1, 2], [1, 0], [0, 0], [0, 9]])
def test_a_replayed_selection_has_to_be_possible(rows):
    request = plan(schedule((0, 2)), 1, visual_flags(4, 1))
    with pytest.raises(RerouteError, match="decisions"):
        check_selection(request, 1, range(4), rows, "decisions[0]")


def test_under_reroute_scoring_costs_all_rows_whatever_the_pool():
    pairs = ((1, "0.5"), (2, "0.25"))
    rerouted, survivors, removed = (
        plan(schedule(*pairs, **options), 4, visual_flags(8, 2))
        for options in ({}, {"pool": "survivors"}, {"action": "delete"})
    )
    assert [stage.scored for stage in rerouted.stages] == [0, 10, 10]
    assert [stage.scored for stage in survivors.stages] == [0, 10, 10]
    assert [stage.scored for stage in removed.stages] == [0, 10, 6]


def test_wrong_types_are_refused_by_name():
    with pytest.raises(RerouteError, match=r"scores\[1\]: is a NoneType"):
        select([1.0, None], 1)
    with pytest.raises(RerouteError, match="schedule: is a NoneType"):
        plan(None, 4, [True, False])
