# Start here: `make demo` shows what novaferry does, `make test` checks that it is right.
.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/bash

# make soak SEEDS=… ROUNDS=…; make fuzz FUZZ_SECONDS=… TARGETS=…; make bench CASE=…; make load LOAD=…
SEEDS ?= 100000
ROUNDS ?= 300
FUZZ_SECONDS ?= 60
TARGETS ?=
CASE ?=
LOAD ?=

.PHONY: help demo test soak bench load lint fmt fuzz coverage deny deb clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## Two hosts join a coordinator; a disk is copied, killed half-way, resumed; a running guest moves
	scripts/demo.sh

test: ## Install what the tests need and run all of them
	scripts/install-test-tools.sh
	scripts/test.sh

soak: ## The randomised tests for hours (SEEDS=100000 ROUNDS=300)
	scripts/install-test-tools.sh
	scripts/soak.sh $(SEEDS) $(ROUNDS)

bench: ## This machine's constants, and one case against them (CASE=name)
	cargo build --locked --release -p novaferry-agent -p novaferry-bench
	cargo run --locked --release -p novaferry-bench -- calibrate
	$(if $(CASE),cargo run --locked --release -p novaferry-bench -- run $(CASE))

load: ## What 1,000 simulated hosts with 10,000 VMs cost a coordinator (LOAD="--seconds 60")
	cargo build --locked --release -p novaferry-coordinator -p novaferry-hosts
	cargo run --locked --release -p novaferry-hosts -- $(LOAD)

lint: ## Format and lints, without running a test
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

fmt: ## Format the sources
	cargo fmt --all
	cargo fmt --manifest-path tests/fuzz/targets/Cargo.toml

fuzz: ## Run the fuzz targets (FUZZ_SECONDS=60 TARGETS="control prelude")
	tests/fuzz/run.sh $(FUZZ_SECONDS) $(TARGETS)

coverage: ## Line coverage of the decoders
	scripts/install-test-tools.sh
	tests/coverage.sh

deny: ## Licences, bans, sources and known vulnerabilities of the dependencies
	scripts/install-test-tools.sh
	cargo deny --locked check

deb: ## Debian packages of the coordinator and the agent, in dist/
	scripts/install-test-tools.sh
	packaging/build.sh dist

clean: ## Remove what was built
	cargo clean
