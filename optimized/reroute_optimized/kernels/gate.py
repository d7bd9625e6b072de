"""Compiles every kernel for GPUs that need not be there: ``python -m reroute_optimized.kernels.gate``.

It compiles what the launchers would launch: they run on tensors without storage, and their launches are recorded. A
spill fails, and so does growth over the committed table, for the version of triton that made it. No GPU is needed. The
gate does not run in a process of Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import decode, rope_kv, rows, score, select, table

COMMITTED = Path(__file__).with_name("compiled.json")
GROWTH = 1.10
"""A kernel fails where a figure is larger than the committed one by more than this factor."""

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
GATED = ("sm_80", "sm_90")
"""Targets on which a spill fails; the others are reported."""

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compiled:
    """The result of compiling one kernel for one target.

    ``spills`` counts bytes of a thread's local memory, and on AMD registers.
    """

    kernel: str
    case: str
    target: str
    registers: int
    spills: int
    shared: int
    size: int

    @property
    def key(self) -> str:
        """What the committed table calls it."""
        return f"{self.kernel} {self.case} {self.target}"


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _index(*shape: int) -> Tensor:
    return _empty(*shape, dtype=torch.int32)


def cases(dtypes: tuple[str, ...], head_dims: tuple[int, ...]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Launches by name, at the shapes of public decoders: 32 heads of their own keys, and 28 heads on 4."""
    for case, candidates, total in (("", 576, 640), ("tiles", 65536, 70000)):
        yield (
            case,
            partial(
                select.select_compact,
                _empty(total, dtype=torch.float32),
                _index(candidates),
                *(_index(2), _index(2)),
                _empty(total, dtype=torch.bool),
                *(_index(2), _index(2)),
                num_selected=192,
                num_active=192 + total - candidates,
                max_candidates=candidates,
                max_rows=total,
            ),
        )
    for name in dtypes:
        wide = partial(_empty, dtype=DTYPES[name])
        stream, stage, index, weight = wide(640, 4096), wide(256, 4096), _index(256), wide(4096)
        yield name, partial(rows.gather_rmsnorm, stream, index, weight, 1e-5)
        yield name, partial(rows.add_rmsnorm, stage, stage, weight, 1e-5)
        yield name, partial(rows.swiglu, wide(256, 22016))
        yield name, partial(rows.write_back, stream, index, stage, stage)
        for head_dim in head_dims:
            for heads, kv_heads in ((32, 32), (28, 4)):
                case = f"{name} {head_dim} {heads}/{kv_heads}"
                axes = _index(head_dim) if heads == 28 else None
                angles = wide(640, head_dim) if axes is None else wide(3, 640, head_dim)
                keys, pages = wide(640, kv_heads, head_dim), wide(400, 16, kv_heads, head_dim)
                stage_keys, cu = wide(256, kv_heads, head_dim), _index(2)
                asking = wide(1, heads, head_dim)
                yield (
                    case,
                    partial(
                        score.score_last_row,
                        *(asking, keys, angles, angles, axes, cu, cu, torch.empty_like(keys)),
                        scale=0.1,
                        max_rows=640,
                        max_queries=1,
                        heads="mean",
                    ),
                )
                yield (
                    case,
                    partial(
                        rope_kv.rope_kv_write,
                        *(wide(256, heads, head_dim), stage_keys, stage_keys, angles, angles, axes, index),
                        _empty(256, dtype=torch.int64),
                        *(pages, pages),
                    ),
                )
                yield (
                    case,
                    partial(
                        decode.decode_paged,
                        *(wide(8, heads, head_dim), pages, pages, _index(8, 50), _index(8)),
                        scale=0.1,
                        max_length=800,
                    ),
                )


def launches(case: Callable[[], object]) -> list[table.Launch]:
    """The launches that a launcher would make."""
    recorded: list[table.Launch] = []
    with table.recording(recorded):
        case()
    return recorded


def source(launch: table.Launch) -> ASTSource:
    """A launch as Triton's compiler takes it: types and constants as its own launcher would specialise them."""
    kernel = launch.kernel
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, parameter in enumerate(kernel.params):
        value = launch.arguments[parameter.name]
        if isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    return ASTSource(kernel, signature, constants, attributes)


def compiled(launch: table.Launch, case: str, target: str) -> Compiled:
    """Compile one launch for one target and read what it takes."""
    result = triton.compile(source(launch), target=TARGETS[target], options=launch.options)
    name = launch.kernel.__name__.strip("_")
    if target.startswith("gfx"):
        text = result.asm["amdgcn"]
        registers = _number(r"\.vgpr_count:\s*(\d+)", text)
        spills = _number(r"\.vgpr_spill_count:\s*(\d+)", text) + _number(r"\.sgpr_spill_count:\s*(\d+)", text)
        binary = result.asm["hsaco"]
    else:
        binary = result.asm["cubin"]
        usage = _resource_usage(binary)
        registers = _number(r"REG:(\d+)", usage)
        spills = _number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage)
    return Compiled(name, case, target, registers, spills, result.metadata.shared, len(binary))


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern!r} in what the compiler printed")
    return int(found.group(1))


def _resource_usage(cubin: bytes) -> str:
    tool = shutil.which("cuobjdump") or str(
        Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout


def faults(results: list[Compiled], committed: dict[str, Any]) -> list[str]:
    """The faults of the results: spills on gated targets, and growth over the committed table of the same triton."""
    found = [f"{r.key}: spills {r.spills} bytes" for r in results if r.spills and r.target in GATED]
    if committed.get("triton") != triton.__version__:
        return found
    for r in results:
        before = committed["kernels"].get(r.key)
        if before is None:
            found.append(f"{r.key}: not in {COMMITTED.name}; write it with --write")
            continue
        for what in ("registers", "shared", "size"):
            now, then = getattr(r, what), before[what]
            if r.target in GATED and now > then * GROWTH:
                found.append(f"{r.key}: {what} grew from {then} to {now}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 where something fails."""
    parser = argparse.ArgumentParser(prog="python -m reroute_optimized.kernels.gate", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every dtype and head dimension on every target")
    parser.add_argument("--write", action="store_true", help=f"write {COMMITTED.name}")
    options = parser.parse_args(argv)
    if triton.knobs.runtime.interpret:
        parser.error("unset TRITON_INTERPRET: interpreted functions cannot be compiled")
    dtypes = tuple(DTYPES) if options.full else ("bf16",)
    head_dims = (64, 80, 96, 128) if options.full else (128,)
    targets = tuple(TARGETS) if options.full or options.write else GATED
    print(f"triton {triton.__version__}")
    print(f"{'kernel':<16}{'case':<16}{'target':<8}{'registers':>10}{'spills':>8}{'shared':>8}{'bytes':>8}")
    results = []
    for case, call in cases(dtypes, head_dims):
        for launch in launches(call):
            for target in targets:
                r = compiled(launch, case, target)
                results.append(r)
                print(
                    f"{r.kernel:<16}{r.case:<16}{r.target:<8}{r.registers:>10}{r.spills:>8}{r.shared:>8}{r.size:>8}",
                    flush=True,
                )
    if options.write:
        kernels = {
            r.key: {k: v for k, v in asdict(r).items() if k in ("registers", "spills", "shared", "size")}
            for r in results
        }
        COMMITTED.write_text(json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=1) + "\n")
    committed = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
    wrong = faults(results, committed)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
