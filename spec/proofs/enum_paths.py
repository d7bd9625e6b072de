"""Records: every choice after every choice, and every path of 3 decisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, product

from reroute_spec import DecisionRecord, Plan, plan, trace
from reroute_spec.plan import visual_flags
from statements import (
    DECISIONS,
    KINDS,
    ROWS,
    PropertyError,
    best,
    refused,
    require,
    schedule,
    scores_of,
    subsets,
    weak_orders,
    with_budgets,
)

Path = tuple[tuple[int, ...], ...]
"""V, then the selection of every decision so far."""


def transitions() -> int:
    """RR-POOL-003, RR-POOL-004, RR-POOL-005, RR-KV-001: every choice after every choice, and what can re-enter."""
    seen = 0
    for n, kind in ((n, kind) for n in range(1, ROWS + 1) for kind in KINDS[:2]):
        rows = tuple(range(n))
        plans = {
            sizes: plan(schedule(kind, (1, 3), sizes), 5, visual_flags(n, 1))
            for sizes in product(range(1, n + 1), repeat=2)
        }
        for first in subsets(rows, least=1):
            request = plans[len(first), 1]
            check_record(request, 1, rows, [float(v in first) for v in rows], rows, first)
            pool = rows if kind[1] == "all" else first
            returned = set()
            for second in subsets(pool, least=1):
                request = plans[len(first), len(second)]
                made = check_record(request, 2, pool, [float(v in second) for v in pool], first, second)
                if len(first) == len(second):
                    returned.add(made.reentered)
                seen += 1
            out = [v for v in rows if v not in first] if kind[1] == "all" else []
            any_part = {part for part in subsets(out) if len(part) <= len(first)}
            require(returned == any_part, "equal budgets re-enter any subset", kind=kind, first=first)
    return seen


def check_record(
    request: Plan,
    stage: int,
    pool: tuple[int, ...],
    scores: list[float],
    previous: tuple[int, ...],
    wanted: tuple[int, ...],
) -> DecisionRecord:
    """One real decision and its record against the statements of RR-POOL-005."""
    chosen = trace.select_in_spans(request, stage, pool, scores)
    made = trace.record(request, stage, pool, scores, chosen, previous)
    rows = range(request.num_visual)
    was_out = [v for v in rows if v not in previous]
    right = (
        made.selected == wanted
        and sorted(made.selected + made.deferred) == list(rows)  # a partition: each row once
        and list(made.deferred) == sorted(made.deferred)
        and list(made.reentered) == [v for v in wanted if v in was_out]
        and (made.stage, made.pool, made.scores) == (stage, pool, tuple(scores))
        and request.kv_rows[made.layer] == request.num_rows - len(made.deferred)
        and trace.check_selection(request, stage, pool, wanted, "given") == wanted
    )
    if not right:
        raise PropertyError(f"record of {scores} over {pool} after {previous}: {made}")
    return made


def trajectories() -> int:
    """RR-POOL-003, RR-POOL-004, RR-CFG-006: up to 3 rows, every order at each of 3 decisions: nothing factored."""
    seen = 0
    for n, kind in ((n, kind) for n in range(1, 4) for kind in KINDS):
        for keeps in product(range(1, n + 1), repeat=DECISIONS):
            if kind[0] == "delete" and sorted(keeps, reverse=True) != list(keeps):
                continue
            request = plan(schedule(kind, (0, 1, 3), keeps), 4, visual_flags(n, 1))
            reached = list(_walk(request, kind, keeps, ((*range(n),),)))
            predicted: set[Path] = {((*range(n),),)}
            for k in keeps:
                predicted = {
                    (*path, choice)
                    for path in predicted
                    for pool in [range(n) if kind[1] == "all" else path[-1]]
                    for choice in combinations(pool, min(k, len(pool)))
                }
            require(set(reached) == predicted, "the factors predict every path", kind=kind, keeps=keeps)
            for path in predicted:
                nested = all(set(after) <= set(before) for before, after in pairwise(path))
                require(nested or kind[1] == "all", "survivors are nested", path=path)
            back = {v for path in predicted for v in range(n) if v in set(path[3]) - {*path[1], *path[2]}}
            can = kind[1] == "all" and keeps[0] < n and keeps[1] < n
            require(back == (set(range(n)) if can else set()), "deferred twice, then back", keeps=keeps)
            seen += len(reached)
    return seen


def _walk(request: Plan, kind: tuple[str, str], keeps: Sequence[int], path: Path) -> Iterator[Path]:
    stage = len(path)
    if stage > len(keeps):
        yield path
        return
    pool = path[0] if kind[1] == "all" else path[-1]
    for ranks in weak_orders(len(pool)):
        scores = scores_of(ranks)
        wanted = tuple(best(dict(zip(pool, scores, strict=True)), pool, keeps[stage - 1]))
        made = check_record(request, stage, pool, scores, path[-1], wanted)
        yield from _walk(request, kind, keeps, (*path, made.selected))


def replays() -> int:
    """RR-POOL-003, RR-POOL-004: a given selection is accepted iff some order of the candidates makes it."""
    seen = 0
    for rows in map(range, range(1, 5)):
        given_lists = [given for size in range(len(rows) + 1) for given in product(rows, repeat=size)]
        for pool in subsets(rows, least=1):
            for k in range(1, len(pool) + 1):
                request = with_budgets((len(rows),), (k,))
                possible = set(combinations(pool, k))
                for given in given_lists:
                    no = refused(trace.check_selection, request, 1, pool, given, "given")
                    require(no != (given in possible), "only what some order selects", pool=pool, given=given)
                seen += len(given_lists)
    return seen
