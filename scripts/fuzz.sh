#!/usr/bin/env bash
# Feeds every decoder with whatever a fuzzer thinks of, starting from the seeds in fuzz/seeds.
#
#   scripts/fuzz.sh [SECONDS]       each target for so long; default 60
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
for target in frames messages files packed differences wal; do
    # what it learns is worth keeping between runs, not in the repository
    corpus="$TARGET_DIR/fuzz-corpus/$target"
    mkdir -p "$corpus"
    printf '\n== fuzzing %s for %s s ==\n' "$target" "$seconds"
    cargo fuzz run "$profile" --sanitizer address "$target" "$corpus" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=65536 -print_final_stats=1 -verbosity=0
done
