//! How far a server is that accepts no connections yet. No login is possible: what it can be known by are its files and what
//! its processes show of themselves.

use std::path::Path;
use std::time::{Duration, Instant};

use pgdata::wal::Lsn;
use pgdata::wal::segment_file::parse_segment_name;

use super::{control, running, walreceiver};
use crate::wire::protocol::describe::Starting;

/// Who is told how far a server is that starts, and how often.
pub struct Tell<'a> {
    every: Duration,
    next: Instant,
    hear: &'a mut dyn FnMut(Starting),
}

impl<'a> Tell<'a> {
    /// From now on `hear` is told so often.
    pub fn every(every: Duration, hear: &'a mut dyn FnMut(Starting)) -> Self {
        Self { every, next: Instant::now() + every, hear }
    }

    /// Tells it if it is time.
    pub(super) fn look(&mut self, directory: &Path) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + self.every;
            (self.hear)(starting(directory));
        }
    }
}

/// What can be seen of the server in `directory`.
fn starting(directory: &Path) -> Starting {
    let control = control::read(directory).ok().map(|(control, _)| control);
    let redo = control.as_ref().map(|control| control.recovery.checkpoint.redo);
    let segment_size = control.as_ref().map(|control| control.wal_segment_size);
    let segment = walreceiver::startup(directory).zip(segment_size);
    Starting {
        status: running::postmaster_status(directory),
        replayed: segment.and_then(|(title, size)| segment_begin(&title, size)).max(redo),
        stopped_startup: walreceiver::stopped_startup(directory),
    }
}

/// Where the segment begins that a startup process names: "startup recovering 000000010000000000000003".
fn segment_begin(title: &str, segment_size: u32) -> Option<Lsn> {
    let (_, segment) = parse_segment_name(title.split_whitespace().last()?, segment_size)?;
    segment.checked_mul(u64::from(segment_size)).map(Lsn)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pgdata::control_file::{PG_CONTROL, sample_in_state};

    use super::*;
    use crate::host::walreceiver::tests::{Starting as Server, await_file};

    #[test]
    fn the_segment_that_is_replayed_begins_somewhere() {
        let begin = |title| segment_begin(title, 16 << 20);
        assert_eq!(begin("startup recovering 000000010000000000000003"), Some(Lsn(0x0300_0000)));
        assert_eq!(begin("startup waiting for 00000002000000010000000A"), Some(Lsn(0x1_0A00_0000)));
        for title in ["startup", "startup recovering x", ""] {
            assert_eq!(begin(title), None, "{title}");
        }
    }

    #[test]
    fn what_is_seen_of_a_server_that_starts_is_told_now_and_then() {
        let data = tempfile::tempdir().expect("temporary directory");
        let place = data.path().canonicalize().expect("real path");
        assert_eq!(starting(&place), Starting::default(), "nothing is there");
        fs::create_dir(place.join("global")).expect("make");
        fs::write(place.join(PG_CONTROL), sample_in_state(42, 5)).expect("write");
        let redo = control::read(&place).expect("pg_control").0.recovery.checkpoint.redo;
        let server = Server::new(&place);
        await_file(&place, "one");
        let mut told = Vec::new();
        let mut hear = |starting| told.push(starting);
        let mut tell = Tell::every(Duration::ZERO, &mut hear);
        tell.look(&place);
        let startup = walreceiver::startup_files(&place).expect("a startup process").0;
        let startup = rustix::process::Pid::from_raw(startup.cast_signed()).expect("a process");
        rustix::process::kill_process(startup, rustix::process::Signal::STOP).expect("stopped");
        let deadline = Instant::now() + Duration::from_secs(30);
        while walreceiver::stopped_startup(&place).is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        tell.look(&place);
        drop(server);
        let moves = Starting { replayed: Some(redo), ..Starting::default() };
        let stands = Starting {
            stopped_startup: Some(startup.as_raw_nonzero().get().cast_unsigned()),
            ..moves.clone()
        };
        assert_eq!(told, [moves, stands]);
        let mut never = |_| panic!("it is not time");
        Tell::every(Duration::from_secs(3600), &mut never).look(&place);
    }
}
