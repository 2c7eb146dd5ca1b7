#!/usr/bin/env bash
# A whole outage on four hosts: Pgpool-II, and server0 to server2, each with a network address of its own (a network
# namespace). The primary is killed, and the one after it; each time a standby is promoted and the other one follows,
# and the dead servers come back. Pgpool-II calls pgpool-recovery-hook; no host has ssh, and there is no script.
#
# Exit status 0 only if all three nodes ended up attached and up, one primary and two streaming standbys, with every row.
# Everything lives in a directory under /tmp and is gone afterwards.
. "$(dirname "$0")/lib/stage.sh"
. "$(dirname "$0")/lib/network.sh"

HOOK=${PREFIX:-/usr/local}/bin/pgpool-recovery-hook

printf '%sA whole outage without a script, on four hosts%s\n' "$bold" "$plain"
tell "$(pgpool --version 2>&1)" "$("$BIN/postgres" --version)" \
    "Everything is in $WORK. No ssh, no rsync and no script takes part."

make_network pool server0 server1 server2
POOL_HOST=$NETWORK-pool POOL_ADDRESS=10.84.0.10
HOSTS=("$NETWORK-server0" "$NETWORK-server1" "$NETWORK-server2")
ADDRESSES=(10.84.0.11 10.84.0.12 10.84.0.13)
# The files of all hosts share this machine's disk; ports differ because unix sockets are files too.
PLACES=("$WORK/server0" "$WORK/server1" "$WORK/server2")
PORTS=(5432 5433 5434)
POOL_PORT=9999 PCP_PORT=9898

chapter "1. A secret, and an agent on each database host that may stop its server"
as_postgres "$AGENT" secret --output "$WORK/secret" || give_up "no secret"
listens() { [ -n "$(nsenter --net="/run/netns/$1" ss -Hltn 'sport = :9897')" ]; }
for id in 0 1 2; do
    own "$WORK/agent-${ADDRESSES[id]}.toml" 0600 <<TOML
listen = "${ADDRESSES[id]}:9897"
secret_file = "$WORK/secret"

[[cluster]]
data_directory = "${PLACES[id]}"
bin_directory = "$BIN"
allow_stop = true
TOML
    in_background "${HOSTS[id]}" "$WORK/agent-${ADDRESSES[id]}.log" \
        "$AGENT" serve --config "$WORK/agent-${ADDRESSES[id]}.toml"
    until_true 20 listens "${HOSTS[id]}" || give_up "an agent does not listen"
done
show "cat agent.toml    # of server0" cat "$WORK/agent-${ADDRESSES[0]}.toml"

chapter "2. server0 is the primary"
# Each node tells the others its own address. What a node is called in messages, slots and Pgpool-II is its number.
node_settings() {
    cat <<CONF
pgpool_recovery.secret_file = '$WORK/secret'
pgpool_recovery.primary_host = '$1'
pgpool_recovery.stop_target = on
wal_log_hints = on
CONF
}
make_node "${HOSTS[0]}" "${PLACES[0]}" "${PORTS[0]}" < <(node_settings "${ADDRESSES[0]}")
for id in 1 2; do
    # A standby keeps a postgresql.conf of its own.
    NODES+=("${PLACES[id]}")
    as_postgres mkdir -m 0700 "${PLACES[id]}"
    { sed '/^pgpool_recovery\.primary_host/d; /^port = /d' "${PLACES[0]}/postgresql.conf"
      echo "port = ${PORTS[id]}"
      echo "pgpool_recovery.primary_host = '${ADDRESSES[id]}'"; } | own "${PLACES[id]}/postgresql.conf" 0600
done
for database in template1 postgres; do
    sql "${PORTS[0]}" "SELECT 1" >/dev/null
    as_postgres "$BIN/psql" -X -q -h "$WORK" -p "${PORTS[0]}" -U postgres -d "$database" \
        -c 'CREATE EXTENSION pgpool_recovery' || give_up "the extension cannot be created"
done

chapter "3. Pgpool-II in front: one line for failover, none for following"
backends=
for id in 0 1 2; do
    backends+="backend_hostname$id = '${ADDRESSES[id]}'
