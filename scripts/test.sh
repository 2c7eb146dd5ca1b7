#!/usr/bin/env bash
# Every test, from the quickest to the slowest; stops at the first kind that fails.
#
#   scripts/test.sh [unit|fuzz|indb|e2e|faults|soak|through|breaks]...      default: unit fuzz indb e2e, in this order
#
# unit  core and agent, without PostgreSQL
# fuzz  every decoder, for a few seconds each
# indb  inside a PostgreSQL server, by cargo-pgrx
# e2e   what `make install` installed: real clusters, agents and Pgpool-II
# faults, soak   of these the faults alone; heavy weather for PGPOOL_RECOVERY_SOAK_ROUNDS rounds
# through, breaks   what `make matrix` runs of e2e for each PostgreSQL and Pgpool-II: recoveries from end
#       to end; a few of the faults
#
# PG_CONFIG chooses the server, as for `make install`. The end-to-end tests install a build of the dev profile, or of
# PROFILE=release; `make install` puts the latter back.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

say() { printf '\n== %s ==\n' "$*"; }

unit() {
    say "core and agent"
    cargo test --package pgpool-recovery-pgdata --package pgpool-recovery-core --package pgpool-recovery-agent
}

fuzz() {
    say "fuzzers"
    scripts/fuzz.sh 5
}

indb() {
    say "in the database"
    # initdb wants a directory whose parent belongs to the user it runs as.
    local home
    home=$(mktemp -d /tmp/pgpool-recovery-test.XXXXXX)
    # shellcheck disable=SC2064 # the directory of now
    trap "as_root rm -rf '$home'" EXIT
    as_root chown postgres: "$home"
    cargo pgrx test "pg$(pg_major)" --runas postgres --pgdata "$home/data"
    as_root rm -rf "$home"
    trap - EXIT
}

installed() {
    # cargo-pgrx's tests leave a library and an install script with the tests in them: this puts the real ones back.
    PROFILE=${PROFILE:-dev} scripts/install.sh
    if [ "$(id -u)" != 0 ]; then
        # The tests start servers as user postgres and make network namespaces.
        local triple
        triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
        export "CARGO_TARGET_${triple}_RUNNER=sudo -E"
    fi
}

e2e() {
    say "end to end"
    installed
    cargo test --package pgpool-recovery-e2e --package pgpool-recovery-bench
}

faults() {
    say "every fault"
    installed
    cargo test --package pgpool-recovery-e2e --test faults --test interrupted --test power_cut --test stale_cache
}

soak() {
    say "heavy weather"
    installed
    cargo test --package pgpool-recovery-e2e --test heavy_weather -- --nocapture
}

through() {
    say "recoveries end to end"
    installed
    cargo test --package pgpool-recovery-e2e --no-fail-fast --test pgpool --test pgpool_setup --test dropin \
        --test local_target --test agent_target --test netns_agent --test failover --test layouts \
        --test versions
}

breaks() {
    say "some of the faults"
    installed
    cargo test --package pgpool-recovery-e2e --no-fail-fast --test interrupted --test resume --test damaged_and_moved
    cargo test --package pgpool-recovery-e2e --no-fail-fast --test faults -- a_cancel a_terminated a_killed
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

[ $# -gt 0 ] || set -- unit fuzz indb e2e
for kind in "$@"; do
    case $kind in
        unit | fuzz | indb | e2e | faults | soak | through | breaks) "$kind" ;;
        *) echo "unknown kind of test: $kind" >&2; exit 2 ;;
    esac
done
