//! The SQL functions: typed arguments, one call, a result or an ERROR. No logic.
//!
//! Names and types of the C extension's functions are those of its version 1.4, parameter names
//! included. None is STRICT (a NULL would silently do nothing, which Pgpool-II takes for success) and
//! none is executable by PUBLIC. Besides the EXECUTE right a role needs the REPLICATION attribute and no other
//! right, so the bodies run elevated; what only a superuser may do is checked before.
#![expect(clippy::result_large_err, reason = "ErrorReport is what pgrx raises with SQLSTATE and HINT")]

pub(crate) mod caller;
mod legacy;

use pgpool_recovery_core::error::Result;
use pgrx::iter::TableIterator;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{JsonB, default, extension_sql, name, pg_extern};

use crate::api::caller::{act, call};
use crate::commands::{check, first_stage, follow, promote, status, stop};
use crate::pg::json::{JsonText, to_jsonb};
use crate::pg::text::{Text, server_text};
use crate::preflight::authority;
use crate::settings::Settings;
use crate::settings::request::{self, Request, required};

// Where several functions share a name, their Rust names tell the C symbols apart. After a change here
// scripts/sql.sh writes the scripts in sql/.

#[pg_extern(name = "pgpool_recovery_1st_stage", volatile, parallel_unsafe)]
fn pgpool_recovery_1st_stage_text(
    dest_host: Option<Text>,
    dest_dir: Option<Text>,
    port: Option<Text>,
) -> Result<JsonB, ErrorReport> {
    act(|caller| {
        let (host, dir) = (string("dest_host", dest_host)?, string("dest_dir", dest_dir)?);
        let port = request::port("port", &string("port", port)?)?;
        first_stage(&host, &dir, port, caller.settings()?)
    })
}

#[pg_extern(name = "pgpool_recovery_1st_stage", volatile, parallel_unsafe)]
fn pgpool_recovery_1st_stage_integer(
    dest_host: Option<Text>,
    dest_dir: Option<Text>,
    port: Option<i32>,
) -> Result<JsonB, ErrorReport> {
    act(|caller| {
        let (host, dir) = (string("dest_host", dest_host)?, string("dest_dir", dest_dir)?);
        let port = request::port_number("port", required("port", port)?)?;
        first_stage(&host, &dir, port, caller.settings()?)
    })
}

#[pg_extern(name = "pgpool_recovery_1st_stage", volatile, parallel_unsafe)]
fn pgpool_recovery_1st_stage_options(
    dest_host: Option<Text>,
    dest_dir: Option<Text>,
    port: Option<i32>,
    options: Option<JsonText>,
) -> Result<JsonB, ErrorReport> {
    act(|caller| {
        let (host, dir) = (string("dest_host", dest_host)?, string("dest_dir", dest_dir)?);
        let port = request::port_number("port", required("port", port)?)?;
        let options = required("options", options)?.parse("options")?;
        let settings = caller.settings()?.overlay(&options)?;
        first_stage(&host, &dir, port, settings)
    })
}

#[pg_extern(volatile, parallel_unsafe)]
#[expect(clippy::type_complexity, reason = "spelt out, because the macro that generates the SQL reads it")]
fn pgpool_recovery_check(
    dest_host: Option<Text>,
    dest_dir: Option<Text>,
    port: Option<i32>,
    options: default!(Option<JsonText>, "'{}'"),
) -> Result<
    TableIterator<
        'static,
        (name!(step, String), name!(ok, bool), name!(detail, Option<String>), name!(hint, Option<String>)),
    >,
    ErrorReport,
> {
    act(|caller| {
        let (host, dir) = (required("dest_host", dest_host)?, required("dest_dir", dest_dir)?);
        let (port, options) = (required("port", port)?, required("options", options)?);
        let settings = caller.settings().and_then(|settings| settings.overlay(&options.parse("options")?));
        let rows = check::check_all(check::Arguments {
            host: host.into_string("dest_host"),
            directory: dir.into_string("dest_dir"),
            port,
            settings,
            caller: caller.row(),
        })?;
        Ok(TableIterator::new(rows.into_iter().map(|row| {
            let hint = row.hint.map(|hint| server_text(&hint));
            (server_text(&row.step), row.ok, Some(server_text(&row.detail)), hint)
        })))
    })
}

#[pg_extern(volatile, parallel_unsafe)]
#[expect(clippy::type_complexity, reason = "spelt out, because the macro that generates the SQL reads it")]
fn pgpool_recovery_status() -> Result<
    TableIterator<
        'static,
        (
            name!(host, String),
            name!(directory, String),
            name!(state, String),
            name!(phase, Option<String>),
            name!(percent, Option<i32>),
            name!(bytes_per_second, Option<i64>),
            name!(seconds_left, Option<f64>),
            name!(wal_behind_bytes, Option<i64>),
            name!(streams, Option<i32>),
            name!(total_bytes, Option<i64>),
            name!(compared_bytes, Option<i64>),
            name!(sent_bytes, Option<i64>),
            name!(cloned_bytes, Option<i64>),
            name!(known_bytes, Option<i64>),
            name!(wal_bytes, Option<i64>),
            name!(transport, Option<String>),
            name!(strategy, Option<String>),
            name!(pid, Option<i32>),
            name!(started, f64),
            name!(ended, Option<f64>),
            name!(sqlstate, Option<String>),
            name!(error, Option<String>),
            name!(detail, Option<String>),
            name!(hint, Option<String>),
        ),
    >,
    ErrorReport,
