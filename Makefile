# Each target does its own set-up: it creates .venv when it is missing or out of date.
PYTHON ?= python3
RUN := .venv/bin

# processes that share the tests; each takes up to 3 GB
JOBS ?= 2

.PHONY: reproduce evidence test lowest lint audit lab bench clean
.DEFAULT_GOAL := reproduce

reproduce: .venv/ready ## every table and figure on generated speech, into paper_figures/demo
	mkdir -p paper_figures/demo
	$(RUN)/papermill --log-output --no-progress-bar nbs/90_reproduce.ipynb paper_figures/demo/90_reproduce.ipynb

EVIDENCE := 91_target_labels 92_loss_weights 93_corpora_matrix 94_rivals 95_claims

evidence: reproduce ## labels, weights, pairs of corpora, rivals and the ledger of claims, on generated speech
	for name in $(EVIDENCE); do \
		$(RUN)/papermill --log-output --no-progress-bar nbs/$$name.ipynb paper_figures/demo/$$name.ipynb || exit 1; done

test: .venv/ready ## the chapters, the library against its notebooks, and behaviour across chapters
	OMP_NUM_THREADS=1 $(RUN)/nbdev_test --path nbs --n_workers $(JOBS)
	$(RUN)/python -m pytest tests -n $(JOBS) --dist worksteal

lowest: ## training, runs, audio and commands with the lowest versions that settings.ini allows; downloads them
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt . pytest hypothesis psutil
	.venv-lowest/bin/python -m pytest tests/test_training.py tests/test_store.py tests/test_audio.py tests/test_export.py tests/test_cli.py

lint: .venv/ready ## faults that can be seen without running anything
	$(RUN)/ruff check

audit: .venv/ready ## known weaknesses of what is installed, where a service that knows them can be reached
	$(RUN)/python -m pip check
	$(RUN)/python .ci/audit.py

lab: .venv/ready ## the book in JupyterLab
	$(RUN)/jupyter lab nbs

BENCHMARKS := training prediction augmentation data_path startup compiled limit throughput corpus duplicates demo

bench: .venv/bench ## side-by-side measurements, into benchmarks/results, and their table; about an hour on two cores
	for name in $(BENCHMARKS); do $(RUN)/python benchmarks/$$name.py || exit 1; done
	$(RUN)/python benchmarks/report.py

.venv/bench: .venv/ready
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmarks]'
	touch .venv/bench

.venv/ready: settings.ini constraints.txt setup.py
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo 'cdser needs Python 3.11 to 3.13; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)'; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/ready

clean: ## all that the other targets made, except paper_figures
	rm -rf .venv .venv-lowest runs corpora build *.egg-info
