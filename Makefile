# make demo        the whole pipeline on images that code draws; LOCKED=1 installs requirements.lock
# make test        all tests but the long ones (make test-long)
# make check       style and types
# make bench       speed, as ratios that can be compared between machines
# make lock        writes requirements.lock from the versions in .venv
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed$(if $(LOCKED),-locked)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: install demo test test-long check bench lock

$(INSTALLED): pyproject.toml setup.py $(if $(LOCKED),requirements.lock)
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/installed*
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet $(if $(LOCKED),--constraint requirements.lock) --editable '.[dev]'
	touch $@

install: $(INSTALLED)

demo: install
	dvc repro
	salmask results

test: install
	python -m pytest -n 3 --no-loadscope-reorder  # how tests are distributed: tests/conftest.py

test-long: install
	python -m pytest -m long

check: install
	ruff format --check .
	ruff check .
	mypy

bench: install
	OMP_NUM_THREADS=1 python -m benchmarks --json benchmarks.json

lock: install
	{ echo "# Linux, $$(python --version). Written by 'make lock', read by 'make demo LOCKED=1'."; \
	  python -m pip list --format freeze --exclude-editable --exclude pip --exclude setuptools \
	  | sed 's/+[a-z0-9.]*$$//'; } > requirements.lock
