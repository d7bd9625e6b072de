#!/usr/bin/env bash
# Everything that a CUDA machine is needed for, in one call under eight minutes; results and what they were made on in one folder:
#     benchmarks/gpu/run.sh [FOLDER]        PYTHON=… chooses the interpreter, .venv/bin/python where there is one
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)

if ! command -v nvidia-smi >/dev/null; then
  echo "run.sh: there is no nvidia-smi: this machine has no NVIDIA GPU, or not its driver; nothing was done" >&2
  exit 3
fi

out=${1:-$root/benchmarks/results/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "run.sh: $python has a torch that sees no GPU: install a CUDA build; nothing was done" >&2
  exit 3
fi

{
  date -u +%FT%TZ
  git rev-parse HEAD 2>/dev/null
  git status --short 2>/dev/null
  nvidia-smi
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
  "$python" -m pip list 2>/dev/null | grep -iE '^(torch|triton|transformers|numpy|vlm-reroute) '
  lscpu
} >"$out/environment.txt" 2>&1

failed=()
# part NAME SECONDS COMMAND…: its output goes to NAME.log; one that hangs costs its own time and no other's
part() {
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  echo "$name: exit $code after $((SECONDS - began)) s" | tee -a "$out/parts.txt"
  [ "$code" = 0 ] || failed+=("$name")
}

: >"$out/parts.txt"
# 20 + 110 + 100 + 150 + 75 s: under eight minutes whatever hangs, with five seconds for each that has to be killed
part tests 110 "$python" -m pytest -q -p no:cacheprovider tests/optimized/kernels
part kernels 100 "$python" benchmarks/gpu/kernels.py --no-tests --out "$out"
part engine 150 "$python" benchmarks/gpu/engine.py --out "$out"
part bench 75 "$python" -c 'from reroute_conformance.cli import main; main()' bench --device cuda --target optimized-torch \
  --suite prefill --suite decode --suite block --suite score --suite select --json "$out/bench.json" --html "$out/bench.html"

if [ ${#failed[@]} -gt 0 ]; then
  echo "run.sh: failed: ${failed[*]}; see $out" >&2
  exit 1
fi
echo "run.sh: all parts done; results in $out"
