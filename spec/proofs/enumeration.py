"""Every pool, every order of scores with ties and every schedule shape, up to 7 visual rows and 3 decisions.

Plain Python over the real functions of ``reroute_spec``, each compared with an independent statement of its rule: a set
comprehension over the rule's own words, never a second call of the function or of a sort. A statement that fails raises
:class:`PropertyError` with its witness.

What is enumerated, and why the factors lose nothing against the product (every order at every decision of every
schedule: more than 10^16 cases at 7 rows):

* *Orders.* ``select(scores, k)`` for every weak order (rank pattern, ties included) of 0 to 7 candidates and every k. A
  rule of selection speaks of comparisons only, so a rank pattern stands for all scores that realise it; that floats
  compare as their rank pattern says is enumerated apart, over all tuples of a palette with both zeros, a subnormal and
  both infinities (:func:`special_values`). As every k-subset is the choice of some order (checked), what later decisions
  see is a subset, and nothing of the order that chose it.
* *Pools and spans.* ``select_in_spans`` for every division of up to 7 rows into spans and every pool, with scores that are
  opaque objects and a stand-in for ``select`` that answers every possible choice: the function cannot compare an opaque
  score, so that what is asked of ``select`` and what is made of its answer holds for all scores. Unfactored, with
  interleaved orders over all rows of all spans, up to 5 rows.
* *Transitions.* A decision's record depends on its pool, its choice and the choice before. All pairs of subsets are
  enumerated; every trajectory of 3 decisions is a chain of them. Unfactored (every order at each of 3 decisions, every
  budget, every pool kind, plan and record by the real functions) up to 3 rows, where the set of trajectories is checked
  to be what the factors predict.
* *Schedules.* Plans see N, the layers, the keeps, ``min_keep`` and the spans, no score: every set of up to 3 layers in up
  to 5 blocks (stage 0 empty or not; stages of one block and of several), every triple of keeps up to n + 1, each pool
  kind. A keep enters as a row count only; that it is the right one is enumerated apart, for every ratio on, just below
  and just above every i/q with q up to 7, every ``min_keep`` and every pool size.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from enum_paths import replays, trajectories, transitions
from enum_plan import budgets, layouts, ratios_and_counts, schedules, spans
from enum_select import interleaved_spans, selections, span_selections, special_values, total_order

PROPERTIES: tuple[Callable[[], int], ...] = (
    total_order,
    selections,
    special_values,
    budgets,
    schedules,
    ratios_and_counts,
    layouts,
    spans,
    span_selections,
    interleaved_spans,
    transitions,
    trajectories,
    replays,
)


def main() -> dict[str, int]:
    """Check every property, print each with its rules and the cases it explored, and return the counts."""
    counts = {}
    for holds in PROPERTIES:
        started = time.perf_counter()
        counts[holds.__name__] = holds()
        rules, _, text = (holds.__doc__ or "").partition(": ")
        taken = time.perf_counter() - started
        print(f"{holds.__name__:18} {counts[holds.__name__]:9,} cases {taken:5.1f} s  {text} [{rules}]")
    print(f"enumeration: {len(counts)} properties hold, {sum(counts.values()):,} cases explored")
    return counts


if __name__ == "__main__":
    main()
