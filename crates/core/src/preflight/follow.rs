//! May a server follow this primary without a copy? By what it says itself; never by its pg_control alone while it runs.

use std::path::Path;

use pgdata::control_file::State;
use pgdata::wal::Lsn;

use crate::compare::wal_map::{Agreement, Lineage};
use crate::error::{Error, Kind, Result};
use crate::wire::protocol::describe::{Description, Said};

/// The primary, as a server is compared with it.
#[derive(Clone, Copy)]
pub struct Primary<'a> {
    /// Its system identifier.
    pub system_identifier: u64,
    /// `15`.
    pub major_version: &'a str,
    /// The timeline that it writes, and those from which that has sprung.
    pub history: &'a Lineage,
    /// How far it has flushed its WAL, asked after the other server was: that one cannot have more of it.
    pub flushed: Lsn,
    /// Whether it has the other server's landmark.
    pub agrees: Agreement,
    /// Whether it still has the WAL from a position on.
    pub has_wal: &'a dyn Fn(Lsn) -> Result<bool>,
}

/// What a server is to a primary of its own system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// A running standby all of whose WAL is this primary's too.
    Follows(Place),
    /// A stopped server of which that is so: it rejoins as a standby.
    Rejoins(Place),
    /// It runs, and is no standby.
    Primary(Place),
    /// It has what this primary has not, or needs what this primary has no more. The error says what.
    Diverged(Error),
}

/// A position in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The timeline.
    pub timeline: u32,
    /// How far the server has come on it.
    pub position: Lsn,
}

/// What the server in `directory` is to the primary. An error is neither yes nor no. `was_stopped`: the caller has just stopped it,
/// so that it needs no mark to rejoin.
pub fn standing(
    primary: &Primary<'_>,
    target: &Description,
    directory: &Path,
    was_stopped: bool,
) -> Result<Standing> {
    demand_kin(primary, target, directory)?;
    match &target.said {
        None => stopped(primary, target, directory, was_stopped),
        Some(Err(unknown)) => {
            let message = format!(
                "cannot tell whether the server in \"{}\" may follow: {}",
                directory.display(),
                unknown.message
            );
            Err(Error { kind: Kind::WrongState, message, ..unknown.clone() })
        }
        Some(Ok(said)) if !said.in_recovery => {
            Ok(Standing::Primary(Place { timeline: said.timeline, position: said.reached() }))
        }
        Some(Ok(said)) => running(primary, target, said, directory),
    }
}

/// Refuses a server of another system or another major version.
fn demand_kin(primary: &Primary<'_>, target: &Description, directory: &Path) -> Result<()> {
    let other = |what: &str, theirs: &str, ours: &str| {
        let message = format!("the server in \"{}\" is of another {what}", directory.display());
        Err(Error::new(Kind::TargetRefused, message)
            .detail(format!("Its {what} is {theirs}, this server's is {ours}."))
            .hint("It never was a standby of this server; pgpool_recovery_1st_stage makes standbys."))
    };
    let (theirs, ours) = (target.control.system_identifier, primary.system_identifier);
    if theirs != ours {
        return other("system identifier", &theirs.to_string(), &ours.to_string());
    }
    let theirs = target.major_version.as_deref().unwrap_or("unknown");
    if theirs != primary.major_version {
        return other("major version", theirs, primary.major_version);
    }
    Ok(())
}

fn stopped(
    primary: &Primary<'_>,
    target: &Description,
    directory: &Path,
    was_stopped: bool,
) -> Result<Standing> {
    if !was_stopped && target.fence.is_none() {
        let message = format!("the server in \"{}\" is stopped", directory.display());
        return Err(Error::new(Kind::WrongState, message)
            .detail("Nothing of this extension's stopped it, so there is a reason that is not known here.")
            .hint("Start it, then call again; or recover it with pgpool_recovery_1st_stage."));
    }
    let place = Place { timeline: target.control.timeline, position: target.control.recovery.checkpoint_at };
    if target.control.state != State::ShutDown {
        return Ok(diverged(
            primary,
            place,
            directory,
            "It was not shut down in order, or not as a primary.",
        ));
    }
    if primary.agrees == Agreement::Other {
        return Ok(diverged(primary, place, directory, OTHER_WAL));
    }
    // a record that begins before the fork ends there at the latest
    let end = match part(primary, target, place.timeline) {
        Some(_) if place.timeline == primary.history.timeline() => {
            let why = "It was a primary of this server's own timeline.";
            return Ok(diverged(primary, place, directory, why));
        }
        Some(end) => end,
        None => return Ok(diverged(primary, place, directory, UNKNOWN_TIMELINE)),
    };
    if place.position >= end {
        return Ok(diverged(primary, place, directory, AHEAD));
    }
    Ok(if (primary.has_wal)(place.position)? {
        Standing::Rejoins(place)
    } else {
        gone(primary, place, directory)
    })
}

