-- pgpool_recovery 2.0.0, as CREATE EXTENSION installs it.
--
-- Made by scripts/sql.sh from the sources, which are named below: change those and run it.
\echo Use "CREATE EXTENSION pgpool_recovery" to load this file. \quit

-- from src/api/legacy.rs
CREATE FUNCTION "pgpool_recovery"(
    "script_name" text,
    "remote_host" text,
    "remote_data_directory" text
) RETURNS bool
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_3_wrapper';

CREATE FUNCTION "pgpool_recovery"(
    "script_name" text,
    "remote_host" text,
    "remote_data_directory" text,
    "primary_port" text
) RETURNS bool
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_4_wrapper';

CREATE FUNCTION "pgpool_recovery"(
    "script_name" text,
    "remote_host" text,
    "remote_data_directory" text,
    "primary_port" text,
    "remote_node" INT
) RETURNS bool
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_5_wrapper';

CREATE FUNCTION "pgpool_recovery"(
    "script_name" text,
    "remote_host" text,
    "remote_data_directory" text,
    "primary_port" text,
    "remote_node" INT,
    "remote_port" text
) RETURNS bool
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_6_wrapper';

CREATE FUNCTION "pgpool_recovery"(
    "script_name" text,
    "remote_host" text,
    "remote_data_directory" text,
    "primary_port" text,
    "remote_node" INT,
    "remote_port" text,
    "primary_host" text
) RETURNS bool
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_7_wrapper';

CREATE FUNCTION "pgpool_remote_start"(
    "remote_host" text,
    "remote_data_directory" text
) RETURNS bool
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_remote_start_wrapper';

CREATE FUNCTION "pgpool_pgctl"(
    "action" text,
    "stop_mode" text
) RETURNS bool
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_pgctl_wrapper';

CREATE FUNCTION "pgpool_switch_xlog"(
    "archive_dir" text
) RETURNS TEXT
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_switch_xlog_wrapper';

-- from src/api/mod.rs
CREATE FUNCTION "pgpool_recovery_1st_stage"(
    "dest_host" text,
    "dest_dir" text,
    "port" text
) RETURNS jsonb
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_1st_stage_text_wrapper';

CREATE FUNCTION "pgpool_recovery_1st_stage"(
    "dest_host" text,
    "dest_dir" text,
    "port" INT
) RETURNS jsonb
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_1st_stage_integer_wrapper';

CREATE FUNCTION "pgpool_recovery_1st_stage"(
    "dest_host" text,
    "dest_dir" text,
    "port" INT,
    "options" jsonb
) RETURNS jsonb
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_1st_stage_options_wrapper';

CREATE FUNCTION "pgpool_recovery_check"(
    "dest_host" text,
    "dest_dir" text,
    "port" INT,
    "options" jsonb DEFAULT '{}'
) RETURNS TABLE (
    "step" TEXT,
    "ok" bool,
    "detail" TEXT,
    "hint" TEXT
)
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_check_wrapper';

CREATE FUNCTION "pgpool_recovery_status"() RETURNS TABLE (
    "host" TEXT,
    "directory" TEXT,
    "state" TEXT,
    "phase" TEXT,
    "percent" INT,
    "bytes_per_second" bigint,
    "seconds_left" double precision,
    "wal_behind_bytes" bigint,
    "streams" INT,
    "total_bytes" bigint,
    "compared_bytes" bigint,
    "sent_bytes" bigint,
    "cloned_bytes" bigint,
    "known_bytes" bigint,
    "wal_bytes" bigint,
    "transport" TEXT,
    "strategy" TEXT,
    "pid" INT,
    "started" double precision,
    "ended" double precision,
    "sqlstate" TEXT,
    "error" TEXT,
    "detail" TEXT,
    "hint" TEXT
)
STRICT VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_status_wrapper';

CREATE FUNCTION "pgpool_recovery_stop"(
    "dest_host" text,
    "dest_dir" text,
    "options" jsonb DEFAULT '{}'
) RETURNS jsonb
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_stop_wrapper';

CREATE FUNCTION "pgpool_recovery_follow"(
    "dest_host" text,
    "dest_dir" text,
    "dest_port" INT,
    "primary_host" text,
    "primary_port" INT,
    "node_id" INT,
    "options" jsonb DEFAULT '{}'
) RETURNS jsonb
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_follow_wrapper';

CREATE FUNCTION "pgpool_recovery_promote"(
    "old_host" text,
    "old_dir" text,
    "old_port" INT,
    "options" jsonb DEFAULT '{}'
) RETURNS jsonb
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'pgpool_recovery_promote_wrapper';

CREATE VIEW pgpool_recovery_status AS
    -- what a person looks at stands first, and fits into a line
    SELECT s.host || ':' || s.directory AS target, s.state, s.phase, s.percent,
        pg_catalog.pg_size_pretty(s.bytes_per_second) || '/s' AS rate,
        pg_catalog.make_interval(secs => pg_catalog.round(s.seconds_left)) AS time_left,
        pg_catalog.pg_size_pretty(s.wal_behind_bytes) AS wal_behind, s.streams,
        s.host, s.directory, s.bytes_per_second, s.wal_behind_bytes, s.total_bytes, s.compared_bytes, s.sent_bytes, s.cloned_bytes, s.known_bytes, s.wal_bytes,
        s.transport, s.strategy, s.pid,
        pg_catalog.to_timestamp(s.started) AS started_at, pg_catalog.to_timestamp(s.ended) AS ended_at,
        s.sqlstate, s.error, s.detail, s.hint
    FROM pgpool_recovery_status() AS s;
COMMENT ON VIEW pgpool_recovery_status IS 'the running and the last recovery of each target, as this server remembers them';
-- what generates this SQL makes a function without arguments STRICT
ALTER FUNCTION pgpool_recovery_status() CALLED ON NULL INPUT;
REVOKE EXECUTE ON FUNCTION pgpool_recovery_status() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgpool_recovery_status() TO pg_monitor;
GRANT SELECT ON pgpool_recovery_status TO pg_monitor;

-- Recovery replaces data directories: no role may call it by default.
REVOKE EXECUTE ON FUNCTION pgpool_recovery_1st_stage(text, text, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_recovery_1st_stage(text, text, integer) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_recovery_1st_stage(text, text, integer, jsonb) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_recovery_check(text, text, integer, jsonb) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_recovery_stop(text, text, jsonb) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_recovery_follow(text, text, integer, text, integer, integer, jsonb) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_recovery_promote(text, text, integer, jsonb) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_recovery(text, text, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_recovery(text, text, text, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_recovery(text, text, text, text, integer) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_recovery(text, text, text, text, integer, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_recovery(text, text, text, text, integer, text, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_remote_start(text, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_pgctl(text, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION pgpool_switch_xlog(text) FROM PUBLIC;
