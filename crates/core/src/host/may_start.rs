//! May the server in a directory be started, when its host boots say? An old primary must not: another node has been
//! promoted, and clients would write to both.
//!
//! What the directory itself says comes first ([`Own::demand_unmarked`]), then what the other nodes' agents found
//! ([`Own::judge`]). Nothing changes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use pgdata::wal::Lsn;

use super::{control, fence, inspect, running};
use crate::compare::wal_map::Wal;
use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::{FENCED, MARKER};
use crate::sys::FileId;
use crate::sys::machine;
use crate::wire::protocol::describe::FenceMark;
use crate::wire::protocol::message::{Content, TargetInfo};

/// Present in the directory of a standby.
const STANDBY_SIGNAL: &str = "standby.signal";

/// A directory whose server is about to be started.
#[derive(Debug, Clone)]
pub struct Own {
    directory: PathBuf,
    system_identifier: u64,
    timeline: u32,
    is_standby: bool,
    is_fenced: bool,
    /// Where the timeline begins that pg_control tells, if it has sprung from another one.
    begin: Option<Lsn>,
    identity: FileId,
    boot_id: Option<String>,
}

/// What a node's answer means, if it does not forbid the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The node is this directory.
    Itself,
    /// Nothing there speaks against the start.
    Good,
    /// The same, but an administrator should know this.
    Noted(String),
    /// It could not be told, for this reason: as if the node had not answered.
    Unknown(String),
}