const UNKNOWN_TIMELINE: &str = "That timeline is not in this server's history.";
const OTHER_WAL: &str = "Its WAL there is not this server's: it followed a server that was promoted apart, or was promoted itself.";
const AHEAD: &str = "It has WAL that this server's history does not have.";

fn running(primary: &Primary<'_>, target: &Description, said: &Said, directory: &Path) -> Result<Standing> {
    if !target.has_standby_signal {
        let message = format!("the server in \"{}\" recovers, but is no standby", directory.display());
        return Err(Error::new(Kind::WrongState, message)
            .detail("It has no standby.signal: at the end of its recovery it becomes a primary.")
            .hint("Wait until it has ended, or stop it."));
    }
    let place = Place { timeline: said.timeline, position: said.reached() };
    // what it has received of a later timeline it is going to replay
    let latest = Place { timeline: target.history.timeline().max(said.timeline), ..place };
    for (place, position) in [(place, said.position), (latest, place.position)] {
        let Some(end) = part(primary, target, place.timeline) else {
            return Ok(diverged(primary, place, directory, UNKNOWN_TIMELINE));
        };
        if position > end.min(primary.flushed) {
            return Ok(diverged(primary, place, directory, AHEAD));
        }
    }
    if primary.agrees == Agreement::Other {
        return Ok(diverged(primary, latest, directory, OTHER_WAL));
    }
    if !(primary.has_wal)(place.position)? {
        return Ok(gone(primary, place, directory));
    }
    if said.is_paused {
        let message = format!("replay on the standby in \"{}\" is paused", directory.display());
        return Err(Error::new(Kind::WrongState, message)
            .detail("Until it goes on the standby connects to no other primary.")
            .hint("Call pg_wal_replay_resume() on the standby, then call this again."));
    }
    Ok(Standing::Follows(place))
}

/// Where the primary's history leaves a timeline, if the target's one of that number is the same, as both history files say.
fn part(primary: &Primary<'_>, target: &Description, timeline: u32) -> Option<Lsn> {
    let (ours, theirs) = (primary.history.up_to(timeline)?, target.history.up_to(timeline)?);
    (ours == theirs).then_some(())?;
    primary.history.range(timeline).map(|(_, end)| end)
}

fn diverged(primary: &Primary<'_>, place: Place, directory: &Path, why: &str) -> Standing {
    let Place { timeline, position } = place;
    // pgpool-recovery-hook knows it by these words
    let message = format!("the server in \"{}\" has diverged from this primary", directory.display());
    let own = primary.history.timeline();
    let left = match primary.history.range(timeline) {
        Some((_, end)) if timeline != own => {
            format!("this server's history left that timeline at {end} and is on timeline {own} now")
        }
        _ => format!("this server is on timeline {own} at {}", primary.flushed),
    };
    Standing::Diverged(
        Error::new(Kind::WrongState, message)
            .detail(format!("It is on timeline {timeline} at {position}; {left}. {why}"))
            .hint(
                "Rebuild it: pgpool_recovery_1st_stage, pcp_recovery_node, or option on_diverged = rebuild.",
            ),
    )
}

fn gone(primary: &Primary<'_>, place: Place, directory: &Path) -> Standing {
    diverged(primary, place, directory, "This server no longer has the WAL that it needs from there on.")
}

#[cfg(test)]
mod tests {
    use pgdata::control_file::{ControlFile, sample};
    use pgdata::history::Ancestor;

    use super::*;
    use crate::wire::protocol::describe::FenceMark;

    /// Timeline 5, which left 3 at 0x300, and that left 1 at 0x100.
    fn history() -> Lineage {
        let ancestor = |timeline, end| Ancestor { timeline, end: Lsn(end) };
        Lineage::new(5, &[ancestor(1, 0x100), ancestor(3, 0x300)])
    }

