//! Stopping an old primary for good, so that the standby that asks can be promoted: no start of ours brings it back (S11).

use std::path::Path;
use std::time::{Duration, Instant};

use pgdata::control_file::State;
use pgdata::wal::Lsn;

use super::may_stop::demand_past;
use super::policy::Cluster;
use super::stop::{Judge, Judged, demand_allowed, look, postmaster, stop_judged};
use super::{control, fence, may_fence, running};
use crate::error::{Error, Kind, Result};
use crate::sys::cancel::Cancel;
use crate::sys::clock;
use crate::wire::protocol::describe::FenceMark;
use crate::wire::protocol::fence::Fenced;
use crate::wire::protocol::stop::Asker;

/// How often a server that something starts again is stopped.
const ATTEMPTS: u32 = 3;

/// How long a supervisor has to start a server again that did not end in order: most do that at once.
const COMES_BACK: Duration = Duration::from_millis(1500);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What the proof is about, in its refusal.
pub(super) const FOLLOWED: (&str, &str) = (
    "is the one that this standby has followed",
    "If it is, stop it on its own host, and see that nothing starts it again.",
);

/// Stops the server in a directory and marks the directory, if it is the primary that `asker`, a standby, has followed, or one
/// before that. Of a server that does not run only the mark is made.
///
/// The mark is durable before the server is asked to stop, so that no start of ours misses it. It is removed again if the server
/// keeps running.
pub fn fence(
    cluster: &Cluster,
    asker: &Asker,
    by: &str,
    timeout: Duration,
    cancel: &Cancel,
) -> Result<Fenced> {
    demand_allowed(cluster)?;
    let directory = &cluster.data_directory;
    let mut stopped = None;
    for _ in 0..ATTEMPTS {
        let is_running = running::server(directory)?.is_some();
        let postmaster = postmaster(directory)?;
        let found = look(directory)?;
        let judge: Judge = if is_running { may_fence::running } else { may_fence::stopped };
        let role = judge(asker, &found, directory)?;
        demand_past(asker, &found, directory, FOLLOWED, cancel)?;
        cancel.check()?;
        let mark = Mark::put(directory, by)?;
        if is_running {
            let judged = Judged::new(role, &found, postmaster, judge);
            match stop_judged(cluster, asker, &judged, timeout, cancel) {
                Ok(done) => stopped = Some(done),
                Err(error) => return Err(mark.taken_back_if_it_goes_on(error)),
            }
        }
        if stays_away(directory, cancel)? {
            let checkpoint = shutdown_checkpoint(directory)?;
            mark.complete(checkpoint)?;
            return Ok(Fenced { role, stopped, checkpoint });
        }
    }
    let message = format!("the server in \"{}\" is started again and again", directory.display());
    Err(Error::new(Kind::InUse, message)
        .detail(format!("It was stopped {ATTEMPTS} times; something on its host supervises it."))
        .hint("Stop it there by what starts it, and set stop_command in agent.toml to that."))
}

/// Whether nothing starts the server again that has ended. One that did not end in order a supervisor takes for a crash, and may
/// need a moment to notice.
fn stays_away(directory: &Path, cancel: &Cancel) -> Result<bool> {
    let end = Instant::now() + COMES_BACK;
    loop {
        if running::find(directory)?.is_some() {
            return Ok(false);
        }
        if shutdown_checkpoint(directory)?.is_some() || Instant::now() >= end {
            // it may have been started between the two looks
            return Ok(running::find(directory)?.is_none());
        }
        std::thread::sleep(LOOK);
        cancel.check()?;
    }
}

/// Where the checkpoint begins with which the server was shut down, if it was.
fn shutdown_checkpoint(directory: &Path) -> Result<Option<Lsn>> {
    let (control, _) = control::read(directory)?;
    Ok((control.state == State::ShutDown).then_some(control.recovery.checkpoint_at))
}

/// A mark that was made, or was there.
struct Mark<'a> {
    directory: &'a Path,
    text: FenceMark,
    was_there: bool,
}

impl<'a> Mark<'a> {
    /// Makes the mark; one that is there says who was first.
    fn put(directory: &'a Path, by: &str) -> Result<Self> {
        if let Some(text) = fence::read(directory)? {
            // where the server ended then says nothing of this time
            let text = FenceMark { lsn: None, ..text };
            fence::write(directory, &text)?;
            return Ok(Self { directory, text, was_there: true });
        }
        let text = FenceMark {
            note: "This server was stopped for good by pgpool_recovery, because a standby of it was going to be promoted. Rebuild it, or let it follow the new primary: both remove this file.".to_owned(),
            fenced: clock::now() / 1000,
            by: by.to_owned(),
            why: "That server was a standby of this one, and was going to be promoted.".to_owned(),
            lsn: None,
        };
        fence::write(directory, &text)?;
        Ok(Self { directory, text, was_there: false })
    }

