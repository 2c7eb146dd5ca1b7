//! The primary and what is asked of it: the facts, and what they say about a recovery.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use pgdata::control_file::{ControlFile, PG_CONTROL};
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::policy::{Reach, resolve};
use pgpool_recovery_core::local::LocalConnector;
use pgpool_recovery_core::manifest::path::{RelPath, normalize_directory, overlap};
use pgpool_recovery_core::manifest::plan::Tablespace;
use pgpool_recovery_core::manifest::scan::tablespace_links;
use pgpool_recovery_core::preflight::hot_standby::Required;
use pgpool_recovery_core::preflight::judge::{self, Finding};
use pgpool_recovery_core::replication::naming::{self, Node};
use pgpool_recovery_core::replication::own_address::{
    Server, as_localhost, for_standby, is_among, is_localhost, seen_at,
};
use pgpool_recovery_core::replication::standby::Following;
use pgpool_recovery_core::replication::standby::Listening;
use pgpool_recovery_core::sys::addresses::is_this_host;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::machine::{self, network};
use pgpool_recovery_core::sys::size::pretty;
use pgpool_recovery_core::wire::link::Connector;
use pgpool_recovery_core::wire::link::dial::AgentConnector;
use pgpool_recovery_core::wire::protocol::message::Target;
use pgpool_recovery_core::wire::secret::Secret;

use crate::pg::catalog;
use crate::pg::compat::LIBPQ_HAS_REQUIRE_AUTH;
use crate::pg::slot;
use crate::settings::request::Request;
use crate::settings::{Overwrite, Settings, Transport};

/// How often pg_control is read again when it was caught in the middle of a write.
const CONTROL_READS: usize = 20;

/// Most addresses of the primary that a standby is given.
const MOST_ADDRESSES: usize = 4;

/// The primary and what is asked of it, put together once.
pub(crate) struct Situation {
    pub(crate) request: Request,
    pub(crate) settings: Settings,
    pub(crate) primary: catalog::Primary,
    pub(crate) data_directory: PathBuf,
    pub(crate) control: ControlFile,
    /// What a hot standby of it must have.
    pub(crate) hot_standby: Vec<Required>,
    facts: judge::Primary,
    is_local: bool,
    pub(crate) application_name: String,
    forbids_cleartext_password: bool,
    /// Where a standby on this host reaches this server as "localhost".
    localhost: Vec<IpAddr>,
    /// Empty: no slot.
    pub(crate) slot_name: String,
}

impl Situation {
    /// Gathers the facts; fails only where nothing sensible can be asked any more.
    pub(crate) fn gather(
        request: Request,
        settings: Settings,
        server: &Server,
        is_local: bool,
    ) -> Result<Self> {
        let primary = catalog::primary()?;
        let shown = primary.data_directory.clone();
        let failed = |error| Error::at("stat the data directory", &shown, &error);
        let data_directory = Path::new(&primary.data_directory).canonicalize().map_err(failed)?;
        let metadata = fs::metadata(&data_directory).map_err(failed)?;
        let wal = fs::metadata(data_directory.join("pg_wal")).map_err(failed)?;
        let (control, _) = read_control(&data_directory)?;
        let links = tablespace_links(&data_directory)?;
        let own = links.iter().map(|(_, source)| Path::new(source).to_owned());
        let own = own
            .chain([data_directory.clone(), data_directory.join("pg_wal")])
            .map(|path| resolve(&path))
            .collect();
        let facts = judge::Primary {
            identity: (metadata.dev(), metadata.ino()),
            own,
            wal_identity: Some((wal.dev(), wal.ino())),
            boot_id: machine::boot_id(),
            system_identifier: primary.system_identifier,
            timeline: primary.timeline,
            major_version: (primary.server_version_num / 10_000).to_string(),
            block_size: primary.block_size,
            wal_segment_size: primary.wal_segment_size,
            directory: data_directory.clone(),
        };
        let node = Node { host: &request.dest_host, id: request.node_id, port: request.dest_port };
        let application_name = naming::expand("application_name", &settings.application_name, node)?;
        let slot_name = naming::slot_name(&naming::expand("slot_name", &settings.slot_name, node)?);
        Ok(Self {
            request,
            settings,
            primary,
            data_directory,
            control,
            hot_standby: catalog::required_by_standbys()?,
            facts,
            is_local,
            application_name,
            forbids_cleartext_password: LIBPQ_HAS_REQUIRE_AUTH && !catalog::asks_standbys_for_cleartext()?,
            localhost: as_localhost(server),
            slot_name,
        })
    }

