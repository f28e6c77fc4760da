# Everything a newcomer needs. The verbs themselves are in tasks.py: .venv/bin/invoke --list

PYTHON ?= python3
INVOKE := .venv/bin/invoke
PYTEST := .venv/bin/pytest
# Processes that run tests; 0 is one after the other, the quick ones first.
WORKERS ?= 2
# Quick tests wait for servers much of their time; those that boot machines use all of a processor.
FAST_WORKERS ?= 3
# Containers often set this. Tests start some hundred Pythons, each of which would compile this project again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint test-fast test-machines test-arm64 test-kills test-deaths test-clients test-al2023 coverage
.PHONY: test-images
.PHONY: lock clean
# Not with -j either: stages follow one another, and machines need the processors.
.NOTPARALLEL:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing: system packages, .venv, Go
	@$(PYTHON) scripts/bootstrap.py

demo: ## bake minimal and custom-init, race them against cold (no AWS account)
	@$(PYTHON) scripts/bootstrap.py --without-tests
	$(INVOKE) bake --arch x86_64 --recipe minimal
	$(INVOKE) bake --arch x86_64 --recipe custom-init
	$(INVOKE) bench --ami latest --iterations 3

# Three stages, each in its turn; the first that fails is the last that runs (`make -k test` runs all).
# tests/conftest.py says which test belongs to which.
test: lint test-fast test-machines ## run all tests: lint, test-fast, test-machines

lint: setup ## run linters, formatters' checks, type checks and Go's tests
	$(PYTEST) --stage lint --numprocesses $(WORKERS) tests/unit/test_lint.py

test-fast: setup ## run the quick unit and contract tests
	$(PYTEST) --stage quick --numprocesses $(FAST_WORKERS) tests/unit tests/contract

test-machines: setup ## run all other tests; boots machines under QEMU (WORKERS=2 at a time)
	$(PYTEST) --stage machines --numprocesses $(WORKERS)

# One kill of each technique is part of `test`.
test-kills: setup ## kill benchmarks of each technique six times at random moments, and clean up after each
	INSTANT_ENV_KILLS=6 $(PYTEST) --numprocesses $(WORKERS) tests/machines/launch/test_bench_killed.py

# The calls after which something else stands are part of `test`.
test-deaths: setup ## kill bake, bench and publish after each of their calls; what stands then ends by itself or is removed
	INSTANT_ENV_DEATHS=1 $(PYTEST) --numprocesses 0 tests/machines/launch/test_deaths.py

# Those that take a minute or less are part of `test`.
test-clients: setup ## run all unmodified clients against localec2, with Packer's builds and the SDK for Go
	INSTANT_ENV_CLIENTS=1 $(PYTEST) --numprocesses $(WORKERS) tests/contract/clients tests/contract/test_contract_terraform.py

# Cached: the kernel and the base in the cache of stock images; not the bakes.
test-al2023: ## bake minimal and custom-init from a stand-in for Amazon Linux 2023, and race them
	@$(PYTHON) scripts/bootstrap.py --stand-in
	INSTANT_ENV_AL2023=1 $(PYTEST) --numprocesses 0 tests/e2e/test_stand_in.py

# Packages come from the distribution's archive, by way of this computer.
test-images: setup ## bake and boot the images with something in them: containers, with Docker from the archive
	INSTANT_ENV_IMAGES=1 $(PYTEST) --numprocesses 0 tests/e2e/test_container_host.py

coverage: setup ## print which lines of Python the quick tests run
	$(PYTEST) --stage quick --numprocesses $(FAST_WORKERS) --cov --cov-report term:skip-covered tests/unit tests/contract

# Not part of `test`, where arm64 has its own two files: on x86_64 all of it is emulated.
test-arm64: setup ## run the boot and contract tests with arm64 machines in x86_64's place
	$(PYTEST) --arch arm64 --numprocesses $(WORKERS)

# Seconds for all targets together. What breaks one is written to testdata/fuzz in its package: keep it with the mend.
FUZZ_TIME ?= 3600
fuzz: setup ## look for inputs that break a parser, for an hour (FUZZ_TIME=seconds)
	INSTANT_ENV_FUZZ_SECONDS=$(FUZZ_TIME) $(PYTEST) --numprocesses 0 tests/unit/test_fuzz.py

# The one command to refresh constraints.txt. Existing pins stay unless LOCK_FLAGS=--upgrade.
lock: ## write constraints.txt from pyproject.toml (LOCK_FLAGS=--upgrade: newest versions)
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet uv
	echo pip | build/lock/bin/uv pip compile --quiet $(LOCK_FLAGS) --generate-hashes \
		--universal --fork-strategy fewest --python-version 3.11 --all-extras --no-annotate \
		--custom-compile-command "make lock" pyproject.toml - --output-file constraints.txt

clean: ## remove build outputs and tool caches (not .venv, images or results)
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
