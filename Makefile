# Every target makes .venv where it is missing. Nothing else is needed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: bench docs package demo grounding grounding-full lmms mutants port test test-slow test-oldest kernels kernels-full fused fused-full lint format rules proofs

demo: $(STAMP)
	$(BIN)/vlm-reroute conform --target optimized-torch --jobs 2
	$(BIN)/vlm-reroute plan --preset reroute-fastv-192 --model llava-1.5-7b
	@cat reroute-report/verdict.txt

# the suite itself: the reference conforms, and what is wrong with it is found
mutants: $(STAMP)
	$(BIN)/vlm-reroute conform --target reference --jobs 2 --report reroute-report/reference
	$(BIN)/vlm-reroute vectors regenerate --check
	$(BIN)/vlm-reroute mutants --jobs 2

# the example in C: no Python in it, and it conforms in every profile that it claims
port: $(STAMP)
	$(MAKE) -C examples/port-c
	$(BIN)/vlm-reroute conform --cmd examples/port-c/port

# what takes processes, hundreds of requests or the making of every vector is test-slow
test: $(STAMP)
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: $(STAMP)
	$(BIN)/pytest -n 2 -m slow

# every Triton kernel compiled for sm_80 and sm_90, without a GPU: no spills, no growth; -full: every dtype and head dimension, sm_100 and gfx942 too
kernels: $(STAMP)
	$(BIN)/python -m reroute_optimized.kernels.gate

kernels-full: $(STAMP)
	$(BIN)/python -m reroute_optimized.kernels.gate --full

# backend triton in Triton's interpreter, which is slow: a case or two of every check; -full: all of them, on the way to CONFORMS
fused: $(STAMP)
	TRITON_INTERPRET=1 $(BIN)/vlm-reroute smoke --target optimized-triton

fused-full: $(STAMP)
	TRITON_INTERPRET=1 $(BIN)/vlm-reroute conform --target optimized-triton --jobs 2 --report reroute-report/triton

# the fast path on the oldest transformers and triton that it runs with, in a second environment; that judges find mutants of
# kernels does not depend on versions
OLDEST := .venv-oldest
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/pytest -n 2 -m "not slow" tests/optimized --ignore tests/optimized/kernels/test_mutants.py
	$(OLDEST)/bin/python -m reroute_optimized.kernels.gate
	$(OLDEST)/bin/vlm-reroute conform --target optimized-torch --profiles core,cache,hf --jobs 2 --report $(OLDEST)/report

# benchmarks by lmms-eval, offline, on tiny checkpoints, in an environment of its own: it brings a hundred packages
LMMS := .venv-lmms
lmms: $(LMMS)/.installed
	$(LMMS)/bin/pytest tests/lmms

# what routing costs on this machine, which should do nothing else meanwhile: the README's table and a page
bench: $(STAMP)
	$(BIN)/vlm-reroute bench --json benchmarks/results/cpu.json --html reroute-report/bench.html --readme README.md

# the site in site/, every warning an error; pages open from disk, `.venv/bin/mkdocs serve` has search too
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# sdist and wheel in dist/, and the wheel in a clean environment: minutes, most of them installing torch
package: $(STAMP)
	.ci/package

# removal against rerouting on a small trained model: a first look, in minutes; benchmarks/grounding says how the whole is made
grounding: $(STAMP)
	$(BIN)/python -m benchmarks.grounding.evaluate --quick

# the committed results and their plot again: about two hours; answers that are there already are not asked for again
grounding-full: $(STAMP)
	$(BIN)/python -m benchmarks.grounding.evaluate
	$(BIN)/python -m benchmarks.grounding.plot

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# what is generated in spec/: rules.json and INDEX.md from the chapters, float-differences.md from the presets
rules: $(STAMP)
	$(BIN)/python -m reroute_spec.rules spec
	$(BIN)/python -m reroute_spec.float_differences spec/float-differences.md

# spec/proofs: exhaustive enumeration, the counterexample, and Coq (apt-get install coq) over Route.v
proofs: $(STAMP)
	$(BIN)/python spec/proofs/enumeration.py
	$(BIN)/python spec/proofs/counterexample.py
	$(BIN)/python spec/proofs/check.py

# torch first: its pin takes the CPU build where one is at hand, and everything after it then finds it in place
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

$(OLDEST)/.installed: pyproject.toml constraints.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	sed -E '/^(transformers|triton)==/d' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c $(OLDEST)/constraints.txt 'transformers==5.17.*' 'triton==3.6.*' -e '.[dev]'
	touch $(OLDEST)/.installed

# torchvision has to be built for the very torch beside it: the two come from one place, so neither is pinned
$(LMMS)/.installed: pyproject.toml constraints.txt
	test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/pip install --quiet --disable-pip-version-check torch torchvision
	sed -E '/^(torch|triton)==/d' constraints.txt > $(LMMS)/constraints.txt
	$(LMMS)/bin/pip install --quiet --disable-pip-version-check -c $(LMMS)/constraints.txt -e '.[lmms,conformance]' pytest pytest-timeout
	touch $(LMMS)/.installed
