PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo
# `make demo NSIGHT=no` leaves the system's packages alone.
NSIGHT ?= yes

.PHONY: demo test lint bench clean

demo: $(VENV)/.demo-installed
	@# A finished demo is measured anew, an interrupted one goes on.
	@test ! -f $(DEMO)/table.parquet || rm -r $(DEMO)
	@if [ "$(NSIGHT)" = yes ] && ! command -v nsys >/dev/null && [ "$$(id -u)" = 0 ]; then \
		.ci/install-nsight || echo "nsys could not be installed; timing with the clock instead"; \
	fi
	$(BIN)/costprof doctor
	$(BIN)/costprof sweep --preset cpu-demo --out $(DEMO) --resume
	$(BIN)/costprof inspect $(DEMO)
	$(BIN)/costprof fit $(DEMO) --out $(DEMO)/table.parquet --force
	$(BIN)/costprof table show $(DEMO)/table.parquet
	$(BIN)/costprof route $(DEMO)/table.parquet --adapt

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m "not gpu"

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Long: minutes to tens of minutes each. Run it on a machine that does nothing else.
bench: $(VENV)/.test-installed
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/kill.py --kills 20 --backend nsys
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/lookup.py
	$(BIN)/python benchmarks/backends.py
	$(BIN)/python benchmarks/energy_simulated.py
	$(BIN)/python benchmarks/tile_space.py --out out/tiles
	$(BIN)/python benchmarks/tile_search.py --replay out/tiles

clean:
	rm -rf $(VENV) out build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.demo-installed
