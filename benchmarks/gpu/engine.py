"""The engine of backend ``triton`` on a GPU, in one call: is it right there, and does the clock follow the FLOPs.

    python benchmarks/gpu/engine.py --out benchmarks/results/NAME          on a CUDA machine
    TRITON_INTERPRET=1 python benchmarks/gpu/engine.py --rehearse          without one: tiny shapes, no times are kept

Text decoders of LLaVA-1.5-7B's and Qwen2.5-VL-7B's shape with random bfloat16 weights, 576 visual and 64 text rows a request. On a cut
of four blocks the engine is first held to the reference in float32 (RR-NUM-001: its error at most twice that of plain bfloat16, with
decisions replayed); no time is taken of what fails. Then, in one run and in turns: the model as it is; unrouted under this engine;
``optimized-torch``; ``optimized-triton``; each beside the floor, the larger of what the products take at the matrix rate and what the
weights take at the bandwidth that this run measures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import triton
from reroute_optimized import routed
from reroute_optimized.target import torch_target, triton_target
from reroute_reference import run
from reroute_spec import Decision, Plan, Schedule, plan, shape_from_config
from reroute_spec.plan import visual_flags
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

UNROUTED = Schedule("reroute", ())
NEW_TOKENS = 64


@dataclass(frozen=True)
class Shape:
    """A text decoder, and a prompt."""

    name: str
    kind: type
    config: dict[str, Any]
    visual: int = 576
    text: int = 64
    before: int = 35

    def build(
        self, layers: int | None = None, dtype: torch.dtype = torch.bfloat16, device: str = "cuda"
    ) -> Any:
        """With random weights."""
        model, config = self.kind
        torch.manual_seed(0)
        own = {**self.config, **({} if layers is None else {"num_hidden_layers": layers})}
        with torch.device(device):
            built = model._from_config(config(**own), dtype=dtype, attn_implementation="sdpa")
        return built.eval().requires_grad_(False)

    def inputs(self, batch: int, like: Any, seed: int = 1) -> dict[str, Tensor]:
        """Embeddings [B, S, d] and which rows are visual."""
        weight = like.get_input_embeddings().weight
        chance = torch.Generator(weight.device).manual_seed(seed)
        rows = self.visual + self.text
        shape = (batch, rows, weight.shape[1])
        flags = torch.tensor([visual_flags(self.visual, self.text, before=self.before)] * batch)
        embeddings = torch.randn(shape, generator=chance, device=weight.device, dtype=torch.float32)
        return {"inputs_embeds": embeddings.to(weight.dtype), "visual_mask": flags.to(weight.device)}


LARGE = [
    Shape(
        "LLaVA-1.5-7B",
        (LlamaForCausalLM, LlamaConfig),
        {"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32},
    ),
    Shape(
        "Qwen2.5-VL-7B",
        (Qwen2ForCausalLM, Qwen2Config),
        {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
         "num_attention_heads": 28, "num_key_value_heads": 4},
    ),
]  # fmt: skip
SMALL = [
    Shape(
        "tiny",
        (LlamaForCausalLM, LlamaConfig),
        {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
         "num_attention_heads": 2, "num_key_value_heads": 1},
        visual=6, text=4, before=2,
    ),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- right?


def correctness(shape: Shape, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Errors of a routed prefill and three tokens on four blocks against float32, and plain rounding's.

    The prefill of the reference, the tokens of backend ``torch`` in float32, decisions replayed. And what is replayed from graphs gives
    the bits of the first, eager, call.

    Raises:
        AssertionError: more than twice plain rounding's, plus a floor; or other bits.
    """
    schedule = Schedule("reroute", (Decision(1, "0.5"), Decision(3, "0.25")))
    wide, narrow = (shape.build(4, kind, device) for kind in (torch.float32, dtype))
    inputs = shape.inputs(2, wide)
    tokens = torch.tensor([[3, 5, 7], [11, 13, 17]], device=device)
    with torch.no_grad():
        exact = run(wide, inputs, schedule)
    decisions = [[list(record.selected) for record in trace.decisions] for trace in exact.traces]
    asked = {"decisions": decisions, "continuation": tokens}
    wanted = {
        "logits": exact.logits.double(),
        "decode_logits": stacked(torch_target().run(wide, inputs, schedule, **asked), "decode_logits"),
    }
    given = {"inputs_embeds": inputs["inputs_embeds"].to(dtype), "visual_mask": inputs["visual_mask"]}
    errors = {}
    for name, target in (("torch", torch_target()), ("triton", triton_target())):
        answers = target.run(narrow, given, schedule, **asked)
        for what, right in wanted.items():
            difference = stacked(answers, what) - right.to(device)
            errors[f"{name} {what}"] = float(difference.square().mean().sqrt() / right.square().mean().sqrt())
    floor = 64 * torch.finfo(dtype).eps
    for what in wanted:
        assert errors[f"triton {what}"] <= 2 * errors[f"torch {what}"] + floor, f"{shape.name}: {errors}"
    replays_are_the_same(narrow, given, schedule, tokens)
    return errors


