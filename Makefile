# Everything happens in .venv of this folder; a second call reuses what is there.
#   make run       install and run the main job: the four schedulers on a bundled workload
#   make test      everything that CI checks: formatting, types, shipped files, tests
#   make check     the same without the tests
#   make validate  hold the simulation against a tiny model served live on this CPU
#   make kill-test kill 200 commands all over their lives; nothing may be half written or lost
#   make bench     measure the simulator's own speed
#   make install   install cbsim alone
#   make generated write the reference, the JSON Schema and the list of rooms anew
# PYTHON chooses the interpreter (3.11 or newer), EXTRAS what `make test` installs besides cbsim.

PYTHON ?= python3
EXTRAS ?= dev,cluster,torch,triton,tune
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
COMMA := ,
TESTED := $(VENV)/.installed-$(subst $(COMMA),-,$(EXTRAS))

.PHONY: help install run test check validate kill-test bench generated clean

help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "cbsim needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' can't make virtual environments: it lacks the modules venv or ensurepip." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv; or name another: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) --editable .
	@$(BIN)/python -m compileall -q cbsim
	@touch $@

$(TESTED): $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $(VENV)/.installed $@

install: $(VENV)/.installed

run: $(VENV)/.installed
	$(BIN)/cbsim sweep experiments/quickstart.yaml --workers 2

check: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cbsim check experiments/*.yaml

test: check
	@if $(BIN)/python -c 'import triton, torch' 2>/dev/null; then \
	  TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 tests/lab/kernels/test_triton_*.py; fi
	$(BIN)/python -m pytest -n 2

validate: $(TESTED)
	OMP_NUM_THREADS=1 $(BIN)/cbsim validate calibration/validate.yaml

kill-test: $(TESTED)
	$(BIN)/python -m tests.killing

bench: $(VENV)/.installed
	$(BIN)/cbsim bench

generated: $(TESTED)
	$(BIN)/cbsim schema --out configs
	$(BIN)/python -m tests.test_architecture

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
