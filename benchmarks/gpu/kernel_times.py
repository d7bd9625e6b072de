"""The Triton kernels on a GPU, in one call: are they right there, do they read the host, and what do they cost beside the libraries.

    python benchmarks/gpu/kernel_times.py --out benchmarks/results/NAME       on a CUDA or ROCm machine
    TRITON_INTERPRET=1 python benchmarks/gpu/kernel_times.py --rehearse       without one: small shapes, no times

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from kernel_cases import Case, Maker, cases
from reroute_conformance.bench.measuring.timing import Times, times_faster
from reroute_conformance.bench.presenting.tables import ratio
from reroute_optimized.kernels import ops
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
PERCENTILES = (20, 50, 80)
AIM = {"score_last_row": 1.5, "select_compact": 1.5, "gather_rmsnorm": 1.5}
"""Times its floor that a kernel may take."""


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
    print(
        f"{'kernel':<16}{'shape':<44}{'us':>8}{'floor':>8}{'of it':>7}  by{'':<8}library, times ours (quartiles)"
    )
    result["rows"] = rows = []
    for case in cases(Maker("cuda", torch.bfloat16), small=False):
        agree(case, torch.bfloat16)
        torch._dynamo.reset()  # so that every shape is compiled for itself
        compiled = torch.compile(case.library, dynamic=False)
        forms = {"ours": case.ours, "torch": case.library, "torch.compile": compiled}
        measured = times(forms, options.rounds)
        moving = case.bytes / speed * 1e6
        floor, by = (moving, "bytes") if moving > launch else (launch, "launch")
        ours = statistics.median(measured["ours"])
        own = Times(tuple(measured["ours"]))
        others = {name: times_faster(Times(tuple(measured[name])), own) for name in forms if name != "ours"}
        rows.append(
            {"kernel": case.kernel, "shape": case.shape, "bytes": case.bytes, "floor_us": floor, "floor": by}
            | {"us": {name: spread(values) for name, values in measured.items()}, "times_ours": others}
        )
        print(
            f"{case.kernel:<16}{case.shape:<44}{ours:>8.1f}{floor:>8.1f}{ours / floor:>7.2f}  {by:<10}"
            + ", ".join(f"{name} {ratio(others[name])}" for name in others)
            + (
                f"  more than {AIM[case.kernel]} floors"
                if ours > AIM.get(case.kernel, math.inf) * floor
                else ""
            ),
            flush=True,
        )
        if options.out:  # what is cut short has left what it had
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "kernels.json").write_text(json.dumps(result, indent=1) + "\n")
    return int(
        any(isinstance(code := result.get(what, 0), int) and code != 0 for what in ("tests", "memcheck"))
    )


if __name__ == "__main__":
    sys.exit(main())
