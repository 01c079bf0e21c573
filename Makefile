# The workbook's one command line; `make help` lists what it can do.

PROFILE ?= quick
ARGS ?=
CELL_TIMEOUT ?= 900
PYTEST_ARGS ?=

PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# Threads that wait give their core away soon: at once would cost a training a third of its speed, never would starve those beside it.
export KMP_BLOCKTIME = 0
export GOMP_SPINCOUNT = 10000

NOTEBOOKS := $(sort $(patsubst notebooks/%.ipynb,%,$(wildcard notebooks/[0-9][0-9]_*.ipynb)))
RUN := $(or $(MZ_RUNS),runs)/$(PROFILE)

# What each notebook takes from earlier ones. 00, 01, 05 and 07 are free; 08 shows all the others.
UPSTREAM_02_bc := 01_data
UPSTREAM_03_metacontroller := 02_bc
UPSTREAM_04_internal_rl := 03_metacontroller
UPSTREAM_06_robustify := 05_go_explore
UPSTREAM_08_scoreboard := $(filter-out 08_scoreboard,$(NOTEBOOKS))
upstream = $(patsubst %,$(RUN)/%/final.json,$(filter $(NOTEBOOKS),$(UPSTREAM_$1)))

.DEFAULT_GOAL := help
.PHONY: help run-all $(NOTEBOOKS) test test-browser fuzz lint lab bench refresh readme site student status data-agc clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  make NAME         one notebook and what it builds on, by name: $(NOTEBOOKS)"
	@echo "PROFILE=smoke|quick|full|paper (quick) for run-all and NAME; ARGS=\"-p seed 3\" runs a variation of NAME in a folder of its own."
	@echo "MZ_RUNS=DIR puts the run folders elsewhere than runs/. Finished notebooks are skipped; -j runs independent ones side by side."

# ---- the environment: two stamps, each written last, so that an interrupted installation is begun again

$(VENV)/.lock-installed: requirements.lock
	@test -n "$(PYTHON)" || { echo "make: the workbook needs Python 3.11: install it, or name it with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@rm -f $@ $(INSTALLED)
	@$(PYTHON) -m venv --clear $(VENV) || { echo "make: $(PYTHON) cannot make a virtual environment; on Debian, apt install python3-venv" >&2; exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

$(INSTALLED): pyproject.toml $(VENV)/.lock-installed
	@rm -f $@
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# ---- the pipeline: a notebook is done when its executed copy lies in its run folder, where only a whole execution puts it

run-all: $(NOTEBOOKS:%=$(RUN)/%/notebook.ipynb)  ## every notebook in order, into runs/PROFILE/
	@echo "run-all: profile $(PROFILE) is done; results in $(RUN)"

define NOTEBOOK_RULES
$(RUN)/$1/notebook.ipynb: notebooks/$1.ipynb notebooks/profiles/$(PROFILE)/$1.yaml $(call upstream,$1) | $(INSTALLED)
	@$(PY) -m mzlib.runs notebook $1 --profile $(PROFILE)

$(RUN)/$1/final.json: $(RUN)/$1/notebook.ipynb
	@test -f $$@

$1: $(if $(strip $(ARGS)),$(INSTALLED) $(call upstream,$1),$(RUN)/$1/notebook.ipynb)
	$(if $(strip $(ARGS)),@$(PY) -m mzlib.runs notebook $1 --profile $(PROFILE) $(ARGS),@:)
endef
$(foreach notebook,$(NOTEBOOKS),$(eval $(call NOTEBOOK_RULES,$(notebook))))

notebooks/profiles/$(PROFILE)/%.yaml:
	@echo "make: profile $(PROFILE) has no file $@; profiles: $(notdir $(wildcard notebooks/profiles/*))" >&2; exit 1

# ---- checks

test: $(INSTALLED)  ## the tests, then the committed notebooks (nbval) in a fresh run root
	@root=$$(mktemp -d) && trap 'rm -rf "$$root"' EXIT && failed=; \
	MZ_RUNS="$$root/tests" $(PY) -m pytest $(PYTEST_ARGS) tests || failed="$$failed tests"; \
	if [ -n "$(NOTEBOOKS)" ]; then \
	  MZ_RUNS="$$root/notebooks" $(PY) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=$(CELL_TIMEOUT) \
	    $(PYTEST_ARGS) notebooks || failed="$$failed notebooks"; \
	fi; \
	test -z "$$failed" || { echo "make test: failed:$$failed" >&2; exit 1; }

test-browser: $(INSTALLED)  ## widgets and whole notebooks in headless Chromium and JupyterLab; pictures in runs/screenshots
	$(PY) -m pytest -m "browser or lab" $(PYTEST_ARGS) tests

fuzz: $(INSTALLED)  ## 10,000 malformed files of each kind against the reader of human play
	MZ_FUZZ=10000 $(PY) -m pytest -k "malformed or whatever" $(PYTEST_ARGS) tests/test_agc.py

lint: $(INSTALLED)  ## ruff on sources and notebooks
	$(PY) -m ruff check

bench: $(INSTALLED)  ## speed and scores: a table, and runs/bench.json
	$(PY) -m bench

# ---- working on the workbook

lab: $(INSTALLED)  ## JupyterLab on the notebooks
	$(PY) -m jupyterlab --notebook-dir=.

refresh: $(INSTALLED)  ## execute the notebooks in place (profile quick), cleaned for committing; NOTEBOOKS="05_go_explore" for one
	@for notebook in $(NOTEBOOKS); do $(PY) -m mzlib.runs notebook $$notebook --in-place || exit 1; done

readme: $(INSTALLED)  ## write the measured results into README.md
	$(PY) -m mzlib.viz.scoreboard --write README.md

status: $(INSTALLED)  ## which runs there are, how far, and which are older than the code
	@$(PY) -m mzlib.runs status

site: $(INSTALLED)  ## the executed notebooks as static pages: open site/index.html
	@$(PY) -m mzlib.viz.site --out site

student: $(INSTALLED)  ## the notebooks without solutions, in student/
	@$(PY) -m mzlib.runs student --out student

data-agc: $(INSTALLED)  ## fetch and convert the human data (source: agc); ARGS="--origin FOLDER" for what is there already
	@$(PY) -m mzlib.agc $(ARGS)

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
