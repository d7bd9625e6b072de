"""Lists the ``select`` and ``config`` vectors that were worked out by hand.

The note of a vector is its working. Nothing here is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from reroute_spec import SPEC_VERSION

from ..files import Vector

_INF, _MINUS_INF, _NAN, _ZERO, _MINUS_ZERO, _ONE = (
    0x7F800000,
    -0x800000,
    0x7FC00000,
    0,
    -0x80000000,
    0x3F800000,
)
"""Bit patterns of float32 as signed integers."""


def hand_data_vectors() -> Iterator[Vector]:
    """All vectors of this module."""
    yield from _SELECTIONS
    yield from _REFUSED_SCHEDULES
    yield from _PLANS


def _vector(
    kind: str, id_: str, rules: str, note: str, inputs: dict[str, Any], expected: dict[str, Any]
) -> Vector:
    about = {"id": id_, "kind": kind, "rules": rules.split(), "spec_version": SPEC_VERSION, "oracle": "hand"}
    return Vector({**about, "note": note, "inputs": inputs, "expected": expected})


def _select(
    id_: str, rules: str, scores: Sequence[float], k: int, selected: Sequence[int], note: str
) -> Vector:
    expected = {"exact": {"selected": list(selected)}}
    return _vector("select", id_, rules, note, {"scores": list(scores), "k": k}, expected)


def _by_bits(id_: str, rules: str, bits: Sequence[int], k: int, selected: Sequence[int], note: str) -> Vector:
    expected = {"exact": {"selected": list(selected)}}
    return _vector("select", id_, rules, note, {"scores": {"float32_bits": list(bits)}, "k": k}, expected)


_SELECTIONS = (
    _select("highest", "RR-SEL-001", [0.5, 2, -1, 1], 2, [1, 3], "2 > 1 > 0.5 > -1: places 1 and 3"),
    _select(
        "ascending", "RR-SEL-004 RR-SEL-001", [1, 2, 3], 2, [1, 2], "best first is 2, 1; reported ascending"
    ),
    _select(
        "ties-go-low", "RR-SEL-003", [2, 3, 2, 2], 2, [0, 1], "3 first, then the lowest place of the three 2s"
    ),
    _select("all-tied", "RR-SEL-003", [0.25] * 5, 3, [0, 1, 2], "all equal: the three lowest places"),
    _select("tie-inside", "RR-SEL-003", [1, 5, 5, 0, 1], 3, [0, 1, 2], "5, 5, then place 0 of the two 1s"),
    _select("none", "RR-SEL-001", [1, 2], 0, [], "k = 0 selects nothing"),
    _select("everything", "RR-SEL-004", [3, 1, 2], 3, [0, 1, 2], "k = n selects all, ascending"),
    _select("one-of-one", "RR-SEL-001", [-7], 1, [0], "n = 1"),
    _by_bits(
        "one-ulp",
        "RR-SEL-001",
        [_ONE, _ONE + 1, _ONE, _ONE - 1],
        2,
        [0, 1],
        "1 + 2^-23 first; of the two 1s place 0; 1 - 2^-24 is lower",
    ),
    _by_bits(
        "signed-zeros",
        "RR-SEL-002 RR-SEL-003",
        [_MINUS_ZERO, _ZERO, _MINUS_ZERO, _ZERO],
        2,
        [0, 1],
        "-0 and +0 are equal, so the lowest places are taken, whatever the sign",
    ),
    _by_bits(
        "infinities",
        "RR-SEL-002",
        [_ONE, _MINUS_INF, _INF, _MINUS_INF, _ZERO],
        4,
        [0, 1, 2, 4],
        "+inf, 1, 0, then place 1 of the two -inf",
    ),
    _by_bits(
        "subnormals", "RR-SEL-001", [1, 2, _ZERO, 1], 2, [0, 1], "2^-148 > 2^-149 > 0: not flushed to zero"
    ),
    _vector(
        "select",
        "nan",
        "RR-SEL-005",
        "a NaN that k would not reach is an error all the same",
        {"scores": {"float32_bits": [_ONE, _ZERO, _NAN]}, "k": 1},
        {"error": {"field": "scores"}},
    ),
    _vector(
        "select",
        "more-than-there-are",
        "RR-SEL-001",
        "k is from 0 to the number of scores",
        {"scores": [1, 2], "k": 3},
        {"error": {"field": "k"}},
    ),
)


def _schedule(*decisions: tuple[Any, Any], action: str = "reroute", **rest: Any) -> dict[str, Any]:
    made = [{"layer": layer, "keep": keep} for layer, keep in decisions]
    return {"action": action, "decisions": made, **rest}


def _refused(id_: str, rule: str, schedule: dict[str, Any], field: str, note: str) -> Vector:
    inputs = {"schedule": schedule, "num_layers": 4, "visual": [False, True, True, False], "images": [2]}
    return _vector("config", id_, f"{rule} RR-CFG-008 RR-ERR-001", note, inputs, {"error": {"field": field}})


_REFUSED_SCHEDULES = (
    _refused("unknown-field", "RR-CFG-001", _schedule((1, 2), budget=1), "budget", "no such field"),
    _refused(
        "unknown-action",
        "RR-CFG-001",
        _schedule((1, 2), action="prune"),
        "action",
        "not `reroute` or `delete`",
    ),
    _refused(
        "unknown-pool", "RR-CFG-001", _schedule((1, 2), pool="none"), "pool", "not `all` or `survivors`"
    ),
    _refused("min-keep-of-0", "RR-CFG-001", _schedule((1, 2), min_keep=0), "min_keep", "at least 1"),
    _refused(
        "true-is-no-number", "RR-CFG-001", _schedule((1, 2), min_keep=True), "min_keep", "a truth value"
    ),
    _refused(
        "same-layer-twice", "RR-CFG-002", _schedule((1, 2), (1, 1)), "decisions[1].layer", "1 < 1 is false"
    ),
    _refused(
        "layers-descend", "RR-CFG-002", _schedule((2, 2), (1, 1)), "decisions[1].layer", "2 < 1 is false"
    ),
    _refused("layer-past-the-end", "RR-CFG-003", _schedule((4, 2)), "decisions[0].layer", "4 blocks: 0 to 3"),
    _refused(
        "layer-from-the-end",
        "RR-CFG-003",
        _schedule((-1, 2)),
        "decisions[0].layer",
        "no counting from the end",
    ),
    _refused(
        "ratio-above-1", "RR-CFG-004", _schedule((1, "1.01")), "decisions[0].keep", "a ratio is in (0, 1]"
    ),
    _refused(
        "ratio-of-2",
        "RR-CFG-004",
        _schedule((1, "2")),
        "decisions[0].keep",
        "a string is a ratio, not a count",
    ),
    _refused("ratio-of-0", "RR-CFG-004", _schedule((1, "0.0")), "decisions[0].keep", "a ratio is in (0, 1]"),
    _refused("count-of-0", "RR-CFG-004", _schedule((1, 0)), "decisions[0].keep", "a row count is at least 1"),
    _refused(
        "keeps-mixed",
        "RR-CFG-004",
        _schedule((1, "0.5"), (2, 1)),
        "decisions[1].keep",
        "a ratio, then a count",
    ),
    _refused(
        "blanks-in-a-ratio",
        "RR-CFG-004",
        _schedule((1, " 0.5")),
        "decisions[0].keep",
        "the whole string counts",
    ),
    _refused(
        "binary-float",
        "RR-CFG-005",
        _schedule((1, 0.29)),
        "decisions[0].keep",
        "0.29 is not 29/100 in binary",
    ),
    _refused(
        "delete-from-all",
        "RR-CFG-006",
        _schedule((1, 2), action="delete", pool="all"),
        "pool",
        "removed rows are gone",
    ),
    _refused(
        "delete-grows",
        "RR-CFG-006",
        _schedule((1, "0.3"), (2, "0.31"), action="delete"),
        "decisions[1].keep",
        "31/100 > 3/10: removed rows cannot come back",
    ),
    _refused(
        "renumber-of-reroute",
        "RR-CFG-007",
        _schedule((1, 2), positions="renumber"),
        "positions",
        "only rows that are gone leave no gap",
    ),
    _refused(
        "previous-at-block-0",
        "RR-CFG-007",
        _schedule((0, 2), action="delete", score={"source": "previous"}),
        "score.source",
        "there is no block before block 0",
    ),
    _refused(
        "previous-of-deferred-rows",
        "RR-CFG-007",
        _schedule((1, 2), (2, 2), score={"source": "previous"}),
        "score.source",
        "a row deferred at block 1 is a candidate at block 2, and did not run in block 1",
    ),
    _refused("n-of-last", "RR-CFG-007", _schedule((1, 2), score={"n": 2}), "score.n", "n is of `last_n`"),
)


def _plan(
    id_: str, rules: str, schedule: dict[str, Any], rows: tuple[int, int, int], kv_rows: Sequence[int], note: str,
    images: Sequence[int] | None = None,
) -> Vector:  # fmt: skip
    """A request of so many text, visual and text rows, through as many blocks as ``kv_rows`` has."""
    before, visual, after = rows
    inputs = {
        "schedule": schedule,
        "num_layers": len(kv_rows),
        "visual": [False] * before + [True] * visual + [False] * after,
        "images": list([visual] if images is None else images),
    }
    return _vector("config", id_, f"{rules} RR-KV-001", note, inputs, {"exact": {"kv_rows": [list(kv_rows)]}})


_PLANS = (
    _plan(
        "ratio-is-exact",
        "RR-BUD-001",
        _schedule((1, "0.29")),
        (1, 100, 1),
        [102, 31],
        "29/100 of 100 is 29, and 2 rows of text; in binary floats 0.29 * 100 is 28.999…",
    ),
    _plan(
        "floor-not-round",
        "RR-BUD-001",
        _schedule((0, "0.5")),
        (0, 7, 1),
        [4],
        "7/2 is floored to 3, and 1 of text",
    ),
    _plan(
        "a-third",
        "RR-BUD-001",
        _schedule((0, "1/3"), (1, "0.333")),
        (0, 9, 1),
        [4, 3],
        "9/3 = 3; 0.333 · 9 = 2.997 is floored to 2; 1 row of text",
    ),
    _plan(
        "min-keep-is-raised-to",
        "RR-BUD-001",
        _schedule((0, "0.001"), (1, "0.9"), min_keep=3),
        (0, 4, 2),
        [5, 5],
        "0.004 is floored to 0 and raised to 3; 3.6 is floored to 3; 2 of text",
    ),
    _plan(
        "count-above-n",
        "RR-BUD-001",
        _schedule((0, 9), (1, 2)),
        (1, 4, 1),
        [6, 4],
        "9 of 4 candidates are 4, 2 are 2; 2 of text",
    ),
    _plan(
        "ratio-of-the-original-rows",
        "RR-BUD-004",
        _schedule((1, "1/2"), (2, "1/4"), action="delete"),
        (2, 16, 1),
        [19, 11, 7],
        "8 and 4 of the original 16, and 3 of text; a quarter of the 8 survivors would be 2",
    ),
    _plan(
        "each-image-has-its-budget",
        "RR-BUD-003",
        _schedule((1, "1/4"), scope="image"),
        (1, 16, 1),
        [18, 5],
        "images of 10 and 6 rows that touch: floor(10/4) = 2 and floor(6/4) = 1, and 2 of text",
        images=[10, 6],
    ),
    _plan(
        "images-as-one",
        "RR-BUD-001",
        _schedule((1, "1/4")),
        (1, 16, 1),
        [18, 6],
        "the same with `scope = request`: 16/4 = 4, and 2 of text",
        images=[10, 6],
    ),
    _plan(
        "every-image-keeps-one",
        "RR-BUD-003",
        _schedule((0, "0.1"), scope="image"),
        (1, 12, 1),
        [5],
        "three images of 4: 0.4 is floored to 0 and raised to 1 each, and 2 of text",
        images=[4, 4, 4],
    ),
    _plan(
        "last-visual-row-in-no-span",
        "RR-BUD-003 RR-POOL-001",
        _schedule((0, "1/2"), scope="image"),
        (1, 5, 0),
        [4],
        "images of 4 and 1: the last row asks and leaves the second span empty, which is skipped; 2 of 4, and 2 others",
        images=[4, 1],
    ),
    _plan(
        "last-row-asks",
        "RR-POOL-001",
        _schedule((1, "1/2")),
        (1, 5, 0),
        [6, 4],
        "5 visual rows, of which the last is not routable: floor(4/2) = 2 and 2 others",
    ),
    _plan(
        "no-decisions",
        "RR-CFG-009",
        _schedule(),
        (1, 3, 1),
        [5, 5],
        "every block runs every row",
    ),
    _plan(
        "no-visual-rows",
        "RR-BUD-002",
        _schedule((0, "1/2")),
        (3, 0, 0),
        [3, 3],
        "nothing to decide",
        images=[],
    ),
    _plan(
        "re-entry-grows-a-stage",
        "RR-POOL-003",
        _schedule((1, 1), (2, 3)),
        (1, 4, 1),
        [6, 3, 5],
        "every routable row is a candidate again at block 2: 3 of 4, after 1 of 4; 2 of text",
    ),
    _plan(
        "survivors-do-not-grow",
        "RR-POOL-004",
        _schedule((1, 1), (2, 3), pool="survivors"),
        (1, 4, 1),
        [6, 3, 3],
        "at block 2 the one survivor is the only candidate: min(1, 3) = 1; 2 of text",
    ),
)
