# Every target sets up what it needs.
# Options: PYTHON=python3.12  TORCH="torch==2.13.0"  TORCH_INDEX=URL  VENV=.venv
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# Without a GPU, give the index of PyTorch's CPU builds, a tenth of the download:
# pytorch.org > Get started > CPU.
TORCH_INDEX ?=
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Two stamps: what the package needs to run, and beside it the tools of tests, linters and evaluators.
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
AUDIT := $(VENV)/audit

# timed LABEL COMMAND...: a line with the label and the seconds that the command took; its output
# only if it fails.
timed := timed() { \
	printf '%-60s' "$$1"; shift; start=$$(date +%s); \
	if output=$$("$$@" 2>&1); then printf '%4d s\n' $$(($$(date +%s) - start)); \
	else code=$$?; printf ' failed\n%s\n' "$$output"; exit $$code; fi; }

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNTIME)  ## pretrain a tiny model, fine-tune it with three objectives (minutes, no GPU)
	@$(BIN)/python -m benchmarks.lab.quickstart configs/quickstart.yaml

test: $(DEV)  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

faults: $(DEV)  ## kill, damage and confuse runs in all ways of docs/reliability.md (4 to 20 minutes)
	$(BIN)/python -m pytest tests/faults -m "" --faults-json benchmarks/results/faults.json

nightly: $(DEV)  ## the long tests: every model type, recipe and small table of the paper, SLURM, a lab of files (hours)
	$(BIN)/python -m pytest -n 2 -m nightly

check: lint audit  ## all that must hold before a merge, besides the tests: lint, then audit

lint: $(DEV)  ## lint, formatting, direction of imports, types; needs no network
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# By name and version, without the local part (+cpu) that no vulnerability service knows; --strict:
# what could not be looked up is an error.
audit: $(DEV)  ## look up known vulnerabilities of all that is installed (network: pypi.org)
	@test -x $(AUDIT)/bin/pip-audit || \
		{ $(BIN)/python -m venv $(AUDIT) && $(AUDIT)/bin/pip install -q pip-audit; } || \
		{ echo "make audit: pip-audit could not be installed, so nothing has been looked up;" \
			"without a network: make lint"; exit 1; }
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > $(AUDIT)/requirements.txt
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip -r $(AUDIT)/requirements.txt || \
		{ echo "make audit: NOT passed: known vulnerabilities, listed above, or a package that could" \
			"not be looked up; see SECURITY.md"; exit 1; }

format: $(DEV)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(RUNTIME)  ## write the pages' tables of keys, objectives, controllers and models from the code
	$(BIN)/python tools/docs.py

install: $(RUNTIME)  ## make the virtual environment .venv with the package in it

clean:  ## remove the virtual environment, and nothing else
	rm -rf $(VENV)

# A stamp is newer than pyproject.toml once all is installed: a second `make` starts at once.
$(RUNTIME): pyproject.toml
	@found=; for python in $(PYTHONS); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			found=$$python; break; \
		fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "adaptsft needs Python 3.11 or newer; none among: $(PYTHONS)."; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 ..."; exit 1; \
	fi; \
	$(timed); timed "virtual environment $(VENV), $$($$found --version)" $$found -m venv $(VENV)
	@$(timed); timed "$(TORCH)" $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@$(timed); timed "adaptsft" $(PIP) --editable .
	@touch $@

$(DEV): $(RUNTIME)
	@$(timed); timed "tools of tests, linters and evaluators" $(PIP) --editable ".[dev]"
	@touch $@

.PHONY: help docs demo test faults nightly check lint audit format install clean
