#!/usr/bin/env bash
# Builds the extension and the agent and installs them: the extension into the PostgreSQL of PG_CONFIG,
# the agent into PREFIX/bin. With DESTDIR everything goes below that directory instead.
#
#   PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config PREFIX=/usr/local DESTDIR= scripts/install.sh
set -euo pipefail
cd "$(dirname "$0")/.."

PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/15/bin/pg_config}
PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}
export PG_CONFIG

# shellcheck source=scripts/environment.sh
. scripts/environment.sh
scripts/setup.sh build

as_owner() {
    if [ "$(id -u)" = 0 ] || [ -n "$DESTDIR" ]; then "$@"; else sudo "$@"; fi
}

# Built into a staging directory and moved in from there: cargo-pgrx's own install writes over the
# library in place, which crashes every server that has it loaded. install(1) makes a new file.
major=$("$PG_CONFIG" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
stage=$TARGET_DIR/stage/pg$major
rm -rf "$stage"
cargo pgrx package --pg-config "$PG_CONFIG" --no-default-features --features "pg$major" --out-dir "$stage"
cargo build --release --package pgpool-recovery-agent

while IFS= read -r file; do
    case $file in
        *.so) mode=0755 ;;
        *) mode=0644 ;;
    esac
    as_owner install -D -m "$mode" "$stage/$file" "$DESTDIR/$file"
    echo "installed $DESTDIR/$file"
done < <(cd "$stage" && find . -type f -printf '%P\n' | sort)
as_owner install -D -m 0755 "$TARGET_DIR/release/pgpool-recovery-agent" "$DESTDIR$PREFIX/bin/pgpool-recovery-agent"
echo "installed $DESTDIR$PREFIX/bin/pgpool-recovery-agent"
