#!/usr/bin/env bash
# Formatting, lints and the rules of the house.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

# What clippy of this Rust finds is an error. Each version brings new lints: what another one finds is shown only.
readonly RUST=1.95

lints=(--deny warnings)
case $(cargo clippy --version) in
    "clippy 0.$RUST "*) ;;
    *)
        echo "lint: this is not clippy of Rust $RUST, what it finds is no error" >&2
        lints=(--cap-lints warn)
        ;;
esac
cargo fmt --all --check
workspace
cargo clippy --quiet "${WORKSPACE[@]}" --all-targets -- "${lints[@]}"
# --all-targets is without it, also if it is named beside
cargo clippy --quiet "${WORKSPACE[@]}" --test e2e -- "${lints[@]}"
scripts/check-house.sh
for script in scripts/*.sh scripts/*/*.sh demo/*.sh demo/lib/*.sh .ci/run; do
    bash -n "$script"
done
scripts/pictures.py --check
scripts/sql.sh --check
if command -v cargo-deny >/dev/null; then
    cargo deny --log-level error check bans licenses sources
fi
echo "lint: ok"
