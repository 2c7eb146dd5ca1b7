//! Whole runs between two directories, without a PostgreSQL server: the local link and TLS.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;

use pgpool_recovery_core::cancel::Cancel;
use pgpool_recovery_core::error::{Error, Kind};
use pgpool_recovery_core::exclude::{MARKER, Rules};
use pgpool_recovery_core::link::dial::AgentConnector;
use pgpool_recovery_core::link::{Connector, tls};
use pgpool_recovery_core::local::LocalConnector;
use pgpool_recovery_core::path::RelPath;
use pgpool_recovery_core::plan::{Directory, File, Tablespace};
use pgpool_recovery_core::progress::Progress;
use pgpool_recovery_core::protocol::data::Put;
use pgpool_recovery_core::protocol::message::{Listening, Marker, Purpose, Terms};
use pgpool_recovery_core::receiver::Receiver;
use pgpool_recovery_core::receiver::policy::{Cluster, Policy};
use pgpool_recovery_core::scan::{Source, scan};
use pgpool_recovery_core::secret::Secret;
use pgpool_recovery_core::sender::pack::Compression;
use pgpool_recovery_core::sender::{Manner, Session};

const VERSION: &str = "PG_15_202209061";

/// A primary's directory, a target's directory, and a place for programs.
struct Hosts {
    top: tempfile::TempDir,
    tablespaces: Vec<Tablespace>,
    keep: Vec<RelPath>,
    compression: Compression,
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    sent: u64,
    total: u64,
    removed: u64,
    changed: u64,
}

impl Hosts {
    fn new() -> Self {
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

    fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("make");
        fs::write(path, content).expect("write");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("read {name}: {error}"))
    }

    fn local(&self) -> Arc<dyn Connector> {
        Arc::new(LocalConnector::new(self.path("bin"), self.path("primary")))
    }

    /// An agent on a port of its own.
    fn agent(&self) -> Arc<dyn Connector> {
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

    fn open(
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

    fn plan(&self, session: &mut Session) -> Result<(), Error> {
        let rules = Rules { private_files: session.target().kept.clone(), ..Rules::default() };
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
        };
        session.plan(plan, terms).map(drop)
    }

    fn begin(session: &mut Session) -> Result<(), Error> {
        session.begin(Marker { note: "test".to_owned(), system_identifier: 1, timeline: 1, started: 0 })
    }

    fn manner(&self) -> Manner {
        Manner { jobs: 3, compression: self.compression, max_rate: 0, clone: true, checksums: None }
    }

    fn send(&self, session: &mut Session) -> Result<(), Error> {
        session.send_data(&self.path("primary"), self.manner())
    }

    /// What a run would do.
    fn survey(&self, connector: &Arc<dyn Connector>) -> Result<Outcome, Error> {
        let (mut session, progress) = self.open(connector, Purpose::Look)?;
        self.plan(&mut session)?;
        let settled = session.survey(&self.path("primary"), self.manner())?;
        assert_eq!(progress.compared(), progress.total());
        Ok(Outcome {
            sent: progress.sent(),
            total: progress.total(),
            removed: settled.removed,
            changed: settled.changed,
        })
    }

    /// Names, sizes, modes and times of everything below a directory.
    fn listing(&self, name: &str) -> String {
        let listed = std::process::Command::new("find")
            .arg(self.path(name))
            .args(["-printf", "%p %s %m %T@ %C@ %l\n"])
            .output();
        String::from_utf8(listed.expect("find").stdout).expect("UTF-8")
    }

    fn run(&self, connector: &Arc<dyn Connector>) -> Result<Outcome, Error> {
        let (mut session, progress) = self.open(connector, Purpose::Recover)?;
        self.plan(&mut session)?;
        Self::begin(&mut session)?;
        self.send(&mut session)?;
        let settled = session.settle()?;
        let wal = RelPath::parse("pg_wal/000000010000000000000001").expect("valid");
        let archive_status = RelPath::parse("pg_wal/archive_status").expect("valid");
        let size = fs::metadata(self.path("primary").join(&wal)).expect("WAL").len();
        session.send_wal(
            &self.path("primary"),
            &[Directory { path: archive_status, mode: 0o700 }],
            vec![File { path: wal, size, mode: 0o600 }],
        )?;
        let put = |path: &str, content: &[u8]| Put {
            path: RelPath::parse(path).expect("valid"),
            mode: 0o600,
            content: content.to_vec(),
        };
        session.finish(&[put("backup_label", b"label"), put("global/pg_control", b"control")])?;
        assert_eq!(progress.compared(), progress.total());
        Ok(Outcome {
            sent: progress.sent(),
            total: progress.total(),
            removed: settled.removed,
            changed: settled.changed,
        })
    }

    /// Everything of the primary that travels is on the standby, byte for byte.
    fn assert_same(&self, names: &[&str]) {
        for name in names {
            let (ours, theirs) =
                (self.read(&format!("primary/{name}")), self.read(&format!("standby/{name}")));
            assert!(ours == theirs, "{name} differs");
        }
        assert_eq!(self.read("standby/global/pg_control"), b"control");
        assert!(!self.path("standby").join(MARKER).exists());
    }
}

