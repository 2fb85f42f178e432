# Orion. Two commands matter: `make lab` (everything on this machine, to try) and `make test` (everything CI needs).
# Both bring what they need on Debian 12 and 13.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

DAEMONS := orion-apid orion-schedd orion-agentd
# Rust that .ci/need installed just now is not on make's own path yet.
export PATH := $(HOME)/.cargo/bin:$(PATH)
# Bytecode of the playbooks does not belong into the tree.
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# --- The lab ---------------------------------------------------------------------------------------------------

.PHONY: lab
lab: ## A control plane machine and workers in Docker: make lab [WORKERS=3]
	@.ci/need lab
	@$(MAKE) --no-print-directory -j 2 deb lab-images
	@WORKERS=$(WORKERS) SUITE=$(SUITE) vagrant/lab.sh up
	@vagrant/smoke.sh

.PHONY: lab-images
lab-images:
	@SUITE=$(SUITE) vagrant/lab.sh images

.PHONY: lab-down
lab-down: ## Take the lab away; nothing stays but its images
	@vagrant/lab.sh down

# --- Packages --------------------------------------------------------------------------------------------------

.PHONY: release
release: ## The daemons, optimised
	cargo build --release --locked $(addprefix -p ,$(DAEMONS))

.PHONY: deb
deb: release ## Debian packages, in target/debian
	@.ci/need deb
	@packaging/build $(DAEMONS)

.PHONY: lintian
lintian: deb ## What lintian says of the packages; nothing is good
	lintian --allow-root --fail-on error,warning target/debian/*.deb

# --- Tests -----------------------------------------------------------------------------------------------------

.PHONY: test
test: ## Everything CI needs, each stage timed; some of it: make test STAGES="lab accept"
	@.ci/need test
	@.ci/stages $(STAGES)

.PHONY: test-faults
test-faults: ## Deaths, partitions, bad networks, in a lab of ten workers: long
	@.ci/need test
	@$(MAKE) --no-print-directory lab WORKERS=10
	@tests/accept/see_move_end.sh faults

.PHONY: bench
bench: ## Speed, memory and load, as ratios and counts with limits
	@.ci/need bench
	@bench/run.sh

.PHONY: fmt
fmt: ## Format the Rust code
	cargo fmt --all

.PHONY: clean
clean: lab-down ## Also the images of the lab and what was built
	docker image ls -q --filter label=orion.lab=1 | sort -u | xargs -r docker image rm -f
	cargo clean
	rm -rf .venv
