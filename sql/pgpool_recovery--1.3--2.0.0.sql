-- pgpool_recovery 1.3, the C extension of Pgpool-II, becomes pgpool_recovery 2.0.0.
--
-- Made by scripts/sql.sh from sql/from-c--2.0.0.sql.in, which is the same for every old version: change that and run it.
--
-- The functions are dropped and created again: their C symbols changed, and CREATE OR REPLACE cannot rename
-- parameters, whose names differ between the old versions. Dropping needs no old library.
\echo Use "ALTER EXTENSION pgpool_recovery UPDATE TO '2.0.0'" to load this file. \quit

-- Remembers who may execute the old functions. Names are looked up in pg_catalog alone, so that nothing
-- in the extension's schema can put itself in between.
DO $remember$
DECLARE
    home text := pg_catalog.current_schema();
    path text := pg_catalog.current_setting('search_path');
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM set_config('pgpool_upgrade.grants', COALESCE((
        SELECT jsonb_agg(jsonb_build_object(
            'function', format('%I.%I(%s)', home, p.proname, oidvectortypes(p.proargtypes)),
            'public', a.grantee = 0,
            'grantee', quote_ident(pg_get_userbyid(a.grantee)),
            'grantable', a.is_grantable))
        FROM pg_proc AS p, aclexplode(COALESCE(p.proacl, acldefault('f', p.proowner))) AS a
        WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = home)
            AND p.proname IN ('pgpool_recovery', 'pgpool_remote_start', 'pgpool_pgctl', 'pgpool_switch_xlog')
            AND a.grantee <> p.proowner), '[]')::text, true);
    PERFORM pg_catalog.set_config('search_path', path, true);
END
$remember$;

DROP FUNCTION pgpool_recovery(text, text, text);
DROP FUNCTION pgpool_recovery(text, text, text, text);
DROP FUNCTION pgpool_recovery(text, text, text, text, integer);
DROP FUNCTION pgpool_recovery(text, text, text, text, integer, text);
DROP FUNCTION pgpool_remote_start(text, text);
DROP FUNCTION pgpool_pgctl(text, text);
DROP FUNCTION pgpool_switch_xlog(text);

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

-- Gives back what was granted to superusers, and says who else had the right. To them it was of no use: the
-- functions in C asked for a superuser themselves. Those of this version do not, so a right that meant nothing must
-- not come to mean the right to replace data directories.
DO $restore$
DECLARE
    path text := pg_catalog.current_setting('search_path');
    old record;
    lost text;
    dropped text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    FOR old IN
        SELECT g.* FROM jsonb_to_recordset(current_setting('pgpool_upgrade.grants')::jsonb)
            AS g(function text, public boolean, grantee text, grantable boolean)
            JOIN pg_roles AS r ON quote_ident(r.rolname) = g.grantee
        WHERE NOT g.public AND r.rolsuper
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s%s', old.function, old.grantee,
            CASE WHEN old.grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
    SELECT string_agg(g.function, ', ' ORDER BY g.function) INTO lost
        FROM jsonb_to_recordset(current_setting('pgpool_upgrade.grants')::jsonb)
            AS g(function text, public boolean)
        WHERE g.public;
    IF lost IS NOT NULL THEN
        -- A NOTICE from an extension's script does not reach the client.
        RAISE WARNING 'the functions of pgpool_recovery can no longer be executed by PUBLIC'
            USING DETAIL = format('The right was not kept for: %s.', lost),
                HINT = 'Superusers are not affected. Use GRANT EXECUTE ON FUNCTION if another role calls them; that role also needs the REPLICATION attribute.';
    END IF;
    SELECT string_agg(DISTINCT g.grantee, ', ' ORDER BY g.grantee) INTO dropped
        FROM jsonb_to_recordset(current_setting('pgpool_upgrade.grants')::jsonb)
            AS g(function text, public boolean, grantee text)
        WHERE NOT g.public
            AND NOT EXISTS (SELECT FROM pg_roles AS r WHERE quote_ident(r.rolname) = g.grantee AND r.rolsuper);
    IF dropped IS NOT NULL THEN
        RAISE WARNING 'roles that are not superusers can no longer execute the functions of pgpool_recovery: %', dropped
            USING DETAIL = 'The extension in C asked for a superuser, so the right was of no use to them; only pgpool_switch_xlog did not, and is for superusers now.',
                HINT = 'To let a role rebuild standbys, use GRANT EXECUTE ON FUNCTION, and ALTER ROLE ... REPLICATION.';
    END IF;
    PERFORM pg_catalog.set_config('pgpool_upgrade.grants', '', true);
    PERFORM pg_catalog.set_config('search_path', path, true);
END
$restore$;
