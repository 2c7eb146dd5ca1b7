# shellcheck shell=bash
# Sourced by the other scripts: the environment that cargo and the servers are to see.

command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
export PATH
# cargo-pgrx reads the SQL of the extension from a section of the library, which a linker flag of its
# own keeps there; with RUSTFLAGS set it leaves that flag out.
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
# shellcheck disable=SC2034 # for those who source this
TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
