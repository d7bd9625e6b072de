"""What many questions about one image cost on a CPU, with and without a prefix that is computed once.

The decoder of ``prefill_cpu.py``: 35 rows of text and 576 of an image that all questions share, 30 of each question's own. The vision
tower, which a prefix saves too, is not in it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch
import transformers
from prefill_cpu import BEFORE, HIDDEN, LAYERS, MOST_SPREAD, MOST_TRIES, TEXT, VISUAL, build, measure, spread
from reroute_optimized import routed
from reroute_spec import Schedule, cost, plan, prefix_cost, shape_from_config
from reroute_spec.plan import visual_flags

PRESETS = ("reroute-fastv-192", "reroute-pdrop-192")
SHARED = BEFORE + VISUAL


def candidates(model: Any, schedule: Schedule, questions: int) -> dict[str, Callable[[], object]]:
    """All questions' prefills, one after another, by name of the way."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, SHARED, HIDDEN, generator=generator)
    asked = [torch.randn(1, VISUAL + TEXT - SHARED, HIDDEN, generator=generator) for _ in range(questions)]
    mask = torch.tensor([visual_flags(VISUAL, TEXT, before=BEFORE)])
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


def predicted(model: Any, schedule: Schedule, questions: int) -> float:
    """How many times fewer FLOPs the questions take with the prefix, by the cost model."""
    shape = shape_from_config(model.config.to_dict())
    alone = questions * cost(plan(schedule, LAYERS, visual_flags(VISUAL, TEXT, before=BEFORE)), shape).flops
    once = prefix_cost(schedule, shape, SHARED).flops
    return alone / (alone - (questions - 1) * once)


def report(name: str, times: dict[str, list[float]], expected: float) -> dict[str, Any]:
    """Least and median of each in seconds, and how many times faster the prefix makes it."""
    rows = {
        what: {"min_s": min(own), "median_s": statistics.median(own), "spread": spread(own)}
        for what, own in times.items()
    }
    ratios = {
        f"{statistic}_x": rows["without"][f"{statistic}_s"] / rows["with"][f"{statistic}_s"]
        for statistic in ("min", "median")
    }
    return {"preset": name, "measured": rows, **ratios, "flops_x": expected}


def show(result: dict[str, Any]) -> None:
    """A table."""
    print(f"\n{result['preset']}\n{'':<12}{'min s':>10}{'median s':>12}{'spread':>10}")
    for what, row in result["measured"].items():
        print(f"{what:<12}{row['min_s']:>10.2f}{row['median_s']:>12.2f}{row['spread']:>10.1%}")
    print(
        f"with the prefix x{result['min_x']:.3f} (min), x{result['median_x']:.3f} (median);"
        f" by the cost model's FLOPs x{result['flops_x']:.3f}"
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
    model, results = build(), []
    if not options.json:
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        print(f"{platform.processor() or platform.machine()}, {options.threads} threads, {versions}")
        print(f"{options.questions} questions on one image, {options.rounds} rounds")
    for name in options.preset or PRESETS:
        schedule = Schedule.load(name, LAYERS)
        expected = predicted(model, schedule, options.questions)
        for attempt in range(1, MOST_TRIES + 1):
            measured = candidates(model, schedule, options.questions)
            result = report(name, measure(measured, options.rounds), expected)
            results.append({**result, "questions": options.questions, "attempt": attempt})
            if not options.json:
                show(result)
            if max(row["spread"] for row in result["measured"].values()) <= MOST_SPREAD:
                break
            if not options.json:
                print(
                    f"more than {MOST_SPREAD:.0%}: the machine was not idle (attempt {attempt} of {MOST_TRIES})"
                )
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
