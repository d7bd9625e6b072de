"""How times are taken and told: in turns, by medians, beside the least possible. Nothing here asserts a speed."""

import pytest
from reroute_conformance.bench.measuring.floors import (
    Floor,
    decode_parts,
    prefill_parts,
    reorder_parts,
    score_parts,
)
from reroute_conformance.bench.measuring.machine import Rates
from reroute_conformance.bench.measuring.timing import MOST_TRIES, Times, measure, times_faster, until_calm
from reroute_spec import cost, decode_cost

from . import small

RATES = Rates(flops=100.0, bytes=10.0, call=0.5)


def test_calls_take_turns_after_everybody_has_warmed_up():
    order = []
    times = measure({name: lambda name=name: order.append(name) for name in "ab"}, rounds=4)
    runs = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert runs == ["a", "b"] * 5  # to warm up, and four rounds
    assert {name: len(own.seconds) for name, own in times.items()} == {"a": 4, "b": 4}
    assert all(own.calls > 1 for own in times.values())  # one alone is too short for a clock


def test_a_limit_ends_the_rounds_but_leaves_three():
    assert len(measure({"a": lambda: None}, rounds=9, limit=0.0)["a"].seconds) == 3


def test_a_ratio_is_taken_round_by_round():
    slow_minute = (1.0, 10.0, 1.0, 1.0, 1.0)
    base, own = Times(slow_minute), Times(tuple(second / 2 for second in slow_minute))
    assert times_faster(base, own) == (2.0, 2.0, 2.0)
    assert base.median == base.least == 1.0
    assert base.spread > 1


def test_a_disturbed_run_is_repeated_and_the_calmest_is_told():
    spreads, told = iter((0.5, 0.3, 0.4)), []
    found = until_calm(lambda: next(spreads), lambda spread: spread, noisy=lambda *said: told.append(said))
    assert found == (0.3, MOST_TRIES)
    assert told == [(0.5, 1), (0.3, 2), (0.4, 3)]
    spreads = iter((0.5, 0.05))
    assert until_calm(lambda: next(spreads), lambda spread: spread) == (0.05, 2)
    assert until_calm(lambda: 0.5, lambda spread: spread, patience=0.0) == (0.5, 1)


@pytest.mark.parametrize(
    ("parts", "floor"),
    [
        ([(100, 10), (300, 10)], Floor(400, 20, 4.0, "flops")),
        ([(100, 50), (300, 10)], Floor(400, 60, 8.0, "bytes")),
        ([(1, 1)], Floor(1, 1, 0.5, "call")),
    ],
)
def test_a_floor_is_the_longer_of_computing_and_moving_part_by_part(parts, floor):
    assert Floor.of(parts, RATES) == floor


def test_floors_count_what_the_cost_model_counts():
    plan, shape = small.LAYOUT.plan(small.SCHEDULE, small.SHAPE), small.SHAPE
    costs = cost(plan, shape, 4)
    assert sum(flops for flops, _ in prefill_parts(plan, shape, 4, batch=3)) == 3 * costs.flops
    assert reorder_parts(plan, shape, 4, batch=3) == [(0, 6 * costs.kv_bytes)]
    first, second = decode_parts(plan, shape, 4, batch=3, tokens=2)
    step = decode_cost(plan, shape, batch=3, element_bytes=4)
    assert first == (3 * step.flops, step.weight_bytes + 3 * step.kv_bytes)
    assert second > first
    (flops, moved), width = score_parts(640, shape, 4)[0], shape.hidden_size
    assert (
        flops == 2 * 640 * width * shape.key_size + 2 * width * shape.query_size + 2 * 640 * shape.query_size
    )
    assert moved == 4 * (640 * width + width * (shape.key_size + shape.query_size) + 640)
