"""Lists the vectors whose expected results the reference computes, each as a recipe of a schedule, a decoder and requests.

Their numbers are drawn from names: the embeddings from the id of the vector, the weights from the name of the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from reroute_spec import SPEC_VERSION
from torch import Tensor

from ..files import Vector
from .decoders import DECODERS, decoder, drawn, shared_weights
from .expected import with_expected


@dataclass(frozen=True)
class Asked:
    """One request of a recipe.

    Attributes:
        layout: one letter per row. ``t`` is a row of text and ``v`` a visual row. ``w`` is a visual row in the
            direction of the visual row before it, three times as long, and ``n`` a visual row that holds a NaN.
        left, right: how many rows of padding stand before and after the request.
        decisions: the selections that are given, one per decision; None where the scores decide.
        tokens: the tokens of the continuation.
        grid: height and width of the image in rows, where positions have three coordinates; None elsewhere.
    """

    layout: str
    left: int = 0
    right: int = 0
    decisions: tuple[list[int], ...] | None = None
    tokens: tuple[int, ...] = ()
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Recipe:
    """One vector as its id, the rules that it is about, and its inputs.

    Attributes:
        id: the id of the vector.
        rules: the rules, separated by blanks. Where the inputs are refused, the first one is the rule that they break.
        schedule: the schedule as data.
        requests: the requests of the batch.
        decoder: the name of the decoder.
        note: what a reader should know of the vector.
    """

    id: str
    rules: str
    schedule: dict[str, Any]
    requests: tuple[Asked, ...]
    decoder: str = "plain"
    note: str = ""

    def vector(self) -> Vector:
        """The vector, expected results and all."""
        kind = "trace" if self.requests[0].decisions is None else "route"
        made = [self._request(b) for b in range(len(self.requests))]
        data: dict[str, Any] = {
            "id": self.id,
            "kind": kind,
            "rules": self.rules.split(),
            "spec_version": SPEC_VERSION,
            "oracle": "reference",
            **({"note": self.note} if self.note else {}),
            "inputs": {
                "schedule": self.schedule,
                "decoder": decoder(self.decoder),
                "requests": [request for request, _ in made],
            },
        }
        tensors = {name: tensor for _, tensors in made for name, tensor in tensors.items()}
        caches = bool({"RR-BLOCK-002", "RR-BLOCK-005", "RR-BLOCK-012"} & set(data["rules"]))  # what keys tell
        return with_expected(Vector(data, tensors, shared_weights()), caches=caches)

    def _request(self, b: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        asked, key = self.requests[b], f"requests.{b}"
        width = DECODERS[self.decoder].shape.hidden_size
        rows = drawn(f"{self.id} {b}", (len(asked.layout), width), 2.0)
        for row, letter in enumerate(asked.layout):
            if letter == "w":
                rows[row] = 3 * rows[row - 1]
            if letter == "n":
                rows[row, 0] = torch.nan
        padding = [torch.full((count, width), 50.0) for count in (asked.left, asked.right)]
        tensors = {f"{key}.embeddings": torch.cat([padding[0], rows, padding[1]])}
        request: dict[str, Any] = {
            "embeddings": {"tensor": f"{key}.embeddings"},
            "visual": [letter != "t" for letter in asked.layout],
        }
        if asked.grid is not None:
            tensors[f"{key}.positions"] = _coordinates(asked.layout, *asked.grid)
            request["positions"] = {"tensor": f"{key}.positions"}
        padded = any(other.left or other.right for other in self.requests)
        request |= {"pad_left": asked.left, "pad_right": asked.right} if padded else {}
        request |= {} if asked.decisions is None else {"decisions": list(asked.decisions)}
        request |= {"continuation": list(asked.tokens)} if asked.tokens else {}
        return request, tensors


def _coordinates(layout: str, height: int, width: int) -> Tensor:
    """Time, height and width of every row, [3, S]: text counts on, the image's patches share their time."""
    columns: list[list[int]] = []
    start, patch = 0, 0
    for letter in layout:
        if letter == "t":
            start = start + max(height, width) if patch == height * width else start
            patch = 0
            columns.append([start] * 3)
            start += 1
        else:
            columns.append([start, start + patch // width, start + patch % width])
            patch += 1
    return torch.tensor(columns).T.contiguous()


def _at(*pairs: tuple[int, Any]) -> list[dict[str, Any]]:
    return [{"layer": layer, "keep": keep} for layer, keep in pairs]


def _reroute(*pairs: tuple[int, Any], **rest: Any) -> dict[str, Any]:
    return {"action": "reroute", "decisions": _at(*pairs), **rest}


def _delete(*pairs: tuple[int, Any], **rest: Any) -> dict[str, Any]:
    return {"action": "delete", "decisions": _at(*pairs), **rest}


_BLOCKS = "RR-BLOCK-001 RR-BLOCK-002 RR-BLOCK-003 RR-BLOCK-004 RR-BLOCK-005 RR-BLOCK-006 RR-KV-001 RR-NUM-001"
_IMAGE = "ttvvvvvvvvttt"
_ONE = (Asked(_IMAGE),)

_CORE = (
    Recipe("no-decisions", "RR-CFG-009 RR-BLOCK-006 RR-KV-001", _reroute(), _ONE),
    Recipe("text-only", "RR-BUD-002 RR-KV-001", _reroute((1, "1/4")), (Asked("tttttt"),)),
    Recipe("keep-all", "RR-EQV-002 RR-BLOCK-008", _reroute((1, "1"), (3, "1")), _ONE),
    Recipe("one-decision", f"{_BLOCKS} RR-SCORE-001 RR-POOL-003", _reroute((1, 3)), _ONE),
    Recipe(
        "re-entry",
        "RR-SCORE-008 RR-POOL-005 RR-BLOCK-001 RR-EQV-001",
        _reroute((0, 2), (2, 4), (3, 3)),
        _ONE,
        note="stage 2 takes more rows than stage 1: rows that bypassed blocks 0 and 1 run blocks 2 and 3",
    ),
    Recipe(
        "every-block-decides",
        "RR-SCORE-008 RR-BLOCK-001",
        _reroute((0, "0.5"), (1, "0.5"), (2, "0.25"), (3, "0.25")),
        (Asked("tvvvvvvvvt"),),
    ),
    Recipe("last-block-decides", "RR-SCORE-001 RR-BLOCK-008", _reroute((3, "0.29")), _ONE),
    Recipe("survivors", "RR-POOL-004 RR-BLOCK-001", _reroute((1, 5), (2, 3), pool="survivors"), _ONE),
    Recipe("delete-once", "RR-BLOCK-007 RR-SCORE-002 RR-BLOCK-002", _delete((2, "0.4")), _ONE),
    Recipe("delete-twice", "RR-BLOCK-007 RR-BUD-004 RR-POOL-004", _delete((1, "3/4"), (3, "1/4")), _ONE),
    Recipe("last-n-mean", "RR-SCORE-004", _reroute((1, 3), score={"query": "last_n", "n": 3}), _ONE),
    Recipe(
        "last-n-visual",
        "RR-SCORE-004",
        _reroute((1, 2), (2, 3), score={"query": "last_n", "n": 4, "heads": "max"}),
        (Asked("tvvvtvvvt"),),
        note="of the last four rows three are visual: they ask, and are asked for by the rows after them",
    ),
    Recipe("heads-max", "RR-SCORE-004", _reroute((1, 3), score={"heads": "max"}), _ONE),
    Recipe("min-keep", "RR-BUD-001 RR-BLOCK-001", _reroute((1, "0.01"), (2, "0.2"), min_keep=2), _ONE),
    Recipe("last-row-visual", "RR-POOL-001 RR-SCORE-009", _reroute((1, 2)), (Asked("ttvvvvvv"),)),
    Recipe("images-apart", "RR-POOL-002 RR-POOL-005", _reroute((1, 3)), (Asked("tvvvttvvtvvt"),)),
    Recipe("image-first", "RR-SCORE-009", _reroute((1, 2), (2, 2)), (Asked("vvvvvtt"),)),
    Recipe(
        "near-tie",
        "RR-NUM-002 RR-SCORE-001",
        _reroute((0, 2), (2, 3)),
        (Asked("tvvwvwt"),),
        "near",
        "the second best is one of two rows of one direction, which no position tells apart at block 0: either may be taken",
    ),
    Recipe("nan-embedding", "RR-SEL-005", _reroute((1, 2)), (Asked("tvvnvt"),)),
)

_ROUTE = (
    Recipe(
        "given-decisions",
        "RR-NUM-003 RR-BLOCK-001 RR-POOL-005",
        _reroute((1, 3), (2, 2)),
        (Asked(_IMAGE, decisions=([0, 4, 7], [1, 4])),),
    ),
    Recipe(
        "given-deletions",
        "RR-NUM-003 RR-BLOCK-007",
        _delete((0, 4), (2, 2)),
        (Asked(_IMAGE, decisions=([0, 2, 5, 6], [2, 6])),),
    ),
    Recipe(
        "given-bypass",
        "RR-NUM-003 RR-BLOCK-001 RR-POOL-004",
        _reroute((1, 4), (3, 1), pool="survivors"),
        (Asked("vvvvvvt", decisions=([1, 2, 4, 5], [4])),),
    ),
    Recipe(
        "given-too-many",
        "RR-NUM-003",
        _reroute((1, 3)),
        (Asked(_IMAGE, decisions=([0, 1, 2, 3],)),),
        note="the budget is 3",
    ),
    Recipe("given-descending", "RR-NUM-003", _reroute((1, 3)), (Asked(_IMAGE, decisions=([4, 2, 0],)),)),
)

_GQA = (
    Recipe("biases", f"{_BLOCKS} RR-SCORE-001", _reroute((1, 3), (2, 2)), _ONE, "biased"),
    Recipe("query-key-norms", f"{_BLOCKS} RR-SCORE-001", _reroute((1, 3), (2, 2)), _ONE, "normed"),
    Recipe("biases-and-norms", "RR-BLOCK-006 RR-BLOCK-007", _delete((1, 4), (3, 2)), _ONE, "biased-normed"),
)

_MIXED = (
    Asked(_IMAGE, left=2),
    Asked("tvvvvvtt", right=7),
    Asked("ttttt", left=10),
    Asked("vvvvvvvvvvvvvvt"),
)
_FED = (
    Asked(_IMAGE, left=1, tokens=(3, 14, 1)),
    Asked("tvvvvvvtttt", right=3, tokens=(5, 9, 2)),
    Asked("ttvvvvvvvvvttt", tokens=(6, 5, 3)),
)

_BATCH = (
    Recipe("both-paddings", "RR-EQV-004 RR-EQV-005 RR-BUD-002", _reroute((1, "0.3"), (2, "0.2")), _MIXED),
    Recipe(
        "both-paddings-delete", "RR-EQV-004 RR-EQV-005 RR-BLOCK-007", _delete((1, "0.5"), (3, "0.2")), _MIXED
    ),
    Recipe("each-its-own-decision", "RR-EQV-004", _reroute((1, 3), (3, 2)), (Asked(_IMAGE), Asked(_IMAGE))),
    Recipe("decode-in-a-batch", "RR-KV-002 RR-KV-004 RR-EQV-004", _reroute((1, 3), (2, 1)), _FED),
    Recipe("decode-in-a-batch-delete", "RR-KV-002 RR-KV-004 RR-EQV-005", _delete((1, 4), (2, 1)), _FED),
)

_CACHE = (
    Recipe(
        "decode",
        "RR-KV-002 RR-KV-004 RR-BLOCK-002",
        _reroute((1, 2), (3, 3)),
        (Asked(_IMAGE, tokens=(7, 0, 7, 12)),),
    ),
    Recipe(
        "decode-delete",
        "RR-KV-002 RR-KV-004",
        _delete((1, 3), (3, 1)),
        (Asked(_IMAGE, tokens=(7, 0, 7, 12)),),
    ),
    Recipe("decode-unrouted", "RR-KV-002 RR-CFG-009", _reroute(), (Asked("tvvvt", tokens=(15, 8)),)),
)

_GRID = Asked("ttvvvvvvttt", grid=(2, 3))
_MROPE = (
    Recipe(
        "sections", "RR-BLOCK-012 RR-SCORE-001 RR-BLOCK-001", _reroute((1, 2), (2, 3)), (_GRID,), "sections"
    ),
    Recipe("interleaved", "RR-BLOCK-012 RR-BLOCK-007", _delete((1, 3), (3, 1)), (_GRID,), "interleaved"),
    Recipe(
        "decode-after-a-grid",
        "RR-KV-004 RR-BLOCK-012",
        _reroute((1, 2)),
        (Asked("ttvvvvvvttt", tokens=(4, 11, 2), grid=(2, 3)),),
        "sections",
        "the largest coordinate of the prompt is 7, so the first new token has position 8 in all three",
    ),
)


def reference_vectors() -> Iterator[Vector]:
    """All vectors of this module, computed anew."""
    for recipe in (*_CORE, *_ROUTE, *_GQA, *_BATCH, *_CACHE, *_MROPE):
        yield recipe.vector()
