# Everything sets itself up: `make demo` and `make test` need only Python ≥ 3.11 on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/demo
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-browser lint docs notebooks bench bench-gpu clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,docs,dicom,fast,lora,onnx,cluster,app]"
	touch $@

demo: $(STAMP)
	$(BIN)/hf-cxr demo --out $(OUT)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --ignore tests/browser

# The app in a real browser. Chromium is installed where that is allowed; else the tests say that they skip, and why.
test-browser: $(STAMP)
	@test -x /usr/bin/chromium || { root=$$(test $$(id -u) = 0 || echo sudo -n); export DEBIAN_FRONTEND=noninteractive; \
		{ timeout 60 $$root apt-get update && timeout 180 $$root apt-get install --yes --no-install-recommends chromium; } \
		</dev/null >/dev/null 2>&1; } || true
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/browser

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_vulnerabilities.py constraints.txt

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html; with its search: python3 -m http.server --directory build/site"

# Runs the five notebooks from the first to the last, some 15 minutes, and keeps their outputs in them.
notebooks: export OMP_NUM_THREADS = 1
notebooks: export TQDM_DISABLE = 1
notebooks: export HF_DATASETS_DISABLE_PROGRESS_BARS = 1
notebooks: export PYTHONWARNINGS = ignore:IProgress not found
notebooks: $(STAMP)
	rm -rf notebooks/work
	cd notebooks && $(abspath $(BIN))/jupyter nbconvert --to notebook --inplace --execute \
		--ExecutePreprocessor.record_timing=False *.ipynb

bench: $(STAMP)
	$(BIN)/python benchmarks/phantom.py
	$(BIN)/python benchmarks/lateral.py $(OUT)

# Everything that needs a GPU, in under 9 minutes; its head tells more.
bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py --out build/gpu.json

clean:
	rm -rf $(VENV) runs build .pytest_cache .mypy_cache .ruff_cache
