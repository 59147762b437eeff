# Everything a contributor types. `make run` and `make test` need Python 3.10 or newer, a C compiler
# and a package index; all they write lies under .venv, build and other ignored names.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := .constraints.txt
NATIVE := $(sort $(wildcard native/*.c native/*.h native/*/*.c native/*/*.h) native/_build.py)
C_FILES := $(filter %.c %.h,$(NATIVE))
PROMPT ?= Once upon a time
SAMPLING ?= --temperature 0.7 --top-p 0.9 --seed 1

.PHONY: run test test-slow setup check fix types native bench wheel clean help sanitize test-neon \
  sanitize-gpu

help:
	@echo "make run      install into $(VENV) if needed, generate a story with three actors"
	@echo "make test     lint, types and the test suite"
	@echo "make test-slow  the tests that lose actors on purpose, minutes of them"
	@echo "make sanitize the native tests on kernels built with ASan and UBSan"
	@echo "make sanitize-gpu a small case of every CUDA kernel under compute-sanitizer's four tools"
	@echo "make test-neon the NEON kernels under qemu (gcc-aarch64-linux-gnu, qemu-user-static)"
	@echo "make setup    install into $(VENV) with what tests and linters need"
	@echo "make check    ruff, clang-format, mypy"
	@echo "make fix      let ruff and clang-format change the files"
	@echo "make types    mypy alone"
	@echo "make native   rebuild the C kernels in place, after editing native/"
	@echo "make bench    hotcold bench kernels, bench hop and bench decode"
	@echo "make wheel    one wheel for every Python, in dist/"
	@echo "make clean    remove what the build and the tools wrote; keeps $(VENV)"

# ---- install -----------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; \
	  sys.exit(0 if sys.version_info >= (3, 10) else f"hotcold needs Python 3.10 or newer, $(PYTHON) is {v}; run make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS) $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@ $(VENV)/.installed

setup: $(VENV)/.installed-dev

# ---- run ---------------------------------------------------------------------------------------

run: $(VENV)/.installed
	@echo "$(PROMPT) ..."
	$(BIN)/hotcold generate --max-tokens 160 $(SAMPLING) "$(PROMPT)"
	@echo
	@echo "Next, compare two placement policies:"
	@echo "$(BIN)/hotcold compare --policy greedy --policy random --vram 24MiB"

bench: $(VENV)/.installed-dev
	$(BIN)/hotcold bench kernels
	$(BIN)/hotcold bench hop
	$(BIN)/hotcold bench decode

# ---- check -------------------------------------------------------------------------------------

# Static tools do not follow an editable install; through this link they see the real files under
# their import name.
build/typed/hotcold:
	@mkdir -p build/typed
	@ln -sfn ../.. $@

check: setup build/typed/hotcold
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/mypy

types: setup build/typed/hotcold
	$(BIN)/mypy

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

test: check
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

# The package once more, in links, around kernels of its own: the ones in place stay as they are.
SANITIZED := build/sanitize/hotcold

sanitize: setup
	rm -rf build/sanitize && mkdir -p $(SANITIZED)/native
	ln -s $(addprefix $(CURDIR)/,runtime policies actors) $(SANITIZED)/
	ln -s $(addprefix $(CURDIR)/,$(filter-out native/_kernels.abi3.so,$(wildcard native/*))) \
	  $(SANITIZED)/native/
	$(BIN)/python native/_build.py --into=$(SANITIZED)/native -g -O1 \
	  -fsanitize=address,undefined -fno-sanitize-recover=all
	export ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize \
	  LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" && \
	  $(BIN)/python -c 'from hotcold.native import _kernels; exit("sanitize" not in _kernels.__file__)' && \
	  $(BIN)/python -m pytest -p no:cacheprovider -m "not ray and not neon" tests/native

# Needs an NVIDIA GPU and the CUDA toolkit; the plug-in is compiled before, not under the tools.
GPU_TOOLS := memcheck racecheck synccheck initcheck

sanitize-gpu: setup
	$(BIN)/python -c 'from hotcold.native import cuda_plugin; exit(cuda_plugin.find() is None)'
	set -e; for tool in $(GPU_TOOLS); do echo "== $$tool"; \
	  HOTCOLD_TEST_SMALL=1 compute-sanitizer --tool $$tool --error-exitcode 9 \
	  $(BIN)/python -m pytest -q -p no:cacheprovider tests/cuda/test_kernels.py \
	  tests/cuda/test_attention.py; done

test-neon: setup
	$(BIN)/python -m pytest -m neon tests/native

# ---- build -------------------------------------------------------------------------------------

native: setup
	$(BIN)/python native/_build.py

wheel: setup
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist hotcold.egg-info native/_kernels.abi3.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f $(VENV)/.installed $(VENV)/.installed-dev
