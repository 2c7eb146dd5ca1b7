#!/usr/bin/env bash
# The tutorial on three hosts: Pgpool-II, server0 and server1, each with a network address of its own
# (a network namespace), and an agent on each database host. What crosses the network between them is
# PostgreSQL's own protocol and the agents' encrypted channel.
#
# Exit status 0 only if node 0, killed on the way, ended up attached, up, standby and streaming with the
# rows written in its absence. Everything lives in a directory under /tmp and is gone afterwards.
. "$(dirname "$0")/lib/stage.sh"
. "$(dirname "$0")/lib/network.sh"

printf '%sOnline recovery with Pgpool-II and agents, on three hosts%s\n' "$bold" "$plain"
tell "$(pgpool --version 2>&1)" "$("$BIN/postgres" --version)" \
    "Everything is in $WORK. No ssh, no rsync and no recovery script takes part."

make_network pool server0 server1
POOL_HOST=$NETWORK-pool POOL_ADDRESS=10.84.0.10
HOST0=$NETWORK-server0 ADDRESS0=10.84.0.11
HOST1=$NETWORK-server1 ADDRESS1=10.84.0.12
# The files of all hosts share this machine's disk; ports differ because unix sockets are files too.
NODE0=$WORK/server0 NODE1=$WORK/server1
PORT0=5432 PORT1=5433 POOL_PORT=9999 PCP_PORT=9898

chapter "1. A secret, the same on every host, and an agent on each database host"
show "pgpool-recovery-agent secret --output $WORK/secret" \
    as_postgres "$AGENT" secret --output "$WORK/secret" || give_up "no secret"
# agent HOST ADDRESS DIRECTORY
agent() {
    own "$WORK/agent-$2.toml" 0600 <<TOML
listen = "$2:9897"
secret_file = "$WORK/secret"

[[cluster]]
data_directory = "$3"
bin_directory = "$BIN"
TOML
    in_background "$1" "$WORK/agent-$2.log" "$AGENT" serve --config "$WORK/agent-$2.toml"
}
agent "$HOST0" "$ADDRESS0" "$NODE0"
agent "$HOST1" "$ADDRESS1" "$NODE1"
show "cat agent.toml    # of server1" cat "$WORK/agent-$ADDRESS1.toml"
tell "It runs as user postgres:"
show "pgpool-recovery-agent serve --config agent.toml &" sleep 1
sed 's/^/    /' "$WORK/agent-$ADDRESS1.log"
listens() { [ -n "$(nsenter --net="/run/netns/$1" ss -Hltn 'sport = :9897')" ]; }
until_true 20 listens "$HOST0" && until_true 20 listens "$HOST1" || give_up "an agent does not listen"

chapter "2. server0: a primary with the extension; server1: an agent and an empty place"
make_node "$HOST0" "$NODE0" "$PORT0" <<CONF
pgpool_recovery.secret_file = '$WORK/secret'
CONF
NODES+=("$NODE1")
for database in template1 postgres; do
    show "psql -h $ADDRESS0 -d $database -c 'CREATE EXTENSION pgpool_recovery'" \
        as_postgres "$BIN/psql" -X -h "$WORK" -p "$PORT0" -U postgres -d "$database" -c 'CREATE EXTENSION pgpool_recovery' ||
        give_up "the extension cannot be created"
done

chapter "3. Pgpool-II in front of both"
# The standby's application_name is its host by default: Pgpool-II is told so.
start_pgpool "$POOL_HOST" "$POOL_ADDRESS" <<CONF
backend_hostname0 = '$ADDRESS0'
backend_port0 = $PORT0
backend_data_directory0 = '$NODE0'
backend_application_name0 = '$ADDRESS0'
backend_hostname1 = '$ADDRESS1'
backend_port1 = $PORT1
backend_data_directory1 = '$NODE1'
backend_application_name1 = '$ADDRESS1'
recovery_user = 'postgres'
recovery_1st_stage_command = 'pgpool_recovery_1st_stage'
CONF
wait_for_node 0 'up primary '
wait_for_node 1 'down standby '
show_nodes

chapter "4. Node 1 is made through its agent"
recover_node 1
wait_for_node 1 'up standby streaming'
story "$WORK/server0.log"
show_nodes

chapter "5. Rows, and a crash"
show "psql -h $POOL_ADDRESS -p $POOL_PORT -c 'CREATE TABLE ...; INSERT ...'" \
    pooled "CREATE TABLE visits (id serial PRIMARY KEY, note text);
            INSERT INTO visits (note) SELECT 'before the crash ' || i FROM generate_series(1, 100000) i"
until_true 30 all_rows_on "$PORT1" || give_up "node 1 lacks rows"
show "kill -9 $(head -n 1 "$NODE0/postmaster.pid")    # on server0: its postmaster" kill_node "$NODE0"
tell "Pgpool-II notices, and promotes node 1."
wait_for_node 0 'down standby '
wait_for_node 1 'up primary '
show_nodes
show "psql -h $POOL_ADDRESS -p $POOL_PORT -c \"INSERT INTO visits ...\"" \
    pooled "INSERT INTO visits (note) SELECT 'while node 0 was down ' || i FROM generate_series(1, 3) i"

chapter "6. Node 0 is brought back, from server1 through the agent on server0"
recover_node 0
wait_for_node 0 'up standby streaming'
story "$NODE1/log/pgpool_remote_start.log"
show "tail agent.log    # on server0" tail -n 12 "$WORK/agent-$ADDRESS0.log"
show_nodes

chapter "7. The new rows, read from node 0 itself"
pooled "INSERT INTO visits (note) VALUES ('after node 0 came back')" >/dev/null
until_true 30 all_rows_on "$PORT0" || give_up "node 0 lacks rows"
show "psql -h $ADDRESS0 -c \"SELECT ... ORDER BY id DESC LIMIT 5\"" \
    on "$POOL_HOST" psql -X -h "$ADDRESS0" -p "$PORT0" -U postgres -d postgres \
    -c 'SELECT pg_is_in_recovery() AS standby, id, note FROM visits ORDER BY id DESC LIMIT 5'
[ "$(sql "$PORT0" 'SELECT pg_is_in_recovery()')" = t ] || give_up "node 0 is no standby"
node_is 0 'up standby streaming' || give_up "node 0 is \"$(node 0)\""

printf '\n%sNode 0 is attached, up, a standby, streaming, and has every row.%s\n' "$green" "$plain"
