//! A PostgreSQL cluster, or the place for one.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postgres::types::{FromSql, ToSql};
use postgres::{Client, Config, NoTls};
use rustix::process::Signal;

use crate::conf::Conf;
use crate::host::{Host, as_process_1};
use crate::ports::Port;
use crate::process::{self, Daemon, Finished};
use crate::scratch::{self, Scratch};
use crate::template::Template;
use crate::{server, wait};

/// How `pg_ctl stop` is to go about it.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    Fast,
    Immediate,
}

/// A data directory with a port, on one host. Its server, however it was started, ends with this value.
#[derive(Debug)]
pub struct Cluster {
    scratch: Scratch,
    host: Host,
    name: String,
    directory: PathBuf,
    port: Port,
    conf: Conf,
    initdb: Vec<String>,
    /// What its data directory is a copy of.
    template: Option<Arc<Template>>,
}

impl Cluster {
    /// A place for a cluster: the directory `<scratch>/<name>` (not made yet) and a port.
    pub fn place(scratch: &Scratch, host: &Host, name: &str) -> Self {
        process::adopt_orphans();
        let port = Port::claim();
        let mut conf = Conf::default();
        conf.set("port", port.number())
            .set("listen_addresses", "*")
            .set("unix_socket_directories", scratch.sockets().display())
            .set("wal_level", "replica")
            .set("max_wal_senders", 10)
            .set("max_replication_slots", 10)
            .set("max_connections", 50)
            .set("shared_buffers", "32MB")
            // Many small clusters on one disk. Whether the engine syncs what it must is for tests that
            // watch it do so; the servers' own syncing is PostgreSQL's business.
            .set("fsync", "off")
            // The checkpoint of a second standby's base backup takes no WAL from the first one, which may not have received it yet.
            .set("wal_keep_size", "64MB")
            // Tests of what ends a run want to see it end; those of trying again say so.
            .set("pgpool_recovery.retry_for", 0)
            .set("log_line_prefix", "%m [%p] %q%u@%d/%a ")
            .set("log_checkpoints", "off")
            .set("wal_receiver_status_interval", "1s")
            .set("wal_retrieve_retry_interval", "200ms");
        Self {
            scratch: scratch.clone(),
            host: host.clone(),
            name: name.to_owned(),
            directory: scratch.join(name),
            port,
            conf,
            initdb: Vec::new(),
            template: None,
        }
    }

    /// A new cluster on this machine, running, with the extension in `postgres` and `template1`.
    pub fn primary(scratch: &Scratch) -> Self {
        Self::place(scratch, &Host::here(), "primary").into_primary()
    }

    /// A cluster that runs, with the extension in `postgres` and `template1`. All that are made in this way with the same
    /// arguments for initdb have the same system identifier; [`Cluster::init`] makes another system.
    #[must_use]
    pub fn into_primary(mut self) -> Self {
        if self.initdb.iter().any(|argument| argument.starts_with("--waldir")) {
            self.run_initdb(&self.directory);
        } else {
            let template = Template::of(&self.initdb, |directory| self.run_initdb(directory));
            template.copy_to(&self.directory);
            self.template = Some(template);
        }
        let primary = self.configured();
        primary.start();
        primary.create_extension();
        primary
    }

