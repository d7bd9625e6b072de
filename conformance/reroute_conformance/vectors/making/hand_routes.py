"""Lists the ``trace`` and ``route`` vectors that were worked out by hand, and the worked example of the specification.

Most of them run on a decoder whose blocks add nothing. A row is a token from 0 to 15. The attention logit of token u is
ln(u + 1) in every block, wherever the token stands, so its score is (u + 1) / Σ over U; the weights in the notes are
u + 1. Since the blocks add nothing, the residual stream of a row stays 4 e_u. Its logits are the same, so its largest
logit is its own token. The other vectors have decoders of their own: the worked example (spec/example.md) and the
counterexample (spec/proofs/counterexample.md) under ``reroute`` and under ``delete``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from reroute_spec import SPEC_VERSION, DecoderShape
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor

from ...cases.decoder import GivenCase
from ...cases.fixed import counterexample, example
from ..files import SHARED, Vector
from .decoders import config_data
from .expected import closed

_TOKENS, _LAYERS, _FILE = 16, 4, f"{SHARED}/by-hand.safetensors"
_CONFIG = CanonicalConfig(
    DecoderShape(_LAYERS, _TOKENS, 1, 1, 1, 4), _TOKENS, rms_norm_eps=0.0, rope_theta=1e30
)


def by_hand_weights() -> dict[str, dict[str, Tensor]]:
    """The file of the decoder's weights, by its path in ``v1``.

    The norm of 4 e_u is 4 e_u: its mean square is 1. Channel 1 of the query is 4, that of the key ln(u + 1) / 2, the
    scale 1/2; that channel turns by 10^-15 per position, which float32 does not see.
    """
    given: dict[str, Tensor] = {
        "embed_tokens.weight": 4 * torch.eye(_TOKENS),
        "lm_head.weight": torch.eye(_TOKENS),
    }
    for layer in range(_LAYERS):
        attention = f"layers.{layer}.self_attn."
        query, key = torch.zeros(4, _TOKENS), torch.zeros(4, _TOKENS)
        query[1], key[1] = 1.0, torch.tensor([math.log(token + 1) / 8 for token in range(_TOKENS)])
        given |= {attention + "q_proj.weight": query, attention + "k_proj.weight": key}
    sizes = _CONFIG.weight_shapes().items()
    return {_FILE: {n: given.get(n, torch.full(size, float(n.endswith("norm.weight")))) for n, size in sizes}}


@dataclass(frozen=True)
class Decided:
    """The decision that a request has to make at one block.

    Attributes:
        layer: the block.
        scores: the score of every candidate, by its ordinal.
        selected, deferred, reentered: the ordinals.
    """

    layer: int
    scores: dict[int, Fraction | float]  # by candidate
    selected: list[int]
    deferred: list[int]
    reentered: list[int]


@dataclass(frozen=True)
class _Worked:
    """One request of tokens, with the results that have to come out.

    Attributes:
        id, rules, note: those of the vector; the rules are separated by blanks.
        schedule: the schedule as data.
        tokens: the token of every row.
        layout: ``t`` for a row of text and ``v`` for a visual row.
        kv_rows: how many rows every block has to cache.
        decided: the decisions that have to be made.
        given: the selections that are given, one per decision; None where the scores decide.
        fed: the tokens that are fed after the prompt.
    """

    id: str
    rules: str
    note: str
    schedule: dict[str, Any]
    tokens: list[int]
    layout: str
    kv_rows: list[int]
    decided: tuple[Decided, ...]
    given: list[list[int]] | None = None
    fed: tuple[int, ...] = ()

    def vector(self) -> Vector:
        request: dict[str, Any] = {"visual": [letter == "v" for letter in self.layout]}
        request |= {} if self.given is None else {"decisions": self.given}
        request |= {"continuation": list(self.fed)} if self.fed else {}
        routable = [row for row, letter in enumerate(self.layout[:-1]) if letter == "v"]
        deleting, gone, quantities = (
            self.schedule["action"] == "delete",
            set[int](),
            dict[str, list[list[float]]](),
        )
        for end in (*self.decided, None):
            place = _LAYERS if end is None else end.layer
            rows = [token for row, token in enumerate(self.tokens) if row not in gone]
            quantities[f"residuals.{place}"] = [_state(token) for token in rows]
            if end is not None and deleting:
                gone = {routable[ordinal] for ordinal in end.deferred}
        quantities["logits"] = quantities[f"residuals.{_LAYERS}"]
        exact: dict[str, Any] = {}
        if self.fed:
            quantities["decode_logits"] = [_state(token) for token in self.fed]
            exact["greedy"] = [[self.tokens[-1], *self.fed]]
        return _vector(
            (self.id, self.rules, self.note),
            self.schedule,
            {"config": config_data(_CONFIG), "weights": f"../../{_FILE}:"},
            (request, torch.tensor([_state(token) for token in self.tokens])),
            (routable, self.kv_rows, self.decided),
            (exact, quantities),
        )


def _state(token: int) -> list[float]:
    return [4.0 * (u == token) for u in range(_TOKENS)]


def _vector(
    about: tuple[str, str, str],
    schedule: dict[str, Any],
    decoder: dict[str, Any],
    given: tuple[dict[str, Any], Tensor],
    due: tuple[list[int], list[int], Sequence[Decided]],
    more: tuple[dict[str, Any], dict[str, list[list[float]]]],
    tensors: dict[str, Tensor] | None = None,
) -> Vector:
    """A vector of one request: ``given`` is the request and its embeddings, ``due`` routable rows, rows per block, decisions."""
    (id_, rules, note), (request, embeddings) = about, given
    routable, kv_rows, decided = due
    decisions = [
        {
            "layer": decision.layer,
            "stage": stage,
            "pool": sorted(decision.scores),
            "selected": decision.selected,
            "deferred": decision.deferred,
            "reentered": decision.reentered,
        }
        for stage, decision in enumerate(decided, start=1)
    ]
    trace = {"num_rows": len(embeddings), "visual_rows": routable, "kv_rows": kv_rows, "decisions": decisions}
    values: dict[str, Any] = {
        f"scores.{d.layer}": [float(d.scores[candidate]) for candidate in sorted(d.scores)] for d in decided
    }
    wide = {n: torch.tensor(x, dtype=torch.float64) for n, x in {**values, **more[1]}.items()}
    names, closed_ = closed({f"requests.0.{n}": (x.float(), x) for n, x in wide.items()})
    key = "requests.0.embeddings"
    data = {
        "id": id_,
        "kind": "route" if "decisions" in request else "trace",
        "rules": rules.split(),
        "spec_version": SPEC_VERSION,
        "oracle": "hand",
        "note": note,
        "inputs": {
            "schedule": schedule,
            "decoder": decoder,
            "requests": [{"embeddings": {"tensor": key}, **request}],
        },
        "expected": {"exact": {"traces": [trace], **more[0]}, "close": names},
    }
    shared = {} if tensors else by_hand_weights()
    return Vector(data, {key: embeddings.float(), **(tensors or {}), **closed_}, shared)


def _reroute(*decisions: tuple[int, Any], action: str = "reroute", **rest: Any) -> dict[str, Any]:
    return {
        "action": action,
        "decisions": [{"layer": layer, "keep": keep} for layer, keep in decisions],
        **rest,
    }


def _over(total: int, *weights: int, of: Sequence[int] | None = None) -> dict[int, Fraction | float]:
    return {v: Fraction(weight, total) for v, weight in zip(of or range(len(weights)), weights, strict=True)}


_FOUR = _over(26, 5, 3, 9, 7)
_WORKED = (
    _Worked(
        "deferred-rows-come-back",
        "RR-POOL-003 RR-POOL-005 RR-KV-001 RR-BLOCK-001 RR-SCORE-002 RR-SEL-001",
        "weights 1 | 5 3 9 7 | 1, sum 26. Block 1 keeps ordinal 2 (9/26). At block 3 all four are candidates again, of"
        " the same scores: 9, 7 and 5 are 2, 3 and 0, of which 0 and 3 re-enter. Rows: 6, then 2 + 1, then 2 + 3",
        _reroute((1, 1), (3, 3)),
        [0, 4, 2, 8, 6, 0],
        "tvvvvt",
        [6, 3, 3, 5],
        (Decided(1, _FOUR, [2], [0, 1, 3], []), Decided(3, _FOUR, [0, 2, 3], [1], [0, 3])),
    ),
    _Worked(
        "the-last-row-asks",
        "RR-POOL-001 RR-SCORE-009 RR-KV-001",
        "weights 1 | 2 3 16, sum 22: the last row is visual, asks, and is no candidate although its 16/22 is the"
        " highest. Ordinal 1 (3/22) is kept: text, it, and the last row run",
        _reroute((1, 1)),
        [0, 1, 2, 15],
        "tvvv",
        [4, 3, 3, 3],
        (Decided(1, _over(22, 2, 3), [1], [0], []),),
    ),
    _Worked(
        "visual-rows-apart",
        "RR-POOL-002 RR-POOL-005 RR-KV-001",
        "weights 1 | 4 6 | 10 | 5 | 2 | 7 | 1, sum 36; visual are rows 1, 2, 4 and 6, of weights 4 6 5 7. The two best"
        " are 7 and 6, ordinals 3 and 1. The text row of weight 10 is no candidate and always runs",
        _reroute((0, "1/2")),
        [0, 3, 5, 9, 4, 1, 6, 0],
        "tvvtvtvt",
        [6, 6, 6, 6],
        (Decided(0, _over(36, 4, 6, 5, 7), [1, 3], [0, 2], []),),
    ),
    _Worked(
        "only-survivors-stay-candidates",
        "RR-POOL-004 RR-POOL-005 RR-SCORE-002",
        "weights 1 | 5 3 9 7 | 1: block 1 keeps 9 and 7, ordinals 2 and 3. Only these are candidates at block 2, and"
        " their scores are still of all rows, over 26: deferred rows share the softmax. 9/26 stays",
        _reroute((1, 2), (2, 1), pool="survivors"),
        [0, 4, 2, 8, 6, 0],
        "tvvvvt",
        [6, 4, 3, 3],
        (Decided(1, _FOUR, [2, 3], [0, 1], []), Decided(2, _over(26, 9, 7, of=[2, 3]), [2], [0, 1, 3], [])),
    ),
    _Worked(
        "ratios-of-the-original-rows",
        "RR-BUD-004 RR-POOL-004 RR-BLOCK-007 RR-KV-001",
        "weights 1 | 2 … 9 | 1, sum 46. Half of 8 is 4: weights 6 to 9, ordinals 4 to 7. A quarter of 8, not of the 4"
        " survivors, is 2: over the rows still there, 1 + 6 + 7 + 8 + 9 + 1 = 32, the best are 8/32 and 9/32",
        _reroute((1, "1/2"), (3, "1/4"), action="delete"),
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 0],
        "tvvvvvvvvt",
        [10, 6, 6, 4],
        (
            Decided(1, _over(46, 2, 3, 4, 5, 6, 7, 8, 9), [4, 5, 6, 7], [0, 1, 2, 3], []),
            Decided(3, _over(32, 6, 7, 8, 9, of=[4, 5, 6, 7]), [6, 7], [0, 1, 2, 3, 4, 5], []),
        ),
    ),
    _Worked(
        "budget-is-floored",
        "RR-BUD-001 RR-SEL-004",
        "weights 1 | 8 2 6 4 3 5 7 | 1, sum 37. 0.4 of 7 is 2.8, floored to 2: 8 and 7, ordinals 0 and 6",
        _reroute((2, "0.4")),
        [0, 7, 1, 5, 3, 2, 4, 6, 0],
        "tvvvvvvvt",
        [9, 9, 4, 4],
        (Decided(2, _over(37, 8, 2, 6, 4, 3, 5, 7), [0, 6], [1, 2, 3, 4, 5], []),),
    ),
    _Worked(
        "ratio-of-50-rows",
        "RR-BUD-001 RR-SEL-001",
        "weights 1 | 21 times 3, 29 times 9 | 1, sum 1 + 63 + 261 + 1 = 326. 0.58 of 50 is 29, in binary floats 28.999…:"
        " all rows of weight 9 are kept",
        _reroute((1, "0.58")),
        [0, *[2] * 21, *[8] * 29, 0],
        f"t{'v' * 50}t",
        [52, 31, 31, 31],
        (Decided(1, _over(326, *[3] * 21, *[9] * 29), list(range(21, 50)), list(range(21)), []),),
    ),
    _Worked(
        "a-tie-goes-low",
        "RR-SEL-003",
        "weights 1 | 3 9 3 3 | 1, sum 20: 9/20, then the first of three times 3/20",
        _reroute((1, 2)),
        [0, 2, 8, 2, 2, 0],
        "tvvvvt",
        [6, 4, 4, 4],
        (Decided(1, _over(20, 3, 9, 3, 3), [0, 1], [2, 3], []),),
    ),
    _Worked(
        "the-last-two-rows-ask",
        "RR-SCORE-004",
        "weights 1 | 5 3 | 2 1. The last but one sees 1 + 5 + 3 + 2 = 11, the last 12:"
        " (5/11 + 5/12) / 2 = 115/264 and (3/11 + 3/12) / 2 = 69/264",
        _reroute((1, 1), score={"query": "last_n", "n": 2}),
        [0, 4, 2, 1, 0],
        "tvvtt",
        [5, 4, 4, 4],
        (Decided(1, _over(264, 115, 69), [0], [1], []),),
    ),
    _Worked(
        "tokens-after-the-prompt",
        "RR-KV-002 RR-KV-004 RR-KV-001",
        "weights 1 | 5 3 9 7 | 1. A row's largest logit is its own token: after the prompt 0, then what was fed",
        _reroute((1, 1), (3, 3)),
        [0, 4, 2, 8, 6, 0],
        "tvvvvt",
        [6, 3, 3, 5],
        (Decided(1, _FOUR, [2], [0, 1, 3], []), Decided(3, _FOUR, [0, 2, 3], [1], [0, 3])),
        fed=(3, 8),
    ),
    _Worked(
        "given-against-the-scores",
        "RR-NUM-003 RR-POOL-005 RR-BLOCK-001",
        "weights 1 | 5 3 9 7 | 1: the scores would select 2, then 0, 2, 3. Given are 1, then 0, 1, 3: what runs, is"
        " deferred and re-enters follows from these",
        _reroute((1, 1), (3, 3)),
        [0, 4, 2, 8, 6, 0],
        "tvvvvt",
        [6, 3, 3, 5],
        (Decided(1, _FOUR, [1], [0, 2, 3], []), Decided(3, _FOUR, [0, 1, 3], [2], [0, 3])),
        given=[[1], [0, 1, 3]],
    ),
)

_STATES = {  # the residual stream of `python spec/example.py`, in float64
    1: [[2.0, 2.731058578630005], [3.1530175317888665, 2.958911732599497], [-1.422842634158891, 3.3281380594545116],
        [1.8696587063358514, -1.3862535394089321], [-1.655538023957773, -0.6979022880443129],
        [1.4893631752290148, 3.0743728428503423]],
    3: [[3.6067090108657798, 5.951111297111297], [4.974678144103884, 6.45999316000794],
        [-1.422842634158891, 3.3281380594545116], [1.8696587063358514, -1.3862535394089321],
        [-1.6325027496724338, 1.2498863560160813], [1.9839124637964674, 5.344099539048566]],
    4: [[4.3396945951773755, 7.523448935849307], [5.805044498919889, 8.120023525358668],
        [-1.422842634158891, 3.3281380594545116], [2.866402461346836, -0.06473034966283175],
        [-1.6325027496724338, 1.2498863560160813], [2.8337729279888353, 6.282720947677044]],
}  # fmt: skip
_LOGITS = [
    [1.9316465577929245, -0.5184029087174825], [1.9729224472092444, -0.32798935546430086],
    [0.7444325645023665, -1.8562920451557265], [1.3819248526284027, 1.4457813464310458],
    [-0.263177044987558, -1.9826088477033532], [1.8706089254375824, -0.7076879595367253],
]  # fmt: skip
_DECIDED = (
    Decided(
        1,
        dict(enumerate((0.07160779620770766, 0.053694309575912064, 0.03649224208829825, 0.142956274032295))),
        [0, 3],
        [1, 2],
        [],
    ),
    Decided(
        3,
        dict(enumerate((0.2928660923651626, 0.026440781005392756, 0.2018108953773726, 0.1172967984730413))),
        [0, 2],
        [1, 3],
        [2],
    ),
)


def _given(case: GivenCase) -> tuple[dict[str, Any], tuple[dict[str, Any], Tensor], dict[str, Tensor]]:
    """Decoder, request and weights of a case whose numbers are all given."""
    config, weights = case.model()  # type: ignore[misc]  # a canonical decoder
    request = {"visual": [letter == "v" for letter in case.rows[0].layout]}
    own = {f"weights.{name}": weight for name, weight in weights.items()}
    return (
        {"config": config_data(config), "weights": "weights."},
        (request, torch.tensor(case.embeddings)),
        own,
    )


def _example() -> Vector:
    case = example()
    decoder, given, weights = _given(case)
    note = "the worked example of spec/example.md, number by number"
    rules = "RR-BLOCK-001 RR-BLOCK-003 RR-BLOCK-004 RR-BLOCK-006 RR-BLOCK-008 RR-KV-001 RR-POOL-003 RR-POOL-005 RR-SCORE-008"
    quantities = {**{f"residuals.{layer}": x for layer, x in _STATES.items()}, "logits": _LOGITS}
    due = ([1, 2, 3, 4], [6, 4, 4, 4], _DECIDED)
    return _vector(("example", rules, note), case.schedule, decoder, given, due, ({}, quantities), weights)


def _counterexample(action: str) -> Vector:
    case = counterexample(action)
    decoder, given, weights = _given(case)
    first = Decided(0, _over(112, 29, 30, 31), [1, 2], [0], [])
    second = Decided(1, _over(112, 29, 30, 31), [2], [0, 1], [])
    if action == "delete":
        second = Decided(1, _over(60, 22, 21, of=[1, 2]), [1], [0, 2], [])
    note = (
        "spec/proofs/counterexample.md: weights 1 2 3 | 1 and 3 2 1 | 2 of two heads. With row 0 in U: (2/7 + 2/8) / 2 ="
        " 30/112 and (3/7 + 1/8) / 2 = 31/112; without it (2/6 + 2/5) / 2 = 22/60 and (3/6 + 1/5) / 2 = 21/60"
    )
    about = (f"counterexample-{action}", "RR-EQV-006 RR-SCORE-002", note)
    kv_rows = [3, 2]
    return _vector(
        about, case.schedule, decoder, given, ([0, 1, 2], kv_rows, (first, second)), ({}, {}), weights
    )


def hand_route_vectors() -> Iterator[Vector]:
    """All vectors of this module."""
    for worked in _WORKED:
        yield worked.vector()
    yield _example()
    yield _counterexample("reroute")
    yield _counterexample("delete")
