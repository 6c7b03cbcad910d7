PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := girih-out
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test papers fuzz check docs links clean

demo: $(VENV)/.installed
	@mkdir -p $(OUT)
	$(BIN)/python examples/wine_with_holes.py $(OUT)/wine.csv
	$(BIN)/girih fit $(OUT)/wine.csv --out $(OUT)/wine
	$(BIN)/girih impute $(OUT)/wine $(OUT)/wine.csv --std --out $(OUT)/wine-imputed
	$(BIN)/girih anomalies $(OUT)/wine $(OUT)/wine.csv --count 5 --out $(OUT)/wine-anomalies
	$(BIN)/girih fit circle --model dgn --out $(OUT)/circle
	$(BIN)/girih fit mnist-4 --out $(OUT)/mnist-4
	@echo
	@echo "Pictures and numbers, one page each:"
	@echo "  $(OUT)/wine/report.html"
	@echo "  $(OUT)/circle/report.html"
	@echo "  $(OUT)/mnist-4/report.html"

# In the order of their names, the files that end the run are short ones, and the processes end together.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile --no-loadscope-reorder

# The reproductions of the papers, a package of its own: what `girih reproduce` runs.
papers: $(VENV)/.installed
	@echo "$(BIN)/girih reproduce --list"

# The laws on many more random cases than in `make test`: minutes, see docs/reliability.md.
fuzz: $(VENV)/.installed
	GIRIH_FUZZ=long OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m fuzz --numprocesses auto

check: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet --doctest-modules src/girih papers/src

# Pages, API and executed tutorials; a tutorial runs again when it has changed.
docs: $(VENV)/.installed-docs
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m sphinx --fail-on-warning --keep-going --builder html docs docs/build/html
	@echo "Open docs/build/html/index.html"

# Links that lead out of the pages; needs a network, and executes nothing.
links: $(VENV)/.installed-docs
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m sphinx -D nb_execution_mode=off --builder linkcheck docs docs/build/linkcheck

clean:
	rm -rf build dist docs/build $(OUT) .mypy_cache .pytest_cache .ruff_cache src/*.egg-info papers/build papers/src/*.egg-info
	find src tests papers -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml papers/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ".[dev]" --editable ./papers
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) --editable ".[dev,docs]" --editable ./papers
	@touch $@