> {
    call(|_| {
        let rows = status::rows()?.into_iter().map(|row| {
            (
                row.host,
                row.directory,
                row.state,
                row.phase,
                row.percent,
                row.bytes_per_second,
                row.seconds_left,
                row.wal_behind_bytes,
                row.streams,
                row.total_bytes,
                row.compared_bytes,
                row.sent_bytes,
                row.cloned_bytes,
                row.known_bytes,
                row.wal_bytes,
                row.transport,
                row.strategy,
                row.pid,
                row.started,
                row.ended,
                row.sqlstate,
                row.error,
                row.detail,
                row.hint,
            )
        });
        Ok(TableIterator::new(rows.collect::<Vec<_>>()))
    })
}

#[pg_extern(volatile, parallel_unsafe)]
fn pgpool_recovery_stop(
    dest_host: Option<Text>,
    dest_dir: Option<Text>,
    options: default!(Option<JsonText>, "'{}'"),
) -> Result<JsonB, ErrorReport> {
    act(|caller| {
        let host = request::host("dest_host", &string("dest_host", dest_host)?)?;
        let directory = request::directory("dest_dir", &string("dest_dir", dest_dir)?)?;
        let options = required("options", options)?.parse("options")?;
        let settings = caller.settings()?.overlay(&options)?;
        Ok(to_jsonb(&stop::stop(&host, &directory, &settings)?))
    })
}

#[pg_extern(volatile, parallel_unsafe)]
fn pgpool_recovery_follow(
    dest_host: Option<Text>,
    dest_dir: Option<Text>,
    dest_port: Option<i32>,
    primary_host: Option<Text>,
    primary_port: Option<i32>,
    node_id: Option<i32>,
    options: default!(Option<JsonText>, "'{}'"),
) -> Result<JsonB, ErrorReport> {
    act(|caller| {
        let primary_host = request::host("primary_host", &string("primary_host", primary_host)?)?;
        let request = Request {
            dest_host: request::host("dest_host", &string("dest_host", dest_host)?)?,
            dest_dir: request::directory("dest_dir", &string("dest_dir", dest_dir)?)?,
            dest_port: Some(request::port_number("dest_port", required("dest_port", dest_port)?)?),
            primary_host: Some(primary_host).filter(|host| !host.is_empty()),
            port: Some(request::port_number("primary_port", required("primary_port", primary_port)?)?),
            node_id: Some(request::node("node_id", required("node_id", node_id)?)?),
            ..Request::default()
        };
        let options = required("options", options)?.parse("options")?;
        let settings = caller.settings()?.overlay(&options)?;
        Ok(to_jsonb(&follow::follow(request, settings)?))
    })
}

#[pg_extern(volatile, parallel_unsafe)]
fn pgpool_recovery_promote(
    old_host: Option<Text>,
    old_dir: Option<Text>,
    old_port: Option<i32>,
    options: default!(Option<JsonText>, "'{}'"),
) -> Result<JsonB, ErrorReport> {
    act(|caller| {
        let old = promote::Old::read(
            old_host.map(|host| string("old_host", Some(host))).transpose()?,
            old_dir.map(|dir| string("old_dir", Some(dir))).transpose()?,
            old_port,
        )?;
        let options = required("options", options)?.parse("options")?;
        let set = caller.settings()?;
        let settings = set.clone().overlay(&options)?;
        authority::demand_no_weaker_fence(&settings, set.fence)?;
        Ok(to_jsonb(&promote::promote(old.as_ref(), &settings)?))
    })
}

extension_sql!(
    r"
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
",
    name = "status",
    requires = [pgpool_recovery_status],
);

extension_sql!(
    r"
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
",
    name = "privileges",
    finalize,
);

fn string(argument: &str, value: Option<Text>) -> Result<String> {
    required(argument, value)?.into_string(&format!("argument \"{argument}\""))
}

fn target(host: &str, dir: &str, port: u16, settings: &Settings) -> Result<Request> {
    let request = Request {
        dest_host: request::host("dest_host", host)?,
        dest_dir: request::directory("dest_dir", dir)?,
        port: Some(port),
        ..Request::default()
    };
    Ok(request.of(settings))
}

fn first_stage(host: &str, dir: &str, port: u16, settings: Settings) -> Result<JsonB> {
    let request = target(host, dir, port, &settings)?;
    Ok(to_jsonb(&first_stage::first_stage_or_dry_run(request, settings)?))
}