fn pages(count: usize, seed: u8) -> Vec<u8> {
    (0..count * 8192).map(|i| (i / 8192) as u8 ^ (i % 251) as u8 ^ seed).collect()
}

fn transports(hosts: &Hosts) -> [(&'static str, Arc<dyn Connector>); 2] {
    [("local", hosts.local()), ("agent", hosts.agent())]
}

#[test]
fn an_empty_target_gets_everything_and_a_second_run_sends_nothing() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(700, 1));
    hosts.write("primary/base/5/2", &pages(3, 2)[..20_000]);
    hosts.write("primary/base/5/empty", b"");
    for number in 0..600 {
        hosts.write(&format!("primary/pg_xact/{number:04}"), &[number as u8 | 1; 100]);
    }
    for (name, connector) in transports(&hosts) {
        let outcome = hosts.run(&connector).expect(name);
        assert_eq!((outcome.sent, outcome.total), (outcome.total, outcome.sent), "{name}: all of it");
        let files =
            ["base/5/1", "base/5/2", "base/5/empty", "pg_xact/0599", "pg_wal/000000010000000000000001"];
        hosts.assert_same(&files);
        assert!(hosts.path("standby/pg_wal/archive_status").is_dir());
        assert_eq!(hosts.read("standby/backup_label"), b"label");

        let outcome = hosts.run(&connector).expect(name);
        assert_eq!((outcome.sent, outcome.removed), (0, 3), "{name}: backup_label and the old WAL go");
        hosts.assert_same(&files);
        fs::remove_dir_all(hosts.path("standby")).expect("clean");
    }
}

#[test]
fn only_pages_that_differ_are_sent() {
    for compression in [Compression::Off, Compression::Lz4, Compression::Zstd, Compression::Auto] {
        let hosts = Hosts { compression, ..Hosts::new() };
        let mut content = pages(1000, 1);
        hosts.write("standby/PG_VERSION", b"15\n");
        hosts.write("standby/base/5/1", &content);
        for page in [0, 5, 6, 500, 999] {
            content[page * 8192 + 17] ^= 0xFF;
        }
        hosts.write("primary/base/5/1", &content);
        let outcome = hosts.run(&hosts.agent()).expect("run");
        assert_eq!((outcome.sent, outcome.changed), (5 * 8192, 1), "{compression:?}");
        hosts.assert_same(&["base/5/1"]);
    }
}

#[test]
fn a_target_damaged_in_every_way_comes_out_exact() {
    let hosts = Hosts::new();
    let content = pages(40, 3);
    for name in ["a", "b", "c", "d", "e", "f", "g"] {
        hosts.write(&format!("primary/base/5/{name}"), &content);
    }
    for (name, connector) in transports(&hosts) {
        let _ = fs::remove_dir_all(hosts.path("standby"));
        hosts.write("standby/PG_VERSION", b"15\n");
        hosts.write("standby/base/5/a", &content[..100]); // truncated
        hosts.write("standby/base/5/b", &[content.as_slice(), &[1; 9000]].concat()); // extended
        let mut flipped = content.clone();
        flipped[70_000] ^= 4;
        hosts.write("standby/base/5/c", &flipped); // one bit
        fs::create_dir_all(hosts.path("standby/base/5/d/deep")).expect("make"); // a directory in its place
        symlink("/etc/passwd", hosts.path("standby/base/5/e")).expect("link"); // a link in its place
        hosts.write("outside", &flipped);
        fs::hard_link(hosts.path("outside"), hosts.path("standby/base/5/f")).expect("link"); // another name
        // g is missing
        hosts.write("standby/base/77/1", b"dropped database");
        hosts.write("standby/stray", b"x");
        hosts.write("standby/postmaster.pid", b"4000000\n");
        hosts.write("standby/pg_wal/000000010000000000000077", b"old");
        hosts.write("standby/log/postgresql.log", b"the standby's own log");
        symlink("nowhere", hosts.path("standby/broken")).expect("link");
        hosts.run(&connector).expect(name);
        hosts.assert_same(&[
            "base/5/a", "base/5/b", "base/5/c", "base/5/d", "base/5/e", "base/5/f", "base/5/g",
        ]);
        for gone in ["base/77", "stray", "postmaster.pid", "pg_wal/000000010000000000000077", "broken"] {
            assert!(
                fs::symlink_metadata(hosts.path("standby").join(gone)).is_err(),
                "{name}: {gone} is left over"
            );
        }
        assert_eq!(hosts.read("outside"), flipped, "the other name's file is not ours to write");
        assert_eq!(hosts.read("standby/log/postgresql.log"), b"the standby's own log");
        fs::remove_file(hosts.path("outside")).expect("clean");
    }
}

