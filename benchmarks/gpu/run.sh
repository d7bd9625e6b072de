#!/usr/bin/env bash
# Everything that a CUDA machine is needed for, in one call under eight minutes; results and what they were made on in one folder,
# and the README's table for a GPU:
#     benchmarks/gpu/run.sh [FOLDER]        PYTHON=… chooses the interpreter, .venv/bin/python where there is one
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)

if ! command -v nvidia-smi >/dev/null; then
  echo "run.sh: there is no nvidia-smi: this machine has no NVIDIA GPU, or not its driver; nothing was done" >&2
  exit 3
fi

# limited SECONDS COMMAND…: what hangs costs its own time, five seconds more where it has to be killed, and no other's. Whatever hangs,
# 30 + 25 + 85 + 65 + 115 + 100 + 20 s and seven times five are under eight minutes.
limited() {
  timeout --kill-after=5 "$@"
}

out=${1:-$root/benchmarks/results/gpu}
out=$(realpath -m --relative-to="$root" "$out") # a command that stands in a README says nothing of folders around this one
cd "$root"
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

if ! limited 30 "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "run.sh: $python has a torch that sees no GPU: install a CUDA build; nothing was done" >&2
  exit 3
fi

mkdir -p "$out"
failed=()
# part NAME SECONDS COMMAND…: its output goes to NAME.log
part() {
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  limited "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  echo "$name: exit $code after $((SECONDS - began)) s" | tee -a "$out/parts.txt"
  [ "$code" = 0 ] || failed+=("$name")
}

bench=("$python" -c 'from reroute_conformance.cli import main; main()' bench)
: >"$out/parts.txt"
part environment 25 bash -c '
  date -u +%FT%TZ
  git rev-parse HEAD
  git status --short
  nvidia-smi
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
  "$0" -m pip list 2>/dev/null | grep -iE "^(torch|triton|transformers|numpy|vlm-reroute) "
  lscpu
  true' "$python"
part tests 85 "$python" -m pytest -q -p no:cacheprovider tests/optimized/kernels
part kernels 65 "$python" benchmarks/gpu/kernel_times.py --no-tests --out "$out"
part engine 115 "$python" benchmarks/gpu/engine.py --out "$out"
part bench 100 "${bench[@]}" --device cuda --target optimized-torch --target optimized-triton \
  --suite prefill --suite decode --suite block --suite score --suite select --json "$out/bench.json"
# what was measured until its time was up is there, whatever becomes of its page
[ ! -e "$out/bench.json.partial" ] || mv "$out/bench.json.partial" "$out/bench.json"
if [ -e "$out/bench.json" ]; then
  part page 20 "${bench[@]}" --from "$out/bench.json" --html "$out/bench.html" --readme README.md
fi

if [ ${#failed[@]} -gt 0 ]; then
  echo "run.sh: failed: ${failed[*]}; see $out" >&2
  exit 1
fi
echo "run.sh: all parts done; results in $out"
