# Everything sets itself up: a virtual environment in the clone, pinned dependencies, then the job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := jaxvid jaxedit configs experiments benchmarks tests

.PHONY: demo test test-slow parity lint format clean

demo: $(VENV)/installed
	$(BIN)/jaxvid demo --out out/demo

test: $(VENV)/tested
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not parity"

test-slow: $(VENV)/tested
	$(BIN)/python -m pytest -m slow

parity: $(VENV)/tested
	$(BIN)/pip install --quiet -c constraints.txt -e ".[parity]"
	$(BIN)/python -m pytest -m parity

lint: $(VENV)/tested
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/tested
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info
