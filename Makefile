# make demo     containerkit at work, from nothing: system packages (when root), a virtual environment, the build
# make test     the tests: as root and as an ordinary user when root runs make, else those that need no root
# make sweep    the long ones
# make attack   the attacks, but for the whole matrix of paths, which is `make attack-full`; both renew docs/attacks.md
# make soak     STARTS=100000 starts and stops with equal leak snapshots, as root and as a user; goes on where it stopped
# make fuzz     an hour of libFuzzer on ck-init, under sanitizers (SECONDS=3600)
# make test-vm  those that depend on the kernel, on another one in an emulated machine; SHORT=1: a few of them
# make realworld  programs that people use, under the whole wall; downloads what they need, once
# make lint     formatting, types, layers, and the C under every compiler and sanitizer that is here
# make docs     the documentation, warnings are errors
# make bench    the measurements
#
# ARGS="-k word" is passed on to pytest. PYTHON=... chooses the interpreter for the virtual environment.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
ARGS ?=
HELPER := containerkit/_native/ck-init
STARTS ?= 100000
SECONDS ?= 3600
FUZZ_FLAGS := -std=gnu17 -fno-strict-aliasing -fwrapv -Wall -Wextra -O1 -g -fno-omit-frame-pointer \
    -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
    -DCK_HOSTED -Dmain=helper_main -Icontainerkit/_native -include tests/fuzz/kernel.h
