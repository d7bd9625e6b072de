"""The worked example of ``example.md``: six rows, four blocks, two decisions, in plain Python, number by number.

It is the canonical decoder and the routing of the chapters once more, on lists, small enough to follow with a calculator.
``python spec/example.py`` prints the tables of ``example.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from reroute_spec import DecoderShape, Plan, Schedule, plan, select
from reroute_spec.canonical import CanonicalConfig

Vector = list[float]
Matrix = list[Vector]

SCHEDULE: dict[str, Any] = {
    "action": "reroute",
    "decisions": [{"layer": 1, "keep": "0.5"}, {"layer": 3, "keep": "0.5"}],
}
VISUAL = [False, True, True, True, True, False]
EMBEDDINGS: Matrix = [[1, 1], [2, 1], [-1, 2], [1, -2], [-2, -1], [1, 2]]
CONFIG = CanonicalConfig(DecoderShape(4, 2, 1, 1, 1, 2), vocab_size=2, rms_norm_eps=0.0, rope_theta=10000.0)
_TURN: Matrix = [[0, -1], [1, 0]]
_ONE: Matrix = [[1, 0], [0, 1]]


def weights() -> dict[str, Any]:
    """Name and value of every weight. Blocks differ in their queries only: those of block 3 are turned by a quarter."""
    given: dict[str, Any] = {
        "embed_tokens.weight": _ONE,
        "norm.weight": [1, 1],
        "lm_head.weight": [[1, 1], [1, -1]],
    }
    for layer in range(CONFIG.shape.num_layers):
        block = f"layers.{layer}."
        given |= {block + f"{name}_layernorm.weight": [1, 1] for name in ("input", "post_attention")}
        given |= {block + f"self_attn.{name}_proj.weight": _ONE for name in "qkvo"}
        given |= {block + f"mlp.{name}_proj.weight": [[1, 0]] for name in ("gate", "up")}
        given[block + "mlp.down_proj.weight"] = [[0], [1]]
    given["layers.3.self_attn.q_proj.weight"] = _TURN
    return given


WEIGHTS = weights()


def product(matrix: Matrix, x: Vector) -> Vector:
    """W x."""
    return [math.fsum(w * value for w, value in zip(row, x, strict=True)) for row in matrix]


def rms_norm(weight: Vector, x: Vector) -> Vector:
    """RR-BLOCK-004; ε is 0 here."""
    root = math.sqrt(math.fsum(value * value for value in x) / len(x))
    return [w * value / root for w, value in zip(weight, x, strict=True)]


def rotate(x: Vector, position: int) -> Vector:
    """RR-BLOCK-005 for one pair of channels, which turns by one radian per position."""
    cos, sin = math.cos(position), math.sin(position)
    return [x[0] * cos - x[1] * sin, x[1] * cos + x[0] * sin]


def softmax(logits: Vector) -> Vector:
    """Probabilities."""
    powers = [math.exp(logit) for logit in logits]
    return [power / math.fsum(powers) for power in powers]


def queries_keys(layer: int, states: Matrix, positions: Sequence[int]) -> tuple[Matrix, Matrix]:
    """Rotated queries and keys of a block at the rows' own positions (RR-SCORE-001, RR-BLOCK-002)."""
    name = f"layers.{layer}."
    normed = [rms_norm(WEIGHTS[name + "input_layernorm.weight"], x) for x in states]
    return tuple(  # type: ignore[return-value]
        [
            rotate(product(WEIGHTS[f"{name}self_attn.{part}_proj.weight"], x), position)
            for x, position in zip(normed, positions, strict=True)
        ]
        for part in "qk"
    )


def attend(query: Vector, keys: Matrix) -> Vector:
    """Probabilities of one query over the keys it may see."""
    return softmax(_logits(query, keys))


def _logits(query: Vector, keys: Matrix) -> Vector:
    """Products over the root of the head's size."""
    return [math.fsum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(2) for key in keys]


def attention(layer: int, states: Matrix, positions: Sequence[int]) -> Matrix:
    """What every row reads from the rows up to itself (RR-BLOCK-003), before the output projection."""
    name = f"layers.{layer}."
    queries, keys = queries_keys(layer, states, positions)
    normed = [rms_norm(WEIGHTS[name + "input_layernorm.weight"], x) for x in states]
    values = [product(WEIGHTS[name + "self_attn.v_proj.weight"], x) for x in normed]
    mixed = []
    for row, query in enumerate(queries):
        seen = attend(query, keys[: row + 1])
        mixed.append(
            [math.fsum(p * value[c] for p, value in zip(seen, values, strict=False)) for c in range(2)]
        )
    return mixed


def mlp(layer: int, x: Vector) -> Vector:
    """SwiGLU of a normed state."""
    gate, up = (product(WEIGHTS[f"layers.{layer}.mlp.{part}_proj.weight"], x) for part in ("gate", "up"))
    inner = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)]
    return product(WEIGHTS[f"layers.{layer}.mlp.down_proj.weight"], inner)


def block(layer: int, states: Matrix, positions: Sequence[int]) -> Matrix:
    """RR-BLOCK-006 on the rows that run."""
    after = []
    for x, mixed in zip(states, attention(layer, states, positions), strict=True):
        x = _plus(x, product(WEIGHTS[f"layers.{layer}.self_attn.o_proj.weight"], mixed))
        after.append(
            _plus(x, mlp(layer, rms_norm(WEIGHTS[f"layers.{layer}.post_attention_layernorm.weight"], x)))
        )
    return after


