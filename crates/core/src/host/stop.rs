//! Stopping a server.

use std::path::Path;
use std::time::{Duration, Instant};

use super::launch::STANDBY_SIGNAL;
use super::may_stop::{REPLACED, Running, demand_past, may_stop};
use super::policy::Cluster;
use super::procfs::PidFile;
use super::{control, inspect, running, server_log};
use crate::compare::wal_map::Wal;
use crate::error::{Error, Kind, Result};
use crate::sys::FileId;
use crate::sys::cancel::Cancel;
use crate::sys::machine;
use crate::sys::process;
use crate::wire::protocol::stop::{Asker, Mode, Role, Stopped};

/// How long an immediate shutdown may take: no process waits for anything but its own exit.
const IMMEDIATE: Duration = Duration::from_secs(10);

/// A running server that may be stopped.
pub(super) struct Judged {
    role: Role,
    timeline: u32,
    postmaster: Option<PidFile>,
    /// What has said so, and is asked again.
    by: Judge,
}

/// What the server is that is found in a directory, if it may be stopped.
pub(super) type Judge = fn(&Asker, &Running, &Path) -> Result<Role>;

/// Stops the server in a directory, if it is one that `asker` may stop. `None` if none runs there.
///
/// A fast shutdown has `timeout`: a primary waits for its standbys to receive all WAL. After that it is an immediate one, if
/// the server may still be stopped then.
pub fn stop(cluster: &Cluster, asker: &Asker, timeout: Duration, cancel: &Cancel) -> Result<Option<Stopped>> {
    let Some(judged) = judge(cluster, asker, cancel)? else { return Ok(None) };
    stop_judged(cluster, asker, &judged, timeout, cancel).map(Some)
}

/// Stops a server that was judged.
pub(super) fn stop_judged(
    cluster: &Cluster,
    asker: &Asker,
    judged: &Judged,
    timeout: Duration,
    cancel: &Cancel,
) -> Result<Stopped> {
    let begin = Instant::now();
    let mode = shut_down(cluster, asker, judged, timeout, cancel)?;
    let milliseconds = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Stopped { role: judged.role, mode, milliseconds })
}

/// What the server in a directory is to `asker`, if one runs there. Fails if it may not be stopped.
pub fn may_be_stopped(cluster: &Cluster, asker: &Asker, cancel: &Cancel) -> Result<Option<Role>> {
    Ok(judge(cluster, asker, cancel)?.map(|judged| judged.role))
}

fn judge(cluster: &Cluster, asker: &Asker, cancel: &Cancel) -> Result<Option<Judged>> {
    demand_allowed(cluster)?;
    let directory = &cluster.data_directory;
    if running::server(directory)?.is_none() {
        return Ok(None);
    }
    let postmaster = postmaster(directory)?;
    let found = look(directory)?;
    let role = may_stop(asker, &found, directory)?;
    if role == Role::FormerPrimary {
        demand_past(asker, &found, directory, REPLACED, cancel)?;
    }
    Ok(Some(Judged::new(role, &found, postmaster, may_stop)))
}

/// Refuses a directory whose server an agent may not stop.
pub(super) fn demand_allowed(cluster: &Cluster) -> Result<()> {
    let directory = &cluster.data_directory;
    if !cluster.allow_stop {
        let message = format!("the agent may not stop the server in \"{}\"", directory.display());
        return Err(Error::new(Kind::InsufficientPrivilege, message)
            .detail("Its configuration does not say allow_stop = true for this directory.")
            .hint("Set allow_stop = true for the cluster in agent.toml and reload the agent, or stop the server by hand."));
    }
    Ok(())
}

impl Judged {
    /// A server that was found to be this to the asker, and whose WAL has shown it.
    pub(super) fn new(role: Role, found: &Running, postmaster: Option<PidFile>, by: Judge) -> Self {
        Self { role, timeline: found.history.timeline(), postmaster, by }
    }
}