#[test]
fn kept_files_survive_and_read_the_recovery_settings() {
    let mut hosts = Hosts::new();
    hosts.keep =
        vec![RelPath::parse("postgresql.conf").expect("valid"), RelPath::parse("certs").expect("valid")];
    hosts.write("primary/postgresql.conf", b"port = 1\n");
    hosts.write("standby/PG_VERSION", b"15\n");
    hosts.write("standby/postgresql.conf", b"port = 2\n");
    hosts.write("standby/certs/server.key", b"private");
    hosts.run(&hosts.local()).expect("run");
    let include =
        format!("port = 2\ninclude_if_exists = '{}/myrecovery.conf'\n", hosts.path("standby").display());
    assert_eq!(String::from_utf8_lossy(&hosts.read("standby/postgresql.conf")), include);
    assert_eq!(hosts.read("standby/certs/server.key"), b"private");
    hosts.run(&hosts.local()).expect("run");
    assert_eq!(String::from_utf8_lossy(&hosts.read("standby/postgresql.conf")), include, "added once");
}

#[test]
fn tablespaces_go_where_they_are_mapped() {
    let mut hosts = Hosts::new();
    hosts.write(&format!("space/{VERSION}/5/9"), &pages(5, 5));
    symlink(hosts.path("space"), hosts.path("primary/pg_tblspc/16")).expect("link");
    hosts.tablespaces = vec![Tablespace {
        oid: 16,
        source: hosts.path("space").display().to_string(),
        target: hosts.path("spaces/16").display().to_string(),
    }];
    for (name, connector) in transports(&hosts) {
        hosts.write("spaces/16/PG_14_1/other", b"another major version's");
        hosts.run(&connector).expect(name);
        hosts.write(&format!("spaces/16/{VERSION}/5/stray"), b"x");
        hosts.run(&connector).expect(name);
        assert_eq!(hosts.read(&format!("spaces/16/{VERSION}/5/9")), pages(5, 5));
        assert_eq!(hosts.read(&format!("standby/pg_tblspc/16/{VERSION}/5/9")), pages(5, 5));
        assert!(!hosts.path(&format!("spaces/16/{VERSION}/5/stray")).exists());
        assert_eq!(hosts.read("spaces/16/PG_14_1/other"), b"another major version's");
        fs::remove_dir_all(hosts.path("standby")).expect("clean");
        fs::remove_dir_all(hosts.path("spaces")).expect("clean");
    }
    hosts.tablespaces[0].target = hosts.path("elsewhere").display().to_string();
    let error = hosts.run(&hosts.agent()).expect_err("outside tablespace_roots");
    assert_eq!(error.kind, Kind::TargetRefused);
    assert!(!hosts.path("standby").exists() && !hosts.path("elsewhere").exists(), "a refusal leaves nothing");
    hosts.tablespaces[0].target = hosts.path("space").display().to_string();
    let error = hosts.run(&hosts.local()).expect_err("the primary's own tablespace");
    assert!(error.message.contains("is in use"), "{error}");
}

#[test]
fn a_broken_run_cannot_be_started_and_is_completed_by_the_next() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(900, 1));
    for (name, connector) in transports(&hosts) {
        hosts.write("standby/PG_VERSION", b"15\n");
        hosts.write("standby/global/pg_control", b"old control");
        {
            let (mut session, _) = hosts.open(&connector, Purpose::Recover).expect(name);
            let busy =
                hosts.open(&connector, Purpose::Recover).err().expect("a second recovery is refused at once");
            assert_eq!(busy.kind, Kind::InUse, "{name}");
            hosts.plan(&mut session).expect(name);
            Hosts::begin(&mut session).expect(name);
            assert!(hosts.path("standby").join(MARKER).exists());
            assert!(!hosts.path("standby/global/pg_control").exists());
            hosts.send(&mut session).expect(name);
        }
        let outcome = loop {
            match hosts.run(&connector) {
                // the agent notices the end of the first run within milliseconds
                Err(error) if error.kind == Kind::InUse => {
                    std::thread::sleep(std::time::Duration::from_millis(20))
                }
                other => break other.expect(name),
            }
        };
        assert_eq!(outcome.sent, 0, "{name}: everything had arrived");
        assert!(outcome.changed == 0, "{name}");
        hosts.assert_same(&["base/5/1"]);
        fs::remove_dir_all(hosts.path("standby")).expect("clean");
    }
}

