//! A primary's and a target's directory, and runs between them, without a PostgreSQL server.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;

use pgpool_recovery_core::error::Error;
use pgpool_recovery_core::host::policy::{Cluster, Policy, Reach};
use pgpool_recovery_core::local::LocalConnector;
use pgpool_recovery_core::manifest::exclude::{MARKER, Rules};
use pgpool_recovery_core::manifest::path::RelPath;
use pgpool_recovery_core::manifest::plan::{Directory, File, Plan, Tablespace};
use pgpool_recovery_core::manifest::scan::{Source, scan};
use pgpool_recovery_core::progress::Progress;
use pgpool_recovery_core::receiver::Receiver;
use pgpool_recovery_core::sender::pack::Compression;
use pgpool_recovery_core::sender::state::{Begun, Planned, Reconciled, Sent};
use pgpool_recovery_core::sender::{Manner, Session, Settled};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::link::dial::AgentConnector;
use pgpool_recovery_core::wire::link::{Connector, tls};
use pgpool_recovery_core::wire::protocol::data::Put;
use pgpool_recovery_core::wire::protocol::message::{Marker, Purpose, Terms};
use pgpool_recovery_core::wire::secret::Secret;

pub(crate) const VERSION: &str = "PG_15_202209061";

/// A primary's directory, a target's directory, and a place for programs.
pub(crate) struct Hosts {
    pub(crate) top: tempfile::TempDir,
    pub(crate) tablespaces: Vec<Tablespace>,
    pub(crate) keep: Vec<RelPath>,
    pub(crate) compression: Compression,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    pub(crate) total: u64,
    pub(crate) removed: u64,
    pub(crate) changed: u64,
}

impl Outcome {
    /// What a run that has compared everything came to.
    fn of(settled: &Settled, progress: &Progress) -> Self {
        assert_eq!(progress.compared(), progress.total());
        Self {
            sent: progress.sent(),
            total: progress.total(),
            removed: settled.removed,
            changed: settled.changed,
        }
    }
}

