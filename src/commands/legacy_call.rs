//! `pgpool_recovery` as the C extension had it: the engine of this extension, or a script of the operator's.

use std::sync::Arc;

use pgpool_recovery_core::error::{Error, Kind, Result};

use crate::commands::{first_stage, script, second_stage};
use crate::history::{History, Stage};
use crate::pg::log;
use crate::preflight::authority;
use crate::settings::request::{self, Request, shown};
use crate::settings::{Scripts, Settings};

/// The script names in pgpool.conf that select the engine of this extension.
const ENGINE: &str = "pgpool_recovery_1st_stage";
pub(super) const NATIVE: &str = "pgpool_recovery_1st_stage_native";
const SECOND_STAGE: &str = "pgpool_recovery_2nd_stage";

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
    /// Pgpool-II throws the text of an ERROR of either stage away, but notices reach its log.
    pub(crate) fn run(self, settings: Result<Settings>) -> Result<bool> {
        let stage = if self.script == SECOND_STAGE { Stage::Second } else { Stage::First };
        self.stage(settings).inspect_err(|error| {
            let message = format!("pgpool_recovery: {} failed: {}", stage.name(), error.message);
            log::notice_detail(&message, error.detail.as_deref(), error.hint.as_deref());
        })?;
        Ok(true)
    }

    fn stage(self, settings: Result<Settings>) -> Result<()> {
        let settings = settings?;
        if self.script == NATIVE || self.script == SECOND_STAGE {
            authority::demand_superuser_to_promote(&settings, &self.script)?;
        }
        if self.script == NATIVE {
            let request = Request { is_native: true, ..self.request()? };
            second_stage::first_stage(request, settings)?;
        } else if self.script == SECOND_STAGE {
            let Request { dest_host, dest_dir, .. } = self.request()?;
            second_stage::second_stage(&dest_host, &dest_dir, &settings)?;
        } else if self.script == ENGINE || settings.scripts == Scripts::Ignore {
            first_stage::first_stage(self.request()?, settings)?;
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

    /// A target of the engine's, whose start is no script's business any more.
    fn request(self) -> Result<Request> {
        let port = |name, text: Option<String>| text.map(|text| request::port(name, &text)).transpose();
        let primary_host = self.primary_host.map(|host| request::host("primary_host", &host)).transpose()?;
        let request = Request {
            dest_host: request::host("remote_host", &self.host)?,
            dest_dir: request::directory("remote_data_directory", &self.dir)?,
            port: port("primary_port", self.primary_port)?,
            node_id: self.remote_node,
            dest_port: port("remote_port", self.remote_port)?,
            primary_host: primary_host.filter(|host| !host.is_empty()),
            ..Request::default()
        };
        script::forget(&self.host, &self.dir);
        Ok(request)
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