backend_port$id = ${PORTS[id]}
backend_data_directory$id = '${PLACES[id]}'
backend_application_name$id = '${ADDRESSES[id]}'
"
done
FAILOVER_COMMAND="PCPPASSFILE=$WORK/.pcppass $HOOK failover %d %h %p %D %m %H %M %P %r %R %N %S"
start_pgpool "$POOL_HOST" "$POOL_ADDRESS" <<CONF
$backends
recovery_user = 'postgres'
recovery_1st_stage_command = 'pgpool_recovery_1st_stage'
failover_command = '$FAILOVER_COMMAND'
follow_primary_command = ''
CONF
show "grep -E '^(failover|follow)' pgpool.conf" grep -E '^(failover_command = .*hook|follow)' "$WORK/pgpool.conf"
wait_for_node 0 'up primary '
for id in 1 2; do
    recover_node "$id"
    wait_for_node "$id" 'up standby streaming'
done
show_nodes
show "pgpool-recovery-hook check" on "$POOL_HOST" env PGUSER=postgres "$HOOK" check --config "$WORK/pgpool.conf" || true

chapter "4. Rows, and the first crash"
pooled "CREATE TABLE visits (id serial PRIMARY KEY, note text);
        INSERT INTO visits (note) SELECT 'at first ' || i FROM generate_series(1, 100000) i" >/dev/null
for id in 1 2; do until_true 30 all_rows_on "${PORTS[id]}" || give_up "node $id lacks rows"; done
show "kill -9 $(head -n 1 "${PLACES[0]}/postmaster.pid")    # on server0: its postmaster" kill_node "${PLACES[0]}"
tell "Pgpool-II notices, and calls the hook: node 1 is promoted, node 2 follows it, and is never detached."
wait_for_node 0 'down standby '
wait_for_node 1 'up primary '
wait_for_node 2 'up standby streaming'
hook_lines() { grep -oE 'pgpool-recovery-hook.*' "$WORK/pgpool.log" | tail -n 6; }
show "grep pgpool-recovery-hook pgpool.log | tail" hook_lines || true
show_nodes
pooled "INSERT INTO visits (note) SELECT 'after the first crash ' || i FROM generate_series(1, 3) i" >/dev/null

chapter "5. The second crash"
until_true 30 all_rows_on "${PORTS[2]}" || give_up "node 2 lacks rows"
show "kill -9 $(head -n 1 "${PLACES[1]}/postmaster.pid")    # on server1" kill_node "${PLACES[1]}"
wait_for_node 1 'down standby '
wait_for_node 2 'up primary '
show "grep pgpool-recovery-hook pgpool.log | tail" hook_lines || true
show_nodes
pooled "INSERT INTO visits (note) SELECT 'after the second crash ' || i FROM generate_series(1, 3) i" >/dev/null

chapter "6. Both dead servers come back"
for id in 0 1; do
    recover_node "$id"
    wait_for_node "$id" 'up standby streaming'
done
show_nodes

chapter "7. Every row, on every node, and one primary"
pooled "INSERT INTO visits (note) VALUES ('at last')" >/dev/null
primaries=0
for id in 0 1 2; do
    until_true 30 all_rows_on "${PORTS[id]}" || give_up "node $id lacks rows"
    [ "$(sql "${PORTS[id]}" 'SELECT pg_is_in_recovery()')" = t ] || primaries=$((primaries + 1))
done
[ "$primaries" = 1 ] || give_up "there are $primaries primaries"
show "psql -h ${ADDRESSES[0]} -c \"SELECT ... ORDER BY id DESC LIMIT 5\"" \
    on "$POOL_HOST" psql -X -h "${ADDRESSES[0]}" -p "${PORTS[0]}" -U postgres -d postgres \
    -c 'SELECT pg_is_in_recovery() AS standby, id, note FROM visits ORDER BY id DESC LIMIT 5'
node_is 0 'up standby streaming' && node_is 1 'up standby streaming' && node_is 2 'up primary ' ||
    give_up "nodes are \"$(node 0)\", \"$(node 1)\", \"$(node 2)\""

printf '\n%sTwo primaries died one after the other; all nodes are up, and nothing is lost.%s\n' "$green" "$plain"