/// Refuses a server that is no longer the one that was judged: promoted meanwhile, or another one. Its WAL is not read
/// again: a postmaster that still writes the same timeline has the same past, and a shutdown may have removed that WAL.
fn demand_same(directory: &Path, asker: &Asker, judged: &Judged) -> Result<()> {
    let postmaster = postmaster(directory)?;
    let found = look(directory)?;
    let role = (judged.by)(asker, &found, directory)?;
    let process = |file: &Option<PidFile>| file.as_ref().map(|file| (file.process, file.started));
    let is_same = role == judged.role
        && process(&postmaster) == process(&judged.postmaster)
        && (role == Role::Standby || found.history.timeline() == judged.timeline);
    if is_same {
        return Ok(());
    }
    let message =
        format!("the server in \"{}\" is no longer the one that was asked to stop", directory.display());
    Err(Error::new(Kind::InUse, message)
        .detail("It was promoted or started again meanwhile, so it gets no immediate shutdown.")
        .hint("See what runs there, and try again if it is to be stopped."))
}

/// What postmaster.pid says. Refuses one whose number another process has by now: pg_ctl would signal that one.
pub(super) fn postmaster(directory: &Path) -> Result<Option<PidFile>> {
    let path = directory.join("postmaster.pid");
    let file = PidFile::read(directory).map_err(Error::on_path("read file", &path))?;
    let Some(process) = running::find(directory)? else { return Ok(file) };
    if file.as_ref().is_some_and(|file| file.process == process) {
        return Ok(file);
    }
    let message = format!("the server in \"{}\" has lost its postmaster", directory.display());
    Err(Error::new(Kind::InUse, message)
        .detail(format!(
            "Process {process} still works in the directory, but is not the one that postmaster.pid names."
        ))
        .hint("End that process on its host: no shutdown reaches it any more."))
}

/// What its files tell of the server. What cannot be told is an error.
pub(super) fn look(directory: &Path) -> Result<Running> {
    let signal = directory.join(STANDBY_SIGNAL);
    let metadata = std::fs::metadata(directory).map_err(Error::on_path("stat directory", directory))?;
    let (control, _) = control::read(directory)?;
    let timeline = inspect::latest_timeline(directory, &control)?;
    Ok(Running {
        history: Wal::new(&directory.join("pg_wal"), &control).lineage(timeline)?,
        control,
        has_signal: signal.try_exists().map_err(Error::on_path("stat file", &signal))?,
        identity: FileId::from(&metadata),
        boot_id: machine::boot_id(),
    })
}

fn shut_down(
    cluster: &Cluster,
    asker: &Asker,
    judged: &Judged,
    timeout: Duration,
    cancel: &Cancel,
) -> Result<Mode> {
    let directory = &cluster.data_directory;
    let end = Instant::now() + timeout;
    ask(cluster, end, cancel)?;
    if is_gone(directory, end, cancel)? {
        return Ok(Mode::Fast);
    }
    if let Err(changed) = demand_same(directory, asker, judged) {
        // it may just have ended
        return if running::server(directory)?.is_none() { Ok(Mode::Fast) } else { Err(changed) };
    }
    cancel.check()?;
    let end = Instant::now() + IMMEDIATE;
    let command = pg_ctl(cluster, "immediate");
    let outcome = process::run(command, IMMEDIATE, cancel)?;
    if is_gone(directory, end, cancel)? {
        return Ok(Mode::Immediate);
    }
    let message = format!("the server in \"{}\" does not stop", directory.display());
    let said = [outcome.said(), server_log::tail(cluster)].join("\n");
    Err(Error::new(Kind::InUse, message)
        .detail(said.trim().to_owned())
        .hint("A process that waits for a disk cannot be ended. Look at the server's host."))
}

