# make demo       sets up .venv, then runs the demo suite: every family on embedded data, with a report
# make test       sets up .venv, then lints, type-checks and tests, and prints what each row's tests cost
# make test-fast  for working: the cheapest tests only, at most three minutes on two cores
# make docs      builds the documentation site into build/site, offline; with samples and numbers: RESULTS=outputs/bench/demo
# make clean      removes .venv and everything built; outputs/ stays

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test test-fast docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"dgmbench needs Python 3.11, 3.12 or 3.13; this is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/dgm bench suite=demo

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/readme_table.py --check
	$(BIN)/pytest -n 2 --dist worksteal --budgets

test-fast: setup
	$(BIN)/pytest -n 2 --dist worksteal --fast

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python scripts/site.py $(if $(RESULTS),--results $(RESULTS))

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
