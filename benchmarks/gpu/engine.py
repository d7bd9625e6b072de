"""The engine of backend ``triton`` on a GPU, in one call: is it right there, and does the clock follow the FLOPs.

    python benchmarks/gpu/engine.py --out benchmarks/results/NAME          on a CUDA machine
    TRITON_INTERPRET=1 python benchmarks/gpu/engine.py --rehearse          without one: tiny shapes, no times are kept

Text decoders of LLaVA-1.5-7B's and Qwen2.5-VL-7B's shape with random bfloat16 weights, 576 visual and 64 text rows a request. On a cut
of four blocks the engine is first held to the reference in float32 (RR-NUM-001: its error at most twice that of plain bfloat16, with
decisions replayed); no time is taken of what fails. Then, in one run and in turns: the model as it is; unrouted under this engine;
``optimized-torch``; ``optimized-triton``; each beside the floor, by the cost model at the rates that this run measures, as in
``vlm-reroute bench``. Ratios are of rounds of one turn, medians with quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from engine_check import correctness
from engine_shapes import LARGE, SMALL, Shape
from reroute_conformance.bench.measuring.floors import Floor, prefill_parts
from reroute_conformance.bench.measuring.machine import Place, Rates, facts
from reroute_conformance.bench.measuring.memory import cache_bytes
from reroute_conformance.bench.measuring.timing import Times, measure, times_faster
from reroute_conformance.bench.measuring.works import UNROUTED_SCHEDULE as UNROUTED
from reroute_conformance.bench.presenting.tables import ratio
from reroute_optimized import routed
from reroute_spec import Decision, Schedule, cost, plan
from reroute_spec.plan import visual_flags

NEW_TOKENS = 64


def contenders(schedules: dict[str, Schedule]) -> dict[str, tuple[Schedule, str] | None]:
    """What is measured, by name: a schedule and a backend; None: the model as it is."""
    found: dict[str, tuple[Schedule, str] | None] = {
        "unrouted, transformers": None,
        "unrouted": (UNROUTED, "triton"),
    }
    for tier, schedule in schedules.items():
        found[f"optimized-torch {tier}"] = schedule, "torch"
        found[f"optimized-triton {tier}"] = schedule, "triton"
    return found


@contextlib.contextmanager
def as_is(model: Any, how: tuple[Schedule, str] | None) -> Iterator[Any]:
    """``model`` routed so."""
    if how is None:
        yield None
        return
    with routed(model, how[0], backend=how[1]) as result:
        yield result


def held_bytes(cache: Any) -> int:
    """Of the keys and values in a cache, rows of nobody left out: of pages, those that are taken."""
    if not any(getattr(layer, "rows", None) for layer in cache.layers):
        return cache_bytes(cache)
    return sum(
        len(set(layer.rows.pages())) * (layer.key_pages[:1].nbytes + layer.value_pages[:1].nbytes)
        for layer in cache.layers
    )


def prefill_of(model: Any, shape: Shape, batch: int, how: tuple[Schedule, str] | None) -> Callable[[], Any]:
    """A prefill of the model as it is routed now."""
    inputs = shape.inputs(batch, model)
    if how is None:
        del inputs["visual_mask"]
    return lambda: model(**inputs, use_cache=True, logits_to_keep=1)


def decoded(model: Any, prefill: Callable[[], Any], batch: int, place: Place, tokens: int) -> float:
    """Seconds a token after a prefill."""
    cache = prefill().past_key_values
    place.settle()
    start = time.perf_counter()
    token = torch.ones(batch, 1, dtype=torch.long, device=place.device)
    for _ in range(tokens):
        token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    place.settle()
    return (time.perf_counter() - start) / tokens


def memory(model: Any, prefill: Callable[[], Any], result: Any, device: str) -> dict[str, int]:
    """Bytes of the cache that a prefill leaves, and most at once while it runs: all but the weights, pages and graphs that are kept
    for the next request included, which a peak beyond what was there before would leave out.
    """
    if device != "cuda":
        return {"kv_bytes": held_bytes(prefill().past_key_values), "peak_bytes": 0}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    cache = prefill().past_key_values
    weights = sum(weight.nbytes for weight in model.parameters())
    graphs = 0 if result is None or result._router.fused is None else result._router.fused.graphs.held
    return {"kv_bytes": held_bytes(cache), "peak_bytes": torch.cuda.max_memory_allocated() - weights + graphs}


def measured(
    model: Any,
    shape: Shape,
    batch: int,
    all_of_them: dict[str, tuple[Schedule, str] | None],
    options: Any,
    place: Place,
) -> dict[str, dict[str, Any]]:
    """Prefill, decode and memory of every contender; they take turns, each routed anew, so that a drift meets all of them."""
    # a larger batch takes longer and spreads less
    rounds = max(min(3, options.rounds), options.rounds // (1 + batch // 8))
    seconds: dict[str, list[float]] = {name: [] for name in all_of_them}
    steps: dict[str, list[float]] = {name: [] for name in all_of_them}
    found: dict[str, dict[str, Any]] = {name: {} for name in all_of_them}
    for _ in range(options.turns):
        for name, how in all_of_them.items():
            with as_is(model, how) as result, torch.no_grad():
                prefill = prefill_of(model, shape, batch, how)
                for _ in range(options.warm):  # graphs are captured
                    prefill()
                seconds[name] += measure({name: prefill}, rounds, settle=place.settle)[name].seconds
                tokens = options.tokens if batch == 1 else -(-options.tokens // 4)
                decoded(model, prefill, batch, place, tokens)  # pages are taken and tokens captured in it
                steps[name].append(decoded(model, prefill, batch, place, tokens))
                found[name] = memory(model, prefill, result, place.device)
                if result is not None:
                    found[name] |= seen(result, prefill, place.device)
    times = {name: Times(tuple(own)) for name, own in seconds.items()}
    for name, own in found.items():
        own |= {
            "name": name,
            "prefill_s": {"median": times[name].median, "quartiles": times[name].quartiles},
            "faster": times_faster(times["unrouted"], times[name]),
            "decode_ms_per_token": statistics.median(steps[name]) * 1e3,
            "raw_seconds": {"prefill": seconds[name], "token": steps[name]},
        }
    return found


def seen(result: Any, prefill: Callable[[], Any], device: str) -> dict[str, Any]:
    """What a routed model says of itself."""
    graphs = None if result._router.fused is None else result._router.fused.graphs
    if graphs is None:
        return {"backend": result.backend}
    counted = {"captured": graphs.captured, "replayed": graphs.replayed, "eager": dict(graphs.eager)}
    return {"backend": result.backend, "graphs": counted, "overhead": overhead(prefill, graphs, device)}


def overhead(prefill: Callable[[], Any], graphs: Any, device: str) -> float | None:
    """Share of the device's time in a prefill that our kernels for routing take; of launches one by one, so that they have names.

    The projection of the keys of deferred rows is not in it, nor what torch indexes and copies for it.
    """
    if device != "cuda":
        return None
    executor, graphs.executor = graphs.executor, None
    try:
        prefill()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            prefill()
            torch.cuda.synchronize()
    finally:
        graphs.executor = executor
    events = [(event.key, event.self_device_time_total) for event in profile.key_averages()]
    kernels = ("_logits", "_reduce", "_select", "_compact", "_gather_rmsnorm", "_write_back")
    ours = sum(time for name, time in events if name.startswith(kernels))
    total = sum(time for _, time in events)
    return ours / total if total else None


def table(
    shape: Shape, model: Any, batch: int, rates: Rates, options: Any, place: Place
) -> list[dict[str, Any]]:
    """Rows of one shape and batch size."""
    layers = model.config.num_hidden_layers
    if options.rehearse:
        schedules = {"25%": Schedule("reroute", (Decision(1, "0.25"),))}
    else:
        schedules = {tier: Schedule.load(f"reroute-fastv-{tier}", layers) for tier in options.tiers}
    flags = visual_flags(shape.visual, shape.text, before=shape.before)
    rows: list[dict[str, Any]] = []
    print(f"\n{shape.name}, batch {batch}; x: times the speed of unrouted, quartiles in brackets")
    print(
        f"{'':<26}{'prefill ms':>11}{'floor':>8}{'of it':>7}{'x':>18}{'floor x':>9}{'ms/token':>10}{'KV MiB':>9}{'overhead':>10}"
    )
    everybody = contenders(schedules)
    found = measured(model, shape, batch, everybody, options, place)

    def floor(schedule: Schedule) -> Floor:
        request = plan(schedule, layers, flags)
        return Floor.of(prefill_parts(request, shape.decoder, place.element_bytes, batch), rates)

    dense = floor(UNROUTED)
    for name, own in found.items():
        schedule, _ = everybody[name] or (UNROUTED, "")
        least = floor(schedule)
        planned = cost(plan(schedule, layers, flags), shape.decoder, place.element_bytes).kv_bytes
        own |= {
            "batch": batch,
            "shape": shape.name,
            "floor": asdict(least),
            "planned_kv_bytes": batch * planned,
        }
        rows.append(own)
        median, share = own["prefill_s"]["median"], own.get("overhead")
        print(
            f"{name:<26}{median * 1e3:>11.2f}{least.seconds * 1e3:>8.2f}{median / least.seconds:>7.2f}"
            f"{ratio(own['faster']):>18}{dense.seconds / least.seconds:>9.2f}"
            f"{own['decode_ms_per_token']:>10.2f}{own['kv_bytes'] / 2**20:>9.1f}"
            + (f"{share:>10.1%}" if share is not None else ""),
            flush=True,
        )
    return rows


def main() -> int:
    """Check, then time; the raw results go to ``--out``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for engine.json")
    parser.add_argument("--rounds", type=int, default=8, help="prefills of each in a turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tiers", nargs="+", default=["192", "128", "64"])
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny shapes wherever this runs; no times are kept"
    )
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.rehearse:
        parser.error("no GPU here; --rehearse under TRITON_INTERPRET=1 runs the same without one")
    place = Place.of(device)
    # with the one or two calls of `measure` before its rounds: eager, captured
    options.tokens, options.warm = NEW_TOKENS, 1
    if options.rehearse:
        options.tokens, options.warm, options.rounds, options.turns = 1, 0, 1, 1
        options.batches = options.batches[:1]
    result: dict[str, Any] = {"machine": facts(place), "correctness": {}, "rows": []}
    shapes = SMALL if options.rehearse else LARGE
    for shape in shapes:
        result["correctness"][shape.name] = errors = correctness(shape, device, place.dtype)
        ours, plain = errors["triton logits"], errors["torch logits"]
        print(f"{shape.name}, 4 blocks: error {ours:.2e}, plain {result['machine']['dtype']} {plain:.2e}")
    rates = Rates(1.0, 1.0, 1.0) if options.rehearse else Rates.measured(place)
    result["rates"] = asdict(rates)
    for shape in shapes:
        model = shape.build(dtype=place.dtype, device=device)
        for batch in options.batches:
            result["rows"] += table(shape, model, batch, rates, options, place)
            if options.out and not options.rehearse:  # what is cut short has left what it had
                options.out.mkdir(parents=True, exist_ok=True)
                (options.out / "engine.json").write_text(json.dumps(result, indent=1) + "\n")
        del model
    return 0


if __name__ == "__main__":
    sys.exit(main())
