# `make demo` runs the main path on the bundled model; `make test` runs the tests. Both install what they need into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= 2

.PHONY: install demo test lint engine-checks docs digits fuzz torture lowest clean

install: $(VENV)/.installed $(VENV)/.native

# torch, torchvision and timm in one pinned command: unpinned, any of them may pull several GB of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch torchvision timm
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,export]"
	touch $@

# Our own engine; everything else works without it. `pip install ./native` says more where it cannot be built.
$(VENV)/.native: $(VENV)/.installed $(wildcard native/CMakeLists.txt native/pyproject.toml native/*/*.* native/*/*/*.*)
	@if ! command -v $${CXX:-c++} > /dev/null; then \
		echo "no C++ compiler here: the native engine is left out (vitfrost export --format native needs it)"; \
	elif PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps ./native; then \
		touch $@; \
	else \
		echo "the native engine was not built: it takes a compiler with C++20; everything else works without it"; \
	fi

demo: install
	$(BIN)/vitfrost demo

# Kept memory saves the system from handing out and clearing the pages of large tensors again and again.
test: install
	MALLOC_MMAP_THRESHOLD_=400000000 MALLOC_TRIM_THRESHOLD_=800000000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy src benchmarks && $(BIN)/mypy native/python
	$(BIN)/clang-format --dry-run -Werror native/*/*.[hc]pp native/*/*.h native/*/*/*.cpp native/*/*/*.inl
	@if ! command -v $${CXX:-c++} > /dev/null || ! command -v cmake > /dev/null; then \
		echo "no C++ compiler or no cmake here: the engine's warnings are not checked"; \
	else \
		cmake -S native -B build/lint -DVITFROST_CHECKS=ON -DVITFROST_WARNINGS_AS_ERRORS=ON -DCMAKE_CXX_FLAGS_RELEASE=-O1 > /dev/null && \
		cmake --build build/lint --parallel $(WORKERS) > /dev/null; \
	fi

# The engine under AddressSanitizer and UBSan: damaged files, and models opened and closed over and over. Some minutes.
engine-checks: install
	$(BIN)/python scripts/engine_checks.py

# The documentation site in build/site; every warning is an error. It needs no torch, so it has an environment of its own.
docs: $(VENV)-docs/.installed
	NO_MKDOCS_2_WARNING=true $(VENV)-docs/bin/mkdocs build --strict

$(VENV)-docs/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt mkdocs-material "mkdocstrings[python]" ruff
	touch $@

# Trains the bundled digits model anew (within ten minutes on two cores).
digits: install
	$(BIN)/python scripts/train_digits.py

# Damaged files of every kind, in processes with limits on time and memory; a table of how they ended. CASES=100000 for longer.
CASES ?= 10000
MINUTES ?= 20
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.fuzz --cases $(CASES) --minutes $(MINUTES) --workers $(WORKERS)

# Verbs that are killed at random moments, that find no room, and that meet each other (the full disk needs the right to mount).
KILLS ?= 200
torture: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.torture --kills $(KILLS)

# The main path and the tests of files with the lowest versions that pyproject.toml declares, in an environment of their own.
lowest: $(VENV)-lowest/.installed
	rm -rf $(VENV)-lowest/demo && OMP_NUM_THREADS=1 $(VENV)-lowest/bin/vitfrost demo --out $(VENV)-lowest/demo
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -q tests/test_pipeline.py tests/faults/test_inputs.py tests/vit/test_options.py

$(VENV)-lowest/.installed: pyproject.toml scripts/lowest.py
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check $$($(PYTHON) scripts/lowest.py) --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-docs $(VENV)-lowest vitfrost-demo build dist
