#!/usr/bin/env bash
# Formatting, lints and the rules of the house.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

cargo fmt --all --check
cargo clippy --quiet --workspace --all-targets -- --deny warnings
scripts/check-house.sh
for script in scripts/*.sh demo/*.sh demo/lib/*.sh .ci/run; do
    bash -n "$script"
done
bash -n scripts/guide/hosts.sh
scripts/pictures.py --check
if command -v cargo-deny >/dev/null; then
    cargo deny --log-level error check bans licenses sources
fi
echo "lint: ok"
