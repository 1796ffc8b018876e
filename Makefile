# Everything runs in .venv, which is made on first use. PYTHON chooses the interpreter (3.11 or newer),
# PIP_ARGS goes to every pip install (an index of your own, for example).
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OUT := out

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo install test test-long test-deep test-interop coverage test-gpu lint typecheck check bench clean

demo: $(INSTALLED)  ## install everything, run the quickstart, print its table
	$(BIN)/lmcache-kit run scenarios/quickstart.yaml --output-dir $(OUT)/quickstart

install: $(INSTALLED)

$(INSTALLED): requirements-dev.txt pyproject.toml kernels/pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit("lmcache-kit needs Python 3.11 or newer, this is %d.%d; set PYTHON=" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --requirement requirements-dev.txt
	$(BIN)/python -m lmcache_kit_kernels.warm_up
	@touch $@

# What needs no servers runs in two processes; tests that start some run one after another, with the machine to
# themselves. LONG are whole environments, whole pages of the documentation, programs compiled for GPUs, calibrations
# and searches: minutes for a few tests.
ALONE := kernels plugins/cachegen plugins/vllm tests/unit tests/properties tests/architecture tests/conformance
LONG_ALONE := plugins/cachegen/tests/test_device.py $(addprefix tests/conformance/test_,mutants.py broken_cores.py)
LONG_ALONE += kernels/tests/test_lowering.py tests/unit/calibration tests/unit/testing/test_checking.py
LONG_ALONE += tests/unit/cli/test_plugin_check.py
LONG := tests/surface tests/fuzz tests/docs
LONG += $(addprefix tests/integration/,analysis benchmarks codec faults fsspec packaging sim)
LONG += $(addprefix tests/integration/,live/test_server_engines.py system/test_ten_plugins.py)
test: $(INSTALLED)  ## what is quick of the tests that need no GPU
	$(BIN)/python -m pytest --numprocesses 2 $(ALONE) $(addprefix --ignore=,$(LONG_ALONE)) $(PYTEST_ARGS)
	$(BIN)/python -m pytest tests plugins $(addprefix --ignore=,$(ALONE) $(LONG)) $(PYTEST_ARGS)

test-long: $(INSTALLED)  ## the rest of them
	$(BIN)/python -m pytest --numprocesses 2 $(LONG_ALONE) $(PYTEST_ARGS)
	$(BIN)/python -m pytest $(LONG) $(PYTEST_ARGS)

# State machines and other properties, again and again with new random choices for about so many minutes. What each
# of them tried is counted in $(OUT)/deep.json. Plugins that are broken on purpose are left out.
DEEP := tests/properties tests/conformance $(addprefix --ignore=tests/conformance/test_,mutants.py broken_cores.py)
LMCACHE_KIT_DEEP_MINUTES ?= 30
test-deep: $(INSTALLED)  ## the property tests and the conformance suites for LMCACHE_KIT_DEEP_MINUTES (30)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --hypothesis-profile deep --timeout 0 \
		--deep-minutes $(LMCACHE_KIT_DEEP_MINUTES) --deep-counts $(OUT)/deep.json $(DEEP) $(PYTEST_ARGS)

# Environments of real vLLM and of real LMCache are made in $(OUT)/interop on first use, some gigabytes. PyTorch for CPUs
# alone is smaller and not on PyPI: PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu".
test-interop: $(INSTALLED)  ## real vLLM with our connector, real LMCache on either side of ours; minutes
	PIP_ARGS="$(PIP_ARGS)" $(BIN)/python tests/interop/environments.py
	LMCACHE_KIT_INTEROP=1 PIP_ARGS="$(PIP_ARGS)" $(BIN)/python -m pytest tests/interop --timeout 900 $(PYTEST_ARGS)

# The processes that tests start are followed too. What is slow and adds nothing to these packages is left out.
QUICK := $(addprefix tests/integration/,controller faults instance_store instance_worker live peer serve sim)
coverage: $(INSTALLED)  ## branches of the controller, the instance, kv and the simulator that tests take: 95 % at least
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest --numprocesses 2 --cov --cov-report= --timeout 300 tests/unit tests/properties $(PYTEST_ARGS)
	$(BIN)/python -m pytest --cov --cov-append --cov-report= --timeout 300 $(QUICK) $(PYTEST_ARGS)
	$(BIN)/python -m coverage report
	mkdir -p $(OUT) && $(BIN)/python -m coverage json -q -o $(OUT)/coverage.json
	$(BIN)/python .ci/branch_coverage.py $(OUT)/coverage.json 95

# Compiling for a GPU takes some ten seconds a program.
test-gpu: $(INSTALLED)  ## the kernels compiled for the GPU at hand, cachegen and the vLLM connector on it
	$(BIN)/python -m pytest kernels/tests -k "pallas and not interpret and not lower" --timeout 600 $(PYTEST_ARGS)
	$(BIN)/python -m pytest plugins/cachegen/tests/test_gpu.py plugins/vllm/tests/test_cuda.py --timeout 600 $(PYTEST_ARGS)

SECONDS := 60
fuzz: $(INSTALLED)  ## search for bytes that a decoder does not survive, $(SECONDS) for each; finds go to $(OUT)/fuzz
	$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) --output-dir $(OUT)/fuzz $(FUZZ_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(INSTALLED)
	$(BIN)/mypy

check: lint typecheck test test-long

bench: $(INSTALLED)  ## speed of controller, tiers, transports and codecs into $(OUT)/bench; PEER_PYTHON=: beside LMCache's
	$(BIN)/python benchmarks/controller.py --output $(OUT)/bench/controller.json $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	$(BIN)/python benchmarks/tiers.py --output $(OUT)/bench/tiers.json
	$(BIN)/python benchmarks/transports.py --output $(OUT)/bench/transports.json
	$(BIN)/python benchmarks/codecs.py --output $(OUT)/bench/codecs.json
	$(BIN)/python benchmarks/cachegen_size.py --output $(OUT)/bench/cachegen_size.json

clean:
	rm -rf $(VENV) $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
