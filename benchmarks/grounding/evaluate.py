"""Removal against rerouting on the test items: ``python -m benchmarks.grounding.evaluate``.

Asks every trained model every item under every route, both questions, and writes a JSON of ``results.schema.json``. Answers are kept in
the work folder, so a run that was stopped goes on; after a change of code, give another. ``--quick`` is ``make grounding``: fewer items
and budgets, no file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import torch
import transformers
from reroute_spec import Schedule
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .answers import Answers, ask
from .control import drawn_at_random
from .engines import differences
from .findings import RIGHT, compared, figures, of_route
from .intervals import RESAMPLES
from .items import Item, items
from .kept import Kept
from .model import load, shape_of
from .options import file_to_write, folder_to_write, minutes, whole, write
from .questions import PROMPT_ROWS
from .routes import BUDGETS, Route, routes
from .scenes import ROWS
from .tables import table

HERE = Path(__file__).parent
WEIGHTS, WORK = HERE / "weights", Path("reroute-report/grounding")
QUICK = (Fraction(33, 100), Fraction(11, 100), Fraction(3, 100))
_TEST_ITEMS, _QUICK_ITEMS, _CONTROL_ITEMS = 2000, 300, 500


def collect(
    models: dict[str, Any], asked: Sequence[Item], found: Sequence[Route], kept: Kept, console: Console
) -> dict[str, list[Answers]]:
    """Answers of every model, unrouted (``""``) and under every route, by the route's name."""
    plans: list[Route | None] = [None, *found]
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    collected: dict[str, list[Answers]] = {}
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("evaluating", total=len(plans) * len(models))
        for digest, model in models.items():
            for route in plans:
                name, schedule = ("", None) if route is None else (route.name, route.schedule)
                progress.update(task, description=name or "unrouted")
                arrays = kept.arrays("answers", digest, schedule, partial(_asked, model, asked, schedule))
                collected.setdefault(name, []).append(Answers(**arrays))
                progress.advance(task)
    return collected


def _asked(model: Any, asked: Sequence[Item], schedule: Schedule | None) -> dict[str, np.ndarray]:
    return vars(ask(model, asked, schedule))


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
    random_rows: list[dict[str, Any]],
    beside: dict[str, Any] | None,
    command: str,
) -> dict[str, Any]:
    """Everything, as the schema has it."""
    by_name = {route.name: (route, collected[route.name]) for route in found}
    data = {
        "format": "urn:vlm-reroute:grounding:1",
        "made": {
            "command": command,
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
        "random_rows": random_rows,
        "engines": beside,
    }
    jsonschema.validate(data, json.loads((HERE / "results.schema.json").read_text("utf-8")))
    return data


def trained(folder: Path) -> dict[str, Any]:
    """The models below a folder, by the SHA-256 of their weights, in the order of their names.

    Raises:
        SystemExit: there is none, or one that cannot be read.
    """
    paths = sorted(folder.glob("*/model.safetensors"))
    if not paths:
        advice = f"python -m benchmarks.grounding.train --seed 0 --out {folder}/seed-0 makes one"
        sys.exit(f"--weights {folder}: no folder in it holds a model.safetensors; {advice}")
    try:
        return {hashlib.sha256(path.read_bytes()).hexdigest(): load(path.parent) for path in paths}
    except OSError as error:
        sys.exit(f"--weights {folder}: cannot be read ({error})")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--weights", type=Path, help="folder of a folder per training; the shipped ones")
    found.add_argument("--items", type=whole(1), help=f"{_TEST_ITEMS}, or {_QUICK_ITEMS} with --quick")
    found.add_argument("--quick", action="store_true", help="three budgets, one training, only the table")
    found.add_argument(
        "--json", type=file_to_write, help="where results go; results.json here, if they are whole"
    )
    found.add_argument(
        "--work", type=folder_to_write, help=f"folder of answers that are there already; {WORK}"
    )
    found.add_argument(
        "--reference-minutes",
        type=minutes,
        help="for comparing the engines, 15; 0 leaves out all that the reference runs",
    )
    found.add_argument("--threads", type=whole(1), default=2)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Returns 0."""
    reader = parser()
    options = reader.parse_args(arguments)
    given = {name for name, value in vars(options).items() if value is not None}
    if options.quick and given & {"json", "work", "reference_minutes"}:
        reader.error(
            "--quick writes nothing and asks the reference nothing: leave --json, --work and --reference-minutes out"
        )
    partly = given & {"weights", "items"} or options.reference_minutes == 0
    if partly and not options.quick and options.json is None:
        reader.error("--json: a part of the evaluation is no new results.json; say where it goes")
    torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 120)
    models = trained(options.weights or WEIGHTS)
    if options.quick:
        models = dict(list(models.items())[:1])
    asked = items("test", options.items or (_QUICK_ITEMS if options.quick else _TEST_ITEMS))
    found = routes(shape_of(next(iter(models.values()))), QUICK if options.quick else BUDGETS)
    work = None if options.quick else options.work or WORK
    collected = collect(models, asked, found, Kept(work, asked), console)
    beside, random_rows = None, []
    time_left = 15.0 if options.reference_minutes is None else options.reference_minutes
    if time_left and not options.quick:
        console.print("rows drawn at random, by the reference")
        few = asked[:_CONTROL_ITEMS]
        random_rows = drawn_at_random(models, few, found, collected, Kept(work, few))
        beside = engines(models, asked, found, collected, time_left, console)
    said = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.grounding.evaluate", *said])
    data = results(models, asked, found, collected, random_rows, beside, command)
    if not options.quick:
        write(options.json or HERE / "results.json", json.dumps(data, indent=1) + "\n")
    console.print(table(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
