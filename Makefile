# The same few verbs for people and for CI. `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
TARGET := $(or $(CARGO_TARGET_DIR),target)
HEARTH := $(TARGET)/release/hearth
DATA_DIR ?= .hearth
CLUSTER_DIR ?= .hearth-cluster

.PHONY: help up up-aws down up-cluster down-cluster image test test-modules test-machines fuzz attack controls check fmt bench promises release clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: ## Install what is missing, build, start; DETACH=1 in the background, ARGS='--listen ...' for flags of `hearth up`
	@scripts/setup.sh up
	@scripts/dockerd.sh
	@cargo build --release --locked --package hearth-cli
	@$(HEARTH) image >/dev/null
	@exec scripts/up.sh $(HEARTH) --data-dir $(DATA_DIR) $(ARGS)

up-aws: ## Like a cluster's state on one machine: a stand-in for AWS, two nodes and two builders as processes of their own
	@scripts/setup.sh up
	@scripts/setup.sh aws
	@scripts/dockerd.sh
	@cargo build --release --locked --package hearth-cli
	@$(HEARTH) image >/dev/null
	@exec scripts/up-aws.sh $(HEARTH) $(DATA_DIR)-aws

down: ## Stop what `make up DETACH=1` has started
	@scripts/down.sh $(DATA_DIR)

up-cluster: ## Start etcd, an AWS stand-in, two routers, three nodes and a builder on this machine, to play with
	@scripts/setup.sh up
	@scripts/setup.sh etcd
	@scripts/setup.sh aws
	@scripts/dockerd.sh
	@cargo build --release --locked --package hearth-cli
	@$(HEARTH) image >/dev/null
	@scripts/cluster.sh up $(CLUSTER_DIR) $(HEARTH)

down-cluster: ## Stop what `make up-cluster` has started
	@scripts/cluster.sh down $(CLUSTER_DIR)

image: ## Make the container images, or say that they are there
	@scripts/setup.sh up
	@scripts/dockerd.sh
	@cargo build --release --locked --package hearth-cli
	@$(HEARTH) image

test: ## Run every test, with real Docker; installs what they need
	@scripts/test.sh

test-modules: ## Build many real npm modules and call functions that use them (long, needs the npm registry)
	@scripts/test.sh modules

fuzz: ## Throw many more mutated inputs at everything that reads strangers' bytes; CASES=100000
	@scripts/setup.sh up
	PROPTEST_CASES=$(or $(CASES),20000) cargo test --workspace --locked --lib --test fuzz --bins -- fuzz framing unpack any_ whatever_ what_a nothing_of what_we_add

attack: ## Let schemathesis, slowhttptest and h2load loose on a `hearth up` of its own; ATTACK_SECONDS=120
	@scripts/setup.sh up
	@scripts/dockerd.sh
	@cargo build --release --locked --package hearth-cli
	@$(HEARTH) image >/dev/null
	@scripts/attack.sh $(HEARTH) $(ARGS)

controls: ## Take security controls away, one edit each, and see that a test misses each of them (long)
	@scripts/setup.sh test
	@scripts/dockerd.sh gvisor
	@cargo build --locked --package hearth-cli
	@$(TARGET)/debug/hearth image >/dev/null
	@scripts/controls.py $(ARGS)

test-machines: ## Install a release on machines with systemd, start the roles, roll them under load (long, as root)
	@scripts/test.sh machines

check: ## Format, lints, and the rules of this repository
	@scripts/setup.sh up
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- --deny warnings
	cargo test --workspace --locked --quiet --test tidy

fmt: ## Format everything
	cargo fmt --all

bench: ## Measure what the README promises; ARGS='hop cold' for parts, ARGS=--list for their names
	@scripts/setup.sh bench
	@scripts/setup.sh etcd
	@scripts/setup.sh aws
	@scripts/dockerd.sh
	@cargo build --release --locked --package hearth-cli --package hearth-tests --bins
	@$(HEARTH) image >/dev/null
	@$(TARGET)/release/bench $(ARGS)

promises: ## Fill the README's table from what `make bench` has measured
	@scripts/promises.py $(ARGS)

release: ## Build what machines install: binary, units, images, checksums, bill of materials
	@scripts/setup.sh up
	@scripts/release.sh $(ARGS)

clean: ## Remove what was built; data directories stay
	cargo clean
