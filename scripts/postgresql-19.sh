#!/usr/bin/env bash
# Runs a script of this project in a copy of it that is built with pgrx 0.19, which PostgreSQL 19 needs.
#
#   scripts/postgresql-19.sh scripts/install.sh [ARGUMENT...]
#
# pgrx 0.19 asks for a later Rust than the other versions of PostgreSQL are to need, and Cargo keeps one version of it for
# a manifest and its lock. So both are changed in a copy, $TARGET_DIR/postgresql-19: the version and the feature in
# Cargo.toml, and what that brings along in Cargo.lock. The sources are the same. scripts/install.sh and scripts/test.sh
# come here by themselves.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

readonly PGRX=0.19.4 RUST=1.96
copy=$(realpath -m "$TARGET_DIR/postgresql-19")
# the compiled crates are shared with what else is built here
CARGO_TARGET_DIR=$(realpath -m "$TARGET_DIR")
export CARGO_TARGET_DIR

# Times are kept, so cargo builds what changed.
rm -rf "$copy/src"
mkdir -p "$copy/src"
tar --create --exclude=./.git --exclude=./target --exclude="./$(realpath -m --relative-to=. "$TARGET_DIR")" . |
    tar --extract --directory "$copy/src"
cd "$copy/src"
sed -i -E -e "s/^(pgrx|pgrx-tests) = \"=.*\"/\1 = \"=$PGRX\"/" -e "s/^rust-version = .*\"/rust-version = \"$RUST\"/" \
    -e '/^pg18 = /{p; s/18/19/g}' Cargo.toml
# What is in the lock stays as it is; what pgrx needs besides is chosen once.
lock=$copy/lock.$(cat Cargo.toml Cargo.lock "$0" | sha256sum | cut -c 1-16)
if [ -e "$lock" ]; then
    cp -p "$lock" Cargo.lock
else
    cargo update --quiet --workspace
    rm -f "$copy"/lock.*
    cp -p Cargo.lock "$lock"
fi
exec "$@"
