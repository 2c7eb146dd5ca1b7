//! A primary with data, and the place of the standby that is rebuilt from it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::netns::Network;
use pgpool_recovery_e2e::{Cluster, Host, Scratch, account};

use crate::interrupt::{Outcome, Stop};
use crate::traffic;
use crate::verify::Fingerprint;

#[derive(Debug)]
pub(crate) struct Stage {
    /// None: the target is local only.
    pub(crate) agent: Option<Agent>,
    pub(crate) target: Cluster,
    pub(crate) primary: Cluster,
    /// Whether the primary's files no longer change, so that a standby's must be equal byte by byte.
    pub(crate) at_rest: bool,
    /// Whether queries read all rows, not a sample.
    pub(crate) all_rows: bool,
    /// What queries gave on the primary, by the percentage of blocks they looked at.
    pub(crate) expected: RefCell<HashMap<u32, Fingerprint>>,
    pub(crate) scratch: Scratch,
    _network: Option<Network>,
}

/// Where primary and target are.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// Two hosts, or one.
    pub(crate) network: Option<Network>,
    /// Directory for both data directories, if not the scratch directory.
    pub(crate) directory: Option<PathBuf>,
    /// Settings of the primary besides the bench's own.
    pub(crate) settings: Vec<(&'static str, String)>,
}

impl Place {
    /// For so many files that starting a standby, which is not what is measured, would take long:
    /// by default it opens each of them to sync it.
    pub(crate) fn of_many_files() -> Self {
        Self { settings: vec![("recovery_init_sync_method", "syncfs".to_owned())], ..Self::default() }
    }
}

impl Stage {
    /// A running primary without data, a place for the target, and an agent that allows it.
    pub(crate) fn new(scratch: Scratch, place: Place) -> Self {
        let (here, there) = match &place.network {
            Some(network) => (network.host(0), network.host(1)),
            None => (Host::here(), Host::here()),
        };
        let directory = place.directory.unwrap_or_else(|| scratch.path().to_owned());
        let secret = agent::secret(&scratch, "secret");
        let mut primary = cluster(&scratch, &here, "primary", &secret).at(directory.join("primary"));
        for (name, value) in &place.settings {
            primary = primary.with(name, value);
        }
        let primary = primary.into_primary();
        let target = cluster(&scratch, &there, "target", &secret).at(directory.join("target"));
        make_directory(target.directory());
        Self::of(scratch, primary, target, &secret, place.network)
    }

    /// The stage of a primary that runs and a target whose directory is there.
    pub(crate) fn of(
        scratch: Scratch,
        primary: Cluster,
        target: Cluster,
        secret: &Path,
        network: Option<Network>,
    ) -> Self {
        let agent = Agent::start(&scratch, target.host(), secret, &[target.directory()]);
        Self {
            agent: Some(agent),
            target,
            primary,
            at_rest: true,
            all_rows: false,
            expected: RefCell::default(),
            scratch,
            _network: network,
        }
    }

    pub(crate) fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("every stage is made with an agent")
    }

    /// The primary's process, for looking at its children and its network.
    pub(crate) fn postmaster(&self) -> u32 {
        self.primary.postmaster().expect("the primary runs")
    }

    /// Bytes that went between the two hosts so far.
    pub(crate) fn carried(&self) -> u64 {
        let interface = if self.primary.host().namespace().is_some() { "eth0" } else { "lo" };
        traffic::carried(self.postmaster(), interface)
    }

    /// The target as a directory without anything in it.
    pub(crate) fn empty_target(&self) -> Outcome<u64> {
        let _ = fs::remove_dir_all(self.target.directory());
        make_directory(self.target.directory());
        Ok(0)
    }

    /// The same, with what was there set aside: for minutes ext4 gives no new file the inode of one that was removed,
    /// and looks at each of them in vain.
    pub(crate) fn fresh_target(&self) -> Outcome<u64> {
        let target = self.target.directory();
        let aside =
            (0..).map(|number| target.with_extension(format!("aside-{number}"))).find(|path| !path.exists());
        if let Some(aside) = aside.filter(|_| target.exists()) {
            fs::rename(target, &aside)
                .map_err(|error| Stop::Failed(format!("{}: {error}", aside.display())))?;
        }
        make_directory(target);
        Ok(0)
    }

    /// Removes the slots that a run left, which would keep the primary's WAL.
    pub(crate) fn drop_slots(&self) {
        self.primary
            .execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active");
    }

    /// How a standby reaches the primary.
    pub(crate) fn conninfo(&self) -> String {
        format!("host={} port={} user=postgres", self.primary.host().address(), self.primary.port())
    }

    /// Gives the target its own port again: a copied configuration has the primary's.
    pub(crate) fn give_target_its_port(&self) {
        let own = format!("port = '{}'", self.target.port());
        let text = self.target.read("postgresql.conf");
        if text.lines().rfind(|line| line.trim_start().starts_with("port ")) != Some(own.as_str()) {
            self.target.append_conf("port", self.target.port());
        }
    }
}

fn make_directory(path: &Path) {
    fs::create_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("own directory");
    account::give(path);
}

/// A cluster as the bench wants it: durable, and doing nothing that was not asked for.
pub(crate) fn cluster(scratch: &Scratch, host: &Host, name: &str, secret: &Path) -> Cluster {
    Cluster::place(scratch, host, name)
        .with("fsync", "on")
        .with("shared_buffers", "256MB")
        .with("max_wal_size", "4GB")
        .with("max_locks_per_transaction", 1024)
        .with("checkpoint_timeout", "1d")
        .with("autovacuum", "off")
        // Peers without a slot follow by the WAL that is kept.
        .with("wal_keep_size", "4GB")
        .with("pgpool_recovery.secret_file", secret.display())
}