def _plus(x: Vector, y: Vector) -> Vector:
    return [a + b for a, b in zip(x, y, strict=True)]


def route() -> tuple[Plan, list[Matrix], list[tuple[Vector, list[int]]]]:
    """The plan, X^0 … X^4 of all rows, and the scores and selection of every decision."""
    request = plan(Schedule.from_dict(SCHEDULE), CONFIG.shape.num_layers, VISUAL)
    states, decisions = [EMBEDDINGS], []
    text = [row for row in range(request.num_rows) if row not in request.visual_rows]
    selected = list(range(request.num_visual))
    for stage in request.stages:
        if stage.index > 0:
            queries, keys = queries_keys(stage.first, states[-1], range(request.num_rows))
            seen = attend(queries[-1], keys)  # the last prompt row asks; U is all rows
            scores = [seen[row] for row in request.visual_rows]  # every routable row is a candidate
            selected = select(scores, stage.kept)
            decisions.append((scores, selected))
        active = sorted(text + [request.visual_rows[ordinal] for ordinal in selected])
        for layer in range(stage.first, stage.last + 1):
            ran = dict(zip(active, block(layer, [states[-1][row] for row in active], active), strict=True))
            states.append(
                [ran.get(row, x) for row, x in enumerate(states[-1])]
            )  # the others bypass the block
    return request, states, decisions


def tables() -> dict[str, str]:
    """The tables of ``example.md`` by name."""
    request, states, decisions = route()
    rows = range(request.num_rows)
    head = "| | " + " | ".join(f"row {row}" for row in rows) + " |\n" + "|---" * (len(rows) + 1) + "|"
    lines = [f"| X^{layer} | {' | '.join(_pair(x) for x in state)} |" for layer, state in enumerate(states)]
    made = [
        "| decision | block | s_0 | s_1 | s_2 | s_3 | selected | deferred | re-enters |",
        "|---" * 9 + "|",
    ]
    before = set(range(request.num_visual))
    for number, (scores, selected) in enumerate(decisions, start=1):
        deferred = [v for v in range(request.num_visual) if v not in selected]
        back = [v for v in selected if v not in before] if number > 1 else []
        cells = [
            *(f"{score:.4f}" for score in scores),
            *(", ".join(map(str, v)) or "none" for v in (selected, deferred, back)),
        ]
        made.append(f"| {number} | {request.stages[number].first} | {' | '.join(cells)} |")
        before = set(selected)
    normed = [rms_norm(WEIGHTS["norm.weight"], x) for x in states[-1]]
    logits = [product(WEIGHTS["lm_head.weight"], x) for x in normed]
    outputs = [
        f"| {name} | {' | '.join(_pair(x) for x in values)} |"
        for name, values in (("normed", normed), ("logits", logits))
    ]
    return {
        "states": "\n".join([head, *lines]),
        "one row": _one_row(),
        "decisions": "\n".join(made),
        "first decision": "\n".join([head, *_first_decision(states[1])]),
        "outputs": "\n".join([head, *outputs]),
    }


def _one_row() -> str:
    """Row 1 through block 0, a line per step."""
    first, x = (rms_norm([1, 1], state) for state in EMBEDDINGS[:2])
    queries, keys = queries_keys(0, EMBEDDINGS[:2], range(2))
    mixed = attention(0, EMBEDDINGS[:2], range(2))[1]
    after = _plus(EMBEDDINGS[1], mixed)
    normed = rms_norm([1, 1], after)
    steps = [
        ("normed states of rows 0 and 1", f"({_pair(first)}) and ({_pair(x)})"),
        ("query of row 1, turned by one radian", f"({_pair(queries[1])})"),
        ("keys of rows 0 and 1, turned by 0 and 1", f"({_pair(keys[0])}) and ({_pair(keys[1])})"),
        ("logits", _pair(_logits(queries[1], keys))),
        ("probabilities", _pair(attend(queries[1], keys))),
        ("weighted values, which `o_proj` leaves as they are", f"({_pair(mixed)})"),
        ("state after attention", f"({_pair(after)})"),
        ("its norm", f"({_pair(normed)})"),
        ("MLP: silu of the first channel, times the first channel", f"({_pair(mlp(0, normed))})"),
        ("X^1 of row 1", f"({_pair(_plus(after, mlp(0, normed)))})"),
    ]
    return "\n".join(["| step | value |", "|---|---|", *(f"| {step} | {value} |" for step, value in steps)])


def _first_decision(states: Matrix) -> list[str]:
    """Logits and probabilities of the asking row over all rows at block 1."""
    queries, keys = queries_keys(1, states, range(len(states)))
    lines = (("logit", _logits(queries[-1], keys)), ("probability", attend(queries[-1], keys)))
    return [f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} |" for name, values in lines]


def _pair(x: Vector) -> str:
    return ", ".join(f"{value:.4f}" for value in x)


if __name__ == "__main__":
    for name, table in tables().items():
        print(f"{name}\n\n{table}\n")
    print("KV rows per block:", *route()[0].kv_rows)
