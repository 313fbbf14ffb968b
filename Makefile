# Two commands on a fresh machine: `make demo` draws a picture, `make test` checks everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_VENV := .venv-test
TEST_BIN := $(TEST_VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/*.cmake csrc/*/*)
AARCH64 := $(CURDIR)/build/aarch64
PIP_FLAGS := -q --disable-pip-version-check

.PHONY: demo test test-slow test-gpu cuda cuda12 lint typecheck wheel-aarch64 test-aarch64 mini clean

demo: $(VENV)/.installed
	$(BIN)/mgpt generate "a large red sphere on a gray floor" --seed 7 -o demo.png
	@echo "drawn: demo.png"

$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) -e ".[cpu]"
	touch $@

test: $(TEST_VENV)/.installed lint
	$(TEST_BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not gpu"

test-slow: $(TEST_VENV)/.installed
	$(TEST_BIN)/python -m pytest -q -m "slow and not gpu"

# Every .py file of the rooms is read from the source tree; only the native module needs a build.
$(TEST_VENV)/.installed: $(SOURCES) constraints.txt
	test -x $(TEST_BIN)/python || $(PYTHON) -m venv $(TEST_VENV)
	$(TEST_BIN)/pip install $(PIP_FLAGS) -c constraints.txt -e ".[cpu,test,rtx]"
	touch $@

lint: $(TEST_VENV)/.installed typecheck
	$(TEST_BIN)/ruff check .
	$(TEST_BIN)/ruff format --check .
	$(TEST_BIN)/clang-format --dry-run --Werror $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/*/*.cuh csrc/*/*.cu tests/csrc/*/*.cpp)

typecheck: $(TEST_VENV)/.installed
	$(TEST_BIN)/python -m mypy -p mgpt_edge.runtime

# The kernels for every architecture, not linked; needs nvcc and no GPU. What each takes of a GPU is printed: a spill fails.
cuda:
	@command -v nvcc >/dev/null || { echo "make cuda needs nvcc of a CUDA toolkit, which is not on the PATH"; exit 1; }
	cmake -S csrc/cuda -B build/cuda
	cmake --build build/cuda --target mgpt_cuda_kernels --clean-first > build/cuda/log 2>&1 || { cat build/cuda/log; exit 1; }
	$(PYTHON) csrc/cuda/resources.py build/cuda/log

# The same for CUDA 12.6, which JetPack 6 has; of that toolkit PyPI has all but nvcc, so clang compiles them.
cuda12: $(TEST_VENV)/.installed
	rm -rf build/cuda12
	$(TEST_BIN)/pip install $(PIP_FLAGS) --no-deps --target build/cuda12 \
		nvidia-cuda-runtime-cu12==12.6.77 nvidia-cuda-cccl-cu12==12.6.77 nvidia-cuda-nvcc-cu12==12.6.85
	$(TEST_BIN)/python csrc/cuda/clang12.py build/cuda12
	$(TEST_BIN)/python csrc/cuda/resources.py build/cuda12/log

# On a machine with a GPU, CUDA, cupy and pytest: everything about the kernels, in minutes. No package of ours is installed.
test-gpu:
	$(PYTHON) tests/gpu/run.py

# The wheel for Linux on aarch64, built on x86-64: build/aarch64/*.whl. Its Python is the emulated machine's.
wheel-aarch64: $(TEST_VENV)/.installed
	$(TEST_BIN)/python tests/aarch64/machine.py $(AARCH64)
	rm -f $(AARCH64)/*.whl
	_PYTHON_HOST_PLATFORM=linux-aarch64 $(TEST_BIN)/pip wheel $(PIP_FLAGS) --no-deps -w $(AARCH64) . \
		-C cmake.define.CMAKE_TOOLCHAIN_FILE=$(CURDIR)/csrc/aarch64.cmake \
		-C cmake.define.CMAKE_CXX_FLAGS=-isystem$(AARCH64)/root/usr/include \
		-C cmake.define.Python_INCLUDE_DIR=$(AARCH64)/root/usr/include/python3.11 \
		-C cmake.define.PYTHON_MODULE_EXTENSION=.cpython-311-aarch64-linux-gnu.so

# What that wheel computes, under qemu-user, beside this machine.
test-aarch64: wheel-aarch64
	$(TEST_BIN)/python -m pip install $(PIP_FLAGS) --no-deps --upgrade --target $(AARCH64)/site \
		--platform linux_aarch64 --python-version 3.11 --only-binary :all: $(AARCH64)/*.whl
	$(TEST_BIN)/python tests/aarch64/run.py $(AARCH64)

# Trains the small model again from nothing: hours on two cores, resumable; on a GPU where there is one, never run there.
mini: $(TEST_VENV)/.installed
	$(TEST_BIN)/python -m mgpt_edge.finetune.mini all
	rm -rf models/mini/bundle
	$(TEST_BIN)/mgpt export models/mini -o models/mini/bundle --precision int8

clean:
	rm -rf $(VENV) $(TEST_VENV) build demo.png
