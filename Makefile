# Every target sets up what it needs. Options: PYTHON=python3.12  TORCH="torch==2.13.0"  TORCH_INDEX=URL  VENV=.venv
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# Without a GPU, give the index of PyTorch's CPU builds (a tenth of the download): see pytorch.org > Get started > CPU.
TORCH_INDEX ?=
INSTALLED := $(VENV)/.installed

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## pretrain a tiny model and fine-tune it with three objectives (minutes on 2 cores, no GPU, no data)
	$(BIN)/python -m benchmarks.lab.quickstart configs/quickstart.yaml

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest

faults: $(INSTALLED)  ## kill, damage and confuse runs in all ways of docs/reliability.md, and print the table (10 to 15 minutes on 2 cores)
	$(BIN)/python -m pytest tests/faults -m "" --faults-json benchmarks/results/faults.json

nightly: $(INSTALLED)  ## train every recipe of the paper and run every table and figure in small, on tiny models
	$(BIN)/python -m pytest tests/benchmarks/test_recipes.py -m nightly

check: lint audit  ## all that must hold before a merge, besides the tests: lint, then audit

lint: $(INSTALLED)  ## lint, formatting and types; needs no network
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# By name and version, without the local part (+cpu) that no vulnerability service knows; --strict: what could not be looked up is an error.
audit: $(INSTALLED)  ## look up known vulnerabilities of everything installed (needs the network: pypi.org)
	@test -x $(VENV)/audit/bin/pip-audit || { $(BIN)/python -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install -q pip-audit; } || \
		{ echo "make audit: pip-audit could not be installed, so nothing has been looked up; without a network: make lint"; exit 1; }
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > $(VENV)/audit/requirements.txt
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r $(VENV)/audit/requirements.txt || \
		{ echo "make audit: NOT passed: known vulnerabilities, listed above, or a package that could not be looked up; see SECURITY.md"; exit 1; }

format: $(INSTALLED)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED)  ## make the virtual environment .venv and install the package in it

clean:  ## remove the virtual environment, and nothing else
	rm -rf $(VENV)

# The stamp is newer than pyproject.toml once all is installed, so that a second `make` starts at once.
$(INSTALLED): pyproject.toml
	@set -e; found=; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "adaptsft needs Python 3.11 or newer; none among: $(or $(PYTHON),python3 python3.13 python3.12 python3.11)."; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 ..."; exit 1; \
	fi; \
	echo "[1/3] virtual environment $(VENV), $$($$found --version)"; \
	$$found -m venv $(VENV)
	@echo "[2/3] $(TORCH)"
	@$(BIN)/python -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@echo "[3/3] adaptsft and its tools"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable ".[dev]"
	@touch $@

.PHONY: help demo test faults nightly check lint audit format install clean
