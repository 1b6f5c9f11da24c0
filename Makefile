# Set-up is part of every target: a fresh machine needs Python 3.11+ with venv and pip, nothing else.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# A file's tests share what is costly to set up; tests/conftest.py says which files begin.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint format bench claims clean

demo: $(READY)
	$(BIN)/hiertcn demo --out demo $(if $(LOG),--log "$(LOG)") $(ARGS)

test: $(READY)
	$(BIN)/pytest $(WORKERS) $(ARGS)

test-all: $(READY)
	$(BIN)/pytest $(WORKERS) -m "" $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

# Hours; stopped, it goes on. Needs the real log beside the project.
claims: $(READY)
	$(BIN)/python -m benchmarks.claims

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

clean:
	rm -rf .venv demo claims .pytest_cache .mypy_cache .ruff_cache .hypothesis
