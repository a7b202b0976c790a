# Fronts on the `scalelab` command. Values come from the command line alone (`make run STRATEGY=zero2 GPUS=2`):
# launch/make_front.py reads them from MAKEFLAGS, so neither make nor a shell ever expands one.

# Freeze every command-line variable as plain text, so that make does not expand `$(shell …)` in it.
$(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$(eval override $v := $$(value $v))))
MAKEFLAGS += --no-print-directory
SHELL := /bin/sh

override VENV := .venv
override PY := $(VENV)/bin/python
override SOURCES := $(shell find launch models data profiles reports -name '*.py' -o -name '*.toml' -o -name '*.csv' -o -name 'page.*' -o -name 'plotly-*' | sort)

.DEFAULT_GOAL := help
.PHONY: help install run sweep test check format faults truth bench test-gpu tensorboard clean verdict-score verify-score diagnosis-score compare report diagnose

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r t d; do printf '  make %-13s %s\n' "$$t" "$$d"; done
	@printf '\n  e.g. make run STRATEGY=zero2 GPUS=2 PRECISION=bf16 — every option of `scalelab run` in capitals\n'

install: $(VENV)/installed ## set up .venv (every other target does so when needed)

# The environment is made again when what it is made from changes; the package, when a file comes or goes.
$(VENV)/dependencies: pyproject.toml constraints.txt
	@sh launch/setup_venv.sh $(VENV)

$(VENV)/installed: $(VENV)/dependencies $(VENV)/sources
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=strict --editable .
	@touch $@

.PHONY: always
$(VENV)/sources: always
	@mkdir -p $(VENV)
	@printf '%s\n' $(SOURCES) | cmp -s - $@ || printf '%s\n' $(SOURCES) > $@

run: install ## train one model: STRATEGY=ddp|zero1|zero2|zero3|fsdp2|single GPUS=2 MODEL=tiny PRECISION=bf16 …
	@$(PY) -m scalelab.launch.make_front run

sweep: install ## every run of a matrix, resumably: STRATEGIES=ddp,zero2 GPUS=1,2 PRECISIONS=fp32,bf16 REPEATS=3 …
	@$(PY) -m scalelab.launch.make_front sweep

compare: install ## hold runs against others: A=runs/x B=runs/y FAIL_IF=slower:5% ALLOW=different-data
	@$(PY) -m scalelab.launch.make_front compare

report: install ## rebuild the report of a run from its folder alone: RUN=runs/latest
	@$(PY) -m scalelab.launch.make_front report

diagnose: install ## what holds a run back: RUN=runs/latest, or SCENARIO=slow_loader to plant a fault first
	@$(PY) -m scalelab.launch.make_front diagnose

# Two at a time, but for ranks that hang: they are known by how long nothing moves, and want the machine for themselves.
test: install ## the test suite
	@$(PY) -m pytest -n 2 --dist worksteal --ignore tests/faults/test_hangs.py
	@$(PY) -m pytest tests/faults/test_hangs.py

check: install ## ruff and pyright
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m pyright

format: install ## let ruff rewrite the sources
	@$(PY) -m ruff check --fix . ; $(PY) -m ruff format .

faults: install ## plant every fault of docs/faults.md for real, and print what a run did about it
	@$(PY) -m tests.faults

truth: install ## plant known causes in real runs, and print planted against measured
	@$(PY) -m tests.truth

bench: install ## measure the strategies against DDP, our loop and loader against plain PyTorch and webdataset
	@$(PY) -m tests.bench

verdict-score: install ## make 20 like runs (8 minutes at most), and count how often verdicts between them are wrong
	@$(PY) -m tests.verdict_score

verify-score: install ## verify a change that changes nothing, ten times for real (15 minutes), and count what is called an improvement
	@$(PY) -m tests.verdict_score.nothing

diagnosis-score: install ## run every built-in fault with seeds that no threshold was set on, and count right diagnoses (an hour at most a call)
	@$(PY) -m tests.diagnosis_score

test-gpu: install ## the tests that need CUDA
	@$(PY) -m pytest -m gpu

tensorboard: install ## look at the traces of a run in TensorBoard: RUN=runs/latest PORT=6006
	@$(PY) -m scalelab.launch.make_front tensorboard

clean: ## remove the environment and build files; runs and cached data stay
	@rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