    fn standby(timeline: u32, position: u64) -> Description {
        Description {
            stopped_startup: None,
            running: Some(7),
            has_standby_signal: true,
            control: ControlFile::parse(&sample(42)).expect("a sample"),
            major_version: Some("15".to_owned()),
            history: history().up_to(timeline).unwrap_or_else(|| Lineage::new(timeline, &[])),
            landmark: None,
            said: Some(Ok(Said {
                in_recovery: true,
                timeline,
                position: Lsn(position),
                received: None,
                replayed: Some(Lsn(position)),
                is_paused: false,
                apply_delay: 0,
            })),
            is_busy: false,
            fence: None,
            second_stage: None,
        }
    }

    /// A primary that was fenced and whose shutdown checkpoint begins there.
    fn fenced(timeline: u32, checkpoint: u64) -> Description {
        let mut found = standby(timeline, 0);
        (found.running, found.said, found.has_standby_signal) = (None, None, false);
        (found.control.state, found.control.timeline) = (State::ShutDown, timeline);
        found.control.recovery.checkpoint_at = Lsn(checkpoint);
        found.fence = Some(FenceMark::default());
        found
    }

    fn said(found: &mut Description) -> &mut Said {
        found.said.as_mut().expect("it runs").as_mut().expect("it speaks")
    }

    fn judge(target: &Description) -> Result<Standing> {
        judge_with(target, &|_| Ok(true), false)
    }

    fn judge_with(
        target: &Description,
        has_wal: &dyn Fn(Lsn) -> Result<bool>,
        was_stopped: bool,
    ) -> Result<Standing> {
        let history = history();
        let primary = Primary {
            system_identifier: 42,
            major_version: "15",
            history: &history,
            flushed: Lsn(0x500),
            agrees: Agreement::Unknown,
            has_wal,
        };
        standing(&primary, target, Path::new("/srv/b"), was_stopped)
    }

    #[test]
    fn one_whose_wal_is_another_one_has_diverged_wherever_it_is() {
        let history = history();
        for (target, timeline) in [
            (standby(5, 0x400), "timeline 5"),
            (standby(3, 0x200), "timeline 3"),
            (fenced(3, 0x200), "timeline 3"),
        ] {
            for (agrees, is_other) in
                [(Agreement::Same, false), (Agreement::Unknown, false), (Agreement::Other, true)]
            {
                let primary = Primary {
                    system_identifier: 42,
                    major_version: "15",
                    history: &history,
                    flushed: Lsn(0x500),
                    agrees,
                    has_wal: &|_| Ok(true),
                };
                match standing(&primary, &target, Path::new("/srv/b"), false).expect("an answer") {
                    Standing::Diverged(error) => {
                        let detail = error.detail.expect("a detail");
                        assert!(
                            is_other && detail.contains(timeline) && detail.contains("promoted apart"),
                            "{detail}"
                        );
                    }
                    other => assert!(!is_other, "{other:?}"),
                }
            }
        }
    }

    fn place(timeline: u32, position: u64) -> Place {
        Place { timeline, position: Lsn(position) }
    }