    /// Questions about this server alone.
    pub(crate) fn primary_findings(&self) -> Result<Vec<Finding>> {
        let user = &self.settings.replication_user;
        Ok(vec![
            Finding::new("primary_is_primary", self.not_in_recovery()),
            Finding::new("wal_level", self.wal_level()),
            Finding::new("wal_senders", self.wal_senders()),
            Finding::new("replication_slot", self.replication_slot()?),
            Finding::new("replication_user", replication_user(user, catalog::role(user)?)),
            Finding::new("tablespaces", self.tablespaces().map(|spaces| format!("{} to map", spaces.len()))),
        ])
    }

    /// Refuses a local target that is, holds or lies in this server's data directory, before anything is
    /// opened there.
    pub(crate) fn demand_other_directory(&self) -> Result<()> {
        if !self.is_local {
            return Ok(());
        }
        let directory = normalize_directory(&self.request.dest_dir)?;
        judge::apart(&self.data_directory, &resolve(&directory))
    }

    /// Questions about the target, as its receiver describes it.
    pub(crate) fn target_findings(&self, target: &Target) -> Vec<Finding> {
        let any_cluster = self.settings.overwrite == Overwrite::AnyCluster;
        let mut findings = judge::judge(&self.facts, target, self.is_local, any_cluster);
        findings.extend(self.configuration_findings(target));
        findings
    }

    /// What to say of the slot that the target was set to use before, where that is another one. It may be a slot of
    /// another node, so it is left alone.
    pub(crate) fn former_slot(&self, target: &Target) -> Result<Option<String>> {
        let former = target.standby.as_ref().and_then(|standby| standby.slot_name.as_deref());
        let Some(former) = former.filter(|former| *former != self.slot_name) else { return Ok(None) };
        Ok(catalog::retained_by_idle_slot(former)?.map(|retained| {
            format!(
                "replication slot \"{former}\", which the target used before, is inactive and retains {} of WAL: unless \
                 another standby uses it, drop it with SELECT pg_drop_replication_slot('{former}')",
                pretty(retained)
            )
        }))
    }

    /// How the target is going to be filled.
    pub(crate) fn strategy(&self, target: &Target) -> judge::Strategy {
        judge::strategy(&self.facts, target)
    }

    /// The directory of this cluster in every tablespace.
    pub(crate) fn tablespace_version_directory(&self) -> String {
        format!("PG_{}_{}", self.facts.major_version, self.control.catalog_version)
    }

    /// Where the tablespaces outside the data directory go: as they are now.
    pub(crate) fn tablespaces(&self) -> Result<Vec<Tablespace>> {
        let links = tablespace_links(&self.data_directory)?;
        let tablespaces: Vec<Tablespace> =
            links.iter().map(|(oid, source)| self.place(*oid, source)).collect::<Result<_>>()?;
        if self.is_local {
            let sources =
                links.iter().map(|(_, source)| Path::new(source)).chain([self.data_directory.as_path()]);
            let sources: Vec<PathBuf> = sources.map(resolve).collect();
            for tablespace in &tablespaces {
                let target = resolve(Path::new(&tablespace.target));
                if let Some(source) = sources.iter().find(|source| overlap(source, &target)) {
                    return Err(own_location(&tablespace.target)
                        .detail(format!("The primary uses \"{}\".", source.display())));
                }
            }
        }
        let targets: HashSet<&str> =
            tablespaces.iter().map(|tablespace| tablespace.target.as_str()).collect();
        if targets.len() < tablespaces.len() {
            return Err(Error::new(Kind::TargetRefused, "two tablespaces have one place on the target")
                .detail("Every tablespace needs a directory of its own.")
                .hint("Correct pgpool_recovery.tablespace_mapping."));
        }
        Ok(tablespaces)
    }

    /// Refuses directories of the target that are the primary's: an agent may run on the primary's host.
    pub(crate) fn demand_other_locations(&self, target: &Target, locations: &[(u64, u64)]) -> Result<()> {
        if !judge::may_be_one_machine(self.facts.boot_id.as_deref(), target.boot_id.as_deref()) {
            return Ok(());
        }
        let links = tablespace_links(&self.data_directory)?;
        let own =
            links.iter().map(|(_, source)| source.as_str()).chain([self.primary.data_directory.as_str()]);
        for path in own {
            let metadata = fs::metadata(path).map_err(Error::on_path("stat", path))?;
            if locations.contains(&(metadata.dev(), metadata.ino())) {
                return Err(
                    own_location(path).detail("The target's host and the primary's host are one machine.")
                );
            }
        }
        Ok(())
    }

