# Every target but `help` and `clean` works on a fresh Debian 12 with Rust, as root or with sudo.

PG_CONFIG ?= /usr/lib/postgresql/15/bin/pg_config
PREFIX ?= /usr/local
DESTDIR ?=

export PG_CONFIG PREFIX DESTDIR

.DEFAULT_GOAL := help
.PHONY: help setup setup-pgrx all install demo demo-agent demo-outage lint test test-unit test-indb test-e2e faults fuzz soak histories matrix bench bench-hosts package try-packages rpm try-rpm dist try-dist guide clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what building, the demos and most tests need (packages)
	scripts/setup.sh

# cargo-pgrx takes minutes to build: for what needs it only
setup-pgrx: setup
	scripts/setup.sh pgrx

all: ## build what install installs
	scripts/install.sh build

install: ## extension into the server of PG_CONFIG=..., agent and hook into PREFIX=/usr/local (or below DESTDIR=)
	scripts/install.sh

demo: setup install ## the tutorial: a real Pgpool-II brings a dead node back, on one host
	demo/tutorial.sh

demo-agent: setup install ## the same on three hosts (network namespaces), through agents
	demo/agents.sh

demo-outage: setup install ## a whole outage on four hosts: the primary is killed twice, and everything comes back
	demo/outage.sh

lint: setup-pgrx ## formatting, clippy, the rules of the house
	scripts/lint.sh

test: lint ## every test
	scripts/test.sh

test-unit: setup ## every crate, without a server; alerts and dashboard
	scripts/test.sh unit monitoring

test-indb: setup-pgrx ## inside a PostgreSQL server
	scripts/test.sh indb

test-e2e: setup ## real clusters, agents and Pgpool-II; TESTS=refusals::check those whose names hold one of these words
	scripts/test.sh e2e

faults: setup ## every fault at every moment of a run (part of test-e2e)
	scripts/test.sh faults

fuzz: setup ## every decoder for SECONDS=60 (5 of them are part of test)
	scripts/fuzz.sh $(or $(SECONDS),60)

# make soak ROUNDS=300 SEED=7
soak: setup ## recoveries under write load and DDL, round after round (10 of them are part of test-e2e)
	PGPOOL_RECOVERY_SOAK_ROUNDS=$(or $(ROUNDS),100) PGPOOL_RECOVERY_SOAK_SEED=$(or $(SEED),1) scripts/test.sh soak

# make histories ROUNDS=300 SEED=7
histories: setup ## random histories of three servers, each with recoveries that leave out what WAL proves equal (3 of them are part of test-e2e)
	PGPOOL_RECOVERY_HISTORIES_ROUNDS=$(or $(ROUNDS),100) PGPOOL_RECOVERY_HISTORIES_SEED=$(or $(SEED),1) scripts/test.sh histories

# make matrix PG=17
matrix: setup-pgrx ## every PostgreSQL and Pgpool-II of Debian 11 to 14, each in a chroot (root only; PG=17: one of them)
	scripts/matrix.sh $(PG)

# make bench SIZE=300 REPETITIONS=3 WORKS=full,refresh-10 CONTENDERS='ours*,rsync' JSON=run.json ARGS=--cold
bench: setup install ## our engine side by side with rsync, pg_basebackup, pgBackRest, pg_rewind (docs/benchmarks.md)
	scripts/bench.sh $(if $(SIZE),--size $(SIZE)) $(if $(REPETITIONS),--repetitions $(REPETITIONS)) \
		$(if $(WORKS),--works $(WORKS)) $(if $(CONTENDERS),--contenders '$(CONTENDERS)') \
		$(if $(RATE),--rate $(RATE)) $(if $(FILES),--files $(FILES)) $(if $(CURVE_MAX),--curve-max $(CURVE_MAX)) \
		$(if $(DIRECTORY),--directory $(DIRECTORY)) $(if $(JSON),--json $(JSON)) $(ARGS)

# make bench-hosts PRIMARY=postgres@db1 STANDBY=postgres@db2 SIZE=3000 ROUNDS=3 WORKS=full,refresh-1 RATE=1000 JSON=run.json
bench-hosts: ## the same between two hosts that have it installed, over their network (docs/benchmarks.md)
	scripts/bench-hosts.sh $(if $(PRIMARY),--primary $(PRIMARY)) $(if $(STANDBY),--standby $(STANDBY)) \
		$(if $(SIZE),--size $(SIZE)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(WORKS),--works $(WORKS)) \
		$(if $(CONTENDERS),--contenders '$(CONTENDERS)') $(if $(RATE),--rate $(RATE)) \
		$(if $(DIRECTORY),--directory $(DIRECTORY)) $(if $(JSON),--json $(JSON)) $(ARGS)

package: ## Debian packages of extension, agent and hook into target/packages
	scripts/package.sh

try-packages: package ## install them on a Debian 12 of their own (a chroot), change over from the C extension, purge (root only)
	scripts/try-packages.sh

rpm: ## RPM packages of the same for PGDG's directories, for the version of PG_CONFIG=..., into target/rpms
	scripts/rpm.sh

try-rpm: rpm ## install them in a chroot, look at what is where, recover a standby with them (root only)
	scripts/try-rpm.sh

dist: ## archives of a release from the last commit into target/dist
	scripts/dist.sh

try-dist: dist ## make them again, compare, and install from the tarball without a network
	scripts/try-dist.sh

guide: package ## follow docs/operators-guide.md literally, on booted Debian 12 hosts (containers) of its own
	scripts/try-guide.sh

clean: ## remove what was built
	cargo clean
