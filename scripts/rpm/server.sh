#!/bin/sh
# Run by scripts/try-rpm.sh as user postgres, in a root that has the packages: a primary, and a standby rebuilt through the agent.
#
#   server.sh before    with the extension in C: makes the primary
#   server.sh after     with ours in its place: changes over, and rebuilds
set -eu
cd /var/lib/pgsql
bin=/usr/pgsql-15/bin
primary=/var/lib/pgsql/15/primary
# what agent.toml has, empty, as PGDG's package leaves it
standby=/var/lib/pgsql/15/data

sql() { psql -X -A -t -v ON_ERROR_STOP=1 -h /tmp -p "${2:-5432}" -d template1 -c "$1"; }
start() { "$bin/pg_ctl" start -w -D "$1" -l "$1.log" -o "-k /tmp -p $2" >/dev/null || { cat "$1.log"; exit 1; }; }
fail() { echo "try-rpm: $*" >&2; exit 1; }
# is SAID EXPECTED WHAT
is() { [ "$1" = "$2" ] || fail "$3: \"$1\", not \"$2\""; }

before() {
    "$bin/initdb" -D "$primary" >/dev/null
    start "$primary" 5432
    sql "CREATE EXTENSION pgpool_recovery"
    is "$(sql "SELECT extversion FROM pg_extension WHERE extname = 'pgpool_recovery'")" 1.4 "the extension in C"
    "$bin/pg_ctl" stop -w -D "$primary" >/dev/null
}

after() {
    start "$primary" 5432
    sql "ALTER EXTENSION pgpool_recovery UPDATE"
    is "$(sql "SELECT extversion FROM pg_extension WHERE extname = 'pgpool_recovery'")" 2.0.0 "after the update"
    sql "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number"

    pgpool-recovery-agent secret --output /etc/pgpool-recovery/secret
    # the configuration of the package, as it is
    pgpool-recovery-agent check
    pgpool-recovery-agent serve >agent.log 2>&1 &
    tries=0
    until pgpool-recovery-agent status >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 50 ] || { cat agent.log; fail "the agent does not answer"; }
        sleep 0.2
    done
    sql "SELECT pgpool_recovery_1st_stage('127.0.0.1', '$standby', 5432, '{\"transport\": \"agent\"}') ->> 'strategy'"
    # systemctl is for a booted host: here by hand, beside the primary
    start "$standby" 5433
    is "$(sql "SELECT count(*) FROM kept WHERE pg_is_in_recovery()" 5433)" 1000 "rows on the standby"
    tries=0
    until [ "$(sql "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")" = 1 ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 50 ] || { cat "$standby.log"; fail "the standby does not stream"; }
        sleep 0.2
    done
    echo "the standby streams"
    # as the drop-in has it: PGDG's PGDATA ends in a slash
    pgpool-recovery-agent may-start "$standby/"
}

"$1"
