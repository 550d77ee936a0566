# The three commands: `make demo`, `make test`, `make test-all`. All of them make .venv first, once.
# Another build of torch (say for a GPU): `make TORCH=torch==2.13.0 PIP_FLAGS="--index-url ..."`.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PIP_FLAGS ?=
WORKERS ?= 2

bin := $(VENV)/bin
pip := $(bin)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt $(TORCH)
ready := $(VENV)/.ready
# The source as it installs, as links: tools that do not run import hooks find sci.graphs here.
typed := build/typed
wings := graphs proteins pde timeseries cells datasets

export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-all lint types format clean

help:
	@echo "make demo      the tour: writes demo/index.html"
	@echo "make test      lint, types, and all tests but the slow ones"
	@echo "make test-all  the slow tests too"
	@echo "make lint      ruff and mypy only"
	@echo "make format    let ruff rewrite the source"
	@echo "make clean     remove .venv and everything that was built"

demo: $(ready)
	$(bin)/sci demo

test: lint
	$(bin)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-all: lint
	$(bin)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(ready) types
	$(bin)/ruff check .
	$(bin)/ruff format --check .

types: $(ready)
	@rm -rf $(typed) && mkdir -p $(typed)/sci
	@ln -s $(addprefix $(CURDIR)/,$(wildcard sci/*)) $(typed)/sci/
	@ln -s $(addprefix $(CURDIR)/,$(wings)) $(typed)/sci/
	cd $(typed) && $(abspath $(bin))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p sci

format: $(ready)
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

# torch goes first and is named in every call, so that pip never trades it for another build.
$(ready): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"sciflows needs Python 3.11 or newer, this is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	@echo "Making $(VENV), once: about 2 GB and two to five minutes. Afterwards everything starts at once."
	@$(PYTHON) -m venv $(VENV)
	@echo "  1/2 torch"
	@$(pip)
	@echo "  2/2 sciflows with all its extras and the tools for testing"
	@$(pip) -e ".[all,test]"
	@touch $@

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
