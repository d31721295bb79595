# make demo: the whole pipeline on procedural images. make test: every test. make check: style and types.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test check

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	dvc repro
	salmask results

test: $(VENV)/installed
	python -m pytest -n 2 --no-loadscope-reorder  # one process is for jobs: see tests/conftest.py

check: $(VENV)/installed
	ruff format --check .
	ruff check .
	mypy
