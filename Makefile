# Every target does its own set-up. Start with `make demo` or `make test`; `make help` lists them.

.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON := .venv/bin/python
STAMP := .venv/.swapfs-stamp
BENCH_STAMP := .venv/.swapfs-bench-stamp
SOURCES := pyproject.toml $(wildcard swapfs/*/*.c swapfs/*/*.h)
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo --preserve-env=CI,SWAPFS_CACHE,SWAPFS_VM_ACCEL,SWAPFS_TEST_ENDS,SWAPFS_TEST_KERNELS,SWAPFS_TEST_KILLS,SWAPFS_TEST_PRESSURE_RUNS)
KERNEL ?= 6.12
MINUTES ?= 10
DEB_TESTS ?= tests/unit tests/property tests/fuse
FAST_TESTS := tests/unit tests/property tests/structure tests/deploy tests/docs tests/bench tests/lab

.PHONY: help build packages vm-packages deb-packages deb test-deb demo demo-tiers test test-fast check-debian13 test-vm test-systemd soak vm lint lab lab-full bench bench-full bench-compare \
	bench-floor bench-packages clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

build: packages $(STAMP)  ## host part of the set-up: leaves .venv/bin/swapfs ready

packages:
	@deploy/setup/packages.sh deploy/setup/packages.txt

vm-packages:
	@deploy/setup/packages.sh deploy/setup/packages.txt deploy/vm/packages.txt

deb-packages:
	@deploy/setup/packages.sh deploy/debian/packages.txt

deb: deb-packages  ## the Debian package for this release, in dist/
	@/usr/bin/python3 -m deploy.deb dist

test-deb: packages deb  ## unit, property and FUSE tests against that package and Debian's own libraries
	@$(SUDO) deploy/setup/test-deb.sh dist $(DEB_TESTS)

$(STAMP): $(SOURCES)
	@deploy/setup/venv.sh $@

demo: vm-packages build  ## boot a VM whose kernel swaps on swapfs, and check every page
	@$(SUDO) $(PYTHON) -m deploy.vm demo --kernel $(KERNEL)

demo-tiers: vm-packages build  ## replace the disk below a running swap, resize the pool, kill servers, upgrade
	@$(SUDO) $(PYTHON) -m deploy.vm demo demo_tiers --kernel $(KERNEL)

test: vm-packages deb-packages build lint  ## all tests: the fast ones, fuse, and a VM run
	@$(SUDO) $(PYTHON) -m deploy.vm build --kernel $(KERNEL)
	@$(SUDO) $(PYTHON) -m pytest -q $(FAST_TESTS) tests/fuse tests/vm tests/systemd -m "not bench and not vm_full"

test-fast: build  ## what needs no root and no mount: unit, property, structure, docs ...
	@$(PYTHON) -m pytest -q $(FAST_TESTS)

check-debian13: vm-packages  ## make test and make demo in a fresh clone in a bare Debian 13 (a chroot)
	@$(SUDO) python3 -m deploy.bare trixie "make test" "make demo"

mutants: build  ## make mistakes in copies of the code: each must fail a test (MUTANTS="-k WORD")
	@$(PYTHON) -m tests.mutants $(MUTANTS)

test-vm: vm-packages build  ## the whole VM suite on each of SWAPFS_TEST_KERNELS (6.1,6.12,7.2)
	@SWAPFS_TEST_KERNELS=$${SWAPFS_TEST_KERNELS:-6.1,6.12,7.2} $(SUDO) $(PYTHON) -m pytest -v tests/vm -m vm

test-systemd: vm-packages deb-packages build  ## what needs systemd as PID 1: in namespaces, and in the VM
	@$(SUDO) $(PYTHON) -m pytest -v tests/systemd -m vm

soak: vm-packages build  ## MINUTES=n of load, server kills and disk faults in the VM
	@$(SUDO) $(PYTHON) -m tests.vm.soak --minutes $(MINUTES) --kernel $(KERNEL)

vm: vm-packages build  ## a shell in the VM
	@$(SUDO) $(PYTHON) -m deploy.vm shell --kernel $(KERNEL) --disk 1024

lint: build  ## ruff and mypy
	@$(PYTHON) -m ruff check -q . && $(PYTHON) -m ruff format -q --check . && $(PYTHON) -m mypy

bench: bench-packages build $(BENCH_STAMP)  ## swapfs beside zram, zswap and others: tables, plots and JSON in bench-results
	@$(SUDO) $(PYTHON) -m tests.bench $(BENCH)

bench-full: bench-packages build $(BENCH_STAMP)  ## the same with more rounds, sizes and time
	@$(SUDO) $(PYTHON) -m tests.bench --full $(BENCH)

bench-compare: build  ## A=old.json B=new.json: what became worse between two runs
	@[ -n "$(A)" ] && [ -n "$(B)" ] || { echo "usage: make bench-compare A=old.json B=new.json" >&2; exit 2; }
	@$(PYTHON) -m tests.bench.compare "$(A)" "$(B)"

bench-floor: build  ## read latency against a C server that does nothing, in one run
	@$(SUDO) $(PYTHON) -m tests.bench.bench_floor

lab: bench-packages build $(BENCH_STAMP)  ## what a kernel swaps under each policy, live and replayed: one page in lab-results
	@$(SUDO) $(PYTHON) -m tests.lab $(LAB)

lab-full: bench-packages build $(BENCH_STAMP)  ## the same under every policy on three set-ups: hours
	@$(SUDO) $(PYTHON) -m tests.lab --full $(LAB)

bench-packages:
	@deploy/setup/packages.sh deploy/setup/packages.txt deploy/vm/packages.txt tests/bench/packages.txt

$(BENCH_STAMP): $(STAMP)
	@deploy/setup/extra.sh bench $@

clean:  ## remove the virtualenv and build leftovers; the VM cache is `python -m deploy.vm path`
	rm -rf .venv build ./*.egg-info swapfs/*/*.so
