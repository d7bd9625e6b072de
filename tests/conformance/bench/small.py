"""Every suite on a decoder so small that it takes milliseconds: not one of these times means anything."""

from functools import partial

from reroute_conformance.bench.measuring.admission import PASSES, Admitted
from reroute_conformance.bench.measuring.machine import Place, Rates
from reroute_conformance.bench.measuring.run import run_cases
from reroute_conformance.bench.measuring.suites import Case
from reroute_conformance.bench.measuring.works import (
    Layout,
    decode_work,
    prefill_work,
    reorder_work,
    score_work,
    select_work,
)
from reroute_conformance.running.finding import load_target
from reroute_spec import Decision, DecoderShape, Schedule

CPU = Place.of("cpu")
RATES = Rates(flops=1e11, bytes=1e10, call=1e-6)
SHAPE = DecoderShape(4, 64, 128, 4, 2, 16)
SCHEDULE = Schedule("reroute", (Decision(1, "1/2"), Decision(2, "1/4")))
AT_ONCE = Schedule("reroute", (Decision(0, 5),))
LAYOUT = Layout(visual=20, text=6, before=3, batch=2)
WORKS = {
    "select": partial(select_work, candidates=40, kept=9),
    "score": partial(score_work, shape=SHAPE, schedule=AT_ONCE, layout=Layout(20, 6, 3)),
    "prefill": partial(prefill_work, shape=SHAPE, schedule=SCHEDULE, layout=LAYOUT),
    "decode": partial(decode_work, shape=SHAPE, schedule=SCHEDULE, layout=LAYOUT, tokens=3),
    "reorder": partial(reorder_work, shape=SHAPE, schedule=SCHEDULE, layout=LAYOUT),
}
_OF = {"block": "prefill", "cache": "reorder", "memory": "prefill"}


def cases():
    suites = ("select", "score", "block", "prefill", "decode", "cache", "memory")
    found = [Case(suite, f"small {suite}", {"batch": 2}, WORKS[_OF.get(suite, suite)]) for suite in suites]
    points = [
        Case("scaling", f"visual {n}", {"visual": n}, WORKS["prefill"], "visual", slow=n > 20)
        for n in (20, 40)
    ]
    return found + points


def record(*targets):
    """A run over all of it, of ``reference`` and ``optimized-torch`` unless others are named."""
    admitted = [
        Admitted(name, load_target(name), PASSES) for name in targets or ("reference", "optimized-torch")
    ]
    return {
        **run_cases(cases(), admitted, CPU, RATES, 3),
        "date": "2026-01-01T00:00:00+00:00",
        "command": "vlm-reroute bench",
    }
