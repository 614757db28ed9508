# Verbs of this project; CI calls nothing else (.ci/run). `make setup` needs only python3 (3.11 or newer) and a network.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.setup-done
LOWEST := .venv-lowest
DOCS := .venv-docs
TESTS ?= tests
# One more than cores: many tests wait for servers and processes that they kill. Each takes some 2 GB.
TEST_WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 8 ? n + 1 : 8)))
# A process that dies ends the tests: xdist's schedulers of groups wait for ever for one that takes its place.
PARALLEL = -n $(TEST_WORKERS) --dist loadgroup --max-worker-restart 0
NO_TESTS := 5
# Files with tests that run alone: to collect all others again takes a minute.
ALONE = $(shell grep -rl --include='test_*.py' 'mark.alone' tests)
# The slow tests (kills, several processes, real images in full) run in CI, and here with SLOW=1; some of them alone.
ALL := $(CI)$(SLOW)
# Benchmarks take real photographs where they are, else synthetic ones.
SHARED_DATA := $(or $(TEACHONCE_SHARED_DATA),../shared/data)
PHOTOGRAPHS := $(addprefix --images ,$(wildcard $(SHARED_DATA)/imagenet-sample.tar))
SMALL_IMAGES := $(addprefix --small ,$(wildcard $(SHARED_DATA)/cifar10-jpeg.tar.xz))
MACHINE = $(subst _,-,$(shell uname -m))-$(shell getconf _NPROCESSORS_ONLN)-cores
result = benchmarks/results/$(1)_$(MACHINE)_$(shell date +%F).md

DEVICE ?= cuda

# At least one module of tests for every library that a version could break; some four minutes.
LOWEST_TESTS ?= $(addprefix tests/,test_extras.py test_native.py storage/remote storage/test_strict_json.py storage/test_block_file.py \
	codecs/test_registry.py views records/tfrecord/test_framing.py records/tfrecord/test_tf_example.py records/containers store/test_tables.py \
	store/test_store.py pixels/test_render.py pixels/test_operations.py pages interop/test_merge.py interop/test_csv_files.py \
	inspection/test_page.py losses data/test_dataset.py models/test_classifier.py models/test_onnx_backend.py \
	models/assembled_resnet/test_tf_weights.py extraction/test_extract.py extraction/test_verify.py \
	evaluation/test_onnx_export.py evaluation/test_int8.py training/test_train.py training/test_report.py cli/test_main.py \
	cli/test_ablate_table.py cli/test_demo.py system/test_light_install.py)
AZURITE := .azurite/node_modules/.bin/azurite-blob
CEPH := ceph-mon ceph-osd radosgw ceph-common

PYTHON_IS_NEW = $(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("python3 is %d.%d, 3.11 or newer is needed: make PYTHON=python3.12 ..." % v[:2])'

.PHONY: setup setup-lowest services demo check test test-parallel test-alone test-lowest docs fuzz torture bench gpu fmt lock wheel release-check clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml setup.py $(wildcard native/*.c native/*.h)
	@$(PYTHON_IS_NEW)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "uv>=0.5"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps --editable .
	touch $(STAMP)

# Ceph's and Azure's object stores, for their tests; without them these are skipped, and nothing else changes.
services:
	@if [ -e $(AZURITE) ] || command -v azurite-blob >/dev/null; then \
		echo "services: Azurite is installed"; \
	elif ! { command -v npm && npm install --silent --no-audit --no-fund --no-save --prefix .azurite azurite@3; } >/dev/null; then \
		echo "services: npm cannot install Azurite; tests against it are skipped"; \
	fi
	@if { command -v ceph-mon && command -v ceph-osd && command -v radosgw && command -v ceph; } >/dev/null; then \
		echo "services: Ceph is installed"; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "services: nothing done, which takes root and apt-get ($(CEPH)); tests against Ceph are skipped"; \
	else \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(CEPH) \
			>/dev/null || echo "services: apt-get cannot install $(CEPH); tests against Ceph are skipped"; \
	fi

demo: setup
	$(BIN)/teachonce demo --out demo

test: setup
	+$(MAKE) --no-print-directory test-parallel
	$(if $(ALL),+$(MAKE) --no-print-directory test-alone)

test-parallel: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not $(if $(ALL),alone,slow)" $(TESTS)

test-alone: setup
	$(BIN)/python -m pytest -m alone $(or $(if $(filter tests,$(TESTS)),$(ALONE)),$(TESTS)) || [ $$? = $(NO_TESTS) ]

# The quick tests with the lowest versions of everything that pyproject.toml allows, in an environment of their own.
test-lowest: $(LOWEST)/.setup-done
	$(LOWEST)/bin/python -m pytest $(PARALLEL) -m "not slow" $(LOWEST_TESTS)

setup-lowest: $(LOWEST)/.setup-done

$(LOWEST)/.setup-done: $(STAMP) requirements.lowest.lock
	rm -rf $(LOWEST)
	$(BIN)/uv venv --quiet --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --require-hashes -r requirements.lowest.lock
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --no-build-isolation --no-deps --editable .
	touch $@

# The site, in build/docs/site. It needs no `make setup`: an environment of its own, from a lock of its own. A warning, a link
# that leads nowhere and a picture that is not that of its tables end it.
docs: $(DOCS)/.setup-done
	PYTHONPATH=src:. $(DOCS)/bin/python -m docs.site.build

$(DOCS)/.setup-done: requirements.docs.lock
	@$(PYTHON_IS_NEW)
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --require-hashes -r requirements.docs.lock
	touch $@

# The C code under AddressSanitizer and UndefinedBehaviorSanitizer, with tens of thousands of damaged images; needs gcc.
fuzz: SANITIZE := -g -fsanitize=address,undefined -fno-sanitize-recover=undefined
fuzz: setup
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 TEACHONCE_CFLAGS="$(SANITIZE)" \
		$(BIN)/python -m pytest --capture=no tests/pixels/test_kernel.py tests/pixels/test_kernel_bad_input.py

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
	$(BIN)/python -m benchmarks.extraction --seconds 90 --out $(call result,extraction)
	$(BIN)/python -m benchmarks.records --quick --out $(call result,records)
	$(BIN)/python -m benchmarks.kd --quick --out $(call result,kd)
	$(BIN)/python -m benchmarks.where_time_goes --out $(call result,where-time-goes)

# What no CPU can tell, on one GPU; `make gpu DEVICE=cpu` tries the program out on tiny sizes, `make gpu TEACHER=SPEC` asks
# one more teacher, with weights of its own.
gpu: setup
	$(BIN)/python -m benchmarks.gpu --device $(DEVICE) $(if $(filter cpu,$(DEVICE)),--tiny,\
		$(PHOTOGRAPHS) $(addprefix --teacher ,$(TEACHER)) --out docs/results/gpu.md)

lock: COMPILE := $(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-annotate --no-header \
	--generate-hashes pyproject.toml
lock: setup
	$(COMPILE) --all-extras --output-file requirements.lock
	$(COMPILE) --extra dev --resolution lowest-direct --output-file requirements.lowest.lock
	$(COMPILE) --group docs --output-file requirements.docs.lock

# Wheel and sdist in dist/, each installed into an empty environment of every Python at hand and used without torch.
wheel: setup
	$(BIN)/python -m tests.release

# The same, and the wheel with every extra: the demo from there. Some 6 GB and ten minutes.
release-check: setup
	$(BIN)/python -m tests.release --full

clean:
	rm -rf .venv $(LOWEST) $(DOCS) .azurite build dist demo src/*.egg-info