    fn place(&self, oid: u32, source: &str) -> Result<Tablespace> {
        // as the setting was read: a link that was made by hand may have a slash too many
        let short = normalize_directory(source).ok();
        let short = short.as_deref().unwrap_or(Path::new(source));
        let mapped = self.settings.tablespace_mapping.iter().find(|(old, _)| Path::new(old) == short);
        let target = match mapped {
            Some((_, new)) => new.clone(),
            None if self.is_local => {
                return Err(Error::new(
                    Kind::TargetRefused,
                    format!("the tablespace in \"{source}\" has no place on the target"),
                )
                .detail("A standby on the same host cannot use the directory where the primary has it.")
                .hint(format!("Set pgpool_recovery.tablespace_mapping = '{source}=/another/directory', or pass it as an option.")));
            }
            None => source.to_owned(),
        };
        Ok(Tablespace { oid, source: source.to_owned(), target })
    }

    /// Whether the primary's postgresql.conf lies in its data directory.
    pub(crate) fn config_is_inside(&self) -> bool {
        let directory =
            Path::new(&self.primary.config_file).parent().and_then(|parent| parent.canonicalize().ok());
        directory.as_deref() == Some(self.data_directory.as_path())
    }

    /// Where the standby will listen.
    pub(crate) fn listening(&self, target: &Target) -> Listening {
        let adopted = || Listening {
            port: self.request.dest_port.unwrap_or(self.primary.port),
            addresses: self.primary.listen_addresses.clone(),
        };
        target.listening.clone().unwrap_or_else(adopted)
    }

    /// How the standby will connect, given what its host sees.
    pub(crate) fn following(&self, target: &Target) -> Result<Following> {
        let (host, host_addresses) = self.primary_host(target)?;
        let following = Following {
            host,
            host_addresses,
            port: self.request.port.unwrap_or(self.primary.port),
            user: self.settings.replication_user.clone(),
            application_name: self.application_name.clone(),
            passfile: self.settings.passfile.clone(),
            forbids_cleartext_password: self.forbids_cleartext_password,
            slot_name: self.slot_name.clone(),
            restore_command: self.settings.restore_command.clone(),
        };
        // what cannot be written down is refused before anything changes
        following.myrecovery_conf(self.primary.server_version_num / 10_000)?;
        Ok(following)
    }

    /// The host, and its addresses where the name must not be looked up again.
    fn primary_host(&self, target: &Target) -> Result<(String, Vec<IpAddr>)> {
        let tcp = self.primary.listen_addresses.split(',').map(str::trim).find(|address| !address.is_empty());
        let socket = || {
            let directories = self.primary.unix_socket_directories.split(',');
            directories
                .map(|directory| directory.trim().trim_matches('"'))
                .find(|directory| !directory.is_empty())
        };
        let own = || match tcp {
            // of the addresses of this name another program may have one, even where the server is told to listen on both
            Some("*" | "0.0.0.0" | "::") => ("localhost".to_owned(), self.localhost.clone()),
            Some(address) if is_localhost(address) => (address.to_owned(), self.localhost.clone()),
            Some(address) => (address.to_owned(), Vec::new()),
            None => (socket().unwrap_or("localhost").to_owned(), Vec::new()),
        };
        let is_one_network = network().is_some_and(|own| target.network == Some(own));
        let theirs = if is_one_network { Some([].as_slice()) } else { target.addresses.as_deref() };
        let checked = theirs.map_or_else(Vec::new, |theirs| {
            for_standby(&self.request.primary_addresses, target.peer, theirs, MOST_ADDRESSES)
        });
        let is_usable = |host: &String| {
            let is_checked = !self.request.primary_addresses.is_empty();
            let leads_there = |theirs| host.parse().is_ok_and(|address| is_among(address, theirs));
            self.settings.caller_is_superuser
                || *host == self.settings.primary_host
                // where the addresses there are not known, it might lead there
                || theirs.is_some_and(|theirs| if is_checked { !checked.is_empty() } else { !leads_there(theirs) })
        };
        let given = self.request.primary_host.clone().filter(is_usable);
        let given =
            given.or_else(|| Some(self.settings.primary_host.clone()).filter(|host| !host.is_empty()));
        Ok(match (given, target.peer) {
            // Pgpool-II says localhost where it knows a socket directory
            (Some(host), _) if host == "localhost" && self.is_local && tcp.is_none() => own(),
            (Some(host), _) => (host, checked),
            (None, Some(peer)) => (seen_at(peer, theirs.unwrap_or_default())?.to_string(), Vec::new()),
            (None, None) => own(),
        })
    }

    /// The primary, as it is compared with a target.
    pub(crate) const fn facts(&self) -> &judge::Primary {
        &self.facts
    }

