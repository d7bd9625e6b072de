"""The total order of candidates, and where their rows go, against the specification's plain Python."""

import math
import random

import pytest
import torch
from reroute_optimized.conforming.target import torch_target
from reroute_optimized.stages.selection import select_places
from reroute_optimized.turn.compaction import compaction
from reroute_spec import RerouteError, select

INF = math.inf
SCORES = [
    [0.5],
    [0.25] * 9,
    [0.0, -0.0, 0.0, -0.0, -0.0],
    [1.0, INF, -INF, INF, -INF, 0.0],
    [1.0, math.nextafter(1.0, 2.0), 1.0, math.nextafter(1.0, 0.0)],
    [5e-324, 0.0, -5e-324, 1e-310, -0.0],
]


@pytest.mark.parametrize("scores", SCORES)
def test_orders_as_the_specification(scores):
    for k in range(len(scores) + 1):
        assert torch_target().select(torch.tensor(scores, dtype=torch.float64), k) == select(scores, k)


def test_many_ties_go_to_lower_ordinals():
    chance = random.Random(0)
    for n in (2, 17, 576, 3000):
        scores = [chance.choice([0.0, -0.0, 0.125, 0.25]) for _ in range(n)]
        for k in (1, n // 3, n):
            assert torch_target().select(torch.tensor(scores), k) == select(scores, k)


def test_nan_and_counts_out_of_range_are_refused():
    with pytest.raises(RerouteError, match="NaN"):
        torch_target().select(torch.tensor([1.0, math.nan]), 1)
    for k in (-1, 3):
        with pytest.raises(RerouteError, match="k"):
            torch_target().select(torch.tensor([1.0, 2.0]), k)


def test_groups_are_selected_within_and_padding_never():
    scores = torch.tensor([[9.0, 8.0, 7.0, 1.0, 2.0, 3.0], [1.0, 1.0, 5.0, INF, INF, INF]])
    groups = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 6, 6, 6]])
    slots = torch.tensor(
        [[0, 3, 4], [0, 1, 6]]
    )  # one of the first group and two of the second; two of the only one
    assert select_places(scores, slots, groups).tolist() == [[0, 4, 5], [0, 2, 6]]


def test_compaction_keeps_order_and_packs_to_the_right():
    active = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0]]).bool()
    columns, places = compaction(active, 3, torch.tensor([0, 2]))
    assert columns.tolist() == [[0, 2, 3], [4, 4, 3]]
    for row in range(2):
        for column in active[row].nonzero().flatten().tolist():
            assert columns[row, places[row, column]] == column
