# shellcheck shell=bash
# Sourced by the other scripts: the environment that cargo and the servers are to see.

command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
export PATH
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
# With it pgrx puts a backtrace into the DETAIL of every ERROR.
unset RUST_BACKTRACE
# libpq would follow these to other servers than those the scripts start.
while IFS= read -r name; do
    case $name in
        # PGPOOL_RECOVERY_* are our own
        PG_CONFIG | PGRX_* | PGPOOL_RECOVERY_*) ;;
        *) unset "$name" ;;
    esac
done < <(compgen -e | grep -E '^PG[A-Z]' || true)
# The server to build for. pgrx, with or without cargo-pgrx, finds its headers by the second name.
export PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/15/bin/pg_config}
export PGRX_PG_CONFIG_PATH=$PG_CONFIG
# pgrx has a feature for each major version: pg$(pg_major)
pg_major() { "$PG_CONFIG" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'; }
# One choice of packages for all that the tests build: which packages are chosen decides the features of the crates they
# share, and each other choice builds those once more (docs/decisions/2026-11-30-one-build-for-all-tests.md).
# workspace [,FEATURE] fills the array WORKSPACE.
workspace() {
    WORKSPACE=(--workspace --no-default-features --features "pg$(pg_major)${1:-}")
}
# shellcheck disable=SC2034 # for those who source this
TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
# Whether the server is one that needs a later pgrx, and this not yet the copy that scripts/postgresql-19.sh makes.
wants_later_pgrx() { [ "$(pg_major 2>/dev/null)" -ge 19 ] 2>/dev/null && ! grep -q '^pg19 = ' Cargo.toml; }