impl Own {
    /// Looks at the directory. What cannot be told is an error.
    pub fn look(directory: &Path) -> Result<Self> {
        let metadata = fs::metadata(directory).map_err(Error::on_path("stat directory", directory))?;
        let is_there = |name: &str| {
            let path = directory.join(name);
            match fs::symlink_metadata(&path) {
                Ok(_) => Ok(true),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    Ok(false)
                }
                Err(error) => Err(Error::at("stat file", &path, &error)),
            }
        };
        if is_there(MARKER)? {
            return Err(not_to_be_started(directory, "a recovery of it broke off")
                .hint("Run the recovery again, with pcp_recovery_node say; it sends only what is missing."));
        }
        if !is_there("PG_VERSION")? {
            let message = format!("\"{}\" is not a PostgreSQL data directory", directory.display());
            return Err(Error::new(Kind::TargetRefused, message)
                .detail("It has no PG_VERSION.")
                .hint("Give the data directory of the server that is to be started."));
        }
        let (control, _) = control::read(directory)?;
        let history = Wal::new(&directory.join("pg_wal"), &control).lineage(control.timeline);
        let signal = directory.join(STANDBY_SIGNAL);
        Ok(Self {
            directory: directory.to_owned(),
            system_identifier: control.system_identifier,
            timeline: inspect::latest_timeline(directory, &control)?,
            // as the server looks: a link that leads nowhere makes no standby of it
            is_standby: signal.try_exists().map_err(Error::on_path("stat file", &signal))?,
            is_fenced: is_there(FENCED)?,
            // without a history it is not known: then a mark counts
            begin: history.ok().map(|history| history.begin()).filter(|begin| begin.0 > 0),
            identity: FileId::from(&metadata),
            boot_id: machine::boot_id(),
        })
    }

    /// Whether it is a standby: that may always start, since it accepts no transactions of its own.
    pub const fn is_standby(&self) -> bool {
        self.is_standby
    }

    /// The latest timeline of which it has WAL, or which pg_control tells.
    pub const fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Refuses a directory that a promotion has fenced, unless it has become a standby since, or a later primary.
    pub fn demand_unmarked(&self) -> Result<()> {
        if !self.is_fenced || self.is_standby {
            return Ok(());
        }
        let path = self.directory.join(FENCED);
        let refusal = not_to_be_started(&self.directory, "it was stopped because another node was promoted")
            .hint(format!(
                "Rebuild it with pcp_recovery_node. If it is the right one after all, remove \"{}\".",
                path.display()
            ));
        // a file that cannot be read is a mark all the same
        Err(match fence::read(&self.directory) {
            // what was shut down before its timeline began has followed another server since, and was promoted itself
            Ok(Some(FenceMark { lsn: Some(end), .. })) if self.begin.is_some_and(|begin| begin > end) => {
                return Ok(());
            }
            Ok(Some(mark)) => refusal.detail(format!("It was fenced for {}. {}", mark.by, mark.why)),
            Ok(None) => refusal,
            Err(error) => refusal.detail(error.message),
        })
    }

    /// Whether the server that was found is the one that runs here: a container may give its shells another boot_id than its services.
    /// Before a start none runs, so that a clone of this host cannot be taken for it. One in doubt proves nothing.
    fn runs_as(&self, found: Option<u32>) -> bool {
        found.is_some() && running::server(&self.directory).is_ok_and(|here| here == found)
    }

    /// What the agent at `place` found in its node's directory: a refusal, or what else it means. Any later timeline of
    /// this system forbids a start, whether a server runs there or not: hosts that boot together answer before their servers
    /// do.
    pub fn judge(&self, place: &str, found: &TargetInfo) -> Result<Answer> {
        let boots = (self.boot_id.as_deref(), found.boot_id.as_deref());
        let looks_alike = found.identity == Some(self.identity);
        // a clone of this host has the same inodes: that they may be one permits nothing
        if looks_alike && (machine::are_one(boots.0, boots.1) || self.runs_as(found.running)) {
            return Ok(Answer::Itself);
        }
        if matches!(found.content, Content::Missing | Content::Empty) {
            // that of the new primary looks so until its disk is mounted
            return Ok(Answer::Unknown("its data directory is missing or empty".to_owned()));
        }
        let marker = found.marker.as_ref().map(|marker| (marker.system_identifier, marker.timeline));
        let of_marker =
            marker.filter(|(system, _)| *system == self.system_identifier).map(|(_, timeline)| timeline);
        let Some(system) = found.system_identifier.or(marker.map(|(system, _)| system)) else {
            return Ok(Answer::Unknown(match &found.doubts.identity {
                Some(doubt) => doubt.to_string(),
                None => "what it has does not tell whose it is".to_owned(),
            }));
        };
        if system != self.system_identifier {
            return Ok(Answer::Unknown(format!(
                "it has another system: its system identifier is {system}, that of \"{}\" {}",
                self.directory.display(),
                self.system_identifier
            )));
        }
        let Some(theirs) = found.timeline.max(of_marker) else {
            return Ok(Answer::Unknown("it does not tell its timeline".to_owned()));
        };
        let is_primary = found.running.is_some() && !found.backup.has_standby_signal;
        let ours = self.timeline;
        let does = match (found.running, is_primary) {
            (_, true) => "runs this system as a primary",
            (Some(_), false) => "runs a standby of this system",
            (None, _) => "has this system, not running,",
        };
        if theirs > ours || (theirs == ours && is_primary) {
            let (beside, hint) = if theirs > ours {
                (
                    format!("this directory has only reached timeline {ours}"),
                    "It was replaced while it was down: ",
                )
            } else {
                ("which is this directory's, too".to_owned(), "There would be two primaries: ")
            };
            let why = format!("{place} {does} on timeline {theirs}, {beside}");
            return Err(not_to_be_started(&self.directory, &why).hint(format!(
                "{hint}rebuild it with pcp_recovery_node. If it is the right one after all, take the other node out \
                 of nodes in agent.toml first."
            )));
        }
        if is_primary {
            return Ok(Answer::Noted(format!(
                "{place} still {does} on timeline {theirs}, which this directory has left for {ours}: stop that server"
            )));
        }
        if let Some(doubt) = &found.doubts.server
            && theirs == ours
            && !found.backup.has_standby_signal
        {
            return Ok(Answer::Unknown(doubt.to_string()));
        }
        // two that were promoted apart, and boot together; what is being rebuilt is none
        if theirs == ours
            && found.running.is_none()
            && found.marker.is_none()
            && !found.backup.has_standby_signal
        {
            return Ok(Answer::Unknown(format!(
                "it has timeline {theirs}, too, and no standby.signal: it may be a primary that is not running"
            )));
        }
        // by itself a node does not count as heard
        if looks_alike && machine::may_be_one(boots.0, boots.1) {
            return Ok(Answer::Unknown(
                "it may be this directory itself: a boot_id cannot be read".to_owned(),
            ));
        }
        Ok(Answer::Good)
    }
}

/// The refusal in one line: what, and why.
pub fn not_to_be_started(directory: &Path, why: &str) -> Error {
    Error::new(
        Kind::TargetRefused,
        format!("the server in \"{}\" must not be started: {why}", directory.display()),
    )
}

#[cfg(test)]
mod tests {
    use pgdata::control_file::sample;

    use super::*;
    use crate::host::policy::Cluster;
    use crate::sys::cancel::Cancel;
    use crate::wire::protocol::message::Marker;

    /// A data directory of system 42; the sample's timeline is 3.
    fn directory() -> tempfile::TempDir {
        let data = tempfile::tempdir().expect("temporary directory");
        for name in ["global", "pg_wal", "base"] {
            fs::create_dir(data.path().join(name)).expect("make");
        }
        fs::write(data.path().join("PG_VERSION"), "15\n").expect("write");
        fs::write(data.path().join("global/pg_control"), sample(42)).expect("write");
        data
    }

