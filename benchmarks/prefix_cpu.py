"""What many questions about one image cost on a CPU, with and without a prefix that is computed once.

The decoder of ``vlm-reroute bench --suite prefill``: 35 rows of text and 576 of an image that all questions share, 30 of each
question's own. The vision tower, which a prefix saves too, is not in it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from reroute_conformance.bench.measuring.machine import Place, facts
from reroute_conformance.bench.measuring.models import BEFORE, NARROW, TEXT, VISUAL, decoder, rows
from reroute_conformance.bench.measuring.timing import Times, measure, times_faster, until_calm
from reroute_conformance.bench.presenting.tables import counted
from reroute_optimized import routed
from reroute_spec import Schedule, cost, plan, prefix_cost
from reroute_spec.plan import visual_flags

PRESETS = ("reroute-fastv-192", "reroute-pdrop-192")
SHARED = BEFORE + VISUAL
PLACE = Place.of("cpu")


def candidates(model: Any, schedule: Schedule, questions: int) -> dict[str, Callable[[], object]]:
    """All questions' prefills, one after another, by name of the way."""
    given = rows(NARROW, PLACE)
    image, mask = given["inputs_embeds"][:, :SHARED], given["visual_mask"]
    generator = torch.Generator().manual_seed(2)
    asked = torch.randn(questions, 1, VISUAL + TEXT - SHARED, NARROW.hidden_size, generator=generator)
    prompts = [torch.cat([image, own], dim=1) for own in asked]

    def ask(**masks: Any) -> None:
        for prompt in prompts:
            model(inputs_embeds=prompt, use_cache=True, logits_to_keep=1, **masks)

    def without() -> None:
        with routed(model, schedule):
            ask(visual_mask=mask)

    def with_prefix() -> None:
        with (
            routed(model, schedule) as routing,
            routing.prefix({"inputs_embeds": image, "visual_mask": mask[:, :SHARED]}),
        ):
            ask(visual_mask=mask)

    return {"unrouted": ask, "without": without, "with": with_prefix}


def predicted(schedule: Schedule, questions: int) -> float:
    """How many times fewer FLOPs the questions take with the prefix, by the cost model."""
    one = plan(schedule, NARROW.num_layers, visual_flags(VISUAL, TEXT, before=BEFORE))
    alone = questions * cost(one, NARROW).flops
    return alone / (alone - (questions - 1) * prefix_cost(schedule, NARROW, SHARED).flops)


def report(name: str, times: dict[str, Times], expected: float, tries: int) -> dict[str, Any]:
    """Least and median of each in seconds, and how many times faster the prefix makes it, round by round."""
    measured = {
        way: {"min_s": own.least, "median_s": own.median, "spread": own.spread} for way, own in times.items()
    }
    faster = list(times_faster(times["without"], times["with"]))
    return {"preset": name, "measured": measured, "faster": faster, "flops_x": expected, "tries": tries}


def show(result: dict[str, Any]) -> None:
    """A table."""
    print(f"\n{result['preset']}\n{'':<12}{'min s':>10}{'median s':>12}{'spread':>10}")
    for way, row in result["measured"].items():
        print(f"{way:<12}{row['min_s']:>10.2f}{row['median_s']:>12.2f}{row['spread']:>10.1%}")
    median, low, high = result["faster"]
    print(
        f"with the prefix x{median:.3f}, quartiles {low:.3f} and {high:.3f}; "
        f"by the cost model's FLOPs x{result['flops_x']:.3f}"
    )


def main() -> None:
    """Measure every preset; a run that was disturbed is repeated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", action="append", help="any number of them")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    if not options.json:
        print(
            f"{facts(PLACE)}\n{counted(options.questions, 'question')} on one image, {counted(options.rounds, 'round')}"
        )
    for name in options.preset or PRESETS:
        schedule = Schedule.load(name, NARROW.num_layers)
        ways = candidates(decoder(NARROW, PLACE), schedule, options.questions)
        times, tries = until_calm(
            lambda ways=ways: measure(ways, options.rounds),
            lambda found: max(own.spread for own in found.values()),
            noisy=lambda spread, tried: (
                options.json or print(f"spread {spread:.0%}: the machine was not idle (attempt {tried})")
            ),
        )
        results.append(report(name, times, predicted(schedule, options.questions), tries))
        if not options.json:
            show(results[-1])
    if options.json:
        print(
            json.dumps(
                {"machine": facts(PLACE), "questions": options.questions, "results": results}, indent=2
            )
        )


if __name__ == "__main__":
    main()
