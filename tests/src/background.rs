//! A recovery that runs while the test does something else.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use postgres::{CancelToken, Client, Error, NoTls};

use crate::cluster::Cluster;
use crate::recovery::{Recovery, Report};
use crate::wait;

/// A call of the first stage in a session and a thread of its own.
#[derive(Debug)]
pub struct Running {
    thread: Option<JoinHandle<Result<Report, Error>>>,
    cancel: CancelTokenHolder,
    backend: i32,
    notices: Arc<Mutex<Vec<String>>>,
}

/// `CancelToken` has no Debug of its own.
struct CancelTokenHolder(CancelToken);

impl std::fmt::Debug for CancelTokenHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CancelToken")
    }
}

impl Running {
    /// Starts it; `before` is SQL for the session.
    pub fn start(primary: &Cluster, recovery: &Recovery, before: &str) -> Self {
        let recovery = recovery.clone();
        Self::start_by(primary, before, move |client| recovery.call(client))
    }

    /// Starts it by a statement, which may have no report to show.
    pub fn start_statement(primary: &Cluster, before: &str, statement: String) -> Self {
        Self::start_by(primary, before, move |client| {
            client.batch_execute(&statement).map(|()| Report(serde_json::Value::Null))
        })
    }

    /// Starts whatever calls it.
    pub fn start_by(
        primary: &Cluster,
        before: &str,
        call: impl FnOnce(&mut Client) -> Result<Report, Error> + Send + 'static,
    ) -> Self {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let mut config = primary.config();
        let sink = Arc::clone(&notices);
        config.notice_callback(move |notice| {
            sink.lock().expect("no panic here").push(format!("{}: {}", notice.severity(), notice.message()));
        });
        let mut client = config.connect(NoTls).expect("a session");
        client.batch_execute(before).expect(before);
        let backend = client.query_one("SELECT pg_backend_pid()", &[]).expect("a backend").get(0);
        let cancel = CancelTokenHolder(client.cancel_token());
        let thread = std::thread::spawn(move || call(&mut client));
        Self { thread: Some(thread), cancel, backend, notices }
    }

    /// The process id of its backend.
    pub fn backend(&self) -> i32 {
        self.backend
    }

    /// What the server said so far.
    pub fn notices(&self) -> Vec<String> {
        self.notices.lock().expect("no panic there").clone()
    }

    /// Asks the server to cancel it, as Ctrl-C in psql does.
    pub fn cancel(&self) {
        self.cancel.0.cancel_query(NoTls).expect("a cancel request");
    }

    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until so many bytes of data files have been dealt with.
    #[track_caller]
    pub fn wait_for_bytes(&self, primary: &Cluster, bytes: i64) {
        let mut client = primary.connect();
        wait::until_true(&format!("{bytes} bytes of the copy"), wait::PATIENCE, || {
            assert!(!self.has_ended(), "it ended before: {}", primary.log());
            let sql =
                "SELECT coalesce(max(backup_streamed), 0) FROM pg_stat_progress_basebackup WHERE pid = $1";
            client.query_one(sql, &[&self.backend]).expect(sql).get::<_, i64>(0) >= bytes
        });
    }

    /// Its result, which must come within `limit`.
    #[track_caller]
    pub fn finish_within(mut self, limit: Duration) -> Result<Report, Error> {
        wait::until_true("the end of the recovery", limit, || self.has_ended());
        let thread = self.thread.take().expect("finished once");
        thread.join().expect("the thread only calls the server")
    }
}
