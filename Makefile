# Every target does its own set-up on a fresh machine. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Models here are tiny: one OpenMP thread a process is fastest, and two busy ones fight over two cores.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo test lint types format organism bank clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $@

demo: $(INSTALLED) ## four watched fine-tunes of the bundled model, and a report (demo-out/report.html)
	$(BIN)/wvmonitor demo --out demo-out

test: $(INSTALLED) ## the test suite (at most ten minutes on two cores)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --durations 15

lint: $(INSTALLED) ## ruff: lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## mypy --strict on the package
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

organism: $(INSTALLED) ## train the bundled model again from nothing (into build/organism)
	$(BIN)/python -m wvmonitor.organism.train --out build/organism

bank: $(INSTALLED) ## build the bundled model's references and calibration again (into build/bank)
	$(BIN)/python -m wvmonitor.organism.bank --base reference_vectors/tiny-organism/base --out build/bank

clean: ## remove what the targets made
	rm -rf build dist demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
