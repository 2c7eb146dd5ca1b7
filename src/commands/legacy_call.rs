//! `pgpool_recovery` as the C extension had it: the engine of this extension, or a script of the operator's.

use std::sync::Arc;

use pgpool_recovery_core::error::{Error, Kind, Result};

use crate::commands::{first_stage, script};
use crate::history::History;
use crate::pg::log;
use crate::preflight::authority;
use crate::settings::request::{self, Request, shown};
use crate::settings::{Scripts, Settings};

/// The script name in pgpool.conf that selects the engine of this extension.
const ENGINE: &str = "pgpool_recovery_1st_stage";

/// A call of `pgpool_recovery`, whatever its number of arguments.
pub(crate) struct LegacyCall {
    pub(crate) script: String,
    pub(crate) host: String,
    pub(crate) dir: String,
    pub(crate) primary_port: Option<String>,
    pub(crate) remote_node: Option<i32>,
    pub(crate) remote_port: Option<String>,
    pub(crate) primary_host: Option<String>,
}

impl LegacyCall {
    /// Pgpool-II throws the text of an ERROR of the first stage away, but notices reach its log.
    pub(crate) fn run(self, settings: Result<Settings>) -> Result<bool> {
        self.stage(settings).inspect_err(|error| {
            let message = format!("pgpool_recovery: first stage failed: {}", error.message);
            log::notice_detail(&message, error.detail.as_deref(), error.hint.as_deref());
        })?;
        Ok(true)
    }

    fn stage(self, settings: Result<Settings>) -> Result<()> {
        let settings = settings?;
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
            authority::demand_superuser(settings.caller_is_superuser, "pgpool_recovery")?;
            script::recover(&self.script, &self.script_arguments())?;
            // a failure of the engine's before is no longer why the start must fail
            let history = History::of_this_server()?;
            history.begin(&self.host, &self.dir, Arc::default()).finish(Ok(()));
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
