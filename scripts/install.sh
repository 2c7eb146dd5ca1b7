#!/usr/bin/env bash
# Builds the extension, the agent and the hook and installs them: the extension into the PostgreSQL of PG_CONFIG,
# the programs into PREFIX/bin. With DESTDIR everything goes below that directory instead.
#
#   PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config PREFIX=/usr/local DESTDIR= PROFILE=release scripts/install.sh [build]
#
# With "build" it stops before it installs. In a clone it installs the Debian packages that building needs; elsewhere,
# as in a source release, it says what is missing, and needs no network if the crates are in vendor/.
# LIBDIR and SHAREDIR are the server's, unless it will have them elsewhere than the one that is built with.
# PROFILE=dev is what the tests install: with checks for overflow, and built in one with them.
set -euo pipefail
cd "$(dirname "$0")/.."

PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}
PROFILE=${PROFILE:-release}
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
if [ -e .git ]; then scripts/setup.sh build; else scripts/setup.sh look; fi
if wants_later_pgrx; then exec scripts/postgresql-19.sh scripts/install.sh "$@"; fi

as_owner() {
    if [ "$(id -u)" = 0 ] || [ -n "$DESTDIR" ]; then "$@"; else sudo "$@"; fi
}

if [ "$PROFILE" = dev ]; then
    workspace
    # with a test, so that the features of shared crates are those of the tests
    cargo build "${WORKSPACE[@]}" --lib --bins --test e2e
    BUILT=$TARGET_DIR/debug # cargo's name for the directory of this one profile
else
    cargo build --profile "$PROFILE" --package pgpool_recovery --no-default-features --features "pg$(pg_major)"
    cargo build --profile "$PROFILE" --package pgpool-recovery-agent --package pgpool-recovery-hook
    BUILT=$TARGET_DIR/$PROFILE
fi
[ "${1:-}" != build ] || exit 0

# put MODE FILE DESTINATION : install(1) makes a new file. Written over in place, a library crashes every server that
# has it loaded.
put() {
    as_owner install -D -m "$1" "$2" "$DESTDIR$3"
    echo "installed $DESTDIR$3"
}

extension=${SHAREDIR:-$("$PG_CONFIG" --sharedir)}/extension
put 0755 "$BUILT/libpgpool_recovery.so" "${LIBDIR:-$("$PG_CONFIG" --pkglibdir)}/pgpool_recovery.so"
for file in sql/pgpool_recovery--*.sql pgpool_recovery.control; do
    put 0644 "$file" "$extension/${file##*/}"
done
for program in pgpool-recovery-agent pgpool-recovery-hook; do
    put 0755 "$BUILT/$program" "$PREFIX/bin/$program"
done
