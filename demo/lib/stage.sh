# Sourced by the demos: telling the story, running servers, cleaning up after them.

set -euo pipefail

BIN=/usr/lib/postgresql/15/bin
AGENT=${PREFIX:-/usr/local}/bin/pgpool-recovery-agent
DATABASE_USER=postgres

# Servers refuse to run as root; processes of another user, and network namespaces, need root.
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=PREFIX "$0" "$@"
fi

if [ -t 1 ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' dim='' green='' red='' plain=''
fi

# --- telling ---

chapter() { printf '\n%s── %s%s\n' "$bold" "$*" "$plain"; }
tell() { printf '\n'; printf '%s\n' "$@"; }

# show COMMAND-AS-TYPED COMMAND... : prints the first, runs the rest, indents what it says
show() {
    printf '\n%s  $ %s%s\n' "$dim" "$1" "$plain"
    shift
    local status=0
    "$@" >"$WORK/said" 2>&1 || status=$?
    sed 's/^/    /' "$WORK/said"
    return $status
}

give_up() {
    printf '\n%sdemo failed: %s%s\n' "$red" "$*" "$plain" >&2
    local log
    for log in "$WORK"/*.log "$WORK"/*/log/pgpool_remote_start.log; do
        [ -s "$log" ] || continue
        printf '\n--- the end of %s ---\n' "$log" >&2
        tail -n 25 "$log" >&2
    done
    exit 1
}

# --- the stage and its end ---

WORK=$(mktemp -d /tmp/pgpool-recovery-demo.XXXXXX)
chown "$DATABASE_USER": "$WORK"
PROCESSES=()  # our own children: Pgpool-II, agents
NODES=()      # data directories with a server of ours
NAMESPACES=() # network namespaces of ours

clean_up() {
    trap - EXIT INT TERM
    set +e
    local pid node namespace
    for pid in "${PROCESSES[@]}"; do
        # Pgpool-II's fast stop, and an agent's end.
        kill -INT "$pid" 2>/dev/null
    done
    for pid in "${PROCESSES[@]}"; do
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    for node in "${NODES[@]}"; do
        if [ -e "$node/postmaster.pid" ]; then
            as_postgres "$BIN/pg_ctl" -D "$node" -m immediate -t 20 stop >/dev/null 2>&1
        fi
    done
    for namespace in "${NAMESPACES[@]}"; do
        ip netns delete "$namespace" 2>/dev/null
    done
    rm -rf "$WORK"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# The database user with an environment of its own, as the words before a command.
AS_POSTGRES=(setpriv --reuid "$DATABASE_USER" --regid "$DATABASE_USER" --init-groups
    env -i -C / PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    HOME="$WORK" LANG=C.UTF-8 USER="$DATABASE_USER" PCPPASSFILE="$WORK/.pcppass")
as_postgres() { "${AS_POSTGRES[@]}" "$@"; }

# on HOST COMMAND... : in the network namespace of that host; an empty HOST is this one
on() {
    entering "$1"
    "${ENTERING[@]}" "${AS_POSTGRES[@]}" "${@:2}"
}
entering() {
    ENTERING=()
    [ -z "$1" ] || ENTERING=(nsenter --net="/run/netns/$1" --)
}

# in_background HOST LOG COMMAND... : until the demo ends
in_background() {
    local host=$1 log=$2
    shift 2
    entering "$host"
    # No function here: $! is to be the program itself.
    "${ENTERING[@]}" "${AS_POSTGRES[@]}" "$@" </dev/null >>"$log" 2>&1 &
    PROCESSES+=("$!")
}

# own FILE MODE : from standard input, owned by the database user
own() {
    cat >"$1"
    chown "$DATABASE_USER": "$1"
    chmod "$2" "$1"
}

# free_port WANTED : that port or the next one nobody listens on
free_port() {
    local port=$1
    while [ -n "$(ss -Hltn "sport = :$port")" ]; do
        port=$((port + 1))
    done
    echo "$port"
}

# until_true SECONDS COMMAND... : false if it never comes true
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.3
    done
}

# --- PostgreSQL ---

# make_node HOST DIRECTORY PORT : a first server; settings for postgresql.conf on standard input
make_node() {
    local host=$1 directory=$2 port=$3
    NODES+=("$directory")
    as_postgres "$BIN/initdb" --pgdata "$directory" --username postgres --auth trust --encoding UTF8 \
        --locale C --no-sync --no-instructions >/dev/null
    {
        echo "port = $port"
        echo "listen_addresses = '*'"
        echo "unix_socket_directories = '$WORK'"
        cat
    } >>"$directory/postgresql.conf"
    printf 'host %s all 0.0.0.0/0 trust\n' all replication >>"$directory/pg_hba.conf"
    on "$host" "$BIN/pg_ctl" -D "$directory" -w -l "$WORK/$(basename "$directory").log" start >/dev/null
}

# sql PORT STATEMENT : straight from a server, by its unix socket
sql() { as_postgres "$BIN/psql" -X -q -At -h "$WORK" -p "$1" -U postgres -d postgres -c "$2"; }

# kill_node DIRECTORY : kill -9 of the server; returns when nothing of it runs any more
kill_node() {
    local postmaster pid
    local -a processes
    postmaster=$(head -n 1 "$1/postmaster.pid")
    mapfile -t processes < <(pgrep -P "$postmaster")
    kill -KILL "$postmaster"
    for pid in "${processes[@]}"; do
        # Its children end by themselves when they see that it is gone.
        until_true 30 has_ended "$pid" || give_up "process $pid of the killed server still runs"
    done
    # PostgreSQL takes the lock of its socket for held as long as there is a process of that number, a zombie too. Process 1
    # may take seconds to reap it.
    until_true 30 is_reaped "$postmaster" || give_up "process $postmaster of the killed server was not reaped by process 1"
}

is_reaped() { ! kill -0 "$1" 2>/dev/null; }

has_ended() {
    local state
    state=$(sed -nE 's/^State:[[:space:]]*(.).*/\1/p' "/proc/$1/status" 2>/dev/null || true)
    [ -z "$state" ] || [ "$state" = Z ] || [ "$state" = X ]
}

# --- Pgpool-II ---

# start_pgpool HOST ADDRESS : backends and other settings for pgpool.conf on standard input
start_pgpool() {
    local host=$1 address=$2
    own "$WORK/failover.sh" 0755 <<SCRIPT
#!/bin/sh
# Pgpool-II calls this after a node died: promote the node it chose, if the dead one was the primary.
failed=\$1 old_primary=\$2 new_host=\$3 new_port=\$4
[ "\$failed" = "\$old_primary" ] || exit 0
exec $BIN/psql -X -q -h "\$new_host" -p "\$new_port" -U postgres -c 'SELECT pg_promote()'
SCRIPT
    own "$WORK/pcp.conf" 0600 <<<"pgpool:$(pg_md5 'demo')"
    own "$WORK/.pcppass" 0600 <<<"$address:$PCP_PORT:pgpool:demo"
    own "$WORK/pool_hba.conf" 0600 </dev/null
    # The servers trust; without the file Pgpool-II warns at every connection.
    own "$WORK/pool_passwd" 0600 </dev/null
    {
        cat <<CONF
backend_clustering_mode = 'streaming_replication'
listen_addresses = '$address'
port = $POOL_PORT
socket_dir = '$WORK'
pcp_listen_addresses = '$address'
pcp_port = $PCP_PORT
pcp_socket_dir = '$WORK'
pid_file_name = '$WORK/pgpool.pid'
logdir = '$WORK'
pool_passwd = '$WORK/pool_passwd'
num_init_children = 8
load_balance_mode = off
sr_check_period = 1
sr_check_user = 'postgres'
sr_check_database = 'postgres'
health_check_period = 1
health_check_user = 'postgres'
health_check_database = 'postgres'
health_check_max_retries = 1
health_check_retry_delay = 1
failover_command = '$WORK/failover.sh %d %P %H %r'
CONF
        cat
    } | own "$WORK/pgpool.conf" 0600
    in_background "$host" "$WORK/pgpool.log" \
        pgpool -n -f "$WORK/pgpool.conf" -F "$WORK/pcp.conf" -a "$WORK/pool_hba.conf"
    until_true 30 pooled 'SELECT 1' >/dev/null 2>&1 || give_up "Pgpool-II does not answer"
}

# pooled STATEMENT : through Pgpool-II, as a table
pooled() { on "$POOL_HOST" psql -X -h "$POOL_ADDRESS" -p "$POOL_PORT" -U postgres -d postgres -c "$1"; }

# pooled_value STATEMENT : through Pgpool-II, the bare value
pooled_value() { on "$POOL_HOST" psql -X -q -At -h "$POOL_ADDRESS" -p "$POOL_PORT" -U postgres -d postgres -c "$1"; }

# node ID : "status role replication_state" of a node, as show pool_nodes has it
node() {
    pooled_value 'show pool_nodes' 2>/dev/null | awk -F '|' -v id="$1" '$1 == id { print $4, $7, $12 }'
}
node_is() { [ "$(node "$1")" = "$2" ]; }

# wait_for_node ID "STATUS ROLE STATE"
wait_for_node() {
    until_true 60 node_is "$1" "$2" || give_up "node $1 should be \"$2\", but is \"$(node "$1")\""
}

pool_nodes() {
    # All columns do not fit on a screen.
    pooled 'show pool_nodes' | awk -F '[|]' '
        /^-/ { gsub(/[+]/, "|"); $0 = $0; mark = "+" }
        !/^-/ { mark = "|" }
        NF > 12 { print $1 mark $2 mark $3 mark $4 mark $7 mark $12 mark $13 }'
}

show_nodes() { show "psql -h $POOL_ADDRESS -p $POOL_PORT -c 'show pool_nodes'    # some columns" pool_nodes; }

# recover_node ID : the command this is all about
recover_node() {
    local started=$SECONDS
    show "pcp_recovery_node -h $POOL_ADDRESS -p $PCP_PORT -U pgpool -n $1" \
        on "$POOL_HOST" pcp_recovery_node -h "$POOL_ADDRESS" -p "$PCP_PORT" -U pgpool -w -n "$1" || true
    # Its exit status is 0 on failure too.
    grep -q 'pcp_recovery_node -- Command Successful' "$WORK/said" ||
        give_up "pcp_recovery_node did not succeed"
    tell "    ... in $((SECONDS - started)) seconds."
}

# story LOG : what the primary's server log tells of the latest recovery
story() {
    show "grep pgpool_recovery: $(basename "$1") | tail" latest_story "$1" || true
}
latest_story() {
    # Continuation lines (DETAIL and the like) carry no name of ours.
    grep -E 'LOG: +pgpool_recovery' "$1" | sed -E 's/^.*LOG: +//' | tail -n 8
}

# all_rows_on PORT : whether a server has the rows that Pgpool-II shows
all_rows_on() { [ "$(sql "$1" "$ROWS" 2>/dev/null)" = "$(pooled_value "$ROWS")" ]; }
ROWS='SELECT count(*), max(id) FROM visits'
