# make demo   trains a model with DP-SGD on real handwritten digits, into runs/demo
# make test   runs the tests
# Both create an environment in .venv first. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint install clean

demo: install
	$(BIN)/python -m experiments.dpsgd --workdir=runs/demo

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --durations=25

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