    /// What an agent tells of such a directory, whose server runs as a primary.
    fn found(data: &Path) -> TargetInfo {
        let programs = tempfile::tempdir().expect("temporary directory");
        crate::sys::process::tests::script(
            &programs.path().join("postgres"),
            "echo 'postgres (PostgreSQL) 15.4'",
        );
        let cluster = Cluster::new(data.to_owned(), programs.path().to_owned());
        let mut found = inspect::inspect(&cluster, &[], "", None, &Cancel::new()).expect("looked");
        found.running = Some(7);
        found
    }

    fn judge(change: impl FnOnce(&mut TargetInfo)) -> std::result::Result<Answer, String> {
        let (ours, theirs) = (directory(), directory());
        let own = Own::look(ours.path()).expect("a data directory");
        let mut found = found(theirs.path());
        change(&mut found);
        own.judge("the agent at b:1", &found).map_err(|error| error.message)
    }

    #[test]
    fn a_later_timeline_forbids_a_start_whoever_has_it() {
        let later = |running: Option<u32>, is_standby: bool| {
            judge(|found| {
                (found.timeline, found.running) = (Some(9), running);
                found.backup.has_standby_signal = is_standby;
            })
            .expect_err("refused")
        };
        for (running, is_standby, said) in [
            (Some(7), false, "runs this system as a primary on timeline 9"),
            (Some(7), true, "runs a standby of this system on timeline 9"),
            (None, false, "has this system, not running, on timeline 9"),
        ] {
            let message = later(running, is_standby);
            assert!(message.contains("b:1") && message.contains(said), "{message}");
            assert!(message.contains("reached timeline "), "{message}");
        }
        let message = judge(|found| {
            (found.system_identifier, found.timeline) = (None, None);
            found.marker = Some(Marker { system_identifier: 42, timeline: 9, ..Marker::default() });
        });
        assert!(message.expect_err("of the primary that rebuilds it").contains("timeline 9"));
    }

    #[test]
    fn the_same_timeline_forbids_it_only_if_a_primary_runs_there() {
        assert!(judge(|_| {}).expect_err("two primaries").contains("this directory's, too"));
        assert_eq!(judge(|found| found.backup.has_standby_signal = true), Ok(Answer::Good));
        let twin = judge(|found| found.running = None);
        assert!(matches!(twin, Ok(Answer::Unknown(why)) if why.contains("standby.signal")));
        let stopped = |change: fn(&mut TargetInfo)| {
            judge(|found| {
                found.running = None;
                change(found);
            })
        };
        assert_eq!(stopped(|found| found.backup.has_standby_signal = true), Ok(Answer::Good));
        assert_eq!(stopped(|found| found.timeline = Some(1)), Ok(Answer::Good), "it was left behind");
        let unknown = judge(|found| {
            found.running = None;
            found.doubts.server = Some(Error::new(Kind::TargetRefused, "cannot tell"));
        });
        assert_eq!(unknown, Ok(Answer::Unknown("cannot tell".to_owned())), "an error is no \"no\"");
    }

    #[test]
    fn an_earlier_timeline_is_at_most_noted() {
        assert!(
            matches!(judge(|found| found.timeline = Some(1)), Ok(Answer::Noted(note)) if note.contains("stop"))
        );
        assert_eq!(judge(|found| (found.timeline, found.running) = (Some(1), None)), Ok(Answer::Good));
    }

    #[test]
    fn what_is_no_answer_is_told_apart() {
        let of = |change: fn(&mut TargetInfo)| judge(change).expect("no refusal");
        assert!(
            matches!(of(|found| found.system_identifier = Some(43)), Answer::Unknown(_)),
            "another system"
        );
        assert!(matches!(of(|found| found.system_identifier = None), Answer::Unknown(_)));
        assert!(matches!(of(|found| found.timeline = None), Answer::Unknown(_)));
        for content in [Content::Missing, Content::Empty] {
            let answer = judge(|found| found.content = content).expect("no refusal");
            assert!(
                matches!(answer, Answer::Unknown(why) if why.contains("missing or empty")),
                "{content:?}"
            );
        }
        let own = directory();
        let look = Own::look(own.path()).expect("a data directory");
        assert_eq!(look.judge("itself", &found(own.path())), Ok(Answer::Itself));
        // a container whose shells have a boot_id of their own, its server running; a clone of this host
        let elsewhere =
            |running| TargetInfo { boot_id: Some("another".to_owned()), running, ..found(own.path()) };
        let mut server = running::tests::serve(own.path());
        let pid = server.id();
        assert_eq!(look.judge("itself", &elsewhere(Some(pid))), Ok(Answer::Itself));
        assert_ne!(look.judge("another", &elsewhere(Some(pid + 1))).ok(), Some(Answer::Itself));
        assert_ne!(look.judge("another", &elsewhere(None)).ok(), Some(Answer::Itself));
        server.kill().and_then(|()| server.wait()).expect("ended");
        assert_ne!(look.judge("a clone", &elsewhere(Some(pid))).ok(), Some(Answer::Itself));
    }

