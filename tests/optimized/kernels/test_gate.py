"""What the compile gate lets pass; ``make kernels`` runs it on the real compiler, which an interpreter's process cannot."""

import subprocess
import sys
from pathlib import Path

import triton
from reroute_optimized.kernels import gate


def compiled(**changes):
    fields = {
        "kernel": "k",
        "case": "bf16",
        "target": "sm_90",
        "registers": 40,
        "spills": 0,
        "shared": 512,
        "size": 9000,
    }
    return gate.Compiled(**fields | changes)


COMMITTED = {
    "triton": triton.__version__,
    "kernels": {"k bf16 sm_90": {"registers": 40, "spills": 0, "shared": 512, "size": 9000}},
}


def test_the_same_again_passes():
    assert gate.faults([compiled()], COMMITTED) == []


def test_a_spill_fails_where_it_is_gated_whatever_the_table_says():
    assert gate.faults([compiled(spills=8)], {}) == ["k bf16 sm_90: spills 8 bytes"]
    assert gate.faults([compiled(spills=8, target="gfx942")], {}) == []


def test_growth_fails_for_the_triton_of_the_table_only():
    grown = [compiled(registers=48, shared=1024)]
    assert [fault.split(": ")[1].split()[0] for fault in gate.faults(grown, COMMITTED)] == [
        "registers",
        "shared",
    ]
    assert gate.faults(grown, COMMITTED | {"triton": "0.0.0"}) == []


def test_a_kernel_that_is_not_in_the_table_fails():
    assert "--write" in gate.faults([compiled(case="new")], COMMITTED)[0]


def test_every_kernel_is_gated():
    """Whatever the launchers launch is in the cases."""
    names = {
        launch.kernel.fn.__name__
        for _, call in gate.cases(("bf16",), (128,))
        for launch in gate.launches(call)
    }
    assert names == {
        "_select", "_compact", "_gather_rmsnorm", "_add_rmsnorm", "_swiglu", "_write_back", "_logits", "_reduce",
        "_rope_kv_write", "_split", "_merge",
    }  # fmt: skip


def test_the_gpu_script_rehearses_every_kernel():
    """The script that checks and times on a GPU, on small shapes and without times."""
    script = Path(__file__).parents[3] / "benchmarks" / "gpu" / "kernel_times.py"
    done = subprocess.run([sys.executable, script, "--rehearse"], capture_output=True, text=True, check=True)
    assert done.stdout.count("agrees") == 8
