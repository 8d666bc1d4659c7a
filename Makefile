# make demo    install into .venv, then search a quantized digit classifier for deviations; pictures in demo/
# make test    install into .venv, then run the tests
# make format | lint | types | bench-smoke | cuda    what CI checks beside the tests
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test format lint types bench-smoke cuda clean

PYTHON ?= python3
VENV ?= .venv
# pip's arguments for PyTorch, for instance: make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
BENCHES ?= kernels search profile scale peers faithful memory gradient compd ideas slicing explain detection targeted protection environments \
    localize

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
WHEEL = $$(echo $(VENV)/wheel/compdx-*.whl)
SOURCES := pyproject.toml CMakeLists.txt README.md LICENSE $(shell find csrc python -type f -not -name '*.pyc')
# tables.h is written by tools/make_tables.py, which keeps its layout.
NATIVE := $(filter-out %/tables.h,$(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh'))

demo: $(VENV)/demo.stamp
	$(BIN)/compdx demo --out demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)
	$(BIN)/python tools/check_imports.py
	$(BIN)/python tools/make_tables.py --check
	$(BIN)/python -m bench.report --check

types: $(VENV)/dev.stamp $(VENV)/test.stamp
	$(BIN)/mypy
	$(BIN)/python tools/check_stub.py

bench-smoke: $(VENV)/test.stamp
	for bench in $(BENCHES); do $(BIN)/python -m bench.$$bench --smoke; done

# A wheel with CUDA, warnings as errors, what every kernel takes from the GPU and what it is made of.
cuda: $(VENV)/pip.stamp
	rm -rf build/cuda
	mkdir -p build/cuda
	$(BIN)/python -m pip wheel . --no-deps -v -w build/cuda -C build-dir=build/cuda/objects -C cmake.define.COMPDX_CUDA=ON \
	    -C cmake.define.COMPDX_CUDA_RESOURCES=ON -C cmake.define.COMPDX_WERROR=ON > build/cuda/build.log 2>&1 \
	    || { tail -n 60 build/cuda/build.log; exit 1; }
	$(BIN)/python tools/check_isa.py build/cuda/objects
	$(BIN)/python tools/cuda_resources.py build/cuda/build.log
	$(PIP) install "nvidia-cuda-cuobjdump>=13,<14" "nvidia-cuda-nvdisasm>=13,<14"
	$(BIN)/python tools/cuda_sass.py build/cuda/objects

clean:
	rm -rf build demo dist $(VENV)

$(VENV)/pip.stamp:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1"
	touch $@

$(VENV)/dev.stamp: $(VENV)/pip.stamp pyproject.toml
	$(PIP) install --group dev
	touch $@

$(VENV)/torch.stamp: $(VENV)/pip.stamp
	$(PIP) install $(TORCH)
	touch $@

# Built once, whatever is installed beside it. The version does not change with the sources, hence the force.
$(VENV)/package.stamp: $(VENV)/torch.stamp $(SOURCES)
	rm -rf $(VENV)/wheel
	$(PIP) wheel . --no-deps -w $(VENV)/wheel
	$(PIP) install --force-reinstall --no-deps $(WHEEL)
	touch $@

$(VENV)/demo.stamp $(VENV)/test.stamp: $(VENV)/%.stamp: $(VENV)/package.stamp
	$(PIP) install "$(WHEEL)[$*]"
	touch $@
