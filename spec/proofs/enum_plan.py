"""Budgets and plans: every schedule shape and prompt layout of up to 7 visual rows and 3 decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from fractions import Fraction
from itertools import combinations, pairwise, product

from reroute_spec import Keep, Plan, budget, plan
from reroute_spec.plan import visual_flags
from statements import (
    DECISIONS,
    KINDS,
    ROWS,
    PropertyError,
    compositions,
    is_floor,
    refused,
    require,
    schedule,
)

BLOCKS = 5


def budgets() -> int:
    """RR-BUD-001, RR-CFG-004: an exact floor between ``min_keep`` and the pool; as text, as Fraction, as a count."""
    exact = {Fraction(i, q) for q in range(1, ROWS + 1) for i in range(1, q + 1)}
    beside = {ratio + sign * Fraction(1, 10**30) for ratio in exact for sign in (-1, 1)}
    ratios = sorted(ratio for ratio in exact | beside if ratio <= 1)
    seen = 0
    for n, min_keep, pool in product(range(ROWS + 1), range(1, ROWS + 2), range(ROWS + 1)):
        for ratio in ratios:
            floor = [rows for rows in range(n + 1) if is_floor(rows, ratio, n)]
            require(len(floor) == 1, "one floor", ratio=ratio, n=n)
            _check_budget(ratio, floor[0], n, min_keep, pool)
            _check_budget(f"{ratio.numerator}/{ratio.denominator}", floor[0], n, min_keep, pool)
        for count in range(1, ROWS + 2):
            _check_budget(count, count, n, min_keep, pool)
        seen += 2 * len(ratios) + ROWS + 1
    return seen


def _check_budget(keep: Keep | str, rows: int, n: int, min_keep: int, pool: int) -> None:
    found = budget(keep, n, min_keep=min_keep, pool=pool)
    wanted = rows if rows > min_keep else min_keep
    if found != (wanted if wanted < pool else pool):
        raise PropertyError(f"keep = {keep}, n = {n}, min_keep = {min_keep}, pool = {pool}: budget {found}")


def schedules() -> int:
    """RR-POOL-003, RR-POOL-004, RR-KV-001, RR-BUD-002, RR-CFG-006, RR-CFG-009: stages, pools, budgets and cache rows."""
    seen = 0
    for n, depth in product(range(ROWS + 1), range(1, BLOCKS + 1)):
        flags = visual_flags(n, 2, before=1)
        for layers in (c for m in range(DECISIONS + 1) for c in combinations(range(depth), m)):
            for keeps, kind in product(product(range(1, n + 2), repeat=len(layers)), KINDS):
                if kind[0] == "delete" and any(b > a for a, b in pairwise(keeps)):
                    require(refused(schedule, kind, layers, keeps), "delete never grows", keeps=keeps)
                    continue
                kept, pools = [min(n, keep) for keep in keeps], [n] * len(keeps)
                if kind[1] == "survivors":
                    kept = [min(n, *keeps[: j + 1]) for j in range(len(keeps))]
                    pools = [n, *kept][: len(keeps)]
                scored = [2 + n] * len(layers) if kind[0] == "reroute" else [2 + pool for pool in pools]
                request = plan(schedule(kind, layers, keeps), depth, flags)
                _check_plan(request, depth, layers, n, kept, pools, scored)
                seen += 1
    return seen


def _check_plan(
    request: Plan,
    depth: int,
    layers: Sequence[int],
    n: int,
    kept: Sequence[int],
    pools: Sequence[int],
    scored: Sequence[int],
) -> None:
    """``kept``, ``pools`` and ``scored`` per decision; the prompt is n visual rows among 2 of text."""
    edges = (*(layers if n else ()), depth)  # where a stage ends
    stages: list[tuple[object, ...]] = [(0, 0, edges[0] - 1, n, (), (), 0)] if edges[0] > 0 else []
    for j, (first, after) in enumerate(pairwise(edges)):
        stages.append((j + 1, first, after - 1, kept[j], (kept[j],), (pools[j],), scored[j]))
    rows = [n, *kept]
    visual = [rows[sum(edge <= block for edge in edges)] for block in range(depth)]
    right = (
        [astuple(stage) for stage in request.stages] == stages
        and request.kv_rows == tuple(2 + here for here in visual)
        and request.spans == ((range(n),) if n else ())
        and request.average_visual == Fraction(sum(visual), depth)
    )
    require(right, "stages and cache rows", depth=depth, layers=layers, n=n, kept=kept, found=request)


def ratios_and_counts() -> int:
    """RR-BUD-001, RR-CFG-004: the ratio c/n plans what the count c plans, and ``min_keep`` is a least count."""
    seen = 0
    for n in range(1, ROWS + 1):
        flags = visual_flags(n, 1)
        for counts in product(range(1, n + 1), repeat=DECISIONS):
            ratios = [Fraction(count, n) for count in counts]
            for kind, min_keep in product(KINDS, range(1, n + 2)):
                if kind[0] == "delete" and sorted(counts, reverse=True) != list(counts):
                    continue
                raised = [min(n, max(count, min_keep)) for count in counts]
                given = [
                    plan(schedule(kind, range(DECISIONS), keeps, min_keep=least), DECISIONS, flags)
                    for keeps, least in ((ratios, min_keep), (counts, min_keep), (raised, 1))
                ]
                require(given[0] == given[1] == given[2], "one plan", n=n, counts=counts, min_keep=min_keep)
                seen += 3
    return seen


def layouts() -> int:
    """RR-POOL-001, RR-POOL-002, RR-BUD-003: every prompt of up to 8 rows, every division of its features into images."""
    seen = 0
    for length in range(1, ROWS + 2):
        for flags in product((False, True), repeat=length):
            routable = [row for row in range(length - 1) if flags[row]]
            for images in compositions(sum(flags)):
                request = plan(schedule(KINDS[0], (0,), (1,), scope="image"), 1, flags, images)
                owner = [image for image, count in enumerate(images) for _ in range(count)]
                ordinals = [
                    [v for v in range(len(routable)) if owner[v] == image] for image in range(len(images))
                ]
                found = [list(span) for span in request.spans]
                require(list(request.visual_rows) == routable, "the mask but the last row", flags=flags)
                require(
                    found == [o for o in ordinals if o], "spans count features", flags=flags, images=images
                )
                whole = plan(schedule(KINDS[0], (0,), (1,)), 1, flags)
                require(whole.visual_rows == request.visual_rows, "scope moves no row", flags=flags)
                run = (
                    length - len(routable) + len(request.spans)
                )  # one row per span, and all that are not routable
                require(request.kv_rows == (run,), "a visual last row runs", flags=flags, images=images)
                seen += 1
    return seen


def spans() -> int:
    """RR-BUD-003: with ``scope = image`` N, pool, budget and ``min_keep`` are those of the span alone; rows add up."""
    seen = 0
    for n in range(1, ROWS + 1):
        keeps: list[tuple[Keep, ...]] = [*product(range(1, n + 1), repeat=DECISIONS)]
        keeps += [tuple(Fraction(i, n) for i in numerators) for numerators in keeps]
        cases = [(keep, 1) for keep in keeps]
        cases += [(keep, least) for keep in keeps if len(set(keep)) == 1 for least in range(2, n + 2)]
        for images, kind in product(compositions(n), KINDS[:2]):
            for keep, least in cases:
                given = schedule(kind, range(DECISIONS), keep, scope="image", min_keep=least)
                request = plan(given, DECISIONS, visual_flags(n, 1), images)
                before = images
                for stage, this in zip(request.stages, keep, strict=True):
                    wanted = [
                        this if isinstance(this, int) else this.numerator * size // this.denominator
                        for size in images
                    ]
                    pools = images if kind[1] == "all" else before
                    before = tuple(min(pool, max(least, k)) for pool, k in zip(pools, wanted, strict=True))
                    right = (stage.pools, stage.budgets, stage.kept) == (pools, before, sum(before))
                    require(right, "per span", images=images, keep=keep, kind=kind, stage=stage)
                seen += 1
    return seen
