"""Builds the view of one request of the last prefill: its decisions, and the grids, pictures and words of its prompt.

The rows of the prompt are matched with the placeholders of its images, so that the view can say which patch every
ordinal was. Where that is not known, the view has no images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reroute_spec import RerouteError
from reroute_spec.view import Run, ShownImage, View
from reroute_view.inputs import Given, images_of, with_pictures
from torch import Tensor

from ..hooks.router import Router
from ..turn.records import Prefill


def view_of(
    router: Router,
    done: Prefill,
    request: int,
    inputs: Mapping[str, Any] | None,
    processor: Any,
    beside: tuple[Router, Prefill] | None,
) -> View:
    """The last prefill of a request; arguments as :meth:`reroute_optimized.Routed.show` takes them.

    Raises:
        RerouteError: no such request; inputs without a processor, or of another prompt; another prompt beside it.
    """
    run, placed = run_of(router, done, request)
    if (inputs is None) != (processor is None):
        missing = "processor" if processor is None else "inputs"
        raise RerouteError(
            missing, "is missing", "a picture takes both: the inputs, and the processor that made them"
        )
    if inputs is not None and not isinstance(inputs, Mapping):
        raise RerouteError("inputs", f"are a {type(inputs).__name__}", "give what the processor returned")
    runs: tuple[Run, ...] = (run,)
    if beside is not None:
        other, known = run_of(*beside, request)
        if not _same_prompt(done, beside[1], request):
            raise RerouteError("beside", "is of another prompt", "run both on the same inputs")
        runs, placed = (run, other), placed and known
    found = _images(router, done, request) if placed else None
    config: Any = router.model.config
    images: tuple[ShownImage, ...] = ()
    if found is not None:
        images = tuple(ShownImage(given.grid) for given in found)
        if inputs is not None:
            images = with_pictures(_among(router, done, request, inputs, found), config, inputs, processor)
    name = getattr(config, "_name_or_path", "") or type(router.model).__name__
    return View(runs, images, _words(router, done, request, processor), name)


def run_of(router: Router, done: Prefill, request: int) -> tuple[Run, bool]:
    """What was decided for a request, and whether its ordinals are known to be rows of its images."""
    traces = done.traces()
    if isinstance(request, bool) or not isinstance(request, int) or not 0 <= request < len(traces):
        raise RerouteError(
            "request", f"{request!r} of a batch of {len(traces)}", "give its place in the batch, from 0"
        )
    schedule = router.schedule
    name = schedule.label.partition(",")[0] or ("reroute" if schedule.action == "reroute" else "removing")
    rows = _rows(router, done, request)
    kept = None if rows is None or rows == tuple(range(len(rows))) else rows
    return Run(name, traces[request], schedule, kept), rows is not None


def _same_prompt(one: Prefill, other: Prefill, request: int) -> bool:
    """Whether two prefills had the same prompt, by its tokens or, where it had none, by its rows."""
    if one.source is not None and other.source is not None:
        return one.source.ids[request].tolist() == other.source.ids[request].tolist()
    plans = [done.layout.plans[request] for done in (one, other)]
    return (plans[0].num_rows, plans[0].visual_rows) == (plans[1].num_rows, plans[1].visual_rows)


def _images(router: Router, done: Prefill, request: int) -> list[Given] | None:
    source = done.source
    if source is None or not router.family.media:
        return None
    ids: list[list[int]] = source.ids.tolist()
    config: Any = router.model.config
    for repeats in range(1, len(ids) + 1):  # generate repeats prompts for beams, and not the grids
        if len(ids) % repeats == 0:
            found = images_of(router.family.media, config, ids[::repeats], source.sizes)
            if found is not None:
                return found[request // repeats]
    return None


def _among(
    router: Router, done: Prefill, request: int, inputs: Mapping[str, Any], known: Sequence[Given]
) -> list[Given]:
    """The images of a request where they are among the inputs, which are not repeated as prompts are for beams."""
    config: Any = router.model.config
    assert done.source is not None
    ids: Any = inputs.get("input_ids")
    rows: list[list[int]] = ids.tolist() if isinstance(ids, Tensor) else []
    own = done.source.ids[request].tolist()
    row = request * len(rows) // len(done.source.ids)
    found = images_of(router.family.media, config, rows, inputs)
    same = found is not None and row < len(rows) and rows[row] == own
    # grids of other shapes may have as many rows
    if found is None or not same or [one.grid for one in found[row]] != [one.grid for one in known]:
        raise RerouteError("inputs", "are of another prompt", "give what the last prefill was given")
    return found[row]


def _rows(router: Router, done: Prefill, request: int) -> tuple[int, ...] | None:
    """Per ordinal the row of all images that it is; None where a caller's mask made other rows visual."""
    source = done.source
    if source is None:
        return None
    tokens = _placeholders(router)
    places = [column for column, token in enumerate(source.ids[request].tolist()) if token in tokens]
    rank = {column: place for place, column in enumerate(places)}
    columns = done.layout.columns[request]
    if source.columns is not None:
        before = source.columns[request].tolist()
        columns = tuple(before[column] for column in columns)
    rows = [rank.get(columns[row]) for row in done.layout.plans[request].visual_rows]
    known = tuple(row for row in rows if row is not None)
    return known if len(known) == len(rows) else None


def _placeholders(router: Router) -> set[int]:
    return {int(getattr(router.model.config, medium.placeholder)) for medium in router.family.media}


def _words(router: Router, done: Prefill, request: int, processor: Any) -> str:
    """The prompt without its placeholders, where a processor can read it."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or done.source is None:
        return ""
    tokens = _placeholders(router)
    ids = [token for token in done.source.ids[request].tolist() if token not in tokens]
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()
