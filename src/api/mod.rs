//! The SQL functions: typed arguments, one call, a result or an ERROR. No logic.
//!
//! Names and types of the C extension's functions are those of its version 1.4, parameter names
//! included. None is STRICT (a NULL would silently do nothing, which Pgpool-II takes for success) and
//! none is executable by PUBLIC. Besides the EXECUTE right a role needs the REPLICATION attribute and no other
//! right, so the bodies run elevated; what only a superuser may do is checked before.
#![expect(clippy::result_large_err, reason = "ErrorReport is what pgrx raises with SQLSTATE and HINT")]

pub(crate) mod caller;

use std::sync::Arc;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::iter::TableIterator;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{JsonB, default, extension_sql, name, pg_extern};

use crate::api::caller::{Caller, act, call};
use crate::commands::check::{self, CheckRow};
use crate::commands::dry_run;
use crate::commands::first_stage;
use crate::commands::pgctl;
use crate::commands::remote_start;
use crate::commands::script;
use crate::commands::status;
use crate::commands::status::Status;
use crate::history::{Figures, Memory};
use crate::pg::json::{JsonText, to_jsonb};
use crate::pg::log;
use crate::pg::text::{Text, server_text};
use crate::settings::request::{self, Request, required, shown};
use crate::settings::{Scripts, Settings};

/// The script name in pgpool.conf that selects the engine of this extension.
const ENGINE: &str = "pgpool_recovery_1st_stage";

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
        let mut rows = Vec::new();
        // A missing right stays an error; bad arguments are findings like any other.
        let mut good = |argument: Result<()>| match argument {
            Err(error) if error.kind == Kind::InvalidArgument => {
                rows.push(CheckRow::failed("arguments", error));
                Ok(())
            }
            argument => argument,
        };
        let (mut settings, mut request) = (Settings::default(), Request::default());
        let overlay = |settings: Settings| settings.overlay(&options.parse("options")?);
        good(caller.settings().and_then(overlay).map(|found| settings = found))?;
        good(request::port_number("port", port).map(|port| request.port = Some(port)))?;
        let host = host.into_string("dest_host").and_then(|host| request::host("dest_host", &host));
        good(host.map(|host| request.dest_host = host))?;
        let dir = dir.into_string("dest_dir").and_then(|dir| request::directory("dest_dir", &dir));
        good(dir.map(|dir| request.dest_dir = dir))?;
        if rows.is_empty() {
            rows.push(caller.row());
            check::check(request.of(&settings), settings, &mut rows)?;
        }
        Ok(TableIterator::new(rows.into_iter().map(|row| {
            let hint = row.hint.map(|hint| server_text(&hint));
            (server_text(&row.step), row.ok, Some(server_text(&row.detail)), hint)
        })))
    })
}

#[pg_extern(name = "pgpool_recovery", volatile, parallel_unsafe)]
fn pgpool_recovery_3(
    script_name: Option<Text>,
    remote_host: Option<Text>,
    remote_data_directory: Option<Text>,
) -> Result<bool, ErrorReport> {
    act(|caller| Classic::new(script_name, remote_host, remote_data_directory)?.run(caller))
}

#[pg_extern(name = "pgpool_recovery", volatile, parallel_unsafe)]
fn pgpool_recovery_4(
    script_name: Option<Text>,
    remote_host: Option<Text>,
    remote_data_directory: Option<Text>,
    primary_port: Option<Text>,
) -> Result<bool, ErrorReport> {
    act(|caller| {
        Classic::new(script_name, remote_host, remote_data_directory)?.primary_port(primary_port)?.run(caller)
    })
}

#[pg_extern(name = "pgpool_recovery", volatile, parallel_unsafe)]
fn pgpool_recovery_5(
    script_name: Option<Text>,
    remote_host: Option<Text>,
    remote_data_directory: Option<Text>,
    primary_port: Option<Text>,
    remote_node: Option<i32>,
) -> Result<bool, ErrorReport> {
    act(|caller| {
        Classic::new(script_name, remote_host, remote_data_directory)?
            .primary_port(primary_port)?
            .remote_node(remote_node)?
            .run(caller)
    })
}

