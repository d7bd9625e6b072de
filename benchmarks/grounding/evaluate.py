"""Removal against rerouting on the test items: ``python -m benchmarks.grounding.evaluate``.

Asks every trained model every item under every route, both questions, and writes a JSON of ``results.schema.json``. Answers are kept in
the work folder, so a run that was stopped goes on. ``--quick`` is ``make grounding``: fewer items and budgets, no file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .answers import Answers, ask
from .control import drawn_at_random
from .engines import differences
from .findings import RIGHT, compared, figures, of_route
from .intervals import RESAMPLES
from .items import Item, items
from .model import load, shape_of
from .questions import PROMPT_ROWS
from .routes import BUDGETS, Route, routes
from .scenes import ROWS
from .tables import table

HERE = Path(__file__).parent
WEIGHTS, WORK = HERE / "weights", Path("reroute-report/grounding")
QUICK = (Fraction(33, 100), Fraction(11, 100), Fraction(3, 100))
_TEST_ITEMS, _QUICK_ITEMS, _CONTROL_ITEMS = 2000, 300, 500


def collect(
    models: dict[str, Any], asked: Sequence[Item], found: Sequence[Route], work: Path | None, console: Console
) -> dict[str, list[Answers]]:
    """Answers of every model, unrouted (``""``) and under every route, by the route's name."""
    plans: list[Route | None] = [None, *found]
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    collected: dict[str, list[Answers]] = {}
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("evaluating", total=len(plans) * len(models))
        for digest, model in models.items():
            for route in plans:
                name = "" if route is None else route.name
                progress.update(task, description=name or "unrouted")
                collected.setdefault(name, []).append(_kept(work, digest, model, asked, route))
                progress.advance(task)
    return collected


def _kept(work: Path | None, digest: str, model: Any, asked: Sequence[Item], route: Route | None) -> Answers:
    """Answers from the work folder, or asked for and put there."""
    schedule = None if route is None else route.schedule
    if work is None:
        return ask(model, asked, schedule)
    # whatever changes an answer: the weights, the items themselves, the schedule
    said = json.dumps([digest, repr(asked), None if schedule is None else schedule.to_dict()])
    path = work / f"{hashlib.sha256(said.encode()).hexdigest()[:20]}.npz"
    names = list(Answers.__dataclass_fields__)
    if path.exists():
        with np.load(path) as saved:
            return Answers(*(saved[name] for name in names))
    answers = ask(model, asked, schedule)
    work.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **{name: getattr(answers, name) for name in names})
    part.replace(path)
    return answers


def engines(
    models: dict[str, Any],
    asked: Sequence[Item],
    found: Sequence[Route],
    collected: dict[str, list[Answers]],
    minutes: float,
    console: Console,
) -> dict[str, Any]:
    """The boxes that the reference says beside the fast path's, in rounds: in each, every item is asked under one training and route,
    the next ones under the next, so that a round is of all items and of all that is evaluated; one more for every item in the next round.
    As many rounds as the time allows, and one at least.
    """
    end, rounds = time.monotonic() + 60 * minutes, 0
    ways = [(seed, model, route) for route in found for seed, model in enumerate(models.values())]
    different: list[dict[str, Any]] = []
    while rounds < len(ways) and (rounds == 0 or time.monotonic() < end):
        for way, (seed, model, route) in enumerate(ways):
            numbers = range((way - rounds) % len(ways), len(asked), len(ways))
            if numbers:
                fast = collected[route.name][seed].tokens
                for one in differences(model, asked, route.schedule, fast, numbers):
                    different.append({"seed": seed, "route": route.name, **one})
        rounds += 1
        console.print(f"reference: {rounds} of {len(ways)} rounds, {len(different)} answers differ")
    return {
        "items": len(asked),
        "rounds": rounds,
        "rounds_in_all": len(ways),
        "answers": rounds * len(asked),
        "different": len(different),
        "differences": different,
    }


def results(
    models: dict[str, Any],
    asked: Sequence[Item],
    found: Sequence[Route],
    collected: dict[str, list[Answers]],
    beside: dict[str, Any] | None,
    control: list[dict[str, Any]],
) -> dict[str, Any]:
    """Everything, as the schema has it."""
    by_name = {route.name: (route, collected[route.name]) for route in found}
    data = {
        "format": "urn:vlm-reroute:grounding:1",
        "made": {
            "command": "python -m benchmarks.grounding.evaluate",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "processor": platform.machine(),
            "weights_sha256": list(models),
        },
        "setting": {
            "items": len(asked),
            "visual_rows": ROWS,
            "prompt_rows": PROMPT_ROWS,
            "blocks": shape_of(next(iter(models.values()))).num_layers,
            "right_from_iou": RIGHT,
            "interval": f"95%, paired bootstrap over items, {RESAMPLES} resamples",
        },
        "unrouted": figures(collected[""], asked),
        "routes": [of_route(route, answers, asked) for route, answers in by_name.values()],
        "pairs": compared(by_name, asked),
        "random_rows": control,
        "engines": beside,
    }
    jsonschema.validate(data, json.loads((HERE / "results.schema.json").read_text("utf-8")))
    return data


def trained(folder: Path) -> dict[str, Any]:
    """The models below a folder, by the SHA-256 of their weights, in the order of their names."""
    paths = sorted(folder.glob("*/model.safetensors"))
    return {hashlib.sha256(path.read_bytes()).hexdigest(): load(path.parent) for path in paths}


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, also where there are no weights yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of a folder per training")
    parser.add_argument("--items", type=int, help=f"{_TEST_ITEMS}, or {_QUICK_ITEMS} with --quick")
    parser.add_argument("--quick", action="store_true", help="three budgets, one training, only the table")
    parser.add_argument("--json", type=Path, default=HERE / "results.json", help="where results go")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of answers that are there already")
    parser.add_argument(
        "--reference-minutes",
        type=float,
        default=15.0,
        help="for comparing the engines; 0 leaves out all that the reference runs",
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 120)
    models = trained(options.weights)
    if not models:
        console.print(
            f"no weights in {options.weights} yet: "
            "python -m benchmarks.grounding.train --seed 0 --out benchmarks/grounding/weights/seed-0",
            soft_wrap=True,
        )
        return 0
    if options.quick:
        models = dict(list(models.items())[:1])
    asked = items("test", options.items or (_QUICK_ITEMS if options.quick else _TEST_ITEMS))
    found = routes(shape_of(next(iter(models.values()))), QUICK if options.quick else BUDGETS)
    collected = collect(models, asked, found, None if options.quick else options.work, console)
    beside, control = None, []
    if options.reference_minutes > 0 and not options.quick:
        console.print("rows drawn at random, by the reference")
        control = drawn_at_random(list(models.values()), asked[:_CONTROL_ITEMS], found, collected)
        beside = engines(models, asked, found, collected, options.reference_minutes, console)
    data = results(models, asked, found, collected, beside, control)
    if not options.quick:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    console.print(table(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
