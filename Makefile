# Every target sets up what it needs. Python 3.11+ is a must; with a C++17 compiler the native CPU engine is built.
#
#   make train    train a VAE on scikit-learn's digits, results in runs/digits/ (again: runs/digits-2/)
#   make test     run the test suite
#   make check    two minutes of it: linters, types, and the tests that break first on each backend
#   make build    install the package into .venv, editable, native code built
#   make bench    measure against eager PyTorch, torch.compile and JAX
#   make integrations          scvi-tools, diffusers, pythae and Pyro: numbers, time and memory with and without
#                              (QUICK=1: numbers alone), in .venv-integrations
#   make explore  the page of vae-fast explore in headless Chromium, in .venv-explore
#   make lint     ruff and mypy
#   make clean    remove what was built (make distclean: and .venv)
#
# With an NVIDIA GPU:   make train TORCH_INDEX=     (PyPI's torch, with CUDA; several gigabytes)

PYTHON ?= python3
VENV ?= .venv
# The version that this checkout is tested with; the package itself takes any from 2.11 on.
TORCH ?= torch==2.13.0
# Test files run side by side in so many processes.
JOBS ?= 2
# Where the CPU build is found. Empty: PyPI alone.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help build train test check bench integrations explore lint format clean distclean
.DELETE_ON_ERROR:

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

# torch first and by itself, so that its index is asked for nothing else.
$(VENV)/torch.stamp:
	@$(PYTHON) -c 'import sys; sys.exit("vae_fast needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; name another with make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

$(VENV)/build.stamp: $(VENV)/torch.stamp $(SOURCES)
	@echo "Installing what is needed and building the native code: a minute or two"
	$(PIP) install --quiet --editable ".[train]"
	@touch $@

$(VENV)/test.stamp: $(VENV)/torch.stamp $(SOURCES)
	@echo "Installing what is needed and building the native code: a minute or two"
	$(PIP) install --quiet --editable ".[train,test,dev]"
	@touch $(VENV)/build.stamp $@

$(VENV)/bench.stamp: $(VENV)/test.stamp
	$(PIP) install --quiet "jax>=0.5"
	@touch $@

build: $(VENV)/build.stamp
	$(BIN)/python -c "import vae_fast; print(vae_fast.info())"

train: $(VENV)/build.stamp
	$(BIN)/vae-fast train

# Threads of several processes that spin while they wait take the cores from each other: three times the time.
test check: export OMP_WAIT_POLICY = passive
test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

QUICK := contract backends functional_errors latent likelihood categorical mixture noise nn data reference
check: lint
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(QUICK:%=tests/test_%.py)

bench: $(VENV)/bench.stamp
	$(BIN)/python -m pytest benchmarks --capture=no

# The libraries pin much of what they need: they do not share the environment of everything else.
LIBRARIES := .venv-integrations
$(LIBRARIES)/stamp: tests/integrations/requirements.txt $(SOURCES)
	$(MAKE) $(LIBRARIES)/torch.stamp VENV=$(LIBRARIES)
	$(LIBRARIES)/bin/python -m pip --disable-pip-version-check install --quiet "$(TORCH)" -r $< "pytest>=8" --editable .
	@touch $@

integrations: $(LIBRARIES)/stamp
	$(LIBRARIES)/bin/python -m pytest -q tests/integrations tests/test_distributions.py
	$(LIBRARIES)/bin/python -m benchmarks.integrations $(if $(QUICK),--quick)

# Upon the packages of .venv, before which its own go: minutes less than installing all of them again.
EXPLORE := .venv-explore
PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
$(EXPLORE)/stamp: tests/explore/requirements.txt $(VENV)/test.stamp
	$(BIN)/python -m venv $(EXPLORE)
	echo "import site; site.addsitedir('$$($(BIN)/python $(PACKAGES))')" \
		> "$$($(EXPLORE)/bin/python $(PACKAGES))/upon.pth"
	$(EXPLORE)/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

explore: export OMP_WAIT_POLICY = passive
explore: $(EXPLORE)/stamp
	$(EXPLORE)/bin/python -m pytest -q tests/explore

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks $(VENV)/*.stamp $(LIBRARIES)/*stamp $(EXPLORE)/stamp
	find vae_fast \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(LIBRARIES) $(EXPLORE)