/// Asks for a fast shutdown, by the operator's command where there is one. A command that
/// fails at once and leaves the server running is wrong, or lacks a right: that is no reason to end all sessions.
fn ask(cluster: &Cluster, end: Instant, cancel: &Cancel) -> Result<()> {
    let directory = &cluster.data_directory;
    let command = match &cluster.stop_command {
        Some(words) => process::configured("stop_command", words)?,
        None => pg_ctl(cluster, "fast"),
    };
    let mut goes_on = || Instant::now() < end;
    let output = process::anonymous_file()?;
    let Some(outcome) = process::run_while(command, output, &mut goes_on, cancel)? else {
        // it waits for a server that takes longer
        return Ok(());
    };
    if outcome.status.success() || running::server(directory)?.is_none() {
        return Ok(());
    }
    let message =
        format!("the server in \"{}\" could not be stopped: {}", directory.display(), outcome.describe());
    Err(Error::new(Kind::InUse, message)
        .detail(format!("The stop command said: {}", outcome.said()))
        .hint("Try stop_command of agent.toml by hand, as the agent's OS user."))
}

/// Waits until no process of the server is left.
fn is_gone(directory: &Path, end: Instant, cancel: &Cancel) -> Result<bool> {
    loop {
        if running::find(directory)?.is_none() {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(50));
        cancel.check()?;
    }
}

