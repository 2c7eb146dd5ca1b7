#!/usr/bin/env bash
# Every test, from the quickest to the slowest; stops at the first kind that fails.
#
#   scripts/test.sh [unit|monitoring|fuzz|indb|e2e|faults|soak|histories|through|breaks|collation]...
#
# Without arguments: unit monitoring fuzz indb e2e, in this order.
#
# unit  every crate, without a server
# monitoring   the alerts and the dashboard in packaging, by promtool
# fuzz  every decoder, for a few seconds each
# indb  inside a PostgreSQL server, by cargo-pgrx
# e2e   what `make install` installed: real clusters, agents and Pgpool-II; with TESTS=WORDS those whose names hold one of them
# faults, soak, histories   of these the faults alone; heavy weather for PGPOOL_RECOVERY_SOAK_ROUNDS rounds;
#       PGPOOL_RECOVERY_HISTORIES_ROUNDS random histories
# through, breaks   what `make matrix` runs of e2e for each PostgreSQL and Pgpool-II: all that has a Pgpool-II in it, recoveries
#       from end to end, blocks that WAL proves equal; a few of the faults
# collation   a target on every other Debian of which `make matrix` has left a chroot: what the check says of its libraries
#
# PG_CONFIG chooses the server, as for `make install`. The end-to-end tests install a build of the dev profile, or of
# PROFILE=release; `make install` puts the latter back.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh
if wants_later_pgrx; then exec scripts/postgresql-19.sh scripts/test.sh "$@"; fi

say() { printf '\n== %s ==\n' "$*"; }

unit() {
    say "every crate"
    workspace
    cargo test "${WORKSPACE[@]}" -- --skip server_tests::
}

monitoring() {
    say "alerts and dashboard"
    scripts/setup.sh monitoring
    local promtool
    promtool=$(command -v promtool || echo "$TARGET_DIR/tools/promtool")
    # the rules that it names are checked with it
    "$promtool" check config packaging/prometheus/prometheus.yml
    mkdir -p "$TARGET_DIR"
    scripts/dashboard-test.py >"$TARGET_DIR/dashboard_test.json"
    "$promtool" test rules packaging/prometheus/pgpool_recovery_rules_test.yml "$TARGET_DIR/dashboard_test.json"
}

fuzz() {
    say "fuzzers"
    PROFILE=dev scripts/fuzz.sh 5
}

indb() {
    say "in the database"
    # initdb wants a directory whose parent belongs to the user it runs as.
    local home
    home=$(mktemp -d /tmp/pgpool-recovery-test.XXXXXX)
    # shellcheck disable=SC2064 # the directory of now
    trap "as_root rm -rf '$home'" EXIT
    as_root chown postgres: "$home"
    # What `cargo pgrx test` does, for the packages that are built already: it would choose one of them. pgrx's harness has
    # cargo-pgrx install the extension, with the features that it finds here.
    workspace ,pg_test
    local flags="--workspace --test e2e"
    # cargo-pgrx 0.19 calls "cargo rustc", which takes one package: the crates that it shares are built once more
    if [ "$(pg_major)" -ge 19 ]; then flags=; fi
    CARGO_PGRX_TEST_RUNAS=postgres CARGO_PGRX_TEST_PGDATA=$home/data CARGO_PGRX=$PWD/scripts/cargo-pgrx.sh \
        CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1 PGRX_BUILD_FLAGS=$flags \
        cargo test "${WORKSPACE[@]}" --lib -- server_tests::
    as_root rm -rf "$home"
    trap - EXIT
}

installed() {
    # cargo-pgrx's tests leave a library and an install script with the tests in them: this puts the real ones back.
    PROFILE=${PROFILE:-dev} scripts/install.sh
}

e2e() {
    say "end to end"
    installed
    # shellcheck disable=SC2086 # words
    e2e_tests ${TESTS:-}
}

# The end-to-end tests, or those whose names hold one of these words. Most of them wait most of the time
# (docs/decisions/2026-11-29-one-test-binary.md); those that need the machine for themselves see to that.
e2e_tests() {
    workspace
    local triple
    triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    # as root: the tests start servers as user postgres, mount file systems and make network namespaces
    export "CARGO_TARGET_${triple}_RUNNER=scripts/on-a-disk.sh"
    RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) * 3))} cargo test "${WORKSPACE[@]}" --test e2e -- "$@"
}

faults() {
    say "every fault"
    installed
    PGPOOL_RECOVERY_EVERY_FAULT=1 e2e_tests faults::
}

soak() {
    say "heavy weather"
    installed
    e2e_tests runs::soak:: --nocapture
}

histories() {
    say "random histories"
    installed
    e2e_tests unchanged::histories:: --nocapture
}

through() {
    say "recoveries end to end"
    installed
    e2e_tests pgpool:: outage::promote:: outage::second_stage:: agent::recovery:: runs::local_target:: runs::hosts:: \
        runs::failover:: runs::layouts:: runs::versions:: files:: unchanged::
}

breaks() {
    say "some of the faults"
    installed
    e2e_tests faults::gigabyte:: runs::damaged_target:: runs::tablespaces:: faults::interrupted:: \
        faults::every_moment::a_cancel faults::every_moment::a_terminated faults::every_moment::a_killed
}

# In the chroots that scripts/matrix.sh has made. The agent is this machine's: it runs with a later C library, not with an earlier one.
collation() {
    local root here there tried=0
    installed
    here=$(getconf GNU_LIBC_VERSION | cut -d ' ' -f 2)
    for root in "${CHROOTS:-$TARGET_DIR/matrix}"/*/root; do
        [ -e "$root/.made" ] && [ -d "$root/usr/lib/postgresql" ] || continue
        there=$(as_root chroot "$root" ldd --version | sed -n '1s/.* //p')
        [ "$here" != "$there" ] && printf '%s\n' "$here" "$there" | sort -C -V || continue
        say "a target on Debian $(cat "$root/etc/debian_version"), with glibc $there"
        PGPOOL_RECOVERY_OTHER_ROOT=$root e2e_tests --ignored --nocapture another_debian_on_the_targets_host
        tried=1
    done
    [ $tried = 1 ] || { echo "no chroot of another Debian below $TARGET_DIR/matrix: make matrix makes them" >&2; return 1; }
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

[ $# -gt 0 ] || set -- unit monitoring fuzz indb e2e
for kind in "$@"; do
    case $kind in
        unit | monitoring | fuzz | indb | e2e | faults | soak | histories | through | breaks | collation) "$kind" ;;
        *) echo "unknown kind of test: $kind" >&2; exit 2 ;;
    esac
done
