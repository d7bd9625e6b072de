"""Provides Hypothesis strategies for scores, token layouts, schedules, and batches through small decoders or a tiny LLaVA.

The strategies use the vocabulary of the specification. The other modules of this room build on them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from reroute_spec import Schedule, plan
from reroute_spec.budget import parse_keep

from .case import ConfigCase, Row, SelectCase
from .decoder import DecoderCase, decoder_config
from .models import LlavaCase

_SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), 1e-45, -1e-45, 1.1754943508222875e-38, 1.0, 0.5]


def bits_of(value: float) -> int:
    """The bit pattern of ``value`` in float32, as a signed integer."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


@st.composite
def select_cases(draw: st.DrawFn) -> SelectCase:
    """Scores with ties, neighbours one ulp apart, signed zeros, infinities and subnormals; k from 0 to n."""
    special = st.sampled_from(_SPECIAL).map(bits_of)
    softmax_like = st.integers(0, 2**10).map(
        lambda i: bits_of(0.015625) + i // 128
    )  # ties and 1-ulp neighbours
    ordinary = st.floats(-2.0, 2.0, width=32).map(bits_of)
    element = draw(st.sampled_from([special, softmax_like, ordinary, special | softmax_like | ordinary]))
    bits = draw(st.lists(element, min_size=1, max_size=40))
    return SelectCase(bits=bits, k=draw(st.integers(0, len(bits))))


@st.composite
def nan_select_cases(draw: st.DrawFn) -> SelectCase:
    """Scores of which at least one is NaN, of either sign."""
    case = draw(select_cases())
    at = draw(st.integers(0, len(case.bits) - 1))
    nan = draw(st.sampled_from([0x7FC00000, -0x400000, 0x7F800001]))
    return SelectCase(bits=[*case.bits[:at], nan, *case.bits[at + 1 :]], k=max(1, case.k))


def _decision_fault(field: str, *values: Any) -> Any:
    def put(draw: st.DrawFn, data: dict[str, Any]) -> None:
        decision = data["decisions"][draw(st.integers(0, len(data["decisions"]) - 1))]
        decision[field] = draw(st.sampled_from(values))

    return put


def _field_fault(field: str, *values: Any) -> Any:
    def put(draw: st.DrawFn, data: dict[str, Any]) -> None:
        data[field] = draw(st.sampled_from(values))

    return put


def _reversed_decisions(field: str) -> Any:
    def put(draw: st.DrawFn, data: dict[str, Any]) -> None:
        values = [decision[field] for decision in data["decisions"]]
        for decision, value in zip(data["decisions"], reversed(values), strict=True):
            decision[field] = value

    return put


_FAULTS = (
    _decision_fault("keep", 0.29, 0.5, 2.5),
    _decision_fault("keep", "2", "0.0", 0, -1, True, "1/0", "x", ""),
    _decision_fault("keep", "2"),
    _decision_fault("keep", "0.5", 2, "1", 2.0),
    _decision_fault("keep", ".5", "1.", "5e-1", "1/2", "1e-05", "0" * 39 + "1.5e-1"),
    _decision_fault("keep", " 0.5 ", "0.2_5", "+0.5", "0.5\n", "1/1" + "0" * 41),
    _decision_fault("layer", -1, 4, 5),
    _decision_fault("layer", 1.5, True, "1", None),
    _decision_fault("layer", 0, 1, 2.0, 3),
    _decision_fault("at", 1),
    _reversed_decisions("layer"),
    _reversed_decisions("keep"),
    _field_fault("action", "reroute", "delete", "prune", 1),
    _field_fault("pool", "all", "all", "survivors", "none"),
    _field_fault("pool", "all"),
    _field_fault("scope", "image", "request", "span"),
    _field_fault("positions", "renumber"),
    _field_fault("positions", "preserve", ""),
    _field_fault("min_keep", 1, 2, 1.0, 0, 1.5, True, "1"),
    _field_fault("label", "x", "", 1),
    _field_fault("budget", 1),
    _field_fault("score", {"source": "previous"}, {"query": "last_n", "n": 2}, {"heads": "max"}),
    _field_fault("score", {"source": "next"}, {"n": 2}, {"query": "last_n", "n": 0}, {"rows": 1}),
)


@st.composite
def config_cases(draw: st.DrawFn) -> ConfigCase:
    """Schedules as data, right ones and such with up to two changes; over layouts with several images that may touch."""
    layers = sorted(draw(st.sets(st.integers(0, 3))))
    counts = sorted(
        draw(st.sets(st.integers(1, 9), min_size=len(layers), max_size=len(layers))), reverse=True
    )
    keeps: list[Any] = [f"0.{count}" for count in counts] if draw(st.booleans()) else counts
    data: dict[str, Any] = {
        "action": draw(st.sampled_from(["reroute", "delete"])),
        "decisions": _decisions(layers, keeps),
    }
    if layers:
        for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
            draw(st.sampled_from(_FAULTS))(draw, data)
    layout = draw(layouts(max_size=20))
    visual = layout.count("v")
    cuts = sorted(draw(st.sets(st.integers(1, max(visual - 1, 1)), max_size=2))) if visual > 1 else []
    images = [end - start for start, end in zip([0, *cuts], [*cuts, visual], strict=True)] if visual else []
    return ConfigCase(data, 4, layout, images)


