//! A receiver, and a peer that sends it whatever a test says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use pgpool_recovery_core::error::{Error, Kind};
use pgpool_recovery_core::host::policy::{Cluster, Policy};
use pgpool_recovery_core::internal::Buffer;
use pgpool_recovery_core::receiver::Receiver;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::link::{Link, pipe};
use pgpool_recovery_core::wire::protocol::message::{self, Reply, TargetInfo};
use pgpool_recovery_core::wire::protocol::plan::PLAN;
use pgpool_recovery_core::wire::protocol::{REPLY, REQUEST};
use serde_json::{Value, json};

pub(crate) struct Host {
    pub(crate) top: tempfile::TempDir,
    pub(crate) receiver: Arc<Receiver>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let top = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| top.path().join(name);
        for name in ["standby/global", "standby/base/5", "outside", "spaces", "bin"] {
            fs::create_dir_all(path(name)).expect("make");
        }
        for name in ["outside/precious", "standby/base/5/1", "standby/PG_VERSION"] {
            fs::write(path(name), "precious").expect("write");
        }
        fs::write(path("bin/postgres"), "#!/bin/sh\necho 'postgres (PostgreSQL) 15.18'\n").expect("write");
        fs::set_permissions(path("bin/postgres"), fs::Permissions::from_mode(0o755)).expect("chmod");
        let receiver = Receiver::new(Policy::Listed(vec![Cluster {
            tablespace_roots: vec![path("spaces")],
            ..Cluster::new(path("standby"), path("bin"))
        }]));
        Self { top, receiver: Arc::new(receiver) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    pub(crate) fn dial(&self) -> Peer {
        let cancel = Cancel::new();
        let (near, far) = pipe::pair(&cancel);
        let receiver = Arc::clone(&self.receiver);
        let thread = std::thread::spawn(move || receiver.serve(far, &cancel));
        Peer { link: near, served: Served(Some(thread)) }
    }

    /// A session on the directory, and what the receiver found.
    pub(crate) fn open(&self) -> (Peer, TargetInfo) {
        let mut peer = self.dial();
        peer.request(&json!({ "request": "open", "directory": self.path("standby"), "purpose": "recover", "keep": [] }));
        match peer.answer().expect("a reply") {
            Reply::Target(target) => (peer, *target),
            other => panic!("{other:?}"),
        }
    }

    /// A session that only counts what differs, with a file of 3 pages.
    pub(crate) fn dry_run(&self) -> (Peer, TargetInfo) {
        let mut peer = self.dial();
        peer.request(
            &json!({ "request": "open", "directory": self.path("standby"), "purpose": "look", "keep": [] }),
        );
        let Ok(Reply::Target(target)) = peer.answer() else { panic!("no target") };
        peer.plan(&["base", "base/5", "global", "pg_wal"], &[("base/5/1", 3 * 8192)]);
        peer.request(&header(&[]));
        assert!(matches!(peer.answer(), Ok(Reply::Planned { .. })));
        peer.request(&json!({ "request": "dry_run", "digest_key": "00".repeat(32) }));
        assert!(matches!(peer.answer(), Ok(Reply::Ok)));
        (peer, *target)
    }

    /// A session that has begun to rewrite the directory, with a file of 3 pages.
    pub(crate) fn begin(&self) -> (Peer, TargetInfo) {
        let (mut peer, target) = self.open();
        peer.plan(&["base", "base/5", "global", "pg_wal"], &[("base/5/1", 3 * 8192)]);
        peer.request(&header(&[]));
        assert!(matches!(peer.answer(), Ok(Reply::Planned { .. })));
        peer.request(&begin());
        assert!(matches!(peer.answer(), Ok(Reply::Ok)));
        (peer, target)
    }

    /// A session whose data is reconciled: WAL and the small files are awaited.
    pub(crate) fn reconciled(&self) -> Peer {
        let (mut peer, _) = self.begin();
        peer.request(&json!({ "request": "reconcile" }));
        assert!(matches!(peer.answer(), Ok(Reply::Reconciled { .. })));
        peer
    }

    pub(crate) fn attach(&self, target: &TargetInfo) -> Peer {
        let mut stream = self.dial();
        stream.request(&json!({ "request": "attach", "session": target.session }));
        assert!(matches!(stream.answer(), Ok(Reply::Ok)));
        stream
    }

    /// Nothing outside was touched, and the next one is served.
    #[track_caller]
    pub(crate) fn assert_unharmed(&self) {
        assert_eq!(fs::read(self.path("outside/precious")).expect("still there"), b"precious");
        assert_eq!(fs::read_dir(self.path("outside")).expect("still there").count(), 1);
        let names: Vec<_> =
            fs::read_dir(self.top.path()).expect("it").map(|entry| entry.expect("it").file_name()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(fs::read_dir(self.path("spaces")).expect("still there").count(), 0);
        let _ = self.open();
    }
}

/// Dropped, it closes the link and waits until the receiver has let go of the directory: the next one is not to meet it.
pub(crate) struct Peer {
    pub(crate) link: Link,
    served: Served,
}

struct Served(Option<JoinHandle<Result<(), Error>>>);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.take().map(JoinHandle::join);
    }
}

