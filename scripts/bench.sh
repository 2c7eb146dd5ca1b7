#!/usr/bin/env bash
# Measures what `make install` installed side by side with its peers. Arguments: see --help and
# docs/benchmarks.md.
#
#   scripts/bench.sh --size 300 --repetitions 3 --works refresh-10,full
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
scripts/setup.sh runtime bench

cargo build --quiet --release --package pgpool-recovery-bench
run=("$TARGET_DIR/release/pgpool-recovery-bench" "$@")
# It starts servers as user postgres, and makes network namespaces and a loop device.
[ "$(id -u)" = 0 ] || run=(sudo "--preserve-env=PG_CONFIG,PGPOOL_RECOVERY_AGENT" "${run[@]}")
exec "${run[@]}"
