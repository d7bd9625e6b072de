"""The Triton kernels on a GPU, in one call: are they right there, do they read the host, and what do they cost beside the libraries.

    python benchmarks/gpu/kernels.py --out benchmarks/results/NAME       on a CUDA or ROCm machine
    TRITON_INTERPRET=1 python benchmarks/gpu/kernels.py --rehearse       without one: small shapes, no times

Every row of the table is a kernel and the library's form of the same work, on the same inputs, in turns, each as a captured graph
behind a flushed L2 cache. The floor is what moving the bytes takes at the bandwidth that this run measures, or a launch of nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from reroute_optimized import ops
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
PERCENTILES = (20, 50, 80)
AIM = {"score_last_row": 1.5, "select_compact": 1.5, "gather_rmsnorm": 1.5}
"""Times its floor that a kernel may take."""


@dataclass(frozen=True)
class Case:
    """One kernel at one shape, and the library's form of the same work, which leaves the same behind.

    Attributes:
        bytes: the least that have to move.
        inputs: what a replay has to follow when it is changed in place.
    """

    kernel: str
    shape: str
    ours: Callable[[], Any]
    library: Callable[[], Any]
    bytes: int
    inputs: tuple[Tensor, ...]


class Maker:
    """Inputs on one device in one dtype."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.chance = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """Values in the dtype."""
        return torch.randn(shape, generator=self.chance, device=self.device).to(self.dtype)

    def index(self, values: Any) -> Tensor:
        """A table of int32."""
        return torch.as_tensor(values, dtype=torch.int32, device=self.device)

    def starts(self, count: int, each: int) -> Tensor:
        """Where ``count`` members of ``each`` begin, and the end."""
        return self.index([i * each for i in range(count + 1)])


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[rows, heads, head_dim] turned in half-split pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def score_case(make: Maker, requests: int, rows: int, heads: int, kv_heads: int, head_dim: int) -> Case:
    """One asking row a request."""
    query, key = make.normal(requests, heads, head_dim), make.normal(requests * rows, kv_heads, head_dim)
    cos, sin = make.normal(requests * rows, head_dim), make.normal(requests * rows, head_dim)
    out = torch.empty_like(key)
    cu, ask = make.starts(requests, rows), make.starts(requests, 1)
    last = (cu[1:] - 1).long()

    def ours() -> Tensor:
        return ops.score_last_row(query, key, cos, sin, None, cu, ask, out, head_dim**-0.5, rows, 1, "mean")

    def library() -> Tensor:
        keys = rotated(key, cos, sin).view(requests, rows, kv_heads, head_dim).float()
        asking = rotated(query, cos[last], sin[last]).float().view(requests, kv_heads, -1, head_dim)
        logits = torch.einsum("rkgd,rskd->rkgs", asking, keys) * head_dim**-0.5
        return logits.softmax(-1).flatten(1, 2).mean(1).flatten()

    moved = 2 * key.nbytes + cos.nbytes + sin.nbytes + query.nbytes + 4 * requests * rows
    shape = f"{requests} x {rows} rows, {heads}/{kv_heads} heads of {head_dim}"
    return Case("score_last_row", shape, ours, library, moved, (query, key))


def select_case(make: Maker, requests: int, visual: int, text: int, kept: int) -> Case:
    """The library sorts: ``topk`` would not keep ties in order."""
    rows = visual + text
    scores = torch.rand(requests * rows, generator=make.chance, device=make.device)
    place = torch.arange(requests * rows, device=make.device)
    is_visual = place % rows < visual
    candidates = place[is_visual].int()
    arguments = (
        scores, candidates, make.starts(requests, visual), make.starts(requests, kept), ~is_visual,
        make.starts(requests, rows), make.starts(requests, kept + text), requests * kept, requests * (kept + text),
        visual, rows,
    )  # fmt: skip

    def library() -> Tensor:
        own = scores[candidates].view(requests, visual)
        chosen = own.sort(dim=1, descending=True, stable=True).indices[:, :kept].sort(dim=1).values
        runs = (~is_visual).view(requests, rows).scatter(1, chosen, True)
        order = (~runs).long().sort(dim=1, stable=True).indices[:, : kept + text]
        return (order + torch.arange(requests, device=make.device)[:, None] * rows).flatten().int()

    moved = scores.nbytes + candidates.nbytes + 4 * requests * (visual + kept + text + rows) + rows * requests
    shape = f"{requests} x {visual} candidates, {kept} kept"
    return Case("select_compact", shape, lambda: ops.select_compact(*arguments)[2], library, moved, (scores,))


def rows_cases(make: Maker, rows: int, stage: int, width: int, mlp: int) -> Iterator[Case]:
    """The ends of a stage and of a block."""
    stream, weight = make.normal(rows, width), make.normal(width)
    index = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:stage].sort().values
    index, long = make.index(index), index.to(make.device)
    delta, gate_up, target = make.normal(stage, width), make.normal(stage, 2 * mlp), make.normal(stage, width)
    ours, theirs = (make.normal(stage, width) for _ in range(2))  # residuals that are added to in place
    theirs.copy_(ours)
    own, others = make.normal(rows, width), make.normal(rows, width)
    others.copy_(own)
    shape = f"{stage} of {rows} rows, {width} channels"

    def gather() -> tuple[Tensor, Tensor]:
        taken = stream.index_select(0, long)
        return taken, F.rms_norm(taken, (width,), weight, 1e-5)

    def add() -> tuple[Tensor, Tensor]:
        theirs.add_(delta)
        return theirs, F.rms_norm(theirs, (width,), weight, 1e-5)

    def add_ours() -> tuple[Tensor, Tensor]:
        normed = ops.add_rmsnorm(ours, delta, weight, 1e-5)
        return ours, normed

    def swiglu() -> Tensor:
        gate, up = gate_up.split(mlp, dim=1)
        return F.silu(gate) * up

    def write() -> Tensor:
        return others.index_copy_(0, long, target + delta)

    def write_ours() -> Tensor:
        ops.write_back(own, index, target, delta)
        return own

    row = stage * width * stream.element_size()
    yield Case(
        "gather_rmsnorm",
        shape,
        lambda: ops.gather_rmsnorm(stream, index, weight, 1e-5),
        gather,
        3 * row,
        (stream,),
    )
    yield Case("add_rmsnorm", shape, add_ours, add, 4 * row, (delta,))
    yield Case(
        "swiglu",
        f"{stage} rows, {mlp} channels",
        lambda: ops.swiglu(gate_up),
        swiglu,
        gate_up.nbytes * 3 // 2,
        (gate_up,),
    )
    yield Case("write_back", shape, write_ours, write, 3 * row, (target, delta))


def rope_case(make: Maker, rows: int, heads: int, kv_heads: int, head_dim: int) -> Case:
    """Rows of a stage into one block's pages."""
    query = make.normal(rows, heads, head_dim)
    key, value = make.normal(rows, kv_heads, head_dim), make.normal(rows, kv_heads, head_dim)
    cos, sin = make.normal(2 * rows, head_dim), make.normal(2 * rows, head_dim)
    index = make.index(range(0, 2 * rows, 2))
    pages = [make.normal(rows // 16 + 2, 16, kv_heads, head_dim) for _ in range(4)]
    slots = torch.arange(rows, device=make.device) + 7

    def ours() -> tuple[Tensor, Tensor]:
        turned, _ = ops.rope_kv_write(query, key, value, cos, sin, None, index, slots, pages[0], pages[1])
        return turned, pages[0].flatten(0, 1)[7 : 7 + rows]

    def library() -> tuple[Tensor, Tensor]:
        c, s = cos[index], sin[index]
        turned, keys = rotated(query, c, s), rotated(key, c, s)
        pages[2].flatten(0, 1).index_copy_(0, slots, keys)
        pages[3].flatten(0, 1).index_copy_(0, slots, value)
        return turned, pages[2].flatten(0, 1)[7 : 7 + rows]

    moved = 2 * query.nbytes + 3 * key.nbytes + 2 * value.nbytes + (cos.nbytes + sin.nbytes) // 2
    shape = f"{rows} rows, {heads}/{kv_heads} heads of {head_dim}"
    return Case("rope_kv_write", shape, ours, library, moved, (query, key, value))


def decode_case(make: Maker, requests: int, length: int, heads: int, kv_heads: int, head_dim: int) -> Case:
    """One new row a request."""
    each = -(-length // 16)
    keys, values = (make.normal(requests * each, 16, kv_heads, head_dim) for _ in "kv")
    query, table = (
        make.normal(requests, heads, head_dim),
        make.index(range(requests * each)).view(requests, each),
    )
    lengths = make.index([length] * requests)

    def library() -> Tensor:
        # the rows already lie in order: the library is spared the gather
        k, v = (
            x.view(requests, each * 16, kv_heads, head_dim)[:, :length].transpose(1, 2)
            for x in (keys, values)
        )
        return F.scaled_dot_product_attention(query[:, :, None], k, v, enable_gqa=True)[:, :, 0]

    return Case(
        "decode_paged",
        f"{requests} x {length} rows, {heads}/{kv_heads} heads of {head_dim}",
        lambda: ops.decode_paged(query, keys, values, table, lengths, head_dim**-0.5, length),
        library,
        2 * requests * length * kv_heads * head_dim * keys.element_size() + 2 * query.nbytes,
        (query, keys, values),
    )


def cases(make: Maker, small: bool) -> Iterator[Case]:
    """Public shapes: LLaVA-1.5-7B and Qwen2.5-VL-7B; small ones to rehearse."""
    if small:
        yield score_case(make, 2, 40, 4, 2, 16)
        yield select_case(make, 2, 40, 7, 9)
        yield from rows_cases(make, 12, 5, 32, 48)
        yield rope_case(make, 6, 4, 2, 16)
        yield decode_case(make, 2, 37, 4, 2, 16)
        return
    for requests in (1, 8, 64):
        yield score_case(make, requests, 640, 32, 32, 128)
        yield score_case(make, requests, 640, 28, 4, 128)
        yield select_case(make, requests, 576, 64, 192)
        yield from rows_cases(make, 640 * requests, 256 * requests, 4096, 11008)
        yield rope_case(make, 256 * requests, 32, 32, 128)
        yield decode_case(make, requests, 256, 32, 32, 128)
        yield decode_case(make, requests, 256, 28, 4, 128)
    yield score_case(make, 1, 8256, 28, 4, 128)
    yield select_case(make, 64, 4096, 64, 1365)
    yield select_case(make, 1, 8192, 64, 2730)
    yield select_case(make, 1, 65536, 64, 7282)


def agree(case: Case, dtype: torch.dtype) -> None:
    """Both forms give the same, up to the dtype, relative to the largest; the tests hold the kernels to more."""
    most = 2e-2 if dtype != torch.float32 else 1e-5
    ours, theirs = case.ours(), case.library()
    for x, y in zip(_flat(ours), _flat(theirs), strict=True):
        if not x.is_floating_point():
            assert torch.equal(x, y), case
        else:
            assert (x.float() - y.float()).abs().max() <= most * y.float().abs().max(), case


def _flat(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def capture(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of one call, and what it leaves; nothing in it may read the device."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            result = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return graph, result


def replays_follow_their_inputs() -> None:
    """Every kernel captured, its inputs changed in place: the bits of a fresh call. And one whose lengths change, too."""
    for case in cases(Maker("cuda", torch.bfloat16), small=True):
        if case.kernel == "add_rmsnorm":  # adds once more at every call
            continue
        graph, captured = capture(case.ours)
        for x in case.inputs:
            x.normal_()
        graph.replay()
        fresh = [x.clone() for x in _flat(case.ours())]
        graph.replay()
        for x, y in zip(_flat(captured), fresh, strict=True):
            assert torch.equal(x, y), f"a replay of {case.kernel} does not follow its inputs"
    make = Maker("cuda", torch.bfloat16)
    key, query = make.normal(200, 4, 128), make.normal(2, 8, 128)
    cu, ask = make.index([0, 150, 200]), make.index([0, 1, 2])

    def call() -> Tensor:
        return ops.score_last_row(query, key, None, None, None, cu, ask, None, 0.1, 200, 1, "mean")

    graph, captured = capture(call)
    cu.copy_(make.index([0, 70, 120]))
    key.normal_()
    key[120:] = torch.nan
    graph.replay()
    assert torch.equal(captured[:120], call()[:120]), "a replay does not follow its lengths"


def times(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of every replay, all in turns, L2 flushed before each."""
    flush = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    graphs = {name: capture(call)[0] for name, call in calls.items()}
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            start.record()
            graph.replay()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) * 1e3 for start, end in pairs] for name, pairs in events.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Its percentiles."""
    cuts = statistics.quantiles(values, n=100)
    return {f"p{p}": cuts[p - 1] for p in PERCENTILES}


def bandwidth(rounds: int) -> float:
    """Bytes a second that a large copy moves, read and written."""
    source = torch.empty(2**28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    measured = times({"copy": lambda: target.copy_(source)}, rounds)["copy"]
    return 2 * source.nbytes / (statistics.median(measured) * 1e-6)


def tests_pass() -> dict[str, Any]:
    """The suite's kernel tests on this GPU, all dtypes, and once more under compute-sanitizer where it is at hand."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    interpreted = [
        sys.executable,
        "-c",
        "import tests.conftest, triton; assert not triton.knobs.runtime.interpret",
    ]
    subprocess.run(interpreted, cwd=ROOT, env=environment, check=True)
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/optimized/kernels"]
    done = subprocess.run(pytest, cwd=ROOT, env=environment, capture_output=True, text=True)
    result: dict[str, Any] = {"tests": done.returncode, "said": done.stdout[-2000:]}
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return result | {"memcheck": "compute-sanitizer is not installed"}
    command = [
        tool,
        "--tool",
        "memcheck",
        "--error-exitcode",
        "9",
        *pytest,
        "-k",
        "test_kernels and not long",
    ]
    environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    try:
        checked = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
        )
    except subprocess.TimeoutExpired:
        return result | {"memcheck": "took more than 240 s"}
    return result | {"memcheck": checked.returncode, "memcheck_said": checked.stdout[-2000:]}


def main() -> int:
    """Check, then time; the raw results go to ``--out``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for kernels.json")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--no-tests", action="store_true", help="only replays and times")
    parser.add_argument("--rehearse", action="store_true", help="small shapes, no times: both forms agree")
    options = parser.parse_args()
    if options.rehearse:
        dtype = torch.float32
        for case in cases(Maker("cuda" if torch.cuda.is_available() else "cpu", dtype), small=True):
            agree(case, dtype)
            print(f"{case.kernel:<16}{case.shape:<44}agrees")
        return 0
    if not torch.cuda.is_available():
        parser.error("no GPU here; --rehearse under TRITON_INTERPRET=1 runs the same cases without one")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "dtype": "bfloat16",
    }
    if not options.no_tests:
        result |= tests_pass()
    replays_follow_their_inputs()
    result["graphs"] = "replays follow their inputs"
    result["bytes_per_second"] = speed = bandwidth(20)
    nothing = torch.empty(1, device="cuda")
    launch = statistics.median(times({"launch": nothing.zero_}, options.rounds)["launch"])
    result["launch_us"] = launch
    print(f"{result['device']}: {speed / 1e12:.2f} TB/s, {launch:.1f} us for a launch of nothing")
    print(f"{'kernel':<16}{'shape':<44}{'us':>8}{'floor':>8}{'of it':>7}  by{'':<8}library, times ours")
    rows = []
    for case in cases(Maker("cuda", torch.bfloat16), small=False):
        agree(case, torch.bfloat16)
        torch._dynamo.reset()  # so that every shape is compiled for itself
        compiled = torch.compile(case.library, dynamic=False)
        forms = {"ours": case.ours, "torch": case.library, "torch.compile": compiled}
        measured = times(forms, options.rounds)
        moving = case.bytes / speed * 1e6
        floor, by = (moving, "bytes") if moving > launch else (launch, "launch")
        ours = statistics.median(measured["ours"])
        others = {name: statistics.median(measured[name]) / ours for name in forms if name != "ours"}
        rows.append(
            {"kernel": case.kernel, "shape": case.shape, "bytes": case.bytes, "floor_us": floor, "floor": by}
            | {"us": {name: spread(values) for name, values in measured.items()}}
        )
        print(
            f"{case.kernel:<16}{case.shape:<44}{ours:>8.1f}{floor:>8.1f}{ours / floor:>7.2f}  {by:<10}"
            + ", ".join(f"{name} {ratio:.2f}" for name, ratio in others.items())
            + (
                f"  more than {AIM[case.kernel]} floors"
                if ours > AIM.get(case.kernel, math.inf) * floor
                else ""
            ),
            flush=True,
        )
    result["rows"] = rows
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "kernels.json").write_text(json.dumps(result, indent=1) + "\n")
    return int(
        any(isinstance(code := result.get(what, 0), int) and code != 0 for what in ("tests", "memcheck"))
    )


if __name__ == "__main__":
    sys.exit(main())