    /// Adds where the server ended.
    fn complete(self, checkpoint: Option<Lsn>) -> Result<()> {
        if checkpoint == self.text.lsn {
            return Ok(());
        }
        fence::write(self.directory, &FenceMark { lsn: checkpoint, ..self.text })
    }

    /// Removes the mark of a server that could not be stopped. A server that is shutting down keeps it, and so does one whose
    /// state is unknown: without it the next start would bring back a primary that nobody expects.
    fn taken_back_if_it_goes_on(&self, error: Error) -> Error {
        let goes_on = running::find(self.directory).is_ok_and(|found| found.is_some())
            && running::postmaster_status(self.directory).as_deref() != Some("stopping");
        if self.was_there || !goes_on {
            return error;
        }
        match fence::remove(self.directory) {
            Ok(_) => error,
            Err(why) => error.add_detail(&format!("Its mark could not be removed: {}.", why.message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pgdata::control_file::{ControlFile, sample_in_state};
    use pgdata::wal::record::rmgr;
    use pgdata::wal::sample::Writer;
    use pgdata::wal::segment_name;

    use super::*;
    use crate::compare::wal_map::{Lineage, Wal};
    use crate::manifest::exclude::FENCED;
    use crate::sys::FileId;
    use crate::sys::process::tests::script;
    use crate::wire::protocol::stop::{Mode, Role};

    /// What the sample of pg_control says.
    const SEGMENT: u32 = 16 << 20;
    const TIMELINE: u32 = 4;
    const BASE: Lsn = Lsn(16 << 20);

    const SHUT_DOWN: u32 = 1;
    const IN_PRODUCTION: u32 = 6;

    /// A primary with some WAL, whose pg_ctl is a script that is called with the mode as `$4`.
    struct Primary {
        data: tempfile::TempDir,
        cluster: Cluster,
        server: Option<std::process::Child>,
    }

    impl Primary {
        fn new(state: u32, stop: &str) -> Self {
            let data = tempfile::tempdir().expect("temporary directory");
            let place = data.path().canonicalize().expect("real path");
            fs::create_dir_all(place.join("global")).expect("make");
            fs::create_dir_all(place.join("pg_wal")).expect("make");
            fs::write(place.join("global/pg_control"), control(state)).expect("write");
            fs::write(place.join("shut_down"), control(SHUT_DOWN)).expect("write");
            write_wal(&place, &wal(1));
            script(&place.join("pg_ctl"), stop);
            let cluster = Cluster { allow_stop: true, ..Cluster::new(place.clone(), place) };
            Self { data, cluster, server: None }
        }

        fn running(stop: &str) -> Self {
            let mut primary = Self::new(IN_PRODUCTION, stop);
            primary.server = Some(running::tests::serve(&primary.cluster.data_directory));
            primary
        }

        /// Fences it while its parent looks after it, as an init does.
        fn fence(&mut self, asker: &Asker) -> Result<Fenced> {
            let reaper = self.server.take().map(|mut server| std::thread::spawn(move || server.wait()));
            let fenced = fence(&self.cluster, asker, "node 1", Duration::from_secs(1), &Cancel::new());
            if let Some(process) = running::postmaster_pid(&self.cluster.data_directory) {
                let process = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
                let _ = process
                    .map(|process| rustix::process::kill_process(process, rustix::process::Signal::KILL));
            }
            let _ = reaper.map(|reaper| reaper.join().expect("no panic"));
            fenced
        }

        fn mark(&self) -> Option<FenceMark> {
            fence::read(self.data.path()).expect("readable")
        }
    }

    fn control(state: u32) -> Vec<u8> {
        sample_in_state(42, state)
    }

    /// WAL with a commit.
    fn wal(time: u64) -> Writer {
        let mut writer = Writer::new(0xD110, SEGMENT, BASE);
        writer.timeline = TIMELINE;
        writer.record(rmgr::XACT, 0x00, &[], &time.to_le_bytes());
        writer
    }

    fn write_wal(directory: &Path, writer: &Writer) {
        let name = segment_name(TIMELINE, BASE.0 / u64::from(SEGMENT), SEGMENT);
        fs::write(directory.join("pg_wal").join(name), writer.finish().bytes).expect("write");
    }

    /// A standby that has replayed what `writer` wrote.
    fn standby(writer: &Writer) -> Asker {
        let data = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(data.path().join("pg_wal")).expect("make");
        write_wal(data.path(), writer);
        let parsed = ControlFile::parse(&control(IN_PRODUCTION)).expect("a sample");
        let history = Lineage::new(TIMELINE, &[]);
        let directory = data.path().join("pg_wal");
        let pasts = Wal::new(&directory, &parsed)
            .pasts_of_standby(&history, writer.position(), &Cancel::new())
            .expect("readable");
        assert_eq!(pasts.len(), 1, "the sample has WAL that proves something");
        Asker {
            system_identifier: 42,
            history,
            pasts,
            identity: FileId { device: 0, inode: 0 },
            boot_id: None,
        }
    }

    const STOPS: &str = "cp $PGDATA/pgpool_recovery.fenced $PGDATA/before; cp $PGDATA/shut_down $PGDATA/global/pg_control; kill $(head -1 $PGDATA/postmaster.pid)";

    #[test]
    fn the_primary_is_marked_stopped_and_the_mark_completed() {
        let mut primary = Primary::running(STOPS);
        let fenced = primary.fence(&standby(&wal(1))).expect("fenced");
        let stopped = fenced.stopped.expect("it ran");
        assert_eq!((stopped.role, stopped.mode), (Role::OwnPrimary, Mode::Fast));
        let mark = primary.mark().expect("marked");
        assert!(mark.by == "node 1" && mark.lsn.is_some() && mark.fenced > 1_700_000_000, "{mark:?}");
        assert_eq!(mark.lsn, fenced.checkpoint);
        let before = fs::read(primary.data.path().join("before")).expect("there when it was asked to stop");
        let before: FenceMark = serde_json::from_slice(&before).expect("a mark");
        assert_eq!(before, FenceMark { lsn: None, ..mark });
    }

    #[test]
    fn a_primary_that_ended_already_is_marked() {
        for (state, is_clean) in [(SHUT_DOWN, true), (IN_PRODUCTION, false)] {
            let mut primary = Primary::new(state, "touch $PGDATA/asked");
            let fenced = primary.fence(&standby(&wal(1))).expect("fenced");
            assert_eq!((fenced.stopped, fenced.checkpoint.is_some()), (None, is_clean));
            let mark = primary.mark().expect("marked");
            assert_eq!(mark.lsn, fenced.checkpoint);
            assert!(!primary.data.path().join("asked").exists());
            // another one that asks does not change who was first
            let again =
                fence(&primary.cluster, &standby(&wal(1)), "node 2", Duration::from_secs(1), &Cancel::new());
            assert_eq!(
                (again.map(|fenced| fenced.checkpoint), primary.mark()),
                (Ok(fenced.checkpoint), Some(mark))
            );
        }
    }

    #[test]
    fn a_server_that_something_starts_again_after_a_crash_is_stopped_again() {
        let mut primary = Primary::new(IN_PRODUCTION, STOPS);
        let place = primary.cluster.data_directory.clone();
        let supervisor = std::thread::spawn(move || {
            std::thread::sleep(COMES_BACK / 3);
            running::tests::serve(&place).wait()
        });
        let fenced = primary.fence(&standby(&wal(1))).expect("fenced");
        supervisor.join().expect("no panic").expect("reaped");
        assert!(fenced.stopped.is_some() && fenced.checkpoint.is_some(), "{fenced:?}");
        assert_eq!(primary.mark().expect("marked").lsn, fenced.checkpoint);
    }

    #[test]
    fn what_is_not_proved_is_neither_stopped_nor_marked() {
        let unproved = Asker { pasts: Vec::new(), ..standby(&wal(1)) };
        for asker in [standby(&wal(2)), unproved] {
            for mut primary in [Primary::running(STOPS), Primary::new(SHUT_DOWN, STOPS)] {
                let error = primary.fence(&asker).expect_err("refused");
                assert!(
                    error.kind == Kind::TargetRefused && error.message.contains("has followed"),
                    "{error:?}"
                );
                assert_eq!(primary.mark(), None);
                assert!(!primary.data.path().join("before").exists());
            }
        }
        let mut primary = Primary::running(STOPS);
        fs::write(primary.data.path().join("standby.signal"), "").expect("write");
        fs::write(primary.data.path().join("global/pg_control"), control(5)).expect("write");
        assert!(
            primary
                .fence(&standby(&wal(1)))
                .expect_err("refused")
                .detail
                .is_some_and(|it| it.contains("standby"))
        );
        assert_eq!(primary.mark(), None);
    }

    #[test]
    fn the_mark_of_a_server_that_cannot_be_stopped_is_taken_back() {
        let mut primary = Primary::running(STOPS);
        let words = ["/bin/sh", "-c", "echo not allowed; exit 1"].map(str::to_owned).to_vec();
        primary.cluster.stop_command = Some(words);
        let error = primary.fence(&standby(&wal(1))).expect_err("refused");
        assert!(error.detail.is_some_and(|detail| detail.contains("not allowed")));
        assert!(!primary.data.path().join(FENCED).exists());
    }

    #[test]
    fn nothing_is_fenced_without_permission() {
        let mut primary = Primary::running(STOPS);
        primary.cluster.allow_stop = false;
        let error = primary.fence(&standby(&wal(1))).expect_err("refused");
        assert_eq!((error.kind, primary.mark()), (Kind::InsufficientPrivilege, None));
    }
}