    /// Adds a setting, to be used by [`Cluster::init`].
    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.conf.set(name, value);
        self
    }

    /// Adds an argument for initdb.
    #[must_use]
    pub fn initdb_argument(mut self, argument: &str) -> Self {
        self.initdb.push(argument.to_owned());
        self
    }

    /// Runs initdb and writes the configuration.
    #[must_use]
    pub fn init(self) -> Self {
        self.run_initdb(&self.directory);
        self.configured()
    }

    fn run_initdb(&self, directory: &Path) {
        let mut initdb = self.host.pg("initdb");
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]);
        if server::major() >= 14 {
            initdb.arg("--no-instructions");
        }
        if server::major() >= 18 {
            // as it is before 18 where nothing is said; of the two the last one counts
            initdb.arg("--no-data-checksums");
        }
        initdb.args(&self.initdb).arg("--pgdata").arg(directory);
        process::run(initdb).ok();
    }

    fn configured(self) -> Self {
        scratch::write_as_postgres(&self.directory.join("postgresql.conf"), &self.conf.text(), 0o600);
        self.set_hba(
            "local all all trust\nlocal replication all trust\n\
             host all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n\
             host all all ::0/0 trust\nhost replication all ::0/0 trust\n",
        );
        self
    }

    /// Replaces pg_hba.conf; a running server takes it at the next [`Cluster::reload`].
    pub fn set_hba(&self, text: &str) {
        scratch::write_as_postgres(&self.directory.join("pg_hba.conf"), text, 0o600);
    }

    /// Appends to postgresql.conf.
    pub fn append_conf(&self, name: &str, value: impl ToString) {
        let path = self.directory.join("postgresql.conf");
        let mut added = Conf::default();
        added.set(name, value);
        let text = fs::read_to_string(&path).expect("postgresql.conf") + &added.text();
        scratch::write_as_postgres(&path, &text, 0o600);
    }

    /// From now on this primary reaches every target through the agent at this port.
    pub fn use_agent(&self, port: u16) {
        self.append_conf("pgpool_recovery.transport", "agent");
        self.append_conf("pgpool_recovery.agent_port", port);
        self.reload();
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory as SQL text.
    pub fn dir(&self) -> &str {
        self.directory.to_str().expect("scratch names are ASCII")
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Where the data directory is to be instead of `<scratch>/<name>`.
    #[must_use]
    pub fn at(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// The port it is to have instead of one of its own choice.
    #[must_use]
    pub fn listening_on(mut self, port: Port) -> Self {
        self.conf.set("port", port.number());
        self.port = port;
        self
    }

    /// The text of a file in the data directory.
    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        let path = self.directory.join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Whether the data directory has this.
    pub fn has(&self, name: &str) -> bool {
        fs::symlink_metadata(self.directory.join(name)).is_ok()
    }

    /// Waits until the receiver of a run has released the directory: it may complete the last step although the backend
    /// is gone.
    pub fn await_release(&self) {
        wait::until_true("the target's release", wait::PATIENCE, || {
            let directory = fs::File::open(&self.directory).expect("the target");
            rustix::fs::flock(&directory, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
        });
    }

    // --- the server ---

    fn pg_ctl(&self, arguments: &[&str]) -> Finished {
        let mut command = self.host.pg("pg_ctl");
        command.args(arguments).arg("-D").arg(&self.directory);
        process::run(command)
    }

    fn log_file(&self) -> PathBuf {
        self.scratch.join(format!("{}.log", self.name))
    }

    /// Starts the server and waits until it accepts connections.
    #[track_caller]
    pub fn start(&self) {
        let finished = self.try_start();
        assert!(
            finished.status.success(),
            "{} did not start: {}\n{}",
            self.name,
            finished.stderr,
            self.log()
        );
    }

    /// Starts the server if it will.
    pub fn try_start(&self) -> Finished {
        let log = self.log_file();
        let log = log.to_str().expect("scratch names are ASCII");
        let mut finished = self.pg_ctl(&["start", "-w", "-t", "60", "-l", log]);
        // From 18 on pg_ctl calls it a success if the server is gone and pg_control says "shut down in recovery", which it does of a
        // standby that was stopped and did not start now.
        if finished.status.success() && self.postmaster().is_none() {
            finished.status = ExitStatus::from_raw(1 << 8);
        }
        finished
    }

    /// Starts the server by another program than this installation's `postgres`.
    #[track_caller]
    pub fn start_by(&self, program: &Path) {
        let (log, program) = (self.log_file(), program.to_str().expect("scratch names are ASCII"));
        let log = log.to_str().expect("scratch names are ASCII");
        self.pg_ctl(&["start", "-w", "-t", "60", "-l", log, "-p", program]).ok();
    }

    /// Starts the server as process 1 of a pid namespace, as in a container without an init. It ends with what is returned;
    /// none of this value's methods that need its process id know it.
    #[track_caller]
    pub fn start_as_process_1(&self) -> Daemon {
        let mut postgres = self.host.pg("postgres");
        postgres.arg("-D").arg(&self.directory);
        let daemon = Daemon::spawn(as_process_1(&postgres), &self.log_file(), Signal::TERM);
        wait::until_true("the server to start", wait::PATIENCE, || self.config().connect(NoTls).is_ok());
        daemon
    }

    /// Starts the server with a limit for the address space of each of its processes, kilobytes.
    pub fn start_within(&self, kilobytes: u32) -> Finished {
        let mut shell = self.host.command("sh");
        shell.args([
            "-c",
            "ulimit -v $1; exec \"$2\" start -w -t 60 -D \"$3\" -l \"$4\"",
            "sh",
            &kilobytes.to_string(),
        ]);
        shell.arg(server::program("pg_ctl")).arg(&self.directory).arg(self.log_file());
        process::run(shell)
    }

    #[track_caller]
    pub fn stop(&self, how: Stop) {
        let mode = match how {
            Stop::Fast => "fast",
            Stop::Immediate => "immediate",
        };
        let postmaster = self.postmaster();
        self.pg_ctl(&["stop", "-w", "-t", "60", "-m", mode]).ok();
        if let Some(postmaster) = postmaster {
            process::reap(postmaster);
        }
    }

    /// Lets the server read its configuration again; sessions started after this see it.
    #[track_caller]
    pub fn reload(&self) {
        let loaded = || self.get::<SystemTime>("SELECT pg_conf_load_time()", &[]);
        let before = loaded();
        self.pg_ctl(&["reload"]).ok();
        wait::until_true("the configuration to be read", wait::PATIENCE, || loaded() != before);
    }

    /// The postmaster's process id, if one runs on this directory.
    pub fn postmaster(&self) -> Option<u32> {
        let text = fs::read_to_string(self.directory.join("postmaster.pid")).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        // 1 is that of a container, see start_as_process_1
        (pid != 1 && process::is_alive(pid)).then_some(pid)
    }

    /// kill -9 of the postmaster and all its children: what a power cut leaves of a server.
    pub fn kill(&self) {
        let processes = self.kill_postmaster();
        for process in &processes {
            let _ = rustix::process::kill_process(process::pid(*process), Signal::KILL);
        }
        // The children first: theirs is the shared memory that a new server would find in use.
        for process in processes {
            process::reap(process);
        }
    }

    /// kill -9 of the postmaster alone; its children, which are to notice, and the postmaster are returned.
    pub fn kill_postmaster(&self) -> Vec<u32> {
        let postmaster = self.postmaster().expect("a running server");
        let mut processes = process::children(postmaster);
        processes.push(postmaster);
        let _ = rustix::process::kill_process(process::pid(postmaster), Signal::KILL);
        processes
    }

    #[track_caller]
    pub fn promote(&self) {
        self.try_promote().ok();
    }

    /// Like [`Self::promote`], for a standby that may not live through it.
    pub fn try_promote(&self) -> Finished {
        self.pg_ctl(&["promote", "-w"])
    }

    /// What the server logged, wherever it was started from.
    pub fn log(&self) -> String {
        let started_by_the_product = self.directory.join("log/pgpool_remote_start.log");
        [self.log_file(), started_by_the_product]
            .iter()
            .filter_map(|path| fs::read(path).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .collect()
    }

    /// What its logging collector has written, if it has one.
    fn collected_log(&self) -> String {
        let files = fs::read_dir(self.directory.join("log")).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = files.map(|file| file.path()).collect();
        paths.retain(|path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"postgresql")));
        paths.sort();
        let read = paths.iter().filter_map(|path| fs::read(path).ok());
        read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
    }

    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        wait::until_true(&format!("\"{text}\" in the log of {}", self.name), wait::PATIENCE, || {
            self.log().contains(text)
        });
    }

    /// `pg_controldata`'s value for `label`.
    pub fn control(&self, label: &str) -> String {
        let mut command = self.host.pg("pg_controldata");
        command.arg(&self.directory);
        let text = process::run(command).ok();
        text.lines()
            .find_map(|line| line.strip_prefix(label)?.strip_prefix(':'))
            .unwrap_or_else(|| panic!("no \"{label}\" in:\n{text}"))
            .trim()
            .to_owned()
    }

    // --- SQL ---

    /// How to reach it: through the unix socket, which works into every namespace.
    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.host_path(self.scratch.sockets()).port(self.port()).user("postgres").dbname("postgres");
        config.connect_timeout(Duration::from_secs(10)).application_name("e2e");
        config
    }

    /// A session in database `postgres` as `postgres`.
    #[track_caller]
    pub fn connect(&self) -> Client {
        self.connect_to("postgres")
    }

    #[track_caller]
    pub fn connect_to(&self, database: &str) -> Client {
        match self.config().dbname(database).connect(NoTls) {
            Ok(client) => client,
            Err(error) => panic!("could not connect to {}: {error:?}\n{}", self.name, self.log()),
        }
    }

    /// Runs statements in a session of their own.
    #[track_caller]
    pub fn execute(&self, sql: &str) {
        self.connect().batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// The one value a query gives, in a session of its own.
    #[track_caller]
    pub fn get<T: for<'a> FromSql<'a>>(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> T {
        let row = self.connect().query_one(sql, parameters);
        row.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    }

    /// The extension where Pgpool-II looks for it: template1 up to 4.6, postgres from 4.7 on.
    pub fn create_extension(&self) {
        for database in ["template1", "postgres"] {
            let sql = "CREATE EXTENSION pgpool_recovery";
            self.connect_to(database).batch_execute(sql).expect(sql);
        }
    }

    // --- replication ---

    /// Waits until a standby of this name streams from here.
    #[track_caller]
    pub fn wait_for_standby(&self, application_name: &str) {
        let mut client = self.connect();
        wait::until_true(&format!("standby {application_name} to stream"), wait::PATIENCE, || {
            let sql = "SELECT 1 FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming'";
            !client.query(sql, &[&application_name]).expect(sql).is_empty()
        });
    }

    /// Waits until this standby has replayed all that `primary` has written so far.
    #[track_caller]
    pub fn wait_for_replay(&self, primary: &Self) {
        // A commit flushes what other sessions wrote without one (pruning, say), which else waits for the background writer's next
        // record. What is flushed then may end in the middle of another one.
        let lsn: String = primary.get("SELECT pg_logical_emit_message(true, 'e2e', '')::text", &[]);
        self.wait_for_position(&lsn, ">");
    }

    /// Waits until this standby has replayed what `primary` has flushed.
    #[track_caller]
    pub fn wait_for_what_is_flushed(&self, primary: &Self) {
        let lsn: String = primary.get("SELECT pg_current_wal_flush_lsn()::text", &[]);
        self.wait_for_position(&lsn, ">=");
    }

    #[track_caller]
    fn wait_for_position(&self, lsn: &str, operator: &str) {
        let mut client = self.connect();
        wait::until_true(&format!("{} to replay {lsn}", self.name), wait::PATIENCE, || {
            let sql = format!("SELECT pg_last_wal_replay_lsn() {operator} $1::text::pg_lsn");
            client.query_one(&sql, &[&lsn]).expect(&sql).get::<_, Option<bool>>(0) == Some(true)
        });
    }

    pub fn in_recovery(&self) -> bool {
        self.get("SELECT pg_is_in_recovery()", &[])
    }

    /// A standby made by pg_basebackup, streaming: what a test starts from that is not about making it.
    #[must_use]
    pub fn standby_by_basebackup(primary: &Self, host: &Host, name: &str) -> Self {
        let standby = Self::place(&primary.scratch, host, name);
        standby.become_standby_of(primary);
        standby
    }

    /// Makes the directory by pg_basebackup, and starts it as a standby that streams.
    pub(crate) fn become_standby_of(&self, primary: &Self) {
        let mut command = self.host.pg("pg_basebackup");
        command.args(["-c", "fast", "-X", "stream", "-D"]).arg(&self.directory);
        command.arg("-h").arg(primary.scratch.sockets()).args(["-p", &primary.port().to_string()]);
        command.args(["-U", "postgres"]);
        process::run(command).ok();
        self.append_conf("port", self.port());
        self.append_conf(
            "primary_conninfo",
            format!(
                "host={} port={} user=postgres application_name={}",
                primary.host.address(),
                primary.port(),
                self.name
            ),
        );
        self.append_conf("recovery_target_timeline", "latest");
        scratch::write_as_postgres(&self.directory.join("standby.signal"), "", 0o600);
        self.start();
        primary.wait_for_standby(&self.name);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log() + &self.collected_log();
            eprintln!("--- {} ---\n{}", self.name, process::tail(&log, 60));
        }
        if let Some(postmaster) = self.postmaster() {
            let mut command = self.host.pg("pg_ctl");
            command.args(["stop", "-w", "-t", "30", "-m", "immediate", "-D"]).arg(&self.directory);
            // No panic in a drop. A server that ended by itself meanwhile is fine.
            let stopped = command.output();
            if stopped.is_ok_and(|output| output.status.success()) {
                wait::try_until(Duration::from_secs(5), || process::is_reaped(postmaster));
            }
        }
    }
}