def stacked(answers: list[dict[str, Any]], what: str) -> Tensor:
    """One entry of every request, in float64."""
    return torch.stack([answer[what] for answer in answers]).double()


@torch.no_grad()
def replays_are_the_same(model: Any, inputs: dict[str, Tensor], schedule: Schedule, tokens: Tensor) -> None:
    """Four prompts of one layout, each with the same tokens after it: eager at first, from graphs where there are any later."""
    shown = []
    with routed(model, schedule, backend="triton"):
        for _ in range(4):
            out = model(**inputs, use_cache=True)
            steps = [
                model(input_ids=step[:, None], past_key_values=out.past_key_values).logits
                for step in tokens.unbind(1)
            ]
            shown.append([out.logits, *steps])
    for other in shown[1:]:
        for one, two in zip(shown[0], other, strict=True):
            assert torch.equal(one, two), "a replay gives other bits than the call that it stands for"


# ----------------------------------------------------------------------------------------------------------------- floor


@dataclass(frozen=True)
class Machine:
    """What a device can do: products in operations a second, moves in bytes a second."""

    operations: float
    bytes: float

    @classmethod
    def measured(cls, device: str, dtype: torch.dtype, size: int) -> Machine:
        """By a large product and a large copy."""
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        source = torch.randn(16 * size * size, device=device, dtype=dtype)
        target = torch.empty_like(source)
        product = statistics.median(timed(lambda: left @ right, 10, 3, device))
        copied = statistics.median(timed(lambda: target.copy_(source), 10, 3, device))
        return cls(2 * size**3 / product, 2 * source.nbytes / copied)

    def floor(self, shape: Shape, request: Plan, batch: int, element: int) -> float:
        """Seconds of a prefill: per block, the larger of its products and of its weights' way; and the key of each decision."""
        own = shape_from_config(shape.config | {"model_type": "llama"})
        width, heads = own.hidden_size, own.num_attention_heads * own.head_dim
        narrow = own.num_key_value_heads * own.head_dim
        weights = width * (2 * heads + 2 * narrow + 3 * own.intermediate_size)
        total = 0.0
        decided = {stage.first for stage in request.stages if stage.index}
        for layer, rows in enumerate(request.kv_rows):
            operations = batch * (
                2 * rows * weights + 2 * rows * rows * heads
            )  # causal attention: half of 4 R R H D
            if layer in decided:
                operations += batch * 2 * (request.num_rows - rows) * width * narrow
            total += max(operations / self.operations, weights * element / self.bytes)
        return total


# ------------------------------------------------------------------------------------------------------------------ time