impl Peer {
    pub(crate) fn send(&mut self, kind: u8, body: &[u8]) {
        // the receiver may have closed already
        let _ = self.link.sink.send(kind, &[body]).and_then(|()| self.link.sink.flush());
    }

    pub(crate) fn request(&mut self, message: &Value) {
        self.send(REQUEST, message.to_string().as_bytes());
    }

    pub(crate) fn plan(&mut self, directories: &[&str], files: &[(&str, u64)]) {
        self.send(PLAN, &plan(directories, files));
    }

    /// The next reply.
    pub(crate) fn answer(&mut self) -> Result<Reply, Error> {
        let mut body = Buffer::new();
        loop {
            match self.link.source.receive(&mut body)? {
                Some(REPLY) => {
                    return match message::decode(&body)? {
                        Reply::Error(error) => Err(error),
                        reply => Ok(reply),
                    };
                }
                Some(_) => {}
                None => return Err(Error::new(Kind::ConnectionLost, "closed")),
            }
        }
    }

    /// What the receiver made of it.
    pub(crate) fn end(mut self) -> Result<(), Error> {
        drop(self.link);
        self.served.0.take().expect("it is taken here only").join().expect("no panic")
    }

    #[track_caller]
    pub(crate) fn assert_refused(self, what: &str) {
        let error = self.end().expect_err(what);
        assert!(
            matches!(error.kind, Kind::ProtocolViolation | Kind::TargetRefused | Kind::InvalidArgument),
            "{what}: {error:?}"
        );
    }
}

/// A small file of so many bytes.
pub(crate) fn put(path: &str, size: usize) -> Vec<u8> {
    let length = u16::try_from(path.len()).expect("short enough").to_le_bytes();
    [&[0x80, 1, 0, 0][..], &length, path.as_bytes(), &vec![0; size]].concat()
}

/// The body of a PLAN frame, whatever the paths are.
pub(crate) fn plan(directories: &[&str], files: &[(&str, u64)]) -> Vec<u8> {
    let head = |kind: u8, mode: u16, path: &str| {
        let length = u16::try_from(path.len()).expect("short").to_le_bytes();
        [&[kind][..], &mode.to_le_bytes(), &length, path.as_bytes()].concat()
    };
    let mut body: Vec<u8> = directories.iter().flat_map(|path| head(1, 0o700, path)).collect();
    for (path, size) in files {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        body.extend(head(2, 0o600, directory));
        body.extend([1, 0]);
        body.extend(size.to_le_bytes());
        body.push(u8::try_from(name.len()).expect("short"));
        body.extend(name.as_bytes());
    }
    body
}

pub(crate) fn header(tablespaces: &[Value]) -> Value {
    json!({
        "request": "plan_end", "tablespaces": tablespaces, "tablespace_version_directory": "PG_15_1",
        "host_directories": [], "reserve": 0, "mode": 0o700
    })
}

pub(crate) fn begin() -> Value {
    json!({
        "request": "begin", "digest_key": "00".repeat(32),
        "marker": { "note": "", "system_identifier": 1, "timeline": 1, "started": 0 },
        "wal": { "timeline": 1, "segment_size": 1 << 20, "from": 1 << 20, "mode": 0o600, "directories": [] }
    })
}