impl Hosts {
    pub(crate) fn new() -> Self {
        let top = tempfile::tempdir().expect("temporary directory");
        for name in ["primary/global", "primary/base/5", "primary/pg_wal", "primary/pg_tblspc", "bin"] {
            fs::create_dir_all(top.path().join(name)).expect("make");
        }
        let hosts = Self { top, tablespaces: Vec::new(), keep: Vec::new(), compression: Compression::Auto };
        // the receiver asks the server's programs for their version
        let postgres = hosts.path("bin/postgres");
        fs::write(&postgres, "#!/bin/sh\necho 'postgres (PostgreSQL) 15.18'\n").expect("write");
        fs::set_permissions(&postgres, fs::Permissions::from_mode(0o755)).expect("chmod");
        hosts.write("primary/PG_VERSION", b"15\n");
        hosts.write("primary/pg_wal/000000010000000000000001", &[&pages(1, 9)[..], &[0; 1 << 20]].concat());
        hosts
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("make");
        fs::write(path, content).expect("write");
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("read {name}: {error}"))
    }

    /// Gives the primary a tablespace with five pages, which goes to `spaces/16` on the target.
    pub(crate) fn add_tablespace(&mut self) {
        self.write(&format!("space/{VERSION}/5/9"), &pages(5, 5));
        symlink(self.path("space"), self.path("primary/pg_tblspc/16")).expect("link");
        self.tablespaces.push(Tablespace {
            oid: 16,
            source: self.path("space").display().to_string(),
            target: self.path("spaces/16").display().to_string(),
        });
    }

    pub(crate) fn local(&self) -> Arc<dyn Connector> {
        Arc::new(LocalConnector::new(self.path("bin"), self.path("primary"), Reach::Anywhere))
    }

    /// An agent on a port of its own.
    pub(crate) fn agent(&self) -> Arc<dyn Connector> {
        let secret = Secret::random().expect("secret");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let receiver = Arc::new(Receiver::new(Policy::Listed(vec![Cluster {
            data_directory: self.path("standby"),
            bin_directory: self.path("bin"),
            config_file: None,
            start_command: None,
            log_file: None,
            tablespace_roots: vec![self.path("spaces")],
        }])));
        let server_secret = secret.clone();
        std::thread::spawn(move || {
            let config = tls::server_config().expect("configuration");
            for socket in listener.incoming().map_while(Result::ok) {
                let (receiver, config, secret) =
                    (Arc::clone(&receiver), Arc::clone(&config), server_secret.clone());
                std::thread::spawn(move || {
                    let cancel = Cancel::new();
                    let link = tls::accept(socket, &config, &secret, &cancel, "primary")?;
                    receiver.serve(link, &cancel)
                });
            }
        });
        Arc::new(AgentConnector::new("127.0.0.1", port, secret, Arc::default()).expect("connector"))
    }

    pub(crate) fn open(
        &self,
        connector: &Arc<dyn Connector>,
        purpose: Purpose,
    ) -> Result<(Session, Arc<Progress>), Error> {
        let progress = Arc::new(Progress::default());
        let session = Session::open(
            Arc::clone(connector),
            &self.path("standby"),
            purpose,
            self.keep.clone(),
            Arc::clone(&progress),
            &Cancel::new(),
        )?;
        Ok((session, progress))
    }

    pub(crate) fn plan(&self, session: Session) -> Result<Session<Planned>, Error> {
        let (plan, terms) = self.list(&session)?;
        session.plan(plan, terms).map(|(session, _)| session)
    }

    /// What is asked for.
    pub(crate) fn list(&self, session: &Session) -> Result<(Plan, Terms), Error> {
        let mut private_files = session.target().kept.clone();
        private_files.extend(CONFIGURATION.iter().map(|name| RelPath::parse(name).expect("valid")));
        let rules = Rules { private_files, ..Rules::default() };
        let source = Source {
            data_directory: &self.path("primary"),
            tablespace_version_directory: VERSION,
            tablespaces: &self.tablespaces,
            rules: &rules,
        };
        let plan = scan(&source, &Cancel::new())?;
        let terms = Terms {
            tablespaces: self.tablespaces.clone(),
            tablespace_version_directory: VERSION.to_owned(),
            host_directories: Vec::new(),
            reserve: 0,
            mode: 0o700,
            primary_space: None,
        };
        Ok((plan, terms))
    }

    pub(crate) fn begin(session: Session<Planned>) -> Result<Session<Begun>, Error> {
        session.begin(Marker { note: "test".to_owned(), system_identifier: 1, ..Marker::default() })
    }

    pub(crate) fn manner(&self) -> Manner {
        Manner { jobs: 3, compression: self.compression, max_rate: 0, clone: true, checksums: None }
    }

    pub(crate) fn send(&self, session: Session<Begun>) -> Result<Session<Sent>, Error> {
        session.send_data(&self.path("primary"), self.manner())
    }

    /// What a run would do.
    pub(crate) fn survey(&self, connector: &Arc<dyn Connector>) -> Result<Outcome, Error> {
        let (session, progress) = self.open(connector, Purpose::Look)?;
        let (_, settled) = self.plan(session)?.survey(&self.path("primary"), self.manner())?;
        Ok(Outcome::of(&settled, &progress))
    }

    /// Names, sizes, modes and times of everything below a directory.
    pub(crate) fn listing(&self, name: &str) -> String {
        let listed = std::process::Command::new("find")
            .arg(self.path(name))
            .args(["-printf", "%p %s %m %T@ %C@ %l\n"])
            .output();
        String::from_utf8(listed.expect("find").stdout).expect("UTF-8")
    }

    pub(crate) fn run(&self, connector: &Arc<dyn Connector>) -> Result<Outcome, Error> {
        let (session, progress) = self.open(connector, Purpose::Recover)?;
        let session = Self::begin(self.plan(session)?)?;
        let settled = self.complete(self.send(session)?)?;
        Ok(Outcome::of(&settled, &progress))
    }

    /// What follows when all data was sent.
    pub(crate) fn complete(&self, session: Session<Sent>) -> Result<Settled, Error> {
        let (session, settled) = session.settle()?;
        self.finish(session)?;
        Ok(settled)
    }

    /// WAL and the last files.
    pub(crate) fn finish(&self, session: Session<Reconciled>) -> Result<(), Error> {
        let wal = RelPath::parse("pg_wal/000000010000000000000001").expect("valid");
        let archive_status = RelPath::parse("pg_wal/archive_status").expect("valid");
        let size = fs::metadata(self.path("primary").join(&wal)).expect("WAL").len();
        let session = session.send_wal(
            &self.path("primary"),
            &[Directory { path: archive_status, mode: 0o700 }],
            vec![File { path: wal, size, mode: 0o600 }],
        )?;
        let put = |path: &str, content: &[u8]| Put {
            path: RelPath::parse(path).expect("valid"),
            mode: 0o600,
            content: content.to_vec(),
        };
        let mut puts = vec![put("backup_label", b"label"), put("global/pg_control", b"control")];
        for name in CONFIGURATION {
            let is_kept = session.target().kept.iter().any(|kept| kept.as_str() == *name);
            if let Some(content) = fs::read(self.path("primary").join(name)).ok().filter(|_| !is_kept) {
                puts.push(put(name, &content));
            }
        }
        session.finish(&puts).map(drop)
    }

    /// Everything of the primary that travels is on the standby, byte for byte.
    pub(crate) fn assert_same(&self, names: &[&str]) {
        for name in names {
            let (ours, theirs) =
                (self.read(&format!("primary/{name}")), self.read(&format!("standby/{name}")));
            assert!(ours == theirs, "{name} differs");
        }
        assert_eq!(self.read("standby/global/pg_control"), b"control");
        assert!(!self.path("standby").join(MARKER).exists());
    }
}

/// What is made for the standby, and no part of the plan.
const CONFIGURATION: &[&str] = &["postgresql.conf", "postgresql.auto.conf"];

pub(crate) fn pages(count: usize, seed: u8) -> Vec<u8> {
    (0..count * 8192).map(|i| (i / 8192) as u8 ^ (i % 251) as u8 ^ seed).collect()
}

pub(crate) fn transports(hosts: &Hosts) -> [(&'static str, Arc<dyn Connector>); 2] {
    [("local", hosts.local()), ("agent", hosts.agent())]
}
