"""The checks in the text against the executable specification: they say the same."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reroute_conformance.cases.strategies import config_cases
from reroute_conformance.judging.schedules import broken_rules
from reroute_spec import (
    DECODER_SHAPES,
    RerouteError,
    Schedule,
    budget,
    cost,
    decode_cost,
    plan,
    presets,
    select,
)
from reroute_spec.plan import visual_flags
from reroute_spec.predicates import holds
from reroute_spec.presets import preset
from reroute_spec.rules import rules

INF = float("inf")


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_selection_checks_together_allow_one_selection_and_it_is_the_right_one(n):
    for scores in itertools.product((-INF, -0.0, 0.0, 1.0, INF), repeat=n):
        for k in range(1, n + 1):
            allowed = []
            for selected in itertools.product(range(n), repeat=k):
                left_out = [place for place in range(n) if place not in selected]
                given_ = {"s": scores, "selected": selected, "left_out": left_out}
                if holds("RR-SEL-004", selected=selected) and all(
                    holds(rule, **given_) for rule in ("RR-SEL-001", "RR-SEL-002", "RR-SEL-003")
                ):
                    allowed.append(list(selected))
            assert allowed == [select(scores, k)]


@given(
    st.fractions(min_value=Fraction(1, 1000), max_value=1) | st.integers(1, 60),
    st.integers(1, 50),
    st.integers(1, 4),
    st.data(),
)
def test_the_budget_checks_allow_one_count_and_it_is_the_budget(keep, n, min_keep, data):
    pool = list(range(data.draw(st.integers(1, n))))
    right = budget(keep, n, min_keep=min_keep, pool=len(pool))
    for count in range(len(pool) + 1):
        common = {"selected": pool[:count], "pool": pool, "keep": keep, "min_keep": min_keep}
        expected = count == right
        assert holds("RR-BUD-001", N=n, **common) == expected
        assert holds("RR-BUD-004", visual_rows=range(n), **common) == expected
        whole = budget(keep, len(pool), min_keep=min_keep, pool=len(pool))
        assert holds("RR-BUD-003", spans=[range(len(pool))], **common) == (count == whole)


@settings(max_examples=1500, derandomize=True, deadline=None)
@given(config_cases())
def test_a_schedule_is_accepted_exactly_where_the_configuration_checks_allow_it(case):
    def read():
        return Schedule.from_dict(case.schedule).validate(case.num_layers)

    if broken_rules(case.schedule, case.num_layers):
        with pytest.raises(RerouteError) as refused:
            read()
        assert holds("RR-CFG-008", accepted=False, error=refused.value, touched=False)
    else:
        assert holds("RR-CFG-014", schedule=read(), from_dict=Schedule.from_dict, to_dict=Schedule.to_dict)


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("depth", [24, 28, 32, 36, 40, 64])
def test_presets_are_where_the_check_says(name, depth):
    def layers(num_layers):
        return [decision.layer for decision in preset(name, num_layers).decisions]

    schedule = preset(name, depth)
    published = {28: layers(28), 32: layers(32)}.get(depth)
    values = {
        "schedule": schedule,
        "original": schedule,
        "label": schedule.label,
        "layers": layers(depth),
        "published": published,
        "published_32": layers(32),
        "num_layers": depth,
    }
    assert holds("RR-CFG-010", **values)
    attention = range(3, depth, 4)
    try:
        moved = preset(name, depth, attention)
    except RerouteError:
        return
    snapped, blocks = [decision.layer for decision in moved.decisions], {"attention_blocks": attention}
    assert holds("RR-CFG-012", layers=snapped, unsnapped=layers(depth), label=moved.label, **blocks)


@pytest.mark.parametrize("name", ["reroute-pdrop-64", "pdrop-64", "fastv-192"])
def test_costs_are_what_the_checks_say(name):
    shape = DECODER_SHAPES["llava-1.5-7b"]
    request = plan(Schedule.load(name), 32, visual_flags(576, 65))
    costs, step = cost(request, shape), decode_cost(request, shape, batch=4, decoded=2)
    sizes = {"H": 32, "K": 32, "h": 128}
    assert holds("RR-BUD-005", average_visual=request.average_visual, rows_run=request.kv_rows, S=641, N=576)
    for layer, block in enumerate(costs.blocks):
        scored = next(
            (stage.scored for stage in request.stages if stage.index and stage.first == layer), None
        )
        scoring = 0 if scored is None else 2 * (scored - block.rows) * 4096 * 4096 + 2 * scored * 4096
        values = {"n": block.rows, "d": 4096, "m": 11008, "scoring": scoring}
        assert holds("RR-BUD-006", flops=block.flops, **values, **sizes)
    keys = {"K": 32, "h": 128, "element_bytes": 2}
    assert holds("RR-BUD-007", kv_bytes=costs.kv_bytes, kv_rows=request.kv_rows, **keys)
    attended = [rows + 3 for rows in request.kv_rows]
    weights = {"weight_bytes": step.weight_bytes, "batch": 4, "state_bytes": 0}
    assert holds("RR-BUD-008", bytes_per_token=step.bytes_per_token, attended=attended, **weights, **keys)


def test_the_examples_of_the_rules_are_right():
    assert budget("0.29", 100) == 29
    assert int(0.29 * 100) == 28
    assert budget("0.01916", 576) == 11
    assert budget("0.001", 9) == 1
    assert [budget("1/4", n) for n in (10, 6, 16)] == [2, 1, 4]
    assert [decision.layer for decision in preset("reroute-pdrop-64", 36).decisions] == [2, 8, 17, 26]
    assert select([2, 3, 2, 2], 2) == [0, 1]
    averages = {
        name: float(plan(Schedule.load(name), 32, visual_flags(576, 1)).average_visual)
        for name in ("reroute-fastv-64", "reroute-pdrop-64", "pdrop-64")
    }
    assert averages == {
        "reroute-fastv-64": pytest.approx(63.97, abs=0.005),
        "reroute-pdrop-64": pytest.approx(84.12, abs=0.005),
        "pdrop-64": pytest.approx(80.44, abs=0.005),
    }
    assert all(f"{value:.2f}" in rules()["RR-BUD-005"].example for value in averages.values())