    /// Whether this process writes the target itself.
    pub(crate) const fn is_local(&self) -> bool {
        self.is_local
    }

    /// How the target is reached, as the report calls it.
    pub(crate) fn transport(&self) -> &'static str {
        if self.is_local { "local" } else { "agent" }
    }

    /// Files of the standby's own, as paths.
    pub(crate) fn keep(&self) -> Result<Vec<RelPath>> {
        self.settings.keep_files.iter().map(|name| RelPath::parse(name)).collect()
    }

    /// What reaches the target, for one session with it. `wire` counts what its links carry.
    pub(crate) fn connector(&self, wire: Arc<AtomicU64>) -> Result<Arc<dyn Connector>> {
        let bin_directory = PathBuf::from(&self.primary.bin_directory);
        let reach = self.settings.reach()?;
        let local =
            self.is_local.then(|| LocalConnector::new(bin_directory, self.data_directory.clone(), reach));
        connector(&self.request.dest_host, &self.settings, local, wire)
    }

    fn not_in_recovery(&self) -> Result<String> {
        if !self.primary.in_recovery {
            return Ok(format!("timeline {}", self.primary.timeline));
        }
        Err(Error::new(Kind::WrongState, "this server is a standby")
            .detail("A standby is rebuilt from its primary, and recovery is in progress here.")
            .hint("Connect to the primary. If Pgpool-II called, it does not know the primary: see show pool_nodes."))
    }

    fn wal_level(&self) -> Result<String> {
        if self.primary.wal_level != "minimal" {
            return Ok(self.primary.wal_level.clone());
        }
        Err(Error::new(Kind::WrongState, "wal_level is minimal")
            .detail("A standby needs wal_level replica or logical.")
            .hint("Set wal_level = replica and restart the primary."))
    }

    fn wal_senders(&self) -> Result<String> {
        let (limit, used) = (self.primary.max_wal_senders, self.primary.used_wal_senders);
        if used < limit {
            return Ok(format!("{used} of {limit} in use"));
        }
        Err(Error::new(Kind::LimitExceeded, "no walsender is left for the standby")
            .detail(format!("max_wal_senders is {limit}, {used} are in use."))
            .hint("Increase max_wal_senders and restart the primary."))
    }

    fn replication_slot(&self) -> Result<Result<String>> {
        if self.slot_name.is_empty() {
            return Ok(Ok("no slot is used".to_owned()));
        }
        if let Err(error) = slot::validate(&self.slot_name) {
            return Ok(Err(error));
        }
        Ok(match catalog::slot(&self.slot_name)? {
            None => catalog::check_free_slot().map(|()| format!("\"{}\" will be made", self.slot_name)),
            Some(found) if found.slot_type != "physical" => {
                Err(slot::wrong_type(&self.slot_name, &found.slot_type))
            }
            Some(catalog::SlotState { active_pid: Some(pid), .. }) => Err(slot::active(&self.slot_name, pid)),
            Some(_) => Ok(format!("\"{}\" exists and is not in use", self.slot_name)),
        })
    }
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

/// Reads pg_control: parsed, and as bytes. The server writes it in place, so a read may catch it
/// half-written; its CRC tells.
pub(crate) fn read_control(data_directory: &Path) -> Result<(ControlFile, Vec<u8>)> {
    let path = data_directory.join(PG_CONTROL);
    let mut failure = None;
    for _ in 0..CONTROL_READS {
        let bytes = fs::read(&path).map_err(Error::on_path("read file", &path))?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((control, bytes)),
            Err(error) => failure = Some(error),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Err(failure.map_or_else(|| Error::new(Kind::Internal, "pg_control was never read"), Error::from))
}

fn replication_user(name: &str, role: Option<catalog::Role>) -> Result<String> {
    let hint = "Name a role with LOGIN and REPLICATION in pgpool_recovery.replication_user.";
    match role {
        Some(catalog::Role { can_login: true, can_replicate: true }) => Ok(format!("\"{name}\"")),
        Some(_) => Err(Error::new(Kind::InvalidArgument, format!("role \"{name}\" cannot replicate"))
            .detail("The standby would connect as this role; it lacks LOGIN or REPLICATION.")
            .hint(hint)),
        None => Err(Error::new(Kind::InvalidArgument, format!("role \"{name}\" does not exist"))
            .detail("The standby would connect as this role.")
            .hint(hint)),
    }
}

fn own_location(path: &str) -> Error {
    Error::new(
        Kind::TargetRefused,
        format!("\"{path}\" is the primary's own and no place for a tablespace of the standby"),
    )
    .hint("Map the tablespace to a directory of the standby's own with tablespace_mapping.")
}
