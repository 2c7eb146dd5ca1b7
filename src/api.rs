//! The SQL functions: typed arguments, one call, a result or an ERROR. No logic.
//!
//! Names and types of the C extension's functions are those of its version 1.4, parameter names
//! included. None is STRICT (a NULL would silently do nothing, which Pgpool-II takes for success) and
//! none is executable by PUBLIC. A role with the EXECUTE right needs no other, so the bodies run
//! elevated; what only a superuser may do is checked before.
#![expect(clippy::result_large_err, reason = "ErrorReport is what pgrx raises with SQLSTATE and HINT")]

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::iter::TableIterator;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{JsonB, default, extension_sql, name, pg_extern};

use crate::check::{self, CheckRow};
use crate::outcomes::Memory;
use crate::pg::json::{JsonText, to_jsonb};
use crate::pg::privileges::{self, Elevated};
use crate::pg::text::{Text, server_text};
use crate::recovery;
use crate::report::report;
use crate::request::{self, Request, required, shown};
use crate::settings::{Scripts, Settings};
use crate::{pgctl, script, start};

/// The script name in pgpool.conf that selects the engine of this extension.
const ENGINE: &str = "pgpool_recovery_1st_stage";

// Where several functions share a name, their Rust names tell the C symbols apart. The scripts in sql/
// repeat these symbols; pgrx-tests/upgrade.rs compares the two.

#[pg_extern(name = "pgpool_recovery_1st_stage", volatile, parallel_unsafe)]
fn pgpool_recovery_1st_stage_text(
    dest_host: Option<Text>,
    dest_dir: Option<Text>,
    port: Option<Text>,
) -> Result<JsonB, ErrorReport> {
    call(|caller| {
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
    call(|caller| {
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
    call(|caller| {
        let (host, dir) = (string("dest_host", dest_host)?, string("dest_dir", dest_dir)?);
        let port = request::port_number("port", required("port", port)?)?;
        let options = required("options", options)?.parse("options")?;
        let settings = caller.settings()?.overlay(&options, caller.is_superuser)?;
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
    call(|caller| {
        let (host, dir) = (required("dest_host", dest_host)?, required("dest_dir", dest_dir)?);
        let (port, options) = (required("port", port)?, required("options", options)?);
        let prepared = || {
            let settings = caller.settings()?.overlay(&options.parse("options")?, caller.is_superuser)?;
            let port = request::port_number("port", port)?;
            let (host, dir) = (host.into_string("dest_host")?, dir.into_string("dest_dir")?);
            Ok((target(&host, &dir, port, &settings)?, settings))
        };
        let rows = match prepared() {
            Ok((request, settings)) => check::check(request, settings)?,
            // A missing right stays an error; a bad argument is a finding like any other.
            Err(error) if error.kind != Kind::InvalidArgument => return Err(error),
            Err(Error { message, detail, hint, .. }) => {
                let detail = detail.map_or_else(|| message.clone(), |detail| format!("{message}: {detail}"));
                vec![CheckRow { step: "arguments".to_owned(), ok: false, detail, hint }]
            }
        };
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
    call(|caller| Classic::new(script_name, remote_host, remote_data_directory)?.run(caller))
}

#[pg_extern(name = "pgpool_recovery", volatile, parallel_unsafe)]
fn pgpool_recovery_4(
    script_name: Option<Text>,
    remote_host: Option<Text>,
    remote_data_directory: Option<Text>,
    primary_port: Option<Text>,
) -> Result<bool, ErrorReport> {
    call(|caller| {
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
    call(|caller| {
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
    call(|caller| {
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
    call(|caller| {
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
    call(|caller| {
        let host = string("remote_host", remote_host)?;
        let dir = string("remote_data_directory", remote_data_directory)?;
        let settings = caller.settings()?;
        if settings.scripts == Scripts::Run && caller.is_superuser && script::remote_start(&host, &dir)? {
            return Ok(true);
        }
        let host = request::host("remote_host", &host)?;
        let dir = request::directory("remote_data_directory", &dir)?;
        start::remote_start(&host, &dir, settings)?;
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
    call(|_| pgctl::switch_xlog(&string("archive_dir", archive_dir)?))
}

extension_sql!(
    r"
-- Recovery replaces data directories: nobody may by default.
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

/// Who called, as he was before the elevation.
struct Caller {
    name: String,
    is_superuser: bool,
}

impl Caller {
    fn settings(&self) -> Result<Settings> {
        let mut settings = Settings::current()?;
        if settings.replication_user.is_empty() {
            settings.replication_user.clone_from(&self.name);
        }
        Ok(settings)
    }

    /// The C extension's words, so that what greps for them goes on working.
    fn must_be_superuser(&self, function: &str) -> Result<()> {
        if self.is_superuser {
            return Ok(());
        }
        Err(Error::new(Kind::InsufficientPrivilege, format!("must be superuser to use {function} function"))
            .hint("Connect as a superuser; the EXECUTE right is not enough here."))
    }
}

/// Runs the body of a function elevated.
fn call<T>(body: impl FnOnce(&Caller) -> Result<T>) -> Result<T, ErrorReport> {
    let run = || {
        let caller =
            Caller { name: privileges::caller_name()?, is_superuser: privileges::caller_is_superuser() };
        let _elevated = Elevated::enter();
        body(&caller)
    };
    run().map_err(report)
}

fn string(argument: &str, value: Option<Text>) -> Result<String> {
    required(argument, value)?.into_string(&format!("argument \"{argument}\""))
}

fn target(host: &str, dir: &str, port: u16, settings: &Settings) -> Result<Request> {
    Ok(Request {
        dest_host: request::host("dest_host", host)?,
        dest_dir: request::directory("dest_dir", dir)?,
        port: Some(port),
        node_id: settings.node_id,
        dest_port: settings.dest_port,
        primary_host: None,
    })
}

fn first_stage(host: &str, dir: &str, port: u16, settings: Settings) -> Result<JsonB> {
    let request = target(host, dir, port, &settings)?;
    script::forget(host, dir);
    Ok(to_jsonb(&recovery::first_stage(request, settings)?))
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

    fn run(self, caller: &Caller) -> Result<bool> {
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
            Memory::of_this_server()?.begin(&self.host, &self.dir).settle(Ok(()));
        }
        Ok(true)
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
        };
        script::forget(&self.host, &self.dir);
        recovery::first_stage(request, settings).map(drop)
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
