#!/usr/bin/env bash
# The tutorial: Pgpool-II brings a dead node back with pcp_recovery_node, on one host.
#
# Exit status 0 only if node 0, killed on the way, ended up attached, up, standby and streaming with the
# rows written in its absence. Everything lives in a directory under /tmp and is gone afterwards.
. "$(dirname "$0")/lib/stage.sh"

NODE0=$WORK/node0 NODE1=$WORK/node1
PORT0=$(free_port 11002) PORT1=$(free_port 11052)
POOL_HOST='' POOL_ADDRESS=localhost
POOL_PORT=$(free_port 9999) PCP_PORT=$(free_port 9898)

printf '%sOnline recovery with Pgpool-II%s\n' "$bold" "$plain"
tell "$(pgpool --version 2>&1)" "$("$BIN/postgres" --version)" \
    "Everything is in $WORK. No ssh, no rsync and no recovery script takes part."

chapter "1. Node 0, a primary with the extension"
# Both nodes are on localhost: the node id tells their replication apart.
make_node '' "$NODE0" "$PORT0" <<CONF
pgpool_recovery.application_name = 'server%n'
pgpool_recovery.slot_name = 'server%n'
CONF
for database in template1 postgres; do
    show "psql -p $PORT0 -d $database -c 'CREATE EXTENSION pgpool_recovery'" \
        as_postgres "$BIN/psql" -X -h "$WORK" -p "$PORT0" -U postgres -d "$database" -c 'CREATE EXTENSION pgpool_recovery' ||
        give_up "the extension cannot be created"
done

chapter "2. Pgpool-II in front of two nodes, of which the second does not exist yet"
NODES+=("$NODE1")
cat >"$WORK/backends" <<CONF
backend_hostname0 = 'localhost'
backend_port0 = $PORT0
backend_data_directory0 = '$NODE0'
backend_application_name0 = 'server0'
backend_hostname1 = 'localhost'
backend_port1 = $PORT1
backend_data_directory1 = '$NODE1'
backend_application_name1 = 'server1'
recovery_user = 'postgres'
recovery_1st_stage_command = 'pgpool_recovery_1st_stage'
CONF
tell "In pgpool.conf, besides the backends, two lines concern recovery:"
show "grep ^recovery_ pgpool.conf" grep '^recovery_' "$WORK/backends"
start_pgpool '' localhost <"$WORK/backends"
wait_for_node 0 'up primary '
wait_for_node 1 'down standby '
show_nodes

chapter "3. Node 1 is made: the same command that will bring node 0 back"
recover_node 1
wait_for_node 1 'up standby streaming'
show_nodes

chapter "4. Rows, written through Pgpool-II"
show "psql -p $POOL_PORT -c 'CREATE TABLE ...; INSERT ...'" \
    pooled "CREATE TABLE visits (id serial PRIMARY KEY, note text);
            INSERT INTO visits (note) SELECT 'before the crash ' || i FROM generate_series(1, 100000) i"
until_true 30 all_rows_on "$PORT1" || give_up "node 1 lacks rows"

chapter "5. Node 0 is killed"
show "kill -9 $(head -n 1 "$NODE0/postmaster.pid")    # node 0's postmaster" kill_node "$NODE0"
tell "Pgpool-II notices, and promotes node 1."
wait_for_node 0 'down standby '
wait_for_node 1 'up primary '
show_nodes

chapter "6. Life goes on without node 0"
show "psql -p $POOL_PORT -c \"INSERT INTO visits ...\"" \
    pooled "INSERT INTO visits (note) SELECT 'while node 0 was down ' || i FROM generate_series(1, 3) i"

chapter "7. Node 0 is brought back"
recover_node 0
wait_for_node 0 'up standby streaming'
story "$NODE1/log/pgpool_remote_start.log"
show_nodes

chapter "8. The new rows, read from node 0 itself"
pooled "INSERT INTO visits (note) VALUES ('after node 0 came back')" >/dev/null
until_true 30 all_rows_on "$PORT0" || give_up "node 0 lacks rows"
show "psql -p $PORT0 -c \"SELECT ... ORDER BY id DESC LIMIT 5\"" \
    as_postgres "$BIN/psql" -X -h "$WORK" -p "$PORT0" -U postgres -d postgres \
    -c 'SELECT pg_is_in_recovery() AS standby, id, note FROM visits ORDER BY id DESC LIMIT 5'
[ "$(sql "$PORT0" 'SELECT pg_is_in_recovery()')" = t ] || give_up "node 0 is no standby"
node_is 0 'up standby streaming' || give_up "node 0 is \"$(node 0)\""

printf '\n%sNode 0 is attached, up, a standby, streaming, and has every row.%s\n' "$green" "$plain"
