"""``benchmarks/gpu/run.sh`` without a GPU: what it refuses, and, with stand-ins for all that it calls, what it runs and for how long."""

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks/gpu/run.sh"
CALLED = """#!/bin/bash
[ -n "${LIMITED:-}" ] || echo "$0 $*" >>"$NOTES/unlimited"
echo "$*" >>"$NOTES/calls"
[[ -n "${FAILS:-}" && "$*" == *"$FAILS"* ]] && exit 1
while [ $# -gt 0 ]; do
  [ "$1" = --json ] && echo "{}" >"$2"
  shift
done
exit 0
"""
TIMEOUT = """#!/bin/bash
echo "$1 $2" >>"$NOTES/limits"
shift 2
LIMITED=1 exec "$@"
"""


def test_it_does_nothing_without_a_gpu(tmp_path):
    path = tmp_path / "bin"
    path.mkdir()
    for name in ("bash", "dirname"):
        (path / name).symlink_to(f"/usr/bin/{name}")
    out = tmp_path / "out"
    done = subprocess.run([SCRIPT, out], env={"PATH": str(path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "no nvidia-smi" in done.stderr
    assert not out.exists()


@pytest.fixture
def stand_ins(tmp_path):
    """An environment in which commands only note that they were called."""
    path = tmp_path / "bin"
    path.mkdir()
    for name, content in (("python", CALLED), ("nvidia-smi", CALLED), ("timeout", TIMEOUT)):
        (path / name).write_text(content)
        (path / name).chmod(0o755)
    return {
        "PATH": f"{path}:{os.environ['PATH']}",
        "PYTHON": str(path / "python"),
        "NOTES": str(tmp_path),
    }


@pytest.mark.parametrize(
    ("fails", "failed"), [("", None), ("engine.py", "engine"), ("--device cuda", "bench")]
)
def test_it_runs_every_part_in_less_than_eight_minutes_whatever_hangs(tmp_path, stand_ins, fails, failed):
    out = tmp_path / "out"
    done = subprocess.run(
        [SCRIPT, out], env={**stand_ins, "FAILS": fails}, capture_output=True, text=True, check=False
    )
    assert done.returncode == (1 if failed else 0), done.stderr
    assert (f"failed: {failed};" if failed else "all parts done") in done.stderr + done.stdout
    assert not (tmp_path / "unlimited").exists()
    limits = re.findall(r"^--kill-after=(\d+) (\d+)$", (tmp_path / "limits").read_text(), re.MULTILINE)
    assert sum(int(kill) + int(limit) for kill, limit in limits) < 480
    parts = [line.partition(":")[0] for line in (out / "parts.txt").read_text().splitlines()]
    page = ["page"] if failed != "bench" else []  # nothing to make one of
    assert parts == ["environment", "tests", "kernels", "engine", "bench", *page]
    assert len(limits) == 6 + len(page)  # and whether there is a GPU
    calls = (tmp_path / "calls").read_text()
    (measuring,) = re.findall(".* bench --device cuda .*", calls)
    assert "--target optimized-torch --target optimized-triton" in measuring
    assert "--html" not in measuring
    assert len(re.findall(r" bench --from \S+bench.json --html .* --readme README.md", calls)) == len(page)


def test_without_a_torch_that_sees_it_nothing_is_done(tmp_path, stand_ins):
    done = subprocess.run(
        [SCRIPT, tmp_path / "out"],
        env={**stand_ins, "FAILS": "is_available"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "sees no GPU" in done.stderr
    assert not (tmp_path / "out").exists()