@st.composite
def schedules(
    draw: st.DrawFn,
    num_layers: int,
    *,
    scopes: tuple[str, ...] = ("request",),
    score_rules: bool = True,
    deciding: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Schedules that a decoder of ``num_layers`` blocks, of which ``deciding`` can decide, and today's
    implementations run.
    """
    action = draw(st.sampled_from(["reroute", "reroute", "delete"]))
    can_decide = st.integers(0, num_layers - 1) if deciding is None else st.sampled_from(deciding)
    layers = sorted(draw(st.sets(can_decide, min_size=1, max_size=5)))
    if draw(st.booleans()):
        ratio = st.integers(1, 999).map(lambda i: f"0.{i:03d}") | st.sampled_from(["1", "1/3", "1/2", "0.29"])
        keeps: list[Any] = draw(st.lists(ratio, min_size=len(layers), max_size=len(layers)))
        keeps = sorted(keeps, key=parse_keep, reverse=True) if action == "delete" else keeps
    else:
        keeps = draw(st.lists(st.integers(1, 6), min_size=len(layers), max_size=len(layers)))
        keeps = sorted(keeps, reverse=True) if action == "delete" else keeps
    data: dict[str, Any] = {
        "action": action,
        "decisions": _decisions(layers, keeps),
        "scope": draw(st.sampled_from(scopes)),
        "min_keep": draw(st.sampled_from([1, 1, 1, 2])),
    }
    if action == "reroute" and draw(st.integers(0, 4)) == 4:
        data["pool"] = "survivors"
    if score_rules and draw(st.integers(0, 3)) == 3:
        n = draw(st.integers(0, 5))
        data["score"] = {"query": "last_n", "n": n} if n else {}
        data["score"]["heads"] = draw(st.sampled_from(["mean", "max"]))
    return data


def layouts(alphabet: str = "tvvv", max_size: int = 14) -> st.SearchStrategy[str]:
    """Token layouts: text, visual, several images, ending in either, text only, a single row."""
    return st.text(st.sampled_from(alphabet), min_size=1, max_size=max_size)


@st.composite
def batch_rows(draw: st.DrawFn, texts: st.SearchStrategy[str], *, batch: bool) -> list[Row]:
    """Requests of a batch, each padded on one side, or one unpadded request."""
    rows = []
    for index in range(draw(st.integers(1, 4)) if batch else 1):
        side = draw(st.sampled_from(["", "left", "right"])) if batch else ""
        pad = draw(st.integers(1, 3)) if side else 0
        left, right = (pad, 0) if side == "left" else (0, pad) if side == "right" else (0, 0)
        rows.append(Row(draw(texts), draw(st.integers(0, 99)) * 10 + index, left, right))
    return rows


@st.composite
def decoder_cases(
    draw: st.DrawFn, *, gqa: bool = False, batch: bool = False, cache: bool = False, replay: bool = False
) -> DecoderCase:
    """Batches through small canonical decoders; the flags add what a profile exercises."""
    layers = draw(st.integers(1, 5))
    kv_heads = draw(st.sampled_from([1, 2])) if gqa else 2
    config = decoder_config(
        layers,
        heads=kv_heads * draw(st.sampled_from([2, 4])) if gqa else 2,
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([4, 8])) if gqa else 8,
        attention_bias=gqa and draw(st.booleans()),
        qk_norm=gqa and draw(st.booleans()),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        rope_theta=draw(st.sampled_from([10000.0, 1e6, 50.0])),
    )
    rows = draw(batch_rows(layouts(), batch=batch))
    schedule = draw(schedules(layers))
    case = DecoderCase(
        schedule=schedule,
        rows=rows,
        new_tokens=draw(st.integers(1, 3)) if cache else 0,
        config=config,
        seed=draw(st.integers(0, 7)),
    )
    if not replay:
        return case
    decisions = [draw(_choices(schedule, layers, row.layout)) for row in rows]
    return DecoderCase(schedule, rows, case.new_tokens, decisions, None, config, case.seed)


@st.composite
def one_decision_cases(draw: st.DrawFn) -> DecoderCase:
    """One request, one `reroute` decision that leaves rows out."""
    keep = draw(st.integers(1, 6) | st.sampled_from(["0.29", "1/2", "1"]))
    schedule = {"action": "reroute", "decisions": [{"layer": draw(st.integers(0, 2)), "keep": keep}]}
    return _small_case(draw, schedule)


@st.composite
def reentering_cases(draw: st.DrawFn) -> DecoderCase:
    """Two or three decisions over all rows, few of which run: later ones score rows that were deferred."""
    layers = sorted(draw(st.sets(st.integers(0, 3), min_size=2, max_size=3)))
    keeps = [draw(st.integers(1, 3)) for _ in layers]
    return _small_case(draw, {"action": "reroute", "decisions": _decisions(layers, keeps)}, visual=4)


@st.composite
def shrinking_cases(draw: st.DrawFn) -> DecoderCase:
    """Two or three `delete` decisions by ratio, or the same by bypass without re-entry."""
    layers = sorted(draw(st.sets(st.integers(0, 3), min_size=2, max_size=3)))
    keeps = ["3/4", "1/2", "1/4"][-len(layers) :]
    action = draw(st.sampled_from(["delete", "reroute"]))
    schedule = {"action": action, "decisions": _decisions(layers, keeps), "pool": "survivors"}
    return _small_case(draw, schedule, visual=4)


def _decisions(layers: list[int], keeps: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"layer": layer, "keep": keep} for layer, keep in zip(layers, keeps, strict=True)]


def _small_case(draw: st.DrawFn, schedule: dict[str, Any], visual: int = 1) -> DecoderCase:
    """One request of at least ``visual`` routable rows through four blocks."""
    layout = draw(layouts(max_size=4)) + "v" * visual + draw(layouts("vvt", max_size=6)) + "t"
    config = decoder_config(4, heads=2, kv_heads=2)
    return DecoderCase(
        schedule, [Row(layout, draw(st.integers(0, 999)))], 0, None, None, config, draw(st.integers(0, 7))
    )


@st.composite
def _choices(draw: st.DrawFn, schedule: dict[str, Any], num_layers: int, layout: str) -> list[list[int]]:
    """Selections that the plan allows, drawn without regard to scores."""
    request = plan(Schedule.from_dict(schedule), num_layers, [letter == "v" for letter in layout])
    pool, chosen = list(range(request.num_visual)), []
    for stage in request.stages:
        if stage.index > 0:
            rows = sorted(draw(st.permutations(pool))[: stage.kept])
            chosen.append(rows)
            pool = rows if Schedule.from_dict(schedule).pool == "survivors" else pool
    return chosen


@st.composite
def poisoned_cases(draw: st.DrawFn) -> DecoderCase:
    """A request with visual rows and a decision, one of whose embeddings, of any row, is NaN: the asking row sees it."""
    layout = "t" + draw(layouts("v", 8)) + "t"
    config = decoder_config(3, heads=2, kv_heads=2)
    action, layer = draw(st.sampled_from(["reroute", "delete"])), draw(st.integers(0, 2))
    schedule = {"action": action, "decisions": [{"layer": layer, "keep": draw(st.integers(1, 3))}]}
    poison = [0, draw(st.integers(0, len(layout) - 1))]
    return DecoderCase(schedule, [Row(layout, draw(st.integers(0, 99)))], 0, None, poison, config, 0)


@st.composite
def tied_cases(draw: st.DrawFn) -> DecoderCase:
    """Decoders whose queries are all zero, so that all rows score alike: the order of ties decides, inside a run too."""
    layers = sorted(draw(st.sets(st.integers(0, 3), min_size=1, max_size=2)))
    keeps = sorted((draw(st.integers(1, 4)) for _ in layers), reverse=True)
    action = draw(st.sampled_from(["reroute", "delete"]))
    case = _small_case(draw, {"action": action, "decisions": _decisions(layers, keeps)}, visual=4)
    return replace(case, gain=0.0)


@st.composite
def peaked_cases(draw: st.DrawFn) -> DecoderCase:
    """Decoders whose attention is peaked: the scores at the threshold are far below the largest."""
    layers = sorted(draw(st.sets(st.integers(0, 3), min_size=1, max_size=2)))
    schedule = {
        "action": "reroute",
        "decisions": _decisions(layers, [draw(st.integers(1, 6)) for _ in layers]),
    }
    return replace(_small_case(draw, schedule, visual=8), gain=2.0)


@st.composite
def kept_cases(draw: st.DrawFn) -> DecoderCase:
    """Decisions that keep all candidates, in a batch."""
    layers = draw(st.integers(1, 4))
    decided = sorted(draw(st.sets(st.integers(0, layers - 1), min_size=1, max_size=3)))
    keep = draw(st.sampled_from(["1", 40]))
    action = draw(st.sampled_from(["reroute", "delete"]))
    schedule = {"action": action, "decisions": _decisions(decided, [keep] * len(decided))}
    config = decoder_config(layers, heads=2, kv_heads=2)
    rows = draw(batch_rows(layouts(), batch=False))
    return DecoderCase(schedule, rows, config=config, seed=draw(st.integers(0, 7)))


@st.composite
def llava_cases(draw: st.DrawFn) -> LlavaCase:
    """Batches through the tiny LLaVA: no, one or several images per request, touching or apart."""
    texts = st.sampled_from(["tIttt", "ttItt", "tIItt", "tItItt", "ttt", "tI", "It"])
    schedule = draw(schedules(8, scopes=("request", "image")))
    return LlavaCase(
        schedule=schedule,
        rows=draw(batch_rows(texts, batch=True)),
        new_tokens=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 1)),
        attention=draw(st.sampled_from(["sdpa", "eager"])),
    )
