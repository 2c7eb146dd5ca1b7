#!/usr/bin/env bash
# Feeds every decoder with whatever a fuzzer thinks of, starting from the seeds in fuzz/seeds.
#
#   scripts/fuzz.sh [SECONDS]       each target for so long, as many at a time as there are processors; default 60
#
# PROFILE=dev builds in a third of the time what runs at a twentieth of the speed: enough for the seeds.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

seconds=${1:-60}
scripts/setup.sh fuzz
# cargo-fuzz asks rustc for sanitizers, which a stable rustc has but keeps to itself.
export RUSTC_BOOTSTRAP=1
export CARGO_TARGET_DIR="$TARGET_DIR/fuzz"
profile=--release
[ "${PROFILE:-release}" != dev ] || profile=--dev
cargo fuzz build "$profile" --sanitizer address
export seconds profile TARGET_DIR
# Each uses one processor. What it says is shown when it has ended.
one() {
    # what it learns is worth keeping between runs, not in the repository
    local target=$1 corpus="$TARGET_DIR/fuzz-corpus/$1" said outcome=0
    mkdir -p "$corpus"
    said=$(cargo fuzz run "$profile" --sanitizer address "$target" "$corpus" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=65536 -print_final_stats=1 -verbosity=0 2>&1) || outcome=$?
    printf '\n== fuzzed %s for %s s ==\n%s\n' "$target" "$seconds" "$said"
    return "$outcome"
}
export -f one
printf '%s\n' frames messages files packed differences wal | xargs -P "$(nproc)" -I{} bash -c 'one {}'