/// Does not wait: who waits sees the processes.
fn pg_ctl(cluster: &Cluster, mode: &str) -> std::process::Command {
    let mut command = process::command(&cluster.bin_directory.join("pg_ctl"), ["stop", "-W", "-m", mode]);
    command.env("PGDATA", &cluster.data_directory);
    command
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pgdata::control_file::sample_in_state;

    use super::*;
    use crate::compare::wal_map::Lineage;
    use crate::sys::process::tests::script;

    /// A standby whose server is a `sleep`; its pg_ctl is a script that is called with the mode as `$4`.
    fn standby(stop: &str) -> (tempfile::TempDir, Cluster, std::process::Child) {
        let data = tempfile::tempdir().expect("temporary directory");
        let place = data.path().canonicalize().expect("real path");
        fs::create_dir_all(place.join("global")).expect("make");
        fs::create_dir_all(place.join("pg_wal")).expect("make");
        const DB_IN_ARCHIVE_RECOVERY: u32 = 5;
        let control = sample_in_state(42, DB_IN_ARCHIVE_RECOVERY);
        fs::write(place.join("global/pg_control"), control).expect("write");
        fs::write(place.join("standby.signal"), "").expect("write");
        script(&place.join("pg_ctl"), stop);
        let server = running::tests::serve(&place);
        let cluster = Cluster { allow_stop: true, ..Cluster::new(place.clone(), place) };
        (data, cluster, server)
    }

    fn asker() -> Asker {
        Asker {
            system_identifier: 42,
            history: Lineage::new(1, &[]),
            pasts: Vec::new(),
            identity: FileId { device: 0, inode: 0 },
            boot_id: None,
        }
    }

    /// Stops it while its parent looks after it, as an init does.
    fn stop_with(cluster: &Cluster, server: std::process::Child) -> Result<Option<Stopped>> {
        stop_within(cluster, server, Duration::from_secs(1), &Cancel::new())
    }

    fn stop_within(
        cluster: &Cluster,
        mut server: std::process::Child,
        timeout: Duration,
        cancel: &Cancel,
    ) -> Result<Option<Stopped>> {
        let reaper = std::thread::spawn(move || server.wait());
        let stopped = stop(cluster, &asker(), timeout, cancel);
        if let Some(process) = running::postmaster_pid(&cluster.data_directory) {
            let process = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
            let _ =
                process.map(|process| rustix::process::kill_process(process, rustix::process::Signal::KILL));
        }
        reaper.join().expect("no panic").expect("reaped");
        stopped
    }

    #[test]
    fn a_standby_is_stopped_fast() {
        let (_data, cluster, server) = standby("kill $(head -1 $PGDATA/postmaster.pid)");
        let stopped = stop_with(&cluster, server).expect("stopped").expect("one ran");
        assert_eq!((stopped.role, stopped.mode), (Role::Standby, Mode::Fast));
        assert_eq!(stop(&cluster, &asker(), Duration::from_secs(1), &Cancel::new()), Ok(None), "none runs");
    }

    #[test]
    fn what_does_not_stop_in_time_is_stopped_immediately() {
        let (_data, cluster, server) = standby("[ $4 = fast ] || kill $(head -1 $PGDATA/postmaster.pid)");
        let stopped = stop_with(&cluster, server).expect("stopped").expect("one ran");
        assert_eq!(stopped.mode, Mode::Immediate);
        assert!(stopped.milliseconds >= 1000, "the fast one had its time");
    }

    /// What a pg_ctl script does when it is asked for an immediate shutdown: it leaves a file to tell.
    const NEVER: &str =
        "if [ $4 = immediate ]; then touch $PGDATA/immediate; kill $(head -1 $PGDATA/postmaster.pid); fi";

    #[test]
    fn what_is_promoted_or_started_again_meanwhile_is_not_stopped_immediately() {
        for (meanwhile, why) in [
            ("rm $PGDATA/standby.signal", "a primary on timeline 4"),
            (
                "printf '%s\\n/x\\n77\\n' $(head -1 $PGDATA/postmaster.pid) > $PGDATA/postmaster.pid",
                "started again",
            ),
        ] {
            let (_data, cluster, server) = standby(&format!("[ $4 = immediate ] || {meanwhile}; {NEVER}"));
            let error = stop_with(&cluster, server).expect_err("refused");
            assert!(error.detail.as_ref().is_some_and(|detail| detail.contains(why)), "{error:?}");
            assert!(!cluster.data_directory.join("immediate").exists());
        }
    }

    #[test]
    fn a_stop_that_is_cancelled_does_not_become_an_immediate_one() {
        let (_data, cluster, server) = standby(&format!("touch $PGDATA/$4; {NEVER}"));
        let cancel = Cancel::new();
        let (switch, fast) = (cancel.clone(), cluster.data_directory.join("fast"));
        let caller = std::thread::spawn(move || {
            while !fast.exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            switch.trip();
        });
        let error = stop_within(&cluster, server, Duration::from_secs(60), &cancel).expect_err("cancelled");
        caller.join().expect("no panic");
        assert_eq!(error.kind, Kind::Canceled);
        assert!(!cluster.data_directory.join("immediate").exists());
    }

    #[test]
    fn a_stop_command_that_fails_leaves_the_server_running() {
        let (_data, cluster, server) = standby("kill $(head -1 $PGDATA/postmaster.pid)");
        let words = ["/bin/sh", "-c", "echo not allowed; exit 1"].map(str::to_owned).to_vec();
        let cluster = Cluster { stop_command: Some(words), ..cluster };
        let error = stop_with(&cluster, server).expect_err("refused");
        assert!(error.detail.is_some_and(|detail| detail.contains("not allowed")));
    }

    #[test]
    fn a_process_that_has_got_the_postmasters_number_is_not_signalled() {
        let (data, cluster, mut server) = standby("kill $(head -1 $PGDATA/postmaster.pid)");
        let place = cluster.data_directory.clone();
        server.kill().and_then(|()| server.wait()).expect("the postmaster is killed");
        // a backend that has not noticed
        let program = data.path().join("postgres");
        fs::copy("/bin/sleep", &program).expect("copy");
        let mut orphan = std::process::Command::new(&program);
        let mut orphan = orphan.arg("30").current_dir(&place).spawn().expect("started");
        let mut other = std::process::Command::new("/bin/sleep");
        let mut other = other.arg("30").current_dir("/").spawn().expect("started");
        let text = format!("{}\n{}\n77\n", other.id(), place.display());
        fs::write(place.join("postmaster.pid"), text).expect("write");
        let stopped = stop(&cluster, &asker(), Duration::from_secs(1), &Cancel::new());
        let hit = other.try_wait().expect("asked");
        for process in [&mut orphan, &mut other] {
            process.kill().and_then(|()| process.wait()).expect("ended");
        }
        assert_eq!(hit, None);
        assert!(stopped.is_err_and(|error| error.message.contains("lost its postmaster")));
    }

    #[test]
    fn nothing_is_stopped_without_permission() {
        let (_data, cluster, server) = standby("kill $(head -1 $PGDATA/postmaster.pid)");
        let cluster = Cluster { allow_stop: false, ..cluster };
        let error = stop_with(&cluster, server).expect_err("refused");
        assert_eq!(error.kind, Kind::InsufficientPrivilege);
    }
}
