//! How the target is reached: by an agent, or by this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use pgpool_recovery_core::LocalConnector;
use pgpool_recovery_core::error::Result;
use pgpool_recovery_core::host::policy::Reach;
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::addresses::is_this_host;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::link::Connector;
use pgpool_recovery_core::wire::link::dial::AgentConnector;
use pgpool_recovery_core::wire::protocol::message::Purpose;
use pgpool_recovery_core::wire::secret::Secret;

use crate::pg::threads::DropAside;
use crate::pg::{catalog, postmaster};
use crate::preflight::PrimaryFacts;
use crate::run::Run;
use crate::settings::{Settings, Transport};

impl PrimaryFacts {
    /// What reaches the target, for one session with it. `wire` counts what its links carry.
    pub(crate) fn connector(&self, wire: Arc<AtomicU64>) -> Result<Arc<dyn Connector>> {
        let bin_directory = PathBuf::from(&self.primary.bin_directory);
        let reach = self.settings.reach()?;
        let local = self.is_local.then(|| in_this_process(bin_directory, self.data_directory.clone(), reach));
        connector(&self.request.dest_host, &self.settings, local, wire)
    }
}

/// What reaches a target of this process: its receiver writes within `reach`.
fn in_this_process(programs: PathBuf, data_directory: PathBuf, reach: Reach) -> LocalConnector {
    LocalConnector::new(programs, data_directory, reach, postmaster::is_process_1())
}

/// What reaches a target: `local`, if that is given, else the agent on `host`.
pub(crate) fn connector(
    host: &str,
    settings: &Settings,
    local: Option<LocalConnector>,
    wire: Arc<AtomicU64>,
) -> Result<Arc<dyn Connector>> {
    if let Some(local) = local {
        return Ok(Arc::new(local));
    }
    let secret = Secret::read(Path::new(&settings.secret_file))?;
    // an agent on this host listens on TCP, whatever the host is called
    let host = if host.is_empty() || host.starts_with('/') { "localhost" } else { host };
    Ok(Arc::new(AgentConnector::new(host, settings.agent_port, secret, wire)?))
}

/// The way to a directory that is only looked at, found out before a thread goes it.
pub(crate) struct Way {
    host: String,
    directory: PathBuf,
    transport: Transport,
    reach: Reach,
    local: LocalConnector,
    /// Read only if it is needed: a set-up without agents has no secret.
    agent: Result<Arc<dyn Connector>>,
}

impl Way {
    pub(crate) fn to(host: &str, directory: &str, settings: &Settings) -> Result<Self> {
        let (programs, origin) = (catalog::bin_directory()?.into(), catalog::data_directory()?.into());
        let reach = settings.reach()?;
        Ok(Self {
            host: host.to_owned(),
            directory: directory.into(),
            transport: settings.transport,
            local: in_this_process(programs, origin, reach.clone()),
            reach,
            agent: connector(host, settings, None, Arc::default()),
        })
    }

    /// Goes it. Touches nothing of PostgreSQL's.
    pub(crate) fn look(self, cancel: &Cancel) -> Result<DropAside<Session>> {
        let Self { host, directory, transport, reach, local, agent } = self;
        let is_local = is_local(&host, transport, &reach, &directory.to_string_lossy(), cancel)?;
        let connector: Arc<dyn Connector> = if is_local { Arc::new(local) } else { agent? };
        Session::open(connector, &directory, Purpose::Look, Vec::new(), Arc::default(), cancel)
            .map(DropAside::new)
    }
}

/// A session that only looks at a directory, or starts or stops its server.
pub(crate) fn look(
    host: &str,
    directory: &Path,
    is_local: bool,
    settings: &Settings,
    run: &mut Run<'_>,
) -> Result<DropAside<Session>> {
    let local = if is_local {
        let (programs, origin) = (catalog::bin_directory()?.into(), catalog::data_directory()?.into());
        Some(in_this_process(programs, origin, settings.reach()?))
    } else {
        None
    };
    let connector = connector(host, settings, local, Arc::default())?;
    let open = |cancel: &Cancel| {
        Session::open(connector, directory, Purpose::Look, Vec::new(), Arc::default(), cancel)
            .map(DropAside::new)
    };
    run.blocking(open)
}

/// Whether the target is written by this process; refused at once if it would be and the caller may not have that
/// directory. May ask the name service: not for the main thread.
pub(crate) fn is_local(
    host: &str,
    transport: Transport,
    reach: &Reach,
    directory: &str,
    cancel: &Cancel,
) -> Result<bool> {
    let is_local = match transport {
        Transport::Local => true,
        Transport::Agent => false,
        Transport::Auto => is_this_host(host, cancel)?,
    };
    if is_local {
        reach.check(Path::new(directory))?;
    }
    Ok(is_local)
}
