# Verbs of this project; CI calls nothing else. `make setup` needs only python3 (3.11 or newer) and a network.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.setup-done
TESTS ?= tests
TEST_WORKERS ?= 2
# The slow tests (kills, several processes, real images in full) run in CI, and here with SLOW=1.
MARK := $(if $(CI)$(SLOW),,-m "not slow")
# Benchmarks take real photographs where they are, else synthetic ones.
SHARED_DATA := $(or $(TEACHONCE_SHARED_DATA),../shared/data)
PHOTOGRAPHS := $(addprefix --images ,$(wildcard $(SHARED_DATA)/imagenet-sample.tar))
SMALL_IMAGES := $(addprefix --small ,$(wildcard $(SHARED_DATA)/cifar10-jpeg.tar.xz))
MACHINE = $(subst _,-,$(shell uname -m))-$(shell getconf _NPROCESSORS_ONLN)-cores
result = benchmarks/results/$(1)_$(MACHINE)_$(shell date +%F).md

DEVICE ?= cuda

.PHONY: setup demo check test fuzz torture bench gpu fmt lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml setup.py $(wildcard native/*.c native/*.h)
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("python3 is %d.%d, 3.11 or newer is needed: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "uv>=0.5"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $(STAMP)

demo: setup
	$(BIN)/teachonce demo --out demo

test: setup
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup $(MARK) $(TESTS)

# The C code under AddressSanitizer and UndefinedBehaviorSanitizer, with tens of thousands of damaged images; needs gcc.
fuzz: SANITIZE := -g -fsanitize=address,undefined -fno-sanitize-recover=undefined
fuzz: setup
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 TEACHONCE_CFLAGS="$(SANITIZE)" \
		$(BIN)/python -m pytest --capture=no tests/pixels/test_kernel.py

# Commands killed, starved, raced and fed with damage at random: minutes to hours. MINUTES=60 SEED=7 KINDS=kills,races
torture: setup
	$(BIN)/python -m tests.torture --minutes $(or $(MINUTES),10) --seed $(or $(SEED),0) $(addprefix --kinds ,$(KINDS)) $(addprefix --out ,$(OUT))

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The short versions, under ten minutes; in full, and with peers that are not in requirements.lock: each file's docstring.
# (benchmarks/topk_tail.py needs a teacher's weights and six minutes, so it stays out.)
bench: setup
	$(BIN)/python -m benchmarks.loading --quick $(PHOTOGRAPHS) $(SMALL_IMAGES) --out $(call result,loading)
	$(BIN)/python -m benchmarks.extraction --out $(call result,extraction)
	$(BIN)/python -m benchmarks.records --quick --out $(call result,records)
	$(BIN)/python -m benchmarks.kd --quick --out $(call result,kd)
	$(BIN)/python -m benchmarks.where_time_goes --out $(call result,where-time-goes)

# What no CPU can tell, on one GPU; `make gpu DEVICE=cpu` tries the program out on tiny sizes.
gpu: setup
	$(BIN)/python -m benchmarks.gpu --device $(DEVICE) $(if $(filter cpu,$(DEVICE)),--tiny,$(PHOTOGRAPHS) --out docs/results/gpu.md)

lock: setup
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-annotate --no-header \
		--all-extras pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv build demo src/*.egg-info
