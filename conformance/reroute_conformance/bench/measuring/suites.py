"""Lists the cases of every suite of the benchmark.

The work of a case is made when its turn comes, because models are large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from reroute_spec import Decision, DecoderShape, Schedule

from .machine import Place
from .models import NARROW
from .works import Layout, Work, decode_work, prefill_work, reorder_work, score_work, select_work

PRESETS = ("reroute-fastv-192", "reroute-fastv-64")


@dataclass(frozen=True)
class Case:
    """One case of a suite, which everybody is measured at.

    Attributes:
        suite: the name of the suite.
        name: the case in words. Suite and name together tell it from all others.
        parameters: the values of what varies over the suite.
        make: makes the work at a place.
        axis: the parameter that varies along a scaling curve; empty in every other case.
        slow: whether the case takes too long, or too much memory, for an implementation that is written to be read.
    """

    suite: str
    name: str
    parameters: Mapping[str, int | str]
    make: Callable[[Place], Work]
    axis: str = ""
    slow: bool = False

    def __str__(self) -> str:
        return self.name


def _select() -> list[Case]:
    sizes = ((576, 192), (576, 64), (8192, 2730))
    return [
        Case(
            "select",
            f"{kept} of {candidates} rows",
            {"visual": candidates, "kept": kept},
            partial(select_work, candidates=candidates, kept=kept),
        )
        for candidates, kept in sizes
    ]


def _score() -> list[Case]:
    # LLaVA-1.5-7B's and Qwen2.5-VL-7B's attention; nothing is asked of the MLP
    shapes = (DecoderShape(1, 4096, 128, 32, 32, 128), DecoderShape(1, 3584, 128, 28, 4, 128))
    schedule = Schedule("reroute", (Decision(0, "1/3"),))
    return [
        Case(
            "score",
            f"640 rows, {shape.num_attention_heads} heads over {shape.num_key_value_heads}",
            {"rows": 640, "heads": shape.num_attention_heads, "key_heads": shape.num_key_value_heads},
            partial(score_work, shape=shape, schedule=schedule, layout=Layout(text=64)),
        )
        for shape in shapes
    ]


def _block() -> list[Case]:
    shape = DecoderShape(1, 1024, 2752, 8, 8, 128)
    return [
        Case(
            "block",
            f"{kept} of 576 visual rows, {batch} request{'s' if batch > 1 else ''}",
            {"kept": kept, "batch": batch},
            partial(
                prefill_work,
                shape=shape,
                schedule=Schedule("reroute", (Decision(0, kept),)),
                layout=Layout(batch=batch),
            ),
        )
        for kept, batch in ((192, 1), (64, 1), (64, 4))
    ]


def _prefill() -> list[Case]:
    return [
        Case(
            "prefill",
            preset,
            {"schedule": preset, "batch": 1},
            partial(prefill_work, shape=NARROW, schedule=_loaded(preset), layout=Layout()),
        )
        for preset in PRESETS
    ]


def _decode() -> list[Case]:
    return [
        Case(
            "decode",
            f"{preset}, {batch} request{'s' if batch > 1 else ''}",
            {"schedule": preset, "batch": batch, "tokens": 4},
            partial(
                decode_work, shape=NARROW, schedule=_loaded(preset), layout=Layout(batch=batch), tokens=4
            ),
        )
        for preset in PRESETS
        for batch in (1, 4)
    ]


def _cache() -> list[Case]:
    shape = DecoderShape(8, 512, 1376, 8, 8, 64)
    return [
        Case(
            "cache",
            f"{preset}, 8 requests reordered",
            {"schedule": preset, "batch": 8},
            partial(reorder_work, shape=shape, schedule=Schedule.load(preset, 8), layout=Layout(batch=8)),
        )
        for preset in PRESETS
    ]


def _memory() -> list[Case]:
    return [Case("memory", case.name, case.parameters, case.make) for case in _prefill()]


def _scaling() -> list[Case]:
    """How the overhead of routing grows, on blocks so narrow that it can be seen."""
    sizes = {
        "visual": [
            (n, Layout(n, 64, 32), _narrow(4), _thirds(1, 2)) for n in (64, 256, 576, 1024, 2048, 4096, 8192)
        ],
        "batch": [(b, Layout(128, 32, 16, b), _narrow(4), _thirds(1, 2)) for b in (1, 2, 4, 8, 16, 32, 64)],
        "decisions": [(d, Layout(), _narrow(16), _thirds(*range(2, 2 + d))) for d in (1, 2, 4, 8)],
        "blocks": [(n, Layout(), _narrow(n), _thirds(1, 2)) for n in (4, 8, 16, 32, 64)],
    }
    return [
        Case(
            "scaling",
            f"{axis} {value}",
            {axis: value},
            partial(prefill_work, shape=shape, schedule=schedule, layout=layout),
            axis,
            slow=(layout.visual + layout.text) * layout.batch > 2048,
        )
        for axis, points in sizes.items()
        for value, layout, shape, schedule in points
    ]


def _narrow(blocks: int) -> DecoderShape:
    return DecoderShape(blocks, 256, 688, 4, 4, 64)


def _thirds(*layers: int) -> Schedule:
    return Schedule("reroute", tuple(Decision(layer, "1/3") for layer in layers))


def _loaded(preset: str) -> Schedule:
    return Schedule.load(preset, NARROW.num_layers)


SUITES: dict[str, Callable[[], list[Case]]] = {
    "select": _select,
    "score": _score,
    "block": _block,
    "prefill": _prefill,
    "decode": _decode,
    "cache": _cache,
    "memory": _memory,
    "scaling": _scaling,
}
"""By name, in the order of the report. ``memory`` is not timed; ``scaling`` runs where it is named."""
