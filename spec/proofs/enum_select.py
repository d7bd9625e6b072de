"""Selections: every order with ties of up to 7 candidates, every pool and every division into spans."""

from __future__ import annotations

import math
from itertools import chain, product
from typing import Any
from unittest import mock

from reroute_spec import select, trace
from statements import (
    ROWS,
    PropertyError,
    best,
    compositions,
    precedes,
    refused,
    require,
    scores_of,
    subsets,
    weak_orders,
    with_budgets,
)


def total_order() -> int:
    """RR-SEL-001, RR-SEL-003: the order is strict and total; it is about three rows at a time, so three rows are all."""
    for ranks in weak_orders(3):
        for u, v, w in product(range(3), repeat=3):
            before = precedes(ranks, u, v)
            require(before + precedes(ranks, v, u) == (u != v), "exactly one precedes", ranks=ranks, u=u, v=v)
            require(
                not (before and precedes(ranks, v, w)) or precedes(ranks, u, w), "transitive", ranks=ranks
            )
    return len(weak_orders(3)) * 27


def selections() -> int:
    """RR-SEL-001, RR-SEL-003, RR-SEL-004: the k first of the order, ties to the lower ordinal, ascending, any subset."""
    seen = 0
    for n in range(ROWS + 1):
        reached: list[set[tuple[int, ...]]] = [set() for _ in range(n + 1)]
        for ranks in weak_orders(n):
            scores = scores_of(ranks)
            preceding = [sum(precedes(scores, u, v) for u in range(n)) for v in range(n)]
            for k in range(n + 1):
                chosen = select(scores, k)
                if chosen != [v for v in range(n) if preceding[v] < k] or len(chosen) != k:
                    raise PropertyError(
                        f"the k first, ascending: scores = {scores}, k = {k}, chosen = {chosen}"
                    )
                reached[k].add(tuple(chosen))
            seen += n + 1
        for k, choices in enumerate(reached):
            require(len(choices) == math.comb(n, k), "any k rows can be selected", n=n, k=k)
    return seen


def special_values() -> int:
    """RR-SEL-002, RR-SEL-005: both zeros are one value, infinities are ordinary, a NaN anywhere is refused."""
    palette = ((-math.inf, 0), (-1.0, 1), (-0.0, 2), (0.0, 2), (5e-324, 3), (1.0, 4), (math.inf, 5))
    seen = 0
    for n in range(5):
        for pairs in product(palette, repeat=n):
            scores, ranks = [score for score, _ in pairs], [rank for _, rank in pairs]
            for k in range(n + 1):
                require(select(scores, k) == best(ranks, range(n), k), "ordinary values", scores=scores, k=k)
                for place in range(n):
                    broken = [*scores[:place], math.nan, *scores[place + 1 :]]
                    require(refused(select, broken, k), "NaN refused", scores=broken, k=k)
            seen += (n + 1) ** 2
    return seen


def span_selections() -> int:
    """RR-BUD-003, RR-SEL-004: each span asks ``select`` for its own budget of its own candidates, and nothing else."""
    calls: list[tuple[list[object], int]] = []
    answers: list[list[int]] = []

    def stand_in(scores: list[object], k: int) -> list[int]:
        calls.append((scores, k))
        return answers[len(calls) - 1]

    seen = 0
    with mock.patch.object(trace, "select", stand_in):
        for images in chain.from_iterable(map(compositions, range(1, ROWS + 1))):
            n = sum(images)
            opaque = [object() for _ in range(n)]  # comparing two of these is an error
            asked = tuple(100 + index for index in range(len(images)))  # budgets that no code can guess
            request = with_budgets(images, asked)
            for pool in subsets(range(n)):
                parts = [[v for v in pool if v in span] for span in request.spans]
                wanted = [([opaque[v] for v in part], k) for part, k in zip(parts, asked, strict=True)]
                scores: list[Any] = [opaque[v] for v in pool]
                for chosen in subsets(pool):
                    calls.clear()
                    answers[:] = [[i for i, v in enumerate(part) if v in chosen] for part in parts]
                    found = trace.select_in_spans(request, 1, pool, scores)
                    if calls != wanted or found != chosen:
                        raise PropertyError(f"a span decides alone: {images}, pool {pool}: {calls}, {found}")
                    seen += 1
    return seen


def interleaved_spans() -> int:
    """RR-BUD-003, RR-SEL-001: up to 5 rows, every order over all rows of all spans, every pool: nothing factored."""
    seen = 0
    for images in chain.from_iterable(map(compositions, range(1, 6))):
        for pool in subsets(range(sum(images)), least=1):
            for k in range(1, len(pool) + 1):
                ends = [sum(images[: i + 1]) for i in range(len(images))]
                parts = [
                    [v for v in pool if end - size <= v < end] for size, end in zip(images, ends, strict=True)
                ]
                request = with_budgets(images, tuple(min(k, len(part)) for part in parts))
                for ranks in weak_orders(len(pool)):
                    by_row = dict(zip(pool, scores_of(ranks), strict=True))
                    found = trace.select_in_spans(request, 1, pool, list(by_row.values()))
                    wanted = [v for part in parts for v in best(by_row, part, k)]
                    if list(found) != wanted:
                        raise PropertyError(f"best per span: {images}, {by_row}, k = {k}: {found}")
                    seen += 1
    return seen
