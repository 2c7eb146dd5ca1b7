#!/usr/bin/env bash
# Makes the scripts in sql/ from the sources: the install script from what cargo-pgrx finds in the library, the
# upgrade scripts from their template.
#
#   scripts/sql.sh            write them
#   scripts/sql.sh --check    fail if one is not what would be written
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

if ! cargo pgrx --version >/dev/null 2>&1; then
    echo "sql: cargo-pgrx is missing: run scripts/setup.sh pgrx" >&2
    exit 1
fi
generated=$(mktemp /tmp/pgpool-recovery-sql.XXXXXX)
trap 'rm -f "$generated"' EXIT
# cargo-pgrx reads the SQL from a section of the library. Rust's linker keeps it here; where one drops it, cargo-pgrx
# says that it found no such section.
PROFILE=dev scripts/install.sh build
cargo pgrx schema "pg$(pg_major)" --skip-build --out "$generated"
scripts/sql.py "$@" "$generated"
