"""Monotone ``reroute`` with several decisions is not ``delete`` (E7; RR-SCORE-002, RR-POOL-003, RR-POOL-004).

The model is the score alone, in exact arithmetic: the blocks add nothing, so that every row keeps its state and both
actions score the same rows with the same logits at every decision. Head h gives row u the logit ln w_h(u), with w a
positive integer, and ``s_v = mean_h w_h(v) / sum_{u in U} w_h(u)``. U is the only difference: all rows under ``reroute``,
the rows still alive under ``delete``. Where a row is left out, each head loses its own share of its own denominator, so
the mean over heads is weighed anew, and the order of the rows that stay can turn round.

The search is exhaustive: every table of weights up to a bound for 2 heads, 3 visual rows and the asking row, with keeps 2
and 1, the bound raised until there is a counterexample. Ties do not count. It is the smallest in every sense: with
2 visual rows or one decision there is nothing to differ in (RR-EQV-003), and with one head all scores grow by one factor
(searched as well). :func:`canonical` is the same as a canonical decoder, which the tests run through the reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import NamedTuple

from reroute_spec import DecoderShape
from reroute_spec.canonical import CanonicalConfig

VISUAL = 3
ASKING = VISUAL  # the last prompt row
KEEPS = (2, 1)
Weights = tuple[tuple[int, ...], ...]
"""Per head the weight (the exponential of the logit) of each visual row, then of the asking row."""


class Step(NamedTuple):
    """One decision: the rows scored against, the candidates' scores, the selected rows."""

    scored: tuple[int, ...]
    scores: dict[int, Fraction]
    selected: tuple[int, ...]


def decide(weights: Weights, action: str, pool: str) -> list[Step]:
    """Both decisions of one request (RR-SCORE-001, RR-SCORE-002, RR-SEL-001, RR-SEL-003)."""
    steps: list[Step] = []
    selected = tuple(range(VISUAL))
    for k in KEEPS:
        candidates = range(VISUAL) if pool == "all" else selected
        scored = (*(selected if action == "delete" else range(VISUAL)), ASKING)
        scores = {
            v: sum((Fraction(head[v], sum(head[u] for u in scored)) for head in weights), Fraction(0))
            / len(weights)
            for v in candidates
        }
        selected = tuple(sorted(sorted(candidates, key=lambda v: (-scores[v], v))[:k]))
        steps.append(Step(scored, scores, selected))
    return steps


def differs(weights: Weights) -> bool:
    """Whether the second selections differ, although both pools, both rankings and all states are free of any excuse.

    No score is tied; nothing re-enters; ``reroute`` selects the same from all rows and from the survivors.
    """
    reroute, survivors, delete = (
        decide(weights, *kind)
        for kind in (("reroute", "all"), ("reroute", "survivors"), ("delete", "survivors"))
    )
    untied = all(len(set(step.scores.values())) == len(step.scores) for step in (*reroute, *delete))
    same_start = reroute[0] == delete[0] == survivors[0]
    bypassed = reroute[1].selected == survivors[1].selected and set(reroute[1].selected) < set(
        reroute[0].selected
    )
    return untied and same_start and bypassed and reroute[1].selected != delete[1].selected


def tables(heads: int, bound: int) -> Iterator[Weights]:
    """Every table of weights up to a bound."""
    yield from product(product(range(1, bound + 1), repeat=VISUAL + 1), repeat=heads)


def search(heads: int, bound: int) -> tuple[Weights | None, int]:
    """The first table with the smallest weights (by bound, then by sum) that differs, and how many were tried."""
    tried = 0
    for largest in range(1, bound + 1):
        found = []
        for weights in tables(heads, largest):
            tried += 1
            if differs(weights):
                found.append(weights)
        if found:
            return min(found, key=lambda weights: sum(map(sum, weights))), tried
    return None, tried


def table(weights: Weights) -> str:
    """The numbers of a counterexample as markdown, for ``counterexample.md``."""
    lines = [
        "| decision | action | scored rows U | "
        + " | ".join(f"s_{v}" for v in range(VISUAL))
        + " | selected |"
    ]
    lines.append("|---|---|---|" + "---|" * VISUAL + "---|")
    runs = [("both", decide(weights, "delete", "survivors")[0], 1)]
    runs += [("`reroute`, pool `all`", decide(weights, "reroute", "all")[1], 2)]
    runs += [("`reroute`, pool `survivors`", decide(weights, "reroute", "survivors")[1], 2)]
    runs += [("`delete`", decide(weights, "delete", "survivors")[1], 2)]
    for action, step, number in runs:
        shared = math.lcm(*(score.denominator for score in step.scores.values()))
        scores = [f"{step.scores[v] * shared}/{shared}" if v in step.scores else "-" for v in range(VISUAL)]
        scored = ", ".join("asking" if row == ASKING else str(row) for row in step.scored)
        selected = ", ".join(map(str, step.selected))
        lines.append(f"| {number} | {action} | {scored} | {' | '.join(scores)} | {selected} |")
    return "\n".join(lines)


def canonical(weights: Weights) -> tuple[CanonicalConfig, dict[str, list[list[float]]], list[list[float]]]:
    """The same as a canonical decoder of two equal blocks that add nothing: configuration, weights, embeddings.

    Row u is the token 2·e_u, of mean square 1. The keys' channel 1 of head h holds ln w_h(u), the queries' holds 2, and
    the scale is 1/2; its rotary angle is position · 10^-15. Output and down projections are zero, as is all else that
    is not named. Weights of norms are lists of one row.
    """
    rows, heads = VISUAL + 1, len(weights)
    shape = DecoderShape(len(KEEPS), rows, 1, heads, heads, 4)
    config = CanonicalConfig(shape, vocab_size=1, rms_norm_eps=0.0, rope_theta=1e30)
    tensors: dict[str, list[list[float]]] = {}
    for name, size in config.weight_shapes().items():
        one = name.endswith("norm.weight")
        tensors[name] = [[float(one)] * size[-1] for _ in range(1 if one else size[0])]
    for layer, (h, head) in product(range(len(KEEPS)), enumerate(weights)):
        attention = f"layers.{layer}.self_attn."
        tensors[attention + "q_proj.weight"][4 * h + 1] = [1.0] * rows
        tensors[attention + "k_proj.weight"][4 * h + 1] = [math.log(weight) / 2 for weight in head]
    return config, tensors, [[2.0 * (u == row) for u in range(rows)] for row in range(rows)]


def main() -> dict[str, int]:
    """Search, print what was found, and return how many tables were tried."""
    found, two_heads = search(heads=2, bound=3)
    none, one_head = search(heads=1, bound=6)
    if found is None or none is not None:
        raise AssertionError(f"two heads: {found} (one is expected), one head: {none} (none is expected)")
    print(table(found))
    for head, row in enumerate(found):
        print(f"head {head}: weights {row[:VISUAL]}, asking row {row[ASKING]}")
    print(
        f"counterexample: found among {two_heads:,} tables of two heads; none among {one_head:,} of one head"
    )
    return {"two_heads": two_heads, "one_head": one_head}


if __name__ == "__main__":
    main()