#[pg_extern(name = "pgpool_recovery", volatile, parallel_unsafe)]
fn pgpool_recovery_6(
    script_name: Option<Text>,
    remote_host: Option<Text>,
    remote_data_directory: Option<Text>,
    primary_port: Option<Text>,
    remote_node: Option<i32>,
    remote_port: Option<Text>,
) -> Result<bool, ErrorReport> {
    act(|caller| {
        Classic::new(script_name, remote_host, remote_data_directory)?
            .primary_port(primary_port)?
            .remote_node(remote_node)?
            .remote_port(remote_port)?
            .run(caller)
    })
}

#[pg_extern(name = "pgpool_recovery", volatile, parallel_unsafe)]
fn pgpool_recovery_7(
    script_name: Option<Text>,
    remote_host: Option<Text>,
    remote_data_directory: Option<Text>,
    primary_port: Option<Text>,
    remote_node: Option<i32>,
    remote_port: Option<Text>,
    primary_host: Option<Text>,
) -> Result<bool, ErrorReport> {
    act(|caller| {
        Classic::new(script_name, remote_host, remote_data_directory)?
            .primary_port(primary_port)?
            .remote_node(remote_node)?
            .remote_port(remote_port)?
            .primary_host(primary_host)?
            .run(caller)
    })
}

#[pg_extern(volatile, parallel_unsafe)]
fn pgpool_remote_start(
    remote_host: Option<Text>,
    remote_data_directory: Option<Text>,
) -> Result<bool, ErrorReport> {
    act(|caller| {
        let host = string("remote_host", remote_host)?;
        let dir = string("remote_data_directory", remote_data_directory)?;
        let settings = caller.settings()?;
        if settings.scripts == Scripts::Run && caller.is_superuser && script::remote_start(&host, &dir)? {
            return Ok(true);
        }
        let host = request::host("remote_host", &host)?;
        let dir = request::directory("remote_data_directory", &dir)?;
        remote_start::remote_start(&host, &dir, settings)?;
        Ok(true)
    })
}

#[pg_extern(volatile, parallel_unsafe)]
fn pgpool_pgctl(action: Option<Text>, stop_mode: Option<Text>) -> Result<bool, ErrorReport> {
    call(|caller| {
        caller.must_be_superuser("pgpool_pgctl")?;
        pgctl::pgctl(&string("action", action)?, &string("stop_mode", stop_mode)?)?;
        Ok(true)
    })
}

#[pg_extern(volatile, parallel_unsafe)]
fn pgpool_switch_xlog(archive_dir: Option<Text>) -> Result<String, ErrorReport> {
    call(|caller| {
        // it tells what is at any path, and ends WAL segments
        caller.must_be_superuser("pgpool_switch_xlog")?;
        pgctl::switch_xlog(&string("archive_dir", archive_dir)?)
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
            name!(streams, Option<i32>),
            name!(total_bytes, Option<i64>),
            name!(compared_bytes, Option<i64>),
            name!(sent_bytes, Option<i64>),
            name!(cloned_bytes, Option<i64>),
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
        let text = |text: String| server_text(&text);
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let small = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let seconds = |milliseconds: u64| milliseconds as f64 / 1000.0;
        let rows = status::all()?.into_iter().map(|status| {
            let Status { entry, figures, error, .. } = status;
            let bytes = |of: fn(&Figures) -> u64| figures.as_ref().map(of).map(signed);
            let (error, detail, hint) = match error {
                Some(Error { message, detail, hint, .. }) => (Some(message), detail, hint),
                None => (None, None, None),
            };
            (
                text(entry.host),
                text(entry.directory),
                status.state.to_owned(),
                entry.figures.map(|figures| figures.phase),
                figures.as_ref().map(status::percent),
                status.bytes_per_second.map(|rate| rate as i64),
                status.seconds_left,
                figures.as_ref().map(|figures| small(figures.streams)),
                bytes(|figures| figures.total),
                bytes(|figures| figures.compared),
                bytes(|figures| figures.sent),
                bytes(|figures| figures.cloned),
                bytes(|figures| figures.wal),
                entry.transport,
                entry.strategy,
                status.pid.map(small),
                seconds(entry.started),
                status.pid.is_none().then(|| seconds(entry.updated)),
                status.sqlstate,
                error.map(text),
                detail.map(text),
                hint.map(text),
            )
        });
        Ok(TableIterator::new(rows.collect::<Vec<_>>()))
    })
}