    #[track_caller]
    fn is_diverged(target: &Description, words: &[&str]) {
        match judge(target) {
            Ok(Standing::Diverged(error)) => {
                assert_eq!(error.kind.sqlstate(), "55000");
                assert!(
                    error.message.ends_with("\" has diverged from this primary"),
                    "what the hook looks for"
                );
                let detail = error.detail.expect("a detail");
                assert!(words.iter().all(|word| detail.contains(word)), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn another_system_or_version_is_refused() {
        let mut other = standby(5, 0x400);
        other.control.system_identifier = 43;
        let error = judge(&other).expect_err("another system");
        assert_eq!(error.kind.sqlstate(), "55000");
        assert!(error.detail.is_some_and(|detail| detail.contains("43")));
        for version in [Some("16".to_owned()), None] {
            let other = Description { major_version: version, ..standby(5, 0x400) };
            assert!(judge(&other).expect_err("another version").message.contains("major version"));
        }
    }

    #[test]
    fn a_standby_up_to_the_fork_follows() {
        for (timeline, position) in [(1, 0x80), (1, 0x100), (3, 0x300), (5, 0x400), (5, 0x500)] {
            let expected = Standing::Follows(place(timeline, position));
            assert_eq!(judge(&standby(timeline, position)), Ok(expected));
        }
    }

    #[test]
    fn a_standby_beyond_the_fork_has_diverged() {
        is_diverged(&standby(1, 0x101), &["timeline 1 at 0/101", "at 0/100", "does not have"]);
        is_diverged(&standby(3, 0x301), &["timeline 3 at 0/301", "at 0/300"]);
        is_diverged(&standby(5, 0x501), &["timeline 5 at 0/501", "timeline 5 at 0/500"]);
        // what was received counts, not only what was replayed
        let mut received = standby(1, 0x80);
        said(&mut received).received = Some(Lsn(0x120));
        is_diverged(&received, &["timeline 1 at 0/120"]);
    }

    #[test]
    fn a_timeline_that_is_not_in_the_history_has_diverged() {
        for timeline in [2, 4, 6] {
            is_diverged(&standby(timeline, 0x80), &["not in this server's history"]);
        }
        // of the same number, but begun elsewhere
        let mut twin = standby(5, 0x400);
        twin.history = Lineage::new(5, &[Ancestor { timeline: 1, end: Lsn(0x100) }]);
        is_diverged(&twin, &["not in this server's history"]);
        // it replays a known one, and has WAL of another one
        let mut received = standby(1, 0x80);
        received.history = Lineage::new(6, &[Ancestor { timeline: 1, end: Lsn(0x100) }]);
        is_diverged(&received, &["timeline 6"]);
        // or of a later one that is ours
        let mut received = standby(3, 0x80);
        said(&mut received).timeline = 1;
        said(&mut received).received = Some(Lsn(0x200));
        assert!(matches!(judge(&received), Ok(Standing::Follows(_))));
    }

    #[test]
    fn a_standby_whose_wal_is_gone_has_diverged() {
        let oldest = |position| Ok(position >= Lsn(0x90));
        let found = judge_with(&standby(1, 0x80), &oldest, false);
        assert!(
            matches!(found, Ok(Standing::Diverged(error)) if error.detail.clone().unwrap_or_default().contains("no longer has"))
        );
        assert!(matches!(judge_with(&standby(1, 0x90), &oldest, false), Ok(Standing::Follows(_))));
        let found = judge_with(&fenced(1, 0x80), &oldest, false);
        assert!(matches!(found, Ok(Standing::Diverged(_))));
    }

    #[test]
    fn a_server_that_says_nothing_is_not_judged() {
        let silent =
            Error::new(Kind::StartFailed, "it does not tell").detail("FATAL: no entry").hint("Let it.");
        let error =
            judge(&Description { said: Some(Err(silent)), ..standby(5, 0x400) }).expect_err("unknown");
        assert_eq!(error.kind.sqlstate(), "55000");
        assert!(error.message.contains("cannot tell") && error.detail.as_deref() == Some("FATAL: no entry"));
    }

    #[test]
    fn paused_replay_and_a_recovery_that_ends_are_refused() {
        let mut paused = standby(1, 0x80);
        said(&mut paused).is_paused = true;
        assert!(judge(&paused).expect_err("paused").message.contains("is paused"));
        said(&mut paused).position = Lsn(0x200);
        is_diverged(&paused, &["0/200"]);
        let ends = Description { has_standby_signal: false, ..standby(1, 0x80) };
        assert!(judge(&ends).expect_err("no standby").message.contains("no standby"));
    }

    #[test]
    fn a_running_primary_is_one() {
        let mut primary = standby(1, 0x80);
        said(&mut primary).in_recovery = false;
        assert_eq!(judge(&primary), Ok(Standing::Primary(place(1, 0x80))));
        primary.has_standby_signal = false;
        assert_eq!(judge(&primary), Ok(Standing::Primary(place(1, 0x80))));
    }

    #[test]
    fn a_stopped_server_has_a_reason_unless_it_was_fenced() {
        let unmarked = Description { fence: None, ..fenced(3, 0x200) };
        let error = judge(&unmarked).expect_err("stopped");
        assert!(error.message.contains("is stopped") && error.kind.sqlstate() == "55000");
        let rejoins = Ok(Standing::Rejoins(place(3, 0x200)));
        assert_eq!(judge_with(&unmarked, &|_| Ok(true), true), rejoins);
        assert_eq!(judge(&fenced(3, 0x200)), rejoins);
    }

    #[test]
    fn a_fenced_server_rejoins_only_if_its_last_record_is_ours() {
        is_diverged(&fenced(3, 0x300), &["timeline 3 at 0/300", "does not have"]);
        is_diverged(&fenced(4, 0x200), &["not in this server's history"]);
        is_diverged(&fenced(5, 0x400), &["own timeline"]);
        for state in [State::InProduction, State::ShutDownInRecovery, State::InArchiveRecovery] {
            let mut unclean = fenced(3, 0x200);
            unclean.control.state = state;
            is_diverged(&unclean, &["not shut down in order"]);
        }
    }
}
