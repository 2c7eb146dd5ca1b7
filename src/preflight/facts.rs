//! The primary and what is asked of it, gathered once before the questions.

use std::fs;
use std::path::{Path, PathBuf};

use pgdata::control_file::ControlFile;
use pgpool_recovery_core::compare::wal_map::Lineage;
use pgpool_recovery_core::error::{Error, Result};
use pgpool_recovery_core::host::control;
use pgpool_recovery_core::host::policy::resolve;
use pgpool_recovery_core::manifest::Side;
use pgpool_recovery_core::manifest::path::{RelPath, normalize_directory};
use pgpool_recovery_core::manifest::scan::tablespace_paths;
use pgpool_recovery_core::preflight::PrimaryIdentity;
use pgpool_recovery_core::preflight::standby_parameters::Required;
use pgpool_recovery_core::replication::naming::{self, Node};
use pgpool_recovery_core::replication::own_address::Server;
use pgpool_recovery_core::replication::standby::passfile_inside;
use pgpool_recovery_core::sys::FileId;
use pgpool_recovery_core::sys::machine;

use crate::pg::catalog;
use crate::pg::compat::LIBPQ_HAS_REQUIRE_AUTH;
use crate::settings::Settings;
use crate::settings::request::Request;

/// What a node's application_name and its slot are called; no slot is made where the second is empty.
pub(crate) fn names(settings: &Settings, node: Node<'_>) -> Result<(String, String)> {
    let application_name = naming::expand("application_name", &settings.application_name, node)?;
    let slot_name = naming::slot_name(&naming::expand("slot_name", &settings.slot_name, node)?);
    Ok((application_name, slot_name))
}

/// The primary and what is asked of it, put together once.
pub(crate) struct PrimaryFacts {
    pub(crate) request: Request,
    pub(crate) settings: Settings,
    pub(crate) primary: catalog::Primary,
    pub(crate) data_directory: PathBuf,
    pub(crate) control: ControlFile,
    /// What a hot standby of it must have.
    pub(crate) hot_standby: Vec<Required>,
    pub(super) identity: PrimaryIdentity,
    pub(super) is_local: bool,
    pub(crate) application_name: String,
    pub(super) forbids_cleartext_password: bool,
    /// Where this server can be reached.
    pub(super) server: Server,
    /// Empty: no slot.
    pub(crate) slot_name: String,
}

impl PrimaryFacts {
    /// Gathers the facts; fails only where nothing sensible can be asked any more.
    pub(crate) fn gather(
        request: Request,
        settings: Settings,
        server: Server,
        is_local: bool,
    ) -> Result<Self> {
        let primary = catalog::primary()?;
        let shown = primary.data_directory.clone();
        let failed = |error| Error::at("stat directory", &shown, &error);
        let data_directory = Path::new(&primary.data_directory).canonicalize().map_err(failed)?;
        let metadata = fs::metadata(&data_directory).map_err(failed)?;
        let wal = fs::metadata(data_directory.join("pg_wal")).map_err(failed)?;
        let (control, _) = control::read(&data_directory)?;
        // whatever bytes they have: a location that is not UTF-8 is an answer to the question about tablespaces
        let own = tablespace_paths(&data_directory, Side::Primary)?.into_iter().map(|(_, source)| source);
        let own = own
            .chain([data_directory.clone(), data_directory.join("pg_wal")])
            .map(|path| resolve(&path))
            .collect();
        let identity = PrimaryIdentity {
            identity: FileId::from(&metadata),
            own,
            wal_identity: Some(FileId::from(&wal)),
            boot_id: machine::boot_id(),
            system_identifier: primary.system_identifier,
            timeline: primary.timeline,
            history: Lineage::read(&data_directory.join("pg_wal"), primary.timeline)?,
            major_version: (primary.server_version_num / 10_000).to_string(),
            block_size: primary.block_size,
            wal_segment_size: primary.wal_segment_size,
            has_independent_nodes: request.is_native,
            directory: data_directory.clone(),
        };
        let node = Node { host: &request.dest_host, id: request.node_id, port: request.dest_port };
        let (application_name, slot_name) = names(&settings, node)?;
        Ok(Self {
            request,
            settings,
            primary,
            data_directory,
            control,
            hot_standby: catalog::required_by_standbys()?,
            identity,
            is_local,
            application_name,
            forbids_cleartext_password: LIBPQ_HAS_REQUIRE_AUTH && !catalog::asks_standbys_for_cleartext()?,
            server,
            slot_name,
        })
    }

    /// Whether the primary's postgresql.conf lies in its data directory.
    pub(crate) fn config_is_inside(&self) -> bool {
        let directory =
            Path::new(&self.primary.config_file).parent().and_then(|parent| parent.canonicalize().ok());
        directory.as_deref() == Some(self.data_directory.as_path())
    }

    /// The primary, as it is compared with a target.
    pub(crate) const fn identity(&self) -> &PrimaryIdentity {
        &self.identity
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
        let directory = normalize_directory(&self.request.dest_dir)?;
        let listed = self.settings.keep_files.iter().map(|name| RelPath::parse(name));
        listed.chain(passfile_inside(&self.settings.passfile, &directory).map(Ok)).collect()
    }
}
