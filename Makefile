PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check lint types bench clean test-long

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch>=2.11"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -c "from handscroll.kernels.native.library import reason; print('compiled kernels:', reason())"
	touch $(STAMP)

demo: $(STAMP)           ## install into .venv, lengthen the starter model 8x and prove it
	$(BIN)/handscroll demo --out demo

WORKERS ?= 2

test: $(STAMP)           ## install and run the ordinary suite in WORKERS processes of one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-long: $(STAMP)      ## the longer campaigns
	$(BIN)/python -m pytest -q -m long

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

check: lint types test   ## lint + types + layers + tests

clean:
	rm -rf $(VENV) demo runs
