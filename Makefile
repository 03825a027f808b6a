# The commands of the repository. A set-up is made where one is missing; it needs python3 (3.11 or newer), make and a C library.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

.PHONY: boot test retest setup bench campaign experiment test-gpu dist lint clean help

help:
	@echo 'make boot | test | bench PART= | campaign PART= | experiment NAME= [QUICK=1] | test-gpu | dist | lint | clean'

setup: $(STAMP)

# torch first and by itself, under the constraints: a plain resolution would take a build for GPUs, and gigabytes with it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed 's/^torch==.*/$(TORCH)/' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(VENV)/constraints.txt '$(TORCH)'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[test]'
	touch $(STAMP)

boot: $(STAMP)
	$(BIN)/recuros doctor
	$(BIN)/recuros boot digits

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m 'not gpu and not slow'

# What failed in the last run, and nothing else.
retest: $(STAMP)
	$(BIN)/python -m pytest -m 'not gpu and not slow' --last-failed --last-failed-no-failures none

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

# Each part is a file; a part that is not there is named together with the ones that are.
bench: $(STAMP)
	$(call run_part,tests/bench,PART,$(PART),bench)

campaign: $(STAMP)
	$(call run_part,tests/campaign,PART,$(PART),campaign)

experiment: $(STAMP)
	$(call run_part,tests/experiments,NAME,$(NAME),experiment,$(if $(QUICK),--quick) $(if $(PROCS),--procs $(PROCS)))

define run_part
	@part='$(subst -,_,$(3))'; there="$$(cd $(1) 2>/dev/null && ls [a-z]*.py 2>/dev/null | sed 's/\.py$$//' | tr '\n' ' ')"; \
	if [ -z "$$part" ] || [ ! -f "$(1)/$$part.py" ]; then \
	  echo "make $(4): there is no $(2)='$(3)'; there are: $${there:-none yet}" >&2; exit 2; \
	fi; \
	mkdir -p build/$(4) && $(BIN)/python -m $(subst /,.,$(1)).$$part $(if $(SECONDS),--seconds $(SECONDS)) $(if $(COUNT),--count $(COUNT)) $(5)
endef

dist: $(STAMP)
	rm -rf dist build/lib
	$(BIN)/python -m build --wheel --no-isolation
	@mkdir -p build && $(BIN)/python -m zipfile -l dist/recuros-*.whl > build/wheel.txt
	@for name in servers/apps/digits.toml console/report.css console/dash/static/index.html console/dash/static/js/pages/overview.js; do \
	  grep -q "^$$name " build/wheel.txt || { echo "the wheel lacks $$name" >&2; exit 1; }; done
	@ls -l dist

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
