#!/usr/bin/env bash
# Measures what is installed on two hosts, over the network between them. Needs no root, here or there; what it does need
# is told by --help and in docs/benchmarks.md.
#
#   scripts/bench-hosts.sh --primary postgres@db1 --standby postgres@db2 --size 3000 --rounds 3 --works full,refresh-1
#
# PRIMARY and STANDBY of the environment stand for the first two, BENCH_HOSTS_SSH and BENCH_HOSTS_SSH_BETWEEN for --ssh and
# --ssh-between (scripts/two-hosts.py sets them).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
command -v ssh >/dev/null || { echo "bench-hosts: ssh is missing: install openssh-client first" >&2; exit 1; }

cargo build --quiet --release --package pgpool-recovery-bench
run=("$TARGET_DIR/release/pgpool-recovery-bench" hosts)
# given NAME OPTION : the option with the variable's value, if there is one and the option is not among the arguments
given() { [ -z "${!1:-}" ] || [[ $arguments == *" $2 "* ]] || run+=("$2" "${!1}"); }
arguments=" $* "
given PRIMARY --primary
given STANDBY --standby
given BENCH_HOSTS_SSH --ssh
given BENCH_HOSTS_SSH_BETWEEN --ssh-between
exec "${run[@]}" "$@"
