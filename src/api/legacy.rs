//! The SQL functions of the C extension, with its names, types and parameter names: what Pgpool-II and pgpoolAdmin call.
#![expect(clippy::result_large_err, reason = "ErrorReport is what pgrx raises with SQLSTATE and HINT")]

use pgpool_recovery_core::error::Result;
use pgrx::pg_extern;
use pgrx::pg_sys::panic::ErrorReport;

use super::string;
use crate::api::caller::{act, call};
use crate::commands::legacy_call::LegacyCall;
use crate::commands::{pgctl, remote_start};
use crate::pg::text::Text;
use crate::settings::request::required;

#[pg_extern(name = "pgpool_recovery", volatile, parallel_unsafe)]
fn pgpool_recovery_3(
    script_name: Option<Text>,
    remote_host: Option<Text>,
    remote_data_directory: Option<Text>,
) -> Result<bool, ErrorReport> {
    act(|caller| LegacyCall::new(script_name, remote_host, remote_data_directory)?.run(caller.settings()))
}

#[pg_extern(name = "pgpool_recovery", volatile, parallel_unsafe)]
fn pgpool_recovery_4(
    script_name: Option<Text>,
    remote_host: Option<Text>,
    remote_data_directory: Option<Text>,
    primary_port: Option<Text>,
) -> Result<bool, ErrorReport> {
    act(|caller| {
        LegacyCall::new(script_name, remote_host, remote_data_directory)?
            .primary_port(primary_port)?
            .run(caller.settings())
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
        LegacyCall::new(script_name, remote_host, remote_data_directory)?
            .primary_port(primary_port)?
            .remote_node(remote_node)?
            .run(caller.settings())
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
        LegacyCall::new(script_name, remote_host, remote_data_directory)?
            .primary_port(primary_port)?
            .remote_node(remote_node)?
            .remote_port(remote_port)?
            .run(caller.settings())
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
        LegacyCall::new(script_name, remote_host, remote_data_directory)?
            .primary_port(primary_port)?
            .remote_node(remote_node)?
            .remote_port(remote_port)?
            .primary_host(primary_host)?
            .run(caller.settings())
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
        remote_start::script_or_standby(&host, &dir, caller.settings()?)?;
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

/// The arguments, which must not be NULL.
impl LegacyCall {
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
}