extension_sql!(
    r"
CREATE VIEW pgpool_recovery_status AS
    SELECT s.host, s.directory, s.state, s.phase, s.percent, s.bytes_per_second,
        pg_catalog.make_interval(secs => s.seconds_left) AS time_left,
        s.streams, s.total_bytes, s.compared_bytes, s.sent_bytes, s.cloned_bytes, s.wal_bytes,
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
    if settings.dry_run {
        return Ok(to_jsonb(&dry_run::dry_run(request, settings)?));
    }
    script::forget(host, dir);
    Ok(to_jsonb(&first_stage::first_stage(request, settings)?))
}

/// A call of `pgpool_recovery`, whatever its number of arguments.
struct Classic {
    script: String,
    host: String,
    dir: String,
    primary_port: Option<String>,
    remote_node: Option<i32>,
    remote_port: Option<String>,
    primary_host: Option<String>,
}

impl Classic {
    fn new(script: Option<Text>, host: Option<Text>, dir: Option<Text>) -> Result<Self> {
        Ok(Self {
            script: string("script_name", script)?,
            host: string("remote_host", host)?,
            dir: string("remote_data_directory", dir)?,
            primary_port: None,
            remote_node: None,
            remote_port: None,
            primary_host: None,
        })
    }

    fn primary_port(mut self, port: Option<Text>) -> Result<Self> {
        self.primary_port = Some(string("primary_port", port)?);
        Ok(self)
    }

    fn remote_node(mut self, node: Option<i32>) -> Result<Self> {
        self.remote_node = Some(required("remote_node", node)?);
        Ok(self)
    }

    fn remote_port(mut self, port: Option<Text>) -> Result<Self> {
        self.remote_port = Some(string("remote_port", port)?);
        Ok(self)
    }

    fn primary_host(mut self, host: Option<Text>) -> Result<Self> {
        self.primary_host = Some(string("primary_host", host)?);
        Ok(self)
    }

    /// Pgpool-II throws the text of an ERROR of the first stage away, but notices reach its log.
    fn run(self, caller: &Caller) -> Result<bool> {
        self.stage(caller).inspect_err(|error| {
            let message = format!("pgpool_recovery: first stage failed: {}", error.message);
            log::notice_detail(&message, error.detail.as_deref(), error.hint.as_deref());
        })?;
        Ok(true)
    }

    fn stage(self, caller: &Caller) -> Result<()> {
        let settings = caller.settings()?;
        if self.script == ENGINE || settings.scripts == Scripts::Ignore {
            self.recover(settings)?;
        } else if settings.scripts == Scripts::Refuse {
            return Err(Error::new(
                Kind::WrongState,
                format!("running recovery script {} is not allowed", shown(&self.script)),
            )
            .detail("pgpool_recovery.scripts is \"refuse\".")
            .hint(format!("Set recovery_1st_stage_command = '{ENGINE}' in pgpool.conf.")));
        } else {
            caller.must_be_superuser("pgpool_recovery")?;
            script::recover(&self.script, &self.script_arguments())?;
            // a failure of the engine's before is no longer why the start must fail
            let memory = Memory::of_this_server()?;
            memory.begin(&self.host, &self.dir, Arc::default()).settle(Ok(()));
        }
        Ok(())
    }

    fn recover(self, settings: Settings) -> Result<()> {
        let port = |name, text: Option<String>| text.map(|text| request::port(name, &text)).transpose();
        let primary_host = self.primary_host.map(|host| request::host("primary_host", &host)).transpose()?;
        let request = Request {
            dest_host: request::host("remote_host", &self.host)?,
            dest_dir: request::directory("remote_data_directory", &self.dir)?,
            port: port("primary_port", self.primary_port)?,
            node_id: self.remote_node,
            dest_port: port("remote_port", self.remote_port)?,
            primary_host: primary_host.filter(|host| !host.is_empty()),
            primary_addresses: Vec::new(),
        };
        script::forget(&self.host, &self.dir);
        first_stage::first_stage(request, settings).map(drop)
    }

    /// What follows the data directory on the script's command line.
    fn script_arguments(&self) -> Vec<String> {
        let node = self.remote_node.map(|node| node.to_string());
        let optional = [&self.primary_port, &node, &self.remote_port, &self.primary_host];
        let mut arguments = vec![self.host.clone(), self.dir.clone()];
        arguments.extend(optional.into_iter().flatten().cloned());
        arguments
    }
}
