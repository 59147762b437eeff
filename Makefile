# Everything a contributor types. `make run` and `make test` need Python 3.10 or newer, a C compiler
# and a package index; all they write lies under .venv, build and other ignored names.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NVCC ?= nvcc
# Where the tests of a GPU run without the virtual environment: make test-gpu TEST_PYTHON=python3
TEST_PYTHON ?= $(BIN)/python
CONSTRAINTS := .constraints.txt
NATIVE := $(sort $(wildcard native/*/*.c native/*/*.h) native/_build.py)
C_FILES := $(filter %.c %.h,$(NATIVE)) \
  $(sort $(wildcard native/cuda/*/*.cu native/cuda/*/*.cuh native/cuda/*/*.h tests/cuda/*.cu \
  examples/*.cu))
PROMPT ?= Once upon a time
SAMPLING ?= --temperature 0.7 --top-p 0.9 --seed 1

# Bytecode is kept even where the environment says not to: each of the hundreds of processes that
# tests start would otherwise compile torch and Ray anew, 2.5 seconds of a core.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run serve-demo test test-actors test-alone setup check fix types native bench wheel clean help \
  test-gpu sanitize test-neon sanitize-gpu cuda exchange-forms

help:
	@echo "make run      install into $(VENV) if needed, generate a story with three actors"
	@echo "make serve-demo  serve that model over HTTP, with a command to ask it"
	@echo "make test     lint, types and every test"
	@echo "make test-actors  the tests that start actors; make test-alone: all others"
	@echo "make test-gpu every test that needs an NVIDIA GPU, and their counts (TEST_PYTHON=python3: no $(VENV))"
	@echo "make sanitize the native tests on kernels built with ASan and UBSan"
	@echo "make sanitize-gpu small cases of every CUDA kernel, and tiny models, under compute-sanitizer"
	@echo "make test-neon the NEON kernels under qemu (gcc-aarch64-linux-gnu, qemu-user-static)"
	@echo "make setup    install into $(VENV) with what tests and linters need"
	@echo "make check    ruff, clang-format, mypy"
	@echo "make fix      let ruff and clang-format change the files"
	@echo "make types    mypy alone"
	@echo "make native   rebuild the C kernels in place, after editing native/"
	@echo "make cuda     compile the CUDA kernels ahead, for this GPU or HOTCOLD_CUDA_ARCH=90"
	@echo "make exchange-forms  measure the ways a graph on the GPU can wait for the host"
	@echo "make bench    hotcold bench kernels, bench hop and bench decode"
	@echo "make wheel    one wheel for every Python, in dist/"
	@echo "make clean    remove what the build and the tools wrote; keeps $(VENV)"

# ---- install -----------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; \
	  sys.exit(0 if sys.version_info >= (3, 10) else f"hotcold needs Python 3.10 or newer, $(PYTHON) is {v}; run make PYTHON=python3.x")'
	@echo "Installing hotcold into $(VENV): about a minute."
	@$(PYTHON) -m venv $(VENV)

# Bytecode is written for what is imported, when it is: half a minute less than for all of it.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) $(NATIVE) | $(BIN)/python
	@echo "pip installs what pyproject.toml names, and compiles the C kernels."
	$(BIN)/python -m pip install --quiet --no-compile -c $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS) $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@ $(VENV)/.installed

setup: $(VENV)/.installed-dev

# ---- run ---------------------------------------------------------------------------------------

run: $(VENV)/.installed
	@echo "$(PROMPT) ..."
	$(BIN)/hotcold generate --max-tokens 160 $(SAMPLING) "$(PROMPT)"
	@echo
	@echo "Next, compare two placement policies:"
	@echo "$(BIN)/hotcold compare --policy greedy --policy random --vram 28MiB"

$(VENV)/.installed-serve: pyproject.toml $(CONSTRAINTS) $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile -c $(CONSTRAINTS) -e '.[serve]'
	@touch $@ $(VENV)/.installed

PORT ?= 8000

serve-demo: $(VENV)/.installed-serve
	@echo "Once it says where it is served, ask it from another terminal; Ctrl-C ends it:"
	@echo "curl -N http://127.0.0.1:$(PORT)/v1/completions -H 'Content-Type: application/json' \\"
	@echo "  -d '{\"model\": \"hotcold\", \"prompt\": \"$(PROMPT)\", \"max_tokens\": 64, \"stream\": true}'"
	$(BIN)/hotcold serve --port $(PORT)

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

# Every test, in two lanes: those that start actors wait for processes much of the time, and some of
# them for a second at most, so what runs beside them, in two processes, gives way.
test: setup
	@echo "Two lanes side by side, 10 to 15 minutes on two cores; each prints when it is over."
	@$(MAKE) --no-print-directory -j2 --output-sync=target test-actors check test-alone

test-actors: setup
	$(BIN)/python -m pytest -m ray

test-alone: setup
	nice -n 10 $(BIN)/python -m pytest -m "not ray" -n 2 --dist loadfile

# The kernels are compiled first where they are not yet; on 16 cores and one H200 under ten minutes.
test-gpu: $(if $(filter $(BIN)/python,$(TEST_PYTHON)),setup)
	$(TEST_PYTHON) tests/support/gpu_lanes.py

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

# Needs an NVIDIA GPU and the CUDA toolkit; the plug-in is compiled before, not under the tools. Whole
# models go without initcheck: rows of a batch that no token has are read, and what follows ignored.
OPERATOR_TOOLS := racecheck synccheck initcheck "memcheck --padding 512"
MODEL_TOOLS := synccheck memcheck
UNDER_TOOLS = set -e; for tool in $(1); do echo "== $$tool: $(2)"; \
	  HOTCOLD_TEST_SMALL=1 compute-sanitizer --tool $$tool --error-exitcode 9 \
	  $(TEST_PYTHON) -m pytest -q -p no:cacheprovider $(2); done

sanitize-gpu: $(if $(filter $(BIN)/python,$(TEST_PYTHON)),setup)
	$(TEST_PYTHON) -c 'from hotcold.native.gpu import cuda_plugin; exit(cuda_plugin.find() is None)'
	$(call UNDER_TOOLS,$(OPERATOR_TOOLS),$(sort $(wildcard tests/cuda/test_kernels*.py)))
	$(call UNDER_TOOLS,$(MODEL_TOOLS),tests/cuda/test_gpu_small.py)

test-neon: setup
	$(BIN)/python -m pytest -m neon tests/native

# ---- build -------------------------------------------------------------------------------------

native: setup
	$(BIN)/python native/_build.py

# Found by later launches of this user, also where nvcc is gone by then.
cuda: setup
	$(BIN)/python -m hotcold.native.gpu.cuda_plugin

# The figures in native/cuda/kernels/merge.cu; needs an NVIDIA GPU and the CUDA toolkit.
exchange-forms:
	@mkdir -p build
	$(NVCC) -std=c++17 -O3 -arch=native tests/cuda/exchange_forms.cu -o build/exchange_forms
	build/exchange_forms

wheel: setup
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist hotcold.egg-info native/_kernels.abi3.so native/abi/generated.py
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f $(VENV)/.installed $(VENV)/.installed-dev $(VENV)/.installed-serve