#[test]
fn cancel_brings_every_step_back() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(2000, 1));
    for (name, connector) in transports(&hosts) {
        let cancel = Cancel::new();
        let mut session = Session::open(
            Arc::clone(&connector),
            &hosts.path("standby"),
            Purpose::Recover,
            Vec::new(),
            Arc::default(),
            &cancel,
        )
        .expect(name);
        hosts.plan(&mut session).expect(name);
        Hosts::begin(&mut session).expect(name);
        let trip = cancel.clone();
        let timer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(150));
            trip.trip();
        });
        let manner =
            Manner { jobs: 2, compression: Compression::Off, max_rate: 1000, clone: true, checksums: None };
        let error = session.send_data(&hosts.path("primary"), manner).expect_err("cancelled");
        assert_eq!(error.kind, Kind::Canceled, "{name}: {error}");
        timer.join().expect("timer");
        drop(session);
        let _ = fs::remove_dir_all(hosts.path("standby"));
    }
}

#[test]
fn a_directory_the_agent_does_not_list_is_refused() {
    let hosts = Hosts::new();
    let connector = hosts.agent();
    let other = hosts.path("other");
    let error =
        Session::open(connector, &other, Purpose::Recover, Vec::new(), Arc::default(), &Cancel::new());
    assert_eq!(error.err().expect("refused").kind, Kind::TargetRefused);
    assert!(!other.exists());
}

#[test]
fn a_refused_target_is_left_untouched() {
    let hosts = Hosts::new();
    hosts.write("primary/base/5/1", &pages(10, 1));
    hosts.write("standby/base/5/1", b"precious");
    let before: Vec<_> =
        fs::read_dir(hosts.path("standby")).expect("list").map(|e| e.expect("entry").path()).collect();
    {
        let (session, _) = hosts.open(&hosts.local(), Purpose::Recover).expect("open");
        assert!(session.target().system_identifier.is_none());
    }
    let after: Vec<_> =
        fs::read_dir(hosts.path("standby")).expect("list").map(|e| e.expect("entry").path()).collect();
    assert_eq!(before, after);
    assert_eq!(hosts.read("standby/base/5/1"), b"precious");
}

#[test]
fn a_port_that_is_taken_ends_nothing() {
    let hosts = Hosts::new();
    let other = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = other.local_addr().expect("address").port();
    let listening = Listening { port, addresses: "127.0.0.1".to_owned() };
    for (name, connector) in transports(&hosts) {
        for purpose in [Purpose::Look, Purpose::Recover] {
            let (mut session, _) = hosts.open(&connector, purpose).expect(name);
            assert_eq!(session.test_port(&listening).expect_err(name).kind, Kind::InUse);
            hosts.plan(&mut session).expect("the session goes on");
        }
    }
}

#[test]
fn a_survey_tells_what_a_run_would_do_and_touches_nothing() {
    let hosts = Hosts::new();
    let content = pages(300, 1);
    hosts.write("primary/base/5/1", &content);
    hosts.write("primary/base/5/2", &content[..30_000]);
    hosts.write("primary/base/5/3", &[content.as_slice(), &[0; 8192]].concat());
    hosts.write("primary/base/5/empty", b"");
    for (name, connector) in transports(&hosts) {
        let full = hosts.survey(&connector).expect(name);
        assert_eq!((full.sent, full.changed, full.removed), (full.total - 8192, 5, 0), "{name}: zeros stay");
        assert!(!hosts.path("standby").exists(), "{name}: the directory is not made");
        hosts.run(&connector).expect(name);

        let mut other = content.clone();
        other[100 * 8192] ^= 1;
        hosts.write("standby/base/5/1", &other); // a page
        hosts.write("standby/base/5/3", &content); // too short
        hosts.write("standby/base/5/stray", b"x");
        fs::set_permissions(hosts.path("standby/base/5/empty"), fs::Permissions::from_mode(0o640))
            .expect("chmod");
        let before = hosts.listing("standby");
        let survey = hosts.survey(&connector).expect(name);
        assert_eq!(hosts.listing("standby"), before, "{name}");
        let run = hosts.run(&connector).expect(name);
        assert_eq!(survey, run, "{name}");
        assert_eq!((run.sent, run.changed), (8192, 3), "{name}: a page, a size and a mode");
        fs::remove_dir_all(hosts.path("standby")).expect("clean");
    }
}
