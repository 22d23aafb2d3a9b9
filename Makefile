# Every target makes its own environment; a second call starts in seconds.
#
#   make demo    train and compare tokenizers on real photographs, sample a prior -> runs/demo/report.html
#   make demo-full  every prior, every claim of the papers with one seed, then the demo, whose page links to them; two
#                trainings at once (resumable; JOBS=4: four; SEEDS="0 1": all seeds of the claims)
#   make test    the test suite (make test-slow: the long tests too; make test-kernels: under other kernels of torch)
#   make systems    every pocket tokenizer of models/, trained and scored -> runs/systems (resumable)
#   make pipelines  every pocket prior, from data to samples -> runs/pipelines (resumable)
#   make bench   CPU lookup against faiss, torch and scikit-learn -> bench/results/
#   make docs    the documentation -> site/index.html
#   make lint    ruff, mypy, clang-format
#
# PYTHON  interpreter that creates .venv (3.11 or newer)
# TORCH   what to install as torch; empty keeps what the environment has. The default is a CPU build where the
#         package index offers one; on a GPU machine name the CUDA build you want.

PYTHON ?= python3
TORCH ?= torch==2.13.0
JOBS ?= 2
SEEDS ?= 0
VENV := .venv
BIN := $(VENV)/bin
ENV := $(VENV)/.environment
BUILT := $(VENV)/.built
KERNELS := setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
CPP := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo demo-full systems pipelines test test-slow test-kernels bench docs lint format clean

demo: $(BUILT)
	$(BIN)/python -m models.demo

demo-full: $(BUILT)
	$(BIN)/python -m models.pipelines --jobs $(JOBS)
	$(BIN)/python -m models.reproduce --all --jobs $(JOBS) --seeds $(SEEDS)
	$(BIN)/python -m models.demo

systems: $(BUILT)
	$(BIN)/python -m models.systems

pipelines: $(BUILT)
	$(BIN)/python -m models.pipelines

# a worker per core, each with whole files: what a file compiles, it compiles once
test: $(BUILT)
	$(BIN)/python -m pytest -q -n logical --dist loadfile --complete

test-slow: $(BUILT)
	$(BIN)/python -m pytest -q -n logical --dist loadfile --complete -m "not gpu"

test-kernels: $(BUILT)
	$(BIN)/python tests/other_kernels.py

bench: $(BUILT)
	$(BIN)/python -m bench.run --op nearest_code

docs: $(ENV)
	$(BIN)/python docs/build_site/build.py

lint: $(ENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(ENV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

$(ENV): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit("vqkernels needs Python 3.11 or newer, got " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) setuptools wheel pybind11 ninja
	VQKERNELS_BUILD=none $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[models,bench,dev,docs]'
	# compared with their adapters; torchaudio, torchvision and what else they ask for is not for quantizers
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
		descript-audio-codec==1.0.0 encodec==0.1.1 moshi==0.2.13 open-magvit2==1.1 snac==1.2.1 speechtokenizer==1.0.1 taming-transformers-rom1504==0.0.6
	touch $@

# compiled in place, incrementally: ninja recompiles what changed
$(BUILT): $(ENV) $(KERNELS)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

clean:
	rm -rf build runs site vqkernels/*.so .pytest_cache .mypy_cache .ruff_cache
	rm -f $(BUILT)