def wait(device: str) -> None:
    """Until everything launched so far is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], Any], rounds: int, warm: int, device: str) -> list[float]:
    """Seconds from the call to the device's last operation, after ``warm`` calls, in which graphs are captured."""
    times = []
    for place in range(warm + rounds):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        if place >= warm:
            times.append(time.perf_counter() - start)
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Milliseconds."""
    cuts = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {f"p{p}": cuts[p // 10 - 1] * 1e3 for p in (20, 50, 80)}


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
    """Of the keys and values in a cache, rows of nobody left out."""
    total = 0
    for layer in cache.layers:
        rows = getattr(layer, "rows", None)
        if rows is None:
            total += layer.keys.nbytes + layer.values.nbytes
        else:
            total += len(set(rows.pages())) * (layer.key_pages[:1].nbytes + layer.value_pages[:1].nbytes)
    return total


def prefill_of(model: Any, shape: Shape, batch: int, how: tuple[Schedule, str] | None) -> Callable[[], Any]:
    """A prefill of the model as it is routed now."""
    inputs = shape.inputs(batch, model)
    if how is None:
        del inputs["visual_mask"]
    return lambda: model(**inputs, use_cache=True, logits_to_keep=1)


def decoded(model: Any, prefill: Callable[[], Any], batch: int, device: str, tokens: int) -> float:
    """Seconds a token after a prefill."""
    cache = prefill().past_key_values
    wait(device)
    start = time.perf_counter()
    token = torch.ones(batch, 1, dtype=torch.long, device=device)
    for _ in range(tokens):
        token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    wait(device)
    return (time.perf_counter() - start) / tokens


def memory(model: Any, prefill: Callable[[], Any], result: Any, device: str) -> dict[str, int]:
    """Bytes of the cache that a prefill leaves, and most at once while it runs: all but the weights, pages and graphs that are kept
    for the next request included.
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
    device: str,
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
                seconds[name] += timed(prefill, rounds, options.warm, device)
                tokens = options.tokens if batch == 1 else -(-options.tokens // 4)
                decoded(model, prefill, batch, device, tokens)  # pages are taken and tokens captured in it
                steps[name].append(decoded(model, prefill, batch, device, tokens))
                found[name] = memory(model, prefill, result, device)
                if result is not None:
                    found[name] |= seen(result, prefill, device)
    for name, own in found.items():
        own |= {
            "name": name,
            "prefill_ms": spread(seconds[name]),
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
    shape: Shape, model: Any, batch: int, machine: Machine, options: Any, device: str
) -> list[dict[str, Any]]:
    """Rows of one shape and batch size."""
    layers = model.config.num_hidden_layers
    if options.rehearse:
        schedules = {"25%": Schedule("reroute", (Decision(1, "0.25"),))}
    else:
        schedules = {tier: Schedule.load(f"reroute-fastv-{tier}", layers) for tier in options.tiers}
    flags = visual_flags(shape.visual, shape.text, before=shape.before)
    element = model.get_input_embeddings().weight.element_size()
    rows: list[dict[str, Any]] = []
    print(f"\n{shape.name}, batch {batch}")
    print(
        f"{'':<26}{'prefill ms':>11}{'floor':>8}{'of it':>7}{'x':>7}{'floor x':>9}{'ms/token':>10}{'KV MiB':>9}{'overhead':>10}"
    )
    everybody = contenders(schedules)
    found = measured(model, shape, batch, everybody, options, device)
    base = found["unrouted"]
    base["floor_ms"] = machine.floor(shape, plan(UNROUTED, layers, flags), batch, element) * 1e3
    for name, own in found.items():
        how = everybody[name]
        request = plan(UNROUTED if how is None else how[0], layers, flags)
        own |= {"batch": batch, "shape": shape.name}
        own["floor_ms"] = machine.floor(shape, request, batch, element) * 1e3
        own["planned_kv_bytes"] = kv_bytes(shape, request, batch, element)
        rows.append(own)
        p50 = own["prefill_ms"]["p50"]
        share = own.get("overhead")
        print(
            f"{name:<26}{p50:>11.2f}{own['floor_ms']:>8.2f}{p50 / own['floor_ms']:>7.2f}"
            f"{base['prefill_ms']['p50'] / p50:>7.2f}{base['floor_ms'] / own['floor_ms']:>9.2f}"
            f"{own['decode_ms_per_token']:>10.2f}{own['kv_bytes'] / 2**20:>9.1f}"
            + (f"{share:>10.1%}" if share is not None else ""),
            flush=True,
        )
    return rows


def kv_bytes(shape: Shape, request: Plan, batch: int, element: int) -> int:
    """Keys and values of the plan's rows."""
    own = shape_from_config(shape.config | {"model_type": "llama"})
    return 2 * batch * sum(request.kv_rows) * own.num_key_value_heads * own.head_dim * element


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
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    options.tokens, options.warm = NEW_TOKENS, 2
    if options.rehearse:
        options.tokens, options.warm, options.rounds, options.turns = 1, 0, 1, 1
        options.batches = options.batches[:1]
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "correctness": {},
        "rows": [],
    }
    shapes = SMALL if options.rehearse else LARGE
    for shape in shapes:
        result["correctness"][shape.name] = errors = correctness(shape, device, dtype)
        ours, plain = errors["triton logits"], errors["torch logits"]
        print(f"{shape.name}, 4 blocks: error {ours:.2e}, plain {result['dtype']} {plain:.2e}")
    machine = Machine.measured(device, dtype, 64 if options.rehearse else 8192)
    result |= {"operations_per_second": machine.operations, "bytes_per_second": machine.bytes}
    for shape in shapes:
        model = shape.build(dtype=dtype, device=device)
        for batch in options.batches:
            result["rows"] += table(shape, model, batch, machine, options, device)
            if options.out and not options.rehearse:  # what is cut short has left what it had
                options.out.mkdir(parents=True, exist_ok=True)
                (options.out / "engine.json").write_text(json.dumps(result, indent=1) + "\n")
        del model
    return 0


if __name__ == "__main__":
    sys.exit(main())