    #[test]
    fn a_host_that_does_not_tell_its_boot_may_be_a_clone_of_this_one() {
        let own = directory();
        let found = TargetInfo { running: None, ..found(own.path()) };
        let judged = |ours: Option<&str>, theirs: Option<&str>, timeline: u32| {
            let boot_id = ours.map(str::to_owned);
            let look = Own { boot_id, ..Own::look(own.path()).expect("a data directory") };
            let boot_id = theirs.map(str::to_owned);
            look.judge("a node", &TargetInfo { boot_id, timeline: Some(timeline), ..found.clone() })
        };
        assert_eq!(judged(Some("a"), Some("a"), 9), Ok(Answer::Itself));
        for (ours, theirs) in [(None, None), (Some("a"), None), (None, Some("a"))] {
            // it was promoted while this one was down
            assert!(judged(ours, theirs, 9).expect_err("refused").message.contains("timeline 9"));
            assert!(
                matches!(judged(ours, theirs, 1), Ok(Answer::Unknown(_))),
                "it is not another that was heard"
            );
        }
    }

    #[test]
    fn marks_in_the_directory_come_first() {
        let data = directory();
        let look = || Own::look(data.path());
        look().expect("good").demand_unmarked().expect("unmarked");
        let fenced = |mark: &str| {
            fs::write(data.path().join(FENCED), mark).expect("write");
            look().expect("looked").demand_unmarked().expect_err("fenced").detail.unwrap_or_default()
        };
        let mark = r#"{ "fenced": 1, "by": "the standby on node2", "why": "It was going to be promoted." }"#;
        assert_eq!(fenced(mark), "It was fenced for the standby on node2. It was going to be promoted.");
        assert!(fenced("nonsense").contains("cannot be understood"), "a mark all the same");
        std::os::unix::fs::symlink("nowhere", data.path().join(STANDBY_SIGNAL)).expect("link");
        look().expect("looked").demand_unmarked().expect_err("for the server it is not there");
        fs::remove_file(data.path().join(STANDBY_SIGNAL)).expect("remove");
        fs::write(data.path().join(STANDBY_SIGNAL), "").expect("write");
        let own = look().expect("looked");
        own.demand_unmarked().expect("a standby may always start");
        assert!(own.is_standby());
        fs::write(data.path().join(MARKER), "{}").expect("write");
        assert!(look().expect_err("incomplete").message.contains("broke off"));
    }

    #[test]
    fn the_mark_of_an_earlier_timeline_is_void() {
        let data = directory();
        // pg_control is on timeline 3
        let history = |begin: &str| {
            fs::write(data.path().join("pg_wal/00000003.history"), format!("1\t{begin}\t\n")).expect("write");
        };
        let demand = |mark: &str| {
            fs::write(data.path().join(FENCED), mark).expect("write");
            Own::look(data.path()).expect("looked").demand_unmarked()
        };
        let mark = |lsn: u64| {
            let mark = FenceMark { lsn: Some(Lsn(lsn)), ..FenceMark::default() };
            serde_json::to_string(&mark).expect("encoded")
        };
        history("0/7000000");
        demand(&mark(0x6FF_FFFF)).expect("promoted since");
        demand(&mark(0x700_0000)).expect_err("on this timeline");
        demand(r#"{ "fenced": 1, "by": "", "why": "" }"#).expect_err("not shut down in order: not known");
        demand("nonsense").expect_err("a mark all the same");
        fs::remove_file(data.path().join("pg_wal/00000003.history")).expect("remove");
        demand(&mark(1)).expect_err("it has no history");
    }

    #[test]
    fn what_is_no_data_directory_is_refused() {
        let data = directory();
        fs::remove_file(data.path().join("PG_VERSION")).expect("remove");
        assert!(
            Own::look(data.path()).expect_err("none").message.contains("is not a PostgreSQL data directory")
        );
        assert_eq!(Own::look(&data.path().join("none")).expect_err("none").kind, Kind::MissingFile);
        fs::write(data.path().join("PG_VERSION"), "15\n").expect("write");
        fs::write(data.path().join("global/pg_control"), "").expect("write");
        assert_eq!(Own::look(data.path()).expect_err("damaged").kind, Kind::Corrupt);
    }
}