NATIVE := $(wildcard containerkit/_native/*.[ch] containerkit/_native/init/*.[ch] containerkit/_native/monitor/*.[ch])

# What a machine needs to build and use containerkit, and what the tests need on top.
PACKAGES := gcc libc6-dev linux-libc-dev uidmap busybox-static
TEST_PACKAGES := acl bubblewrap iproute2 procps strace util-linux \
    apache2-utils btrfs-progs docker-registry e2fsprogs erofs-utils fuse-overlayfs openssl skopeo umoci
REALWORLD_PACKAGES := debootstrap git make nodejs postgresql python3 python3-venv
VM_PACKAGES := dbus dbus-user-session e2fsprogs libpam-systemd qemu-system-x86 systemd
ROOT := $(filter 0,$(shell id -u))

# A mount namespace of the tests' own, so that other programs' mounts are not taken for leaks. Its mounts are shared
# among each other, as systemd has them: what a container fails to keep to itself is seen.
ISOLATED := $(if $(ROOT),unshare --mount --propagation private -- sh -ec 'mount --make-rshared /; exec "$$@"' sh)

# ---- the machine -----------------------------------------------------------------------------------------------------

# $(call install,PACKAGES): Debian packages that are missing, when we may.
define install
missing=; \
for name in $(1); do \
    [ "$$(dpkg-query -W -f '$${db:Status-Status}' $$name 2>/dev/null)" = installed ] || missing="$$missing $$name"; \
done; \
if [ -z "$$missing" ]; then :; \
elif [ -z "$(ROOT)" ] || ! command -v apt-get >/dev/null; then \
    echo "note: these Debian packages, or their like, are missing:$$missing" >&2; \
else \
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
fi
endef

# The first interpreter that can make an environment and build in it. Asking it for its own path leads past the shims
# of version managers, which cost a second a start, and out of an environment that may be active.
define FIND_PYTHON
import ensurepip, os, sys, sysconfig, venv
if sys.version_info >= (3, 11) and os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print(os.path.join(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2]))
endef
export FIND_PYTHON

define find_python
for name in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3); do \
    python=$$($$name -c "$$FIND_PYTHON" 2>/dev/null) && [ -n "$$python" ] && break; \
done
endef

.PHONY: setup
setup: packages $(HELPER)

.PHONY: packages
packages:
	@$(call install,$(PACKAGES))

$(BIN)/python: | packages
	@$(find_python); \
	if [ -z "$$python" ]; then $(call install,python3 python3-dev python3-venv); $(find_python); fi; \
	if [ -z "$$python" ]; then \
	    echo "error: no Python 3.11 or newer with venv and headers (python3-venv, python3-dev)" >&2; exit 1; \
	fi; \
	echo "using $$python"; "$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

$(VENV)/.installed: pyproject.toml build_ext.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(HELPER): $(NATIVE) build_ext.py | $(VENV)/.installed
	$(BIN)/python build_ext.py --inplace

$(VENV)/.dev: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

.PHONY: dev
dev: setup $(VENV)/.dev
	@$(call install,$(TEST_PACKAGES))

# ---- what it is for --------------------------------------------------------------------------------------------------

.PHONY: demo
demo: setup
	$(BIN)/python docs/demo.py

.PHONY: test
test: dev
	$(ISOLATED) $(BIN)/pytest -n $(JOBS) --dist loadfile $(ARGS)

.PHONY: sweep
sweep: dev
	$(ISOLATED) $(BIN)/pytest -n $(JOBS) --dist loadfile -m slow --ignore tests/realworld $(ARGS)

.PHONY: realworld
realworld: dev
	@$(call install,$(REALWORLD_PACKAGES))
	$(ISOLATED) $(BIN)/pytest -m slow tests/realworld $(ARGS)

# What every test that counts did becomes docs/attacks.json, and that the page.
define attack
CK_ATTACK_RECORD=$(CURDIR)/docs/attacks.json $(ISOLATED) $(BIN)/pytest -n $(JOBS) --dist loadfile -m $(1) \
    $$(PYTHONPATH=tests $(BIN)/python -m attack.report --tests) $(ARGS)
PYTHONPATH=tests $(BIN)/python -m attack.report
endef

.PHONY: attack
attack: dev
	$(call attack,"not slow")

.PHONY: attack-full
attack-full: dev
	rm -f docs/attacks.json
	$(call attack,"")

.PHONY: soak
soak: dev
	mkdir -p build
	$(ISOLATED) env PYTHONPATH=tests $(BIN)/python tests/faults/soak.py build/soak.json $(STARTS)
ifneq ($(ROOT),)
	$(ISOLATED) env PYTHONPATH=tests $(BIN)/python tests/faults/soak.py build/soak-user.json $(STARTS) user
endif

.PHONY: fuzz
fuzz: dev
	@command -v clang >/dev/null || { echo "error: libFuzzer comes with clang: apt-get install clang" >&2; exit 1; }
	mkdir -p build/fuzz/corpus
	clang $(FUZZ_FLAGS) containerkit/_native/init/*.c tests/fuzz/plan_fuzz.c -o build/fuzz/plan_fuzz
	PYTHONPATH=tests $(BIN)/python tests/fuzz/plan_seeds.py build/fuzz/seeds
	build/fuzz/plan_fuzz -max_len=16384 -max_total_time=$(SECONDS) -print_final_stats=1 -use_value_profile=1 \
	    -artifact_prefix=build/fuzz/ build/fuzz/corpus build/fuzz/seeds

.PHONY: test-vm
test-vm: dev
	@$(call install,$(VM_PACKAGES))
	$(BIN)/python tests/vm $(if $(SHORT),--short --timeout=1800) $(if $(SYSTEMD),--systemd) $(ARGS)

.PHONY: bench
bench: setup
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/spawn.py
	$(BIN)/python benchmarks/seccomp.py
	$(BIN)/python benchmarks/walls.py
	$(BIN)/python benchmarks/cgroup.py
	$(BIN)/python benchmarks/quotas.py
	$(BIN)/python benchmarks/containers.py
	$(BIN)/python benchmarks/copying.py

.PHONY: docs
docs: dev
	$(BIN)/sphinx-build -n -W --keep-going -q -b html docs build/docs

.PHONY: lint
lint: dev lint-python lint-c

.PHONY: lint-python
lint-python: dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: lint-c
lint-c: dev
	$(BIN)/python build_ext.py --werror
	if command -v clang >/dev/null; then $(BIN)/python build_ext.py --werror --cc clang --out build/clang; fi
	if command -v aarch64-linux-gnu-gcc >/dev/null; then $(BIN)/python build_ext.py --werror --arch aarch64; fi
	if [[ "$$(gcc -print-file-name=libasan.so)" == */* ]]; then $(BIN)/python build_ext.py --werror --sanitize; fi

.PHONY: clean
clean:
	rm -rf build dist $(VENV) $(HELPER) containerkit/_native/ck-monitor containerkit/_native/*.so
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
